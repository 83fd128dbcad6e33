"""Noise levels that a scheduler node gave, in place of a scheduler's name, through every node that samples by itself."""

import math

import pytest
import torch
from priorcache.cache_core.policies import FORA, GOC
from priorcache.cache_core.trace import Trace
from priorcache.errors import SettingError
from priorcache.priors.prior import GIVEN, Prior, PriorError

STEPS = 12
NAMED = {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
OTHER = NAMED | {"steps": 4, "scheduler": "normal", "denoise": 0.5}
"""What says nothing where sigmas are connected."""
UNDRAWN = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def model(host):
    return host.model()


@pytest.fixture(autouse=True)
def nodes(comfy, tmp_path, monkeypatch):
    import folder_paths
    import priorcache.nodes as pack

    pack.register_folder()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "priorcache", ([str(tmp_path)], {".safetensors"}))
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES}


@pytest.fixture(scope="module")
def sigmas(model):
    """Those of NAMED, as BasicScheduler gives them."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler

    return BasicScheduler.execute(model, "karras", STEPS, 1.0).args[0]


@pytest.fixture
def run(nodes, model, conds):
    def run(node: str, *first, **given):
        with torch.inference_mode():
            return nodes[f"PriorCache{node}"].execute(*first, model, *conds, latent(), seed=3, **given).args

    return run


@pytest.fixture
def calibrate(run):
    return lambda **given: run("Calibrate", **{"runs": 1, "longest_gap": 1, "mean_features": False, **OTHER} | given)[0]


def latent() -> dict:
    return {"samples": torch.zeros(2, 3, 16, 16)}


def custom(model, conds, sigmas, seed: int = 41) -> torch.Tensor:
    """What the host's SamplerCustom gives."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

    with torch.inference_mode():
        sampler = KSamplerSelect.execute("euler").args[0]
        return SamplerCustom.execute(model, True, seed, 1.5, *conds, sampler, sigmas, latent()).args[0]["samples"]


@UNDRAWN
def test_sigmas_of_a_scheduler_measure_what_its_name_does(calibrate, sigmas, tmp_path):
    by_name, by_sigmas = calibrate(**NAMED), calibrate(sigmas=sigmas)
    for name, table in by_name.tables.items():
        assert torch.equal(by_sigmas.tables[name].nan_to_num(), table.nan_to_num()), name
    assert by_sigmas.subject.settings == f"euler, {GIVEN}, {STEPS} steps, cfg 1.5"
    kept = Prior.load(by_sigmas.save(tmp_path / "p.safetensors"))
    assert kept.schedule == tuple(sigmas.tolist())
    assert by_name.schedule == ()


@UNDRAWN
def test_a_plan_is_searched_along_them_and_found_again_by_auto(nodes, run, calibrate, model, conds, sigmas, tmp_path):
    from priorcache.nodes.attach import attach

    prior = Prior.load(calibrate(sigmas=sigmas).save(tmp_path / "p.safetensors"))
    planned, *_ = run("Search", prior, samplings=8.0, speedups="2")
    planned.save(tmp_path / "planned.safetensors")
    (plan,) = planned.plans
    assert plan.restored().sigmas == tuple(sigmas.tolist())
    cached, trace, _ = nodes["PriorCacheAuto"].execute(model, 2.0).args
    out = custom(cached, conds, sigmas)
    assert "a plan was searched for this model, sampler and schedule" in trace.runs[0].notes[0]
    assert torch.equal(out, custom(attach(model, plan.restored()), conds, sigmas))


@UNDRAWN
def test_they_may_end_before_the_noise_does(run, calibrate, model, conds, sigmas):
    """As the first of two models' has them, of SplitSigmas."""
    from priorcache.nodes.attach import attach

    first = calibrate(sigmas=sigmas).tables["power"]
    prior = calibrate(sigmas=sigmas[:-1])
    assert torch.equal(prior.tables["power"], first[:-1])
    with pytest.raises(PriorError, match="these priors cannot be merged"):
        Prior.merge([prior, calibrate(sigmas=torch.cat([sigmas[:-2], torch.zeros(1)]))])
    planned, *_ = run("Search", prior, samplings=8.0, speedups="2")
    trace = Trace()
    custom(attach(model, planned.plans[0].restored(), trace), conds, sigmas[:-1])
    assert trace.runs[0].computed_fraction == pytest.approx(5 / 11)


