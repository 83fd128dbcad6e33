"""Models of a video and its sound, of which each is a latent of its own, through every node that samples by itself."""

import pytest
import subjects
import torch
from architectures import generator
from priorcache.cache_core.policies import EOC, FORA, Forecast
from priorcache.cache_core.trace import Trace
from priorcache.priors.parts import as_one
from priorcache.priors.prior import Prior
from priorcache.priors.router import policy as routed
from priorcache.priors.trend import Trend

STEPS = 10
SETTINGS = {"steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
SHAPES = {"LTX-2": ((128, 3, 2, 4), (8, 5, 16)), "MiniMax H3": ((24, 2, 4, 6), (32, 2, 5))}
BATCH = {"LTX-2": 2, "MiniMax H3": 1}  # which takes no more
KINDS = {"LTX-2": {"unprocessed_ltxav_embeds": True}, "MiniMax H3": {}}
UNDRAWN = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module", params=SHAPES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(comfy, kind):
    if kind == "LTX-2":
        return subjects.ltxav()
    pytest.importorskip("comfy.ldm.minimax.model", reason="newer than this host")
    return subjects.minimax_h3()


@pytest.fixture(scope="module")
def given(model, kind):
    """(model, positive, negative, latent), as nodes are given them."""
    from comfy.nested_tensor import NestedTensor

    words = [[[torch.randn(1, 5, 24, generator=generator(seed)), KINDS[kind]]] for seed in (1, 2)]
    return model, *words, {"samples": NestedTensor(torch.zeros(BATCH[kind], *shape) for shape in SHAPES[kind])}


@pytest.fixture(scope="module")
def nodes(comfy):
    import priorcache.nodes as pack

    pack.register_folder()
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "priorcache", ([str(tmp_path)], {".safetensors"}))


@pytest.fixture(scope="module")
def prior(nodes, given) -> Prior:
    with torch.inference_mode():
        return (
            nodes["PriorCacheCalibrate"]
            .execute(*given, seed=1, runs=2, longest_gap=2, mean_features=True, policy=FORA(2, "aligned"), **SETTINGS)
            .args[0]
        )


def sample(given, policy=None, seed: int = 40):
    """(latents as they are measured, the run's trace)."""
    from priorcache.nodes.attach import attach
    from priorcache.nodes.sampling import Sampling

    model, *told = given
    trace = Trace()
    with torch.inference_mode():
        out = Sampling.of(model, *told, *SETTINGS.values())(attach(model, policy, trace) if policy else model, seed)
    return as_one(out), trace.runs[0] if policy else None


def test_it_is_sampled_as_ksampler_does(given):
    import nodes as host

    model, *told, latent = given
    with torch.inference_mode():
        (theirs,) = host.common_ksampler(model, 40, STEPS, 3.0, "euler", "simple", *told, latent)
    assert torch.equal(as_one(theirs["samples"].unbind()), sample(given)[0])


@UNDRAWN
def test_a_prior_knows_branches_of_both_streams_and_is_kept(given, prior, tmp_path):
    assert prior.evaluations == STEPS
    assert prior.samples == 2 * given[-1]["samples"].shape[0]
    assert prior.reuse_error(1)[1:].isfinite().all()
    assert prior.shape == (1, sum(torch.Size(shape).numel() for shape in shapes(given)))
    assert Prior.load(prior.save(tmp_path / "p.safetensors")).shape == prior.shape


def shapes(given):
    return [part.shape[1:] for part in given[-1]["samples"].unbind()]


@UNDRAWN
def test_plans_are_searched_and_followed(nodes, given, prior):
    with torch.inference_mode():
        planned, *_ = nodes["PriorCacheSearch"].execute(prior, *given, seed=40, samplings=8.0, speedups="2").args
    (plan,) = planned.plans
    assert plan.evaluations == STEPS // 2
    out, run = sample(given, plan.restored())
    assert (run.evaluations, run.computed_fraction, run.notes) == (STEPS, 0.5, [])
    assert out.isfinite().all()


def test_eoc_corrects_by_such_a_prior_and_is_tuned(nodes, given, prior):
    policy = EOC(FORA(2, "aligned"), Trend(prior), 0.5)
    assert sample(given, policy)[1].notes == []
    with torch.inference_mode():
        tuned, text = nodes["PriorCacheTune"].execute(policy, *given, seed=40, samplings=6.0, **SETTINGS).args
    exact = sample(given)[0]
    before, after = ((sample(given, p)[0] - exact).norm().item() for p in (policy, tuned))
    assert after <= before * (1 + 1e-5)
    assert "EOC theta" in text


class Vae:
    """Decodes the video: its middle frame, and the first three channels."""

    def decode(self, latents):
        assert latents.ndim == 5
        return latents.movedim(1, -1)[..., :3].sigmoid()


def test_the_sweep_measures_both_parts_and_shows_the_video(nodes, given):
    with torch.inference_mode():
        chart, grid, text = (
            nodes["PriorCacheSweep"].execute(*given, goals="2x", seed=40, runs=1, **SETTINGS, vae=Vae()).args
        )
    assert chart.ndim == grid.ndim == 4
    exact, (out, _) = sample(given)[0], sample(given, Forecast(2.0))
    error = ((out - exact).norm(dim=1) / exact.norm(dim=1)).mean().item()
    assert f"{error:.4f}" in text


@UNDRAWN
def test_a_router_learns_from_both_outputs(nodes, given):
    with torch.inference_mode():
        prior, _, _ = (
            nodes["PriorCacheTrainRouter"]
            .execute(
                *given, seed=3, runs=1, iterations=10, penalty="0", learning_rate=0.05, threshold=0.1, save_memory=True,
                **SETTINGS,
            )
            .args
        )  # fmt: skip
    gates = prior.tables["router"]
    assert gates[1::2].isfinite().all()
    _, run = sample(given, routed(prior, gates[1::2].median().item()))
    assert 0.5 < run.computed_fraction < 1
    assert run.notes == []
