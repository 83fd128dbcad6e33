"""Learning-to-Cache in the real host: training, sampling with what was learned, the published files."""

import os

import pytest
import subjects
import torch
from priorcache.cache_core.policies import L2C
from priorcache.cache_core.sites import Action, Schedule
from priorcache.cache_core.trace import Trace
from priorcache.priors.prior import Prior, PriorError
from priorcache.priors.router import RouterError, policy

STEPS = 4
UNDRAWN = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def models(comfy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {"dit": subjects.dit, "flux": lambda: subjects.flux(folder), "sd3": lambda: subjects.sd3(folder)}
    made |= {"pixart": subjects.pixart, "flux2": subjects.flux2}
    return {name: make() for name, make in made.items()}


@pytest.fixture
def nodes(host, tmp_path, monkeypatch):
    import folder_paths
    import priorcache.nodes as pack

    pack.register_folder()
    for name, endings in (("priorcache", {".safetensors"}), ("priorcache_routers", {".pt", ".pth"})):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], endings))
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES}


def train(nodes, subject, prior=None, **changes):
    """(prior, picture, summary) of the node, called as the host calls it."""
    settings = {
        "seed": 3, "runs": 1, "steps": STEPS, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "iterations": 6, "penalty": "0", "learning_rate": 0.05, "threshold": 0.1, "save_memory": True,
    }  # fmt: skip
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, subject.channels, *subject.size)}
        return (
            nodes["PriorCacheTrainRouter"]
            .execute(subject.model, subject.prompt(1), subject.prompt(2), latent, **settings | changes, prior=prior)
            .args
        )


def test_a_router_serves_as_many_steps_as_its_scheduler_made(host, nodes, models):
    """ddim_uniform makes 13 steps of 12."""
    settings, trace = {"steps": 12, "scheduler": "ddim_uniform"}, Trace()
    prior, *_ = train(nodes, models["dit"], sampler_name="ddim", **settings)
    policy = nodes["PriorCacheL2C"].execute(prior, 1.0).args[0]
    host.sample(host.attach(models["dit"].model, policy, trace), sampler="ddim", **settings)
    assert trace.runs[0].notes == []
    assert trace.runs[0].computed_fraction < 0.6


@pytest.mark.parametrize("name", ["dit", "flux", "sd3", "pixart", "flux2"])
class TestEveryArchitecture:
    def test_training_gives_gates_at_every_second_step_and_changes_no_model(self, nodes, models, name):
        subject = models[name]
        weights = {k: (v, v.clone()) for k, v in subject.model.model.diffusion_model.named_parameters()}
        before = subject.sample(steps=STEPS)
        prior, picture, summary = train(nodes, subject)
        gates = prior.tables["router"]
        assert gates.isnan().all(1).tolist() == [True, False, True, False]
        assert gates[1::2].isfinite().all()
        assert ((gates[1::2] > 0) & (gates[1::2] < 1)).all()
        assert picture.ndim == 4
        assert "Router" in summary
        assert torch.equal(subject.sample(steps=STEPS), before)
        assert subjects.left_over(subject.model.model) == []
        for key, parameter in subject.model.model.diffusion_model.named_parameters():
            assert parameter is weights[key][0]
            assert torch.equal(*weights[key])

    @UNDRAWN
    def test_what_was_learned_is_what_is_reused(self, nodes, models, name, host):
        subject = models[name]
        prior = train(nodes, subject, penalty="1e-3", iterations=12, learning_rate=0.5)[0]
        gates = prior.tables["router"]
        threshold = float(gates[~gates.isnan()].median())  # half of them are at or below it
        made = nodes["PriorCacheL2C"].execute(prior, threshold).args[0]
        assert made == policy(prior, threshold)
        trace = Trace()
        out = subject.sample(host.attach(subject.model, made, trace), steps=STEPS)
        assert torch.isfinite(out).all()
        assert trace.runs[0].notes == []
        reused = {(r.step, r.site.name) for r in trace.runs[0].rows if r.action is Action.REUSE}
        low = (gates <= threshold).nonzero().tolist()
        assert reused == {(t, prior.sites[s]) for t, s in low}
        assert reused


