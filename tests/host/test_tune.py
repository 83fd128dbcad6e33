"""Tune Policy in the host: on a tiny DiT, and through the node."""

import dataclasses
import json
import re

import pytest
import torch
from priorcache.cache_core.policies import EOC, FORA, GOC, DuCa, Full, Taylor
from priorcache.cache_core.sites import Schedule
from priorcache.cache_core.trace import Trace
from priorcache.errors import SettingError
from priorcache.priors.record import recorded, restored
from priorcache.priors.trend import Trend

STEPS = 8
SETTINGS = {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
BASE = FORA(2, "aligned")


@pytest.fixture(scope="module")
def model(host):
    return host.model()


@pytest.fixture(scope="module")
def prior(host, model, conds):
    from priorcache.nodes.calibrate import PriorCacheCalibrate

    with torch.inference_mode():
        return PriorCacheCalibrate.execute(
            model, *conds, {"samples": torch.zeros(2, 3, 16, 16)}, seed=1, runs=1, longest_gap=1, mean_features=True, **SETTINGS
        ).args[0]  # fmt: skip


@pytest.fixture
def tune(host, model, conds):
    from priorcache.nodes.tune import PriorCacheTune

    def tune(policy, model=model, **changes):
        given = {"seed": 40, "samplings": 6.0} | SETTINGS | changes
        latent = {"samples": torch.zeros(2, 3, 16, 16)}
        with torch.inference_mode():
            return PriorCacheTune.execute(policy, model, *conds, latent, **given).args

    return tune


def sampled(host, model, policy, seed=40):
    """(error to the run in full, the run's trace)."""
    trace = Trace()
    settings = {"steps": STEPS, "sampler": "euler", "scheduler": "karras", "seed": seed}
    out, exact = host.sample(host.attach(model, policy, trace), **settings), host.sample(model, **settings)
    error = ((out - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean().item()
    return error, trace.runs[0]


def given(kind: str, prior):
    return {"GOC": GOC(BASE, 1.6), "EOC": EOC(BASE, Trend(prior), 0.5), "DuCa": DuCa("dit", 3, 0.2)}[kind]


@pytest.mark.parametrize("kind", ["GOC", "EOC", "DuCa"])
def test_the_tuned_policy_is_better_and_keeps_to_its_cost(host, model, prior, tune, kind):
    """Judged anew, as Apply Cache samples with it."""
    policy, ceiling = given(kind, prior), 0.8 if kind == "DuCa" else 0.0
    tuned, text = tune(policy, ceiling=ceiling)
    assert type(tuned) is type(policy)
    (before, first), (after, last) = sampled(host, model, policy), sampled(host, model, tuned)
    assert last.notes == []
    assert after < before
    assert last.cost() <= max(first.cost(), ceiling) * 1.001
    assert f"{before:.4f} before, {after:.4f} after" in text
    for knob in {"GOC": ("eta", "queue", "inflections"), "EOC": ("theta", "judged"), "DuCa": ("ratio", "interval")}[
        kind
    ]:
        assert f"{kind} {knob}: " in text
    assert ("FORA computed: " in text) == (kind != "DuCa")


def test_a_tuned_policy_is_kept_in_an_image_and_made_again(host, model, tune):
    tuned, _ = tune(GOC(BASE, 1.6))
    _, run = sampled(host, model, tuned)
    kept = json.loads(json.dumps(run.record))
    again = restored(kept["policy"], kept["settings"])
    assert recorded(again) == run.record
    assert sampled(host, model, again)[0] == sampled(host, model, tuned)[0]


def test_goes_on_where_it_was_stopped(tune, samplings):
    from priorcache.nodes import searching

    samplings.stop = 5
    with pytest.raises(KeyboardInterrupt):
        tune(Taylor(BASE), samplings=3.0, seed=41)
    samplings.clear()
    first = tune(Taylor(BASE), samplings=3.0, seed=41)
    went_on = len(samplings)
    searching._SEARCHES.clear()
    samplings.clear()
    assert tune(Taylor(BASE), samplings=3.0, seed=41) == first
    assert went_on == len(samplings) - 3  # what was sampled before it stopped; the runs in full are sampled again


def test_searches_of_policies_that_read_alike_are_kept_apart(host, model, prior):
    """EOC does not tell its tables, and the pictures are those of its tables."""
    from priorcache.nodes.searching import remembered

    pictures, schedule = torch.zeros(2, 3, 16, 16), Schedule(STEPS)
    other = dataclasses.replace(prior, tables={name: table * 2 for name, table in prior.tables.items()})
    same, again, different = (EOC(BASE, Trend(of)) for of in (prior, prior, other))
    assert repr(same) == repr(different)
    assert remembered(pictures, schedule, same) is remembered(pictures, schedule, again)
    assert remembered(pictures, schedule, same) is not remembered(pictures, schedule, different)


def test_a_search_of_what_is_made_of_sets_is_known_again(host):
    """As L2C is. Sets that are equal are told in another order by another session."""
    from priorcache.nodes.searching import remembered

    pictures, schedule = torch.zeros(2, 3, 16, 16), Schedule(STEPS)
    one, again = ({"reused": (frozenset(), frozenset(numbers))} for numbers in ([0, 8], [8, 0]))
    assert one == again
    assert repr(one) != repr(again)
    assert remembered(pictures, schedule, one) is remembered(pictures, schedule, again)
    other = {"reused": (frozenset(), frozenset([0, 9]))}
    assert remembered(pictures, schedule, one) is not remembered(pictures, schedule, other)


def test_what_was_tried_on_another_noise_schedule_is_not_taken_over(tune, host, model):
    """The shift of a flow model and guidance nodes change neither its weights nor its patches."""
    import comfy_extras.nodes_model_advanced as advanced

    rescaled = advanced.RescaleCFG().patch(model, 1.0)[0]
    assert rescaled.patches_uuid == model.patches_uuid
    told = [tune(Taylor(BASE), of, samplings=1.0, seed=42)[1] for of in (model, rescaled)]
    first, second = (re.search(r"([\d.]+) before", text)[1] for text in told)
    assert first != second


@pytest.mark.parametrize(("policy", "changes", "said"), [
    (Full(), {}, "leaves nothing to tune"),
    (GOC(BASE, inflections=(17,), steps=20), {}, "would compute everything here: its inflection steps"),
    (GOC(BASE), {"ceiling": 0.3}, "already costs 0.500 of a full sampling"),
    (GOC(BASE), {"samplings": float("nan")}, "Tune Policy"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_said_in_one_sentence(tune, policy, changes, said):
    with pytest.raises(SettingError, match=said):
        tune(policy, **changes)


def test_tells_the_work_of_a_branch_from_its_size(host, model):
    from priorcache.nodes.sampling import Sampling
    from priorcache.nodes.searching import Sampler

    labels = host.dit.conditioning(torch.tensor([1]))
    flops = Sampler(Sampling(labels, labels, torch.zeros(1, 3, 16, 16), 4, 1.5, "euler", "normal"), model, 0).flops
    assert 1 < flops["blocks.0.mlp"] / flops["blocks.0.attn"] < 2  # 16 N C C to 8 N C C + 4 N N C, at N = C