def test_a_policy_is_tuned_along_them(run, sigmas):
    by_name, by_sigmas = (
        run("Tune", GOC(FORA(2, "aligned"), 1.6), samplings=4.0, **given)
        for given in (NAMED, OTHER | {"sigmas": sigmas})
    )
    assert by_name == by_sigmas


@UNDRAWN
def test_a_router_is_trained_along_them_and_only_along_them_on(run, sigmas):
    given = {"runs": 1, "iterations": 5, "penalty": "0", "learning_rate": 0.05, "threshold": 0.1, "save_memory": True}
    prior, *_ = run("TrainRouter", **given, **OTHER, sigmas=sigmas)
    assert torch.equal(
        prior.tables["router"].nan_to_num(), run("TrainRouter", **given, **NAMED)[0].tables["router"].nan_to_num()
    )
    run("TrainRouter", **given, **OTHER, sigmas=sigmas, prior=prior)
    with pytest.raises(PriorError, match="made with other sigmas"):
        run("TrainRouter", **given, **OTHER, sigmas=torch.cat([sigmas[:1] * 0.9, sigmas[1:]]), prior=prior)
    with pytest.raises(
        PriorError, match=r"scheduler: given sigmas in the prior, karras here.*with its sigmas connected"
    ):
        run("TrainRouter", **given, **NAMED, prior=prior)


def test_a_sweep_has_the_figures_of_the_scheduler_fewer_steps_included(run, model):
    """Those of `simple` in 6 steps are every second of 12."""
    from comfy.samplers import KSampler

    sigmas = KSampler(model, STEPS, "cpu", "euler", "simple").sigmas
    settings = {"goals": "2x, 6 steps", "runs": 1}
    tables = [
        run("Sweep", **settings, **given)[2] for given in (NAMED | {"scheduler": "simple"}, OTHER | {"sigmas": sigmas})
    ]
    by_name, by_sigmas = ([line.split() for line in table.splitlines()[1:4]] for table in tables)
    assert [(row[0], row[-5], *row[-2:]) for row in by_name] == [(row[0], row[-5], *row[-2:]) for row in by_sigmas]
    assert len({row[-2] for row in by_sigmas}) == 3


@pytest.mark.parametrize(("scheduler", "exact"), [("simple", True), ("karras", False)])
def test_noise_levels_are_taken_at_even_places(host, model, scheduler, exact):
    """Which is what `simple` does itself; others end otherwise before 0."""
    from comfy.samplers import KSampler
    from priorcache.nodes.sampling import Sampling

    long, short = (KSampler(model, n, "cpu", "euler", scheduler).sigmas for n in (20, 10))
    sampling = Sampling([], [], torch.zeros(1), 3, 1.5, "euler", "normal").along(long.tolist())
    found = sampling.of_steps(10)
    assert found.steps == 10
    assert (found.sigmas[0], found.sigmas[-1]) == (sampling.sigmas[0], 0.0)
    assert (found.sigmas == pytest.approx(short.tolist())) == exact
    assert all(a > b for a, b in zip(found.sigmas, found.sigmas[1:], strict=False))


@pytest.mark.parametrize(("levels", "found"), [
    ([], "0 noise levels"), ([1.0], "1 noise level"), ([0.0], "1 noise level"), ([1.0, math.nan], "nan at place 2 of 2"),
    ([math.inf, 0.0], "inf at place 1 of 2"), ([1.0, -0.5], "-0.5 at place 2 of 2"),
    ([1.0, 0.5, 0.0, 0.0], "0 at place 3 of 4"), ([0.0, 0.5, 1.0], "0 at place 1 of 3"),
])  # fmt: skip
def test_what_are_no_noise_levels_is_refused(calibrate, levels, found):
    with pytest.raises(SettingError, match=f"sigmas holds {found}; it needs at least two, which make a step"):
        calibrate(sigmas=torch.tensor(levels))


def test_of_a_short_schedule_it_is_said_that_there_is_nothing_to_plan(run, calibrate, sigmas):
    """Not that no speed-up is one of so few steps."""
    for few in (1, 4):
        with pytest.raises(PriorError, match=f"nothing to plan: a schedule of {few} step"):
            run("Search", calibrate(sigmas=sigmas[-few - 1 :]), samplings=1.0, speedups="2, 4")