class Paged:
    """What the router training asks of a model whose weights the host pages in and out."""

    def __init__(self, again):
        self.cached_patcher_init = again

    def is_dynamic(self) -> bool:
        return True

    def clone(self, disable_dynamic: bool = False) -> str:
        return "whole" if disable_dynamic else "paged"


def test_a_model_whose_weights_are_paged_is_trained_as_a_whole_copy(host, model):
    from priorcache.nodes import l2c

    assert l2c._whole(model) is model
    assert l2c._whole(Paged(("loader", ()))) == "whole"
    with pytest.raises(RouterError, match="--disable-dynamic-vram"):
        l2c._whole(Paged(None))


@UNDRAWN
@pytest.mark.parametrize("name", ["dit", "flux"])
def test_a_large_penalty_closes_every_gate_and_none_of_it_opens_them(nodes, models, name):
    subject = models[name]
    closed = train(nodes, subject, penalty="1e4", iterations=20, learning_rate=2.0)[0].tables["router"]
    assert (closed[1::2] < 0.01).all()
    free = train(nodes, subject, penalty="0", iterations=20, learning_rate=0.6)[0].tables["router"]
    assert free[1::2].mean() > 0.6


@UNDRAWN
def test_gates_for_nothing_reused_are_bit_equal_to_stock(nodes, models, host):
    subject = models["dit"]
    prior = train(nodes, subject)[0]
    count = len(prior.sites)
    open_gates = L2C(((0.0,) * count, *[(1.0,) * count] * (STEPS - 1)), prior.sites, STEPS)
    assert "the smallest is 1;" in open_gates.objection(Schedule(STEPS))  # those of the first step close nothing
    assert torch.equal(subject.sample(host.attach(subject.model, open_gates), steps=STEPS), subject.sample(steps=STEPS))


@UNDRAWN
def test_the_wrong_number_of_steps_is_computed_in_full_with_the_remedy(nodes, models, host):
    subject, trace = models["dit"], Trace()
    made = policy(train(nodes, subject, penalty="1e4", learning_rate=1.0)[0], 0.4)
    out = subject.sample(host.attach(subject.model, made, trace), steps=6)
    assert torch.equal(out, subject.sample(steps=6))
    assert "belongs to 4 sampler steps and this run has 6" in trace.runs[0].notes[0]
    assert "Train Router" in trace.runs[0].notes[0]


@UNDRAWN
def test_half_precision_trains_too(nodes, host):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.inference_mode():
            config, weights = host.weights()
            subject = subjects.Labelled(host.loader.from_weights(config, weights, dtype), (16, 16))
        gates = train(nodes, subject, iterations=40, learning_rate=0.3)[0].tables["router"]
        assert gates[1::2].mean() > 0.6


@UNDRAWN
def test_several_calls_per_step_and_split_conds(nodes, models, monkeypatch):
    """heun calls the model twice per step; where memory is scarce, conds come in calls of their own."""
    subject = models["dit"]
    together = train(nodes, subject, iterations=2)[0].tables["router"]
    monkeypatch.setattr(subject.model.model, "memory_required", lambda *a, **k: 1e30)
    apart = train(nodes, subject, iterations=2)[0].tables["router"]
    torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-3, equal_nan=True)
    heun = train(nodes, subject, sampler_name="heun")[0]
    assert heun.evaluations == 2 * STEPS - 1
    assert heun.tables["router"].isfinite().all(1).tolist() == [False, True] * 3 + [False]


@UNDRAWN
class TestGoingOn:
    def test_a_router_is_trained_on_and_a_calibration_gains_one(self, nodes, models):
        subject = models["dit"]
        first = train(nodes, subject, learning_rate=0.01)[0]
        more = train(nodes, subject, prior=first, iterations=2, learning_rate=0.01)[0]
        moved = (more.tables["router"].logit() - first.tables["router"].logit())[1::2].abs()
        assert 0 < moved.max() < 0.02
        assert set(more.tables) == set(first.tables)
        bare = Prior(
            first.subject, first.sites, 1, {k: v for k, v in first.tables.items() if k != "router"}, first.shape
        )
        assert torch.equal(train(nodes, subject, prior=bare)[0].tables["power"], first.tables["power"])

    def test_a_prior_of_other_settings_is_refused(self, nodes, models):
        prior = train(nodes, models["dit"])[0]
        with pytest.raises(PriorError, match=r"cfg: 2\.0 in the prior, 3\.0 here"):
            train(nodes, models["dit"], prior=prior, cfg=3.0)

    def test_an_interrupted_training_keeps_its_gates_and_leaves_the_model_as_it_was(
        self, nodes, models, host, monkeypatch, tmp_path
    ):
        subject, stop = models["dit"], host.comfy.model_management.InterruptProcessingException
        before = subject.sample(steps=STEPS)
        update = host.comfy.utils.ProgressBar.update_absolute

        def told(self, value, *args, **kwargs):
            if value > 2 * STEPS + 4:  # two sampling runs, then four iterations
                raise stop
            update(self, value, *args, **kwargs)

        monkeypatch.setattr(host.comfy.utils.ProgressBar, "update_absolute", told)
        with pytest.raises(stop):
            train(nodes, subject, iterations=50)
        monkeypatch.undo()
        assert subjects.left_over(subject.model.model) == []
        assert host.comfy.model_management.in_training is False
        assert torch.equal(subject.sample(steps=STEPS), before)
        kept = Prior.load(tmp_path / "unfinished router.safetensors")
        assert kept.tables["router"][1::2].isfinite().all()

    @pytest.mark.parametrize(
        ("stopped_at", "kept"), [(2 * STEPS - 1, False), (2 * STEPS + 7, True), (3 * STEPS + 7, True)]
    )
    def test_gates_are_kept_wherever_it_stops_once_there_are_any(
        self, nodes, models, host, monkeypatch, tmp_path, stopped_at, kept
    ):
        """While pictures are sampled to train on; while a router is judged; while the next penalty is trained."""
        train(nodes, models["dit"])[0].save(tmp_path / "unfinished router.safetensors")
        before = (tmp_path / "unfinished router.safetensors").read_bytes()
        update = host.comfy.utils.ProgressBar.update_absolute

        def told(self, value, *args, **kwargs):
            if value > stopped_at:
                raise RuntimeError("out of memory")
            update(self, value, *args, **kwargs)

        monkeypatch.setattr(host.comfy.utils.ProgressBar, "update_absolute", told)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(nodes, models["dit"], penalty="0, 1", iterations=6)
        assert (tmp_path / "unfinished router.safetensors").read_bytes() == before
        assert (tmp_path / "unfinished router-2.safetensors").exists() == kept

    def test_gates_that_cannot_be_kept_do_not_hide_why_it_stopped(self, nodes, models, monkeypatch, caplog):
        from priorcache.nodes import l2c

        def refused(*args, **kwargs):
            raise PermissionError("read-only")

        monkeypatch.setattr(Prior, "save", refused)
        monkeypatch.setattr(l2c, "policy", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(nodes, models["dit"])
        assert "its gates cannot be kept" in caplog.text
        assert "(read-only)" in caplog.text

    def test_the_largest_seed_is_followed_by_the_smallest(self, nodes, models):
        assert train(nodes, models["dit"], seed=2**64 - 1, runs=2)[0].seeds == (2**64 - 1, 0)

    def test_progress_runs_to_the_end(self, nodes, models, host, monkeypatch):
        told = []
        monkeypatch.setattr(
            host.comfy.utils.ProgressBar,
            "update_absolute",
            lambda self, value, *a, **k: told.append((value, self.total)),
        )
        monkeypatch.setattr(
            host.comfy.utils.ProgressBar,
            "update",
            lambda self, value: (
                setattr(self, "current", self.current + value),
                told.append((self.current, self.total)),
            ),
        )
        train(nodes, models["dit"], penalty="0, 1e-3")
        assert told == [(i, 6 * STEPS + 12) for i in range(1, 6 * STEPS + 13)]


@UNDRAWN
def test_several_penalties_make_a_curve_that_falls_in_fraction_computed(nodes, models):
    prior, _, summary = train(nodes, models["dit"], penalty="0, 1e4", iterations=20, learning_rate=2.0)
    assert (prior.tables["router"][1::2] < 0.1).all()
    assert "Penalty 0 removes 0.0% at a relative error of 0.000" in summary
    assert "Penalty 10000 removes 50.0%" in summary
    assert "FORA N=2 (aligned) removes 50.0%" in summary


@UNDRAWN
@pytest.mark.parametrize("penalty", ["", "much", "1e-3;2", "-1", "nan", "inf"])
def test_a_penalty_that_is_no_number_is_explained(nodes, models, penalty):
    with pytest.raises(RouterError, match=r"Train Router: penalty .* 1e-6, 1e-5"):
        train(nodes, models["dit"], penalty=penalty)


@UNDRAWN
def test_an_architecture_without_adapter_is_explained(nodes, models, host, monkeypatch):
    import priorcache.priors.router as router

    def sampled(*_, **__):
        raise AssertionError("sampled in vain")

    monkeypatch.setattr(router, "adapter_for", lambda network: None)
    monkeypatch.setattr(host.comfy.sample, "sample", sampled)
    with pytest.raises(RouterError, match="no adapter for DiT"):
        train(nodes, models["dit"])


@UNDRAWN
def test_a_block_that_another_node_changes_is_explained(nodes, models):
    block = models["dit"].model.model.diffusion_model.blocks[1]
    theirs = block.forward
    block.forward = lambda *a: theirs(*a) * 1.5
    try:
        with pytest.raises(RouterError, match="something other than PriorCache knows"):
            train(nodes, models["dit"])
    finally:
        del block.forward


@UNDRAWN
def test_a_published_file_is_listed_loaded_and_used(nodes, models, host, tmp_path):
    import folder_paths

    subject = models["dit"]
    entries = {f"{i}.prob": torch.full((6,), -4.0 if i % 2 == 0 else 4.0) for i in range(STEPS)}
    torch.save({"routers": entries, "opt": {}}, tmp_path / "router.pt")
    assert folder_paths.get_filename_list("priorcache_routers") == ["router.pt"]
    prior = nodes["PriorCacheLoadRouter"].execute("router.pt", "auto", subject.model).args[0]
    assert prior.subject.geometry
    trace = Trace()
    subject.sample(host.attach(subject.model, policy(prior), trace), steps=STEPS)
    assert trace.runs[0].computed_fraction == 0.5
    assert trace.runs[0].notes == []
    with pytest.raises(RouterError, match=r"router\.pt: a router for 6 branches"):
        nodes["PriorCacheLoadRouter"].execute("router.pt", "auto", models["flux"].model)
    plain = nodes["PriorCacheLoadRouter"].execute("router.pt", "auto").args[0]
    assert torch.equal(plain.tables["router"].nan_to_num(), prior.tables["router"].nan_to_num())


def test_a_published_file_written_anew_is_loaded_anew(nodes, tmp_path):
    file, changed = tmp_path / "router.pt", nodes["PriorCacheLoadRouter"].fingerprint_inputs
    file.touch()
    before = changed("router.pt", "auto")
    assert changed("router.pt", "auto") == before
    os.utime(file, ns=(1, 1))
    assert changed("router.pt", "auto") != before
    file.unlink()
    changed("router.pt", "auto")  # which says what is missing when it is loaded
