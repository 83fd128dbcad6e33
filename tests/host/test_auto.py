"""PriorCache (auto) in the host: what it chooses in real runs, and what it says."""

from dataclasses import replace

import pytest
import torch
from priorcache.cache_core.policies import FORA, Forecast
from priorcache.plots.trace import summary
from priorcache.priors.prior import Prior

SETTINGS = {"steps": 10, "sampler": "euler", "scheduler": "karras"}


@pytest.fixture
def folder(host, tmp_path, monkeypatch):
    """An empty models/priorcache."""
    import folder_paths
    import priorcache.nodes as pack

    pack.register_folder()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "priorcache", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


@pytest.fixture(scope="module")
def planned(host, tmp_path_factory):
    """A prior of the tiny DiT with plans for 5 and 4 of 10 steps of euler, karras."""
    from priorcache.nodes import searching
    from priorcache.nodes.calibrate import PriorCacheCalibrate
    from priorcache.nodes.forecast import PriorCacheSearch

    model, latent = host.model(), {"samples": torch.zeros(2, 3, 16, 16)}
    conds = host.dit.conditioning(torch.tensor([1, 2])), host.dit.conditioning(torch.tensor([-1, -1]))
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "searches", lambda: tmp_path_factory.getbasetemp() / "searches")
        prior = PriorCacheCalibrate.execute(
            model, *conds, latent, seed=1, runs=1, steps=10, cfg=1.5, sampler_name="euler", scheduler="karras", denoise=1.0,
            longest_gap=1, mean_features=True,
        ).args[0]  # fmt: skip
        return PriorCacheSearch.execute(prior, model, *conds, latent, seed=40, samplings=8.0, speedups="2, 2.5").args[0]


def auto(model, speedup=2.0):
    from priorcache.nodes.auto import PriorCacheAuto

    with torch.inference_mode():
        return PriorCacheAuto.execute(model, speedup).args


def sampled(host, model, speedup=2.0, **changes):
    """(latents, the run's trace, what was told before)."""
    attached, trace, told = auto(model, speedup)
    return host.sample(attached, **SETTINGS | changes), trace.runs[-1], told


def test_the_node_shows_the_choice_in_two_lines(host, model, folder, monkeypatch):
    from types import SimpleNamespace

    import server
    from priorcache.nodes.auto import PriorCacheAuto, glance

    sent = []
    instance = SimpleNamespace(send_progress_text=lambda *args: sent.append(args))
    monkeypatch.setattr(server.PromptServer, "instance", instance, raising=False)
    auto(model)
    assert sent == []  # no node is executed
    monkeypatch.setattr(PriorCacheAuto, "hidden", SimpleNamespace(unique_id="7"), raising=False)
    auto(model)
    assert sent == [(glance(2.0, False), "7")]
    for text in (glance(speedup, planned) for speedup in (1.0, 2.5) for planned in (False, True)):
        assert text.count("\n") < 2
        assert max(map(len, text.splitlines())) < 46
    assert "Forecast 2.5x" in glance(2.5, True)


class TestWithoutPriors:
    def test_it_is_forecast(self, host, model, folder):
        out, run, told = sampled(host, model)
        assert torch.equal(out, host.sample(host.attach(model, Forecast(2.0)), **SETTINGS))
        assert run.policy == "Forecast, 5 computed, linear in step"
        assert run.notes == [f"auto 2x chose {run.policy}: no plan was searched for this model and goal."]
        assert (
            "- Samplers that add no noise and call the model once per step, such as euler or dpmpp_2m: Forecast 2x."
            in told
        )
        assert "No plan was searched for this model and goal, and none is needed" in told
        assert "auto 2x chose" in summary(run)
        assert run.automatic
        assert "measure" not in summary(run)

    @pytest.mark.parametrize(
        ("sampler", "policy"),
        [("euler_ancestral", FORA(2, "aligned")), ("heun", FORA(2, "aligned", level="model"))],
    )
    def test_it_is_fora_where_forecast_cannot_serve(self, host, model, folder, sampler, policy):
        out, run, _ = sampled(host, model, sampler=sampler)
        assert torch.equal(out, host.sample(host.attach(model, policy), **SETTINGS | {"sampler": sampler}))
        assert run.policy == policy.describe()
        assert run.computed_fraction < 0.6
        assert sampler in run.notes[0]

    def test_a_model_without_an_adapter_is_served_as_a_whole(self, host, model, folder, monkeypatch):
        from priorcache.nodes import attach
        from priorcache.nodes import auto as node

        monkeypatch.setattr(attach, "adapter_for", lambda network: None)
        monkeypatch.setattr(attach, "sites_of", lambda network: ())
        monkeypatch.setattr(node, "adapter_for", lambda network: None)
        _, run, told = sampled(host, model, sampler="euler_ancestral")
        assert run.policy == "FORA N=2 (aligned, whole network)"
        assert "there is no adapter for DiT" in told

    def test_branches_that_find_no_room_beside_the_model_leave_the_whole_network(
        self, host, model, folder, monkeypatch
    ):
        import comfy.model_management

        there = model.model_size() + 1024
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: there)
        _, run, _ = sampled(host, model, sampler="euler_ancestral")
        assert run.policy == "FORA N=2 (aligned, whole network)"
        assert "its branches would take" in run.notes[0]
        assert "1 KiB beside the model" in run.notes[0]
        assert run.computed_fraction < 0.6

    def test_a_short_run_is_stock(self, host, model, folder):
        out, run, _ = sampled(host, model, steps=5)
        assert torch.equal(out, host.sample(model, **SETTINGS | {"steps": 5}))
        assert "5 steps has none to spare" in run.notes[-1]

    @pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun"])
    def test_a_goal_of_1_is_stock(self, host, model, folder, sampler):
        out, _, told = sampled(host, model, 1.0, sampler=sampler)
        assert torch.equal(out, host.sample(model, **SETTINGS | {"sampler": sampler}))
        assert told == "DiT at 1x: every step is computed."

    def test_the_model_that_goes_in_stays_as_it_is(self, host, model, folder):
        before = host.sample(model, **SETTINGS)
        sampled(host, model)
        assert not any(model.wrappers.values())
        assert torch.equal(host.sample(model, **SETTINGS), before)

    def test_what_was_chosen_is_no_warning(self, host, model, folder, caplog):
        caplog.set_level("INFO", "PriorCache")
        sampled(host, model)
        assert [r.levelname for r in caplog.records if "chose" in r.message] == ["INFO"]

    def test_two_samplers_on_one_model_get_what_suits_each(self, host, model, folder):
        attached, trace, _ = auto(model)
        for sampler in ("euler", "heun", "euler_ancestral"):
            host.sample(attached, **SETTINGS | {"sampler": sampler})
        assert [run.policy.split()[0] for run in trace.runs] == ["Forecast,", "FORA", "FORA"]


class TestWithPriors:
    def test_the_plan_of_a_saved_prior_is_found_and_used(self, host, model, folder, planned):
        planned.save(folder / "mine.safetensors")
        out, run, told = sampled(host, model)
        from priorcache.nodes.forecast import PriorCachePlan

        policy = PriorCachePlan.execute(planned, "speed-up", 2.0).args[0]
        assert torch.equal(out, host.sample(host.attach(model, policy), **SETTINGS))
        assert f"chose {run.policy}: a plan was searched for this model" in run.notes[0]
        assert "from mine.safetensors (euler, karras, 10 steps, cfg 1.5; 2 pictures)" in run.notes[0]
        assert "A run like that of its prior: the plan of 5 of 10 steps" in told
        assert (
            "- Other samplers that add no noise and call the model once per step, such as euler or dpmpp_2m: Forecast 2x."
            in told
        )

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"sampler": "dpmpp_2m"}, "the sampler euler, and this run has dpmpp_2m"),
            ({"cfg": 1.0}, "cfg 1.5, and this run has 1"),
            ({"steps": 12}, "10 steps, and this run has 12"),
            ({"scheduler": "normal"}, "other noise levels than this run has at its steps"),
            ({"denoise": 0.7}, "other noise levels than this run has at its steps"),
        ],
    )
    def test_any_other_run_is_forecast(self, host, model, folder, planned, changes, difference):
        planned.save(folder / "mine.safetensors")
        _, run, _ = sampled(host, model, **changes)
        assert "the plan from mine.safetensors (euler, karras, 10 steps, cfg 1.5; 2 pictures) is for " in run.notes[0]
        assert f"; 2 pictures) is for {difference}" in run.notes[0]
        assert not run.record["settings"]["gains"]

    def test_a_plan_without_guidance_is_not_for_two_scales_of_it(self, host, model, folder, planned, conds):
        from comfy.samplers import KSampler, sampler_object
        from comfy_extras.nodes_custom_sampler import Guider_DualCFG

        (plan, *_), about = planned.plans, replace(planned.subject, cfg=1.0)
        plan = replace(plan, settings=plan.settings | {"cfg": 1.0})
        replace(planned, subject=about, plans=(plan,)).save(folder / "mine.safetensors")
        attached, trace, _ = auto(model)
        guider = Guider_DualCFG(attached)
        guider.set_cfg(1.5, 2.0)
        guider.set_conds(conds[0], conds[0], conds[1])
        sigmas = KSampler(model, 10, "cpu", "euler", "karras").sigmas
        with torch.inference_mode():
            guider.sample(
                torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16), sampler_object("euler"), sigmas, disable_pbar=True
            )
        assert "is for cfg 1, and the guider of this run has guidance of its own" in trace.runs[0].notes[0]

    def test_ddim_is_known_by_the_sampler_that_it_is(self, host, model, folder, planned):
        """The host runs ddim as euler, and so is a plan for ddim."""
        replace(planned, subject=replace(planned.subject, sampler="ddim")).save(folder / "mine.safetensors")
        assert "a plan was searched" in sampled(host, model, sampler="ddim")[1].notes[0]

    def test_no_plan_for_the_goal_is_said(self, host, model, folder, planned):
        planned.save(folder / "mine.safetensors")
        _, run, told = sampled(host, model, 4.0)
        assert "mine.safetensors belongs to this model, but none of its plans (2.00x, 2.50x) is for 4x" in told
        assert "beyond 2x look at the picture" in run.notes[0]

    def test_a_prior_without_plans_is_said(self, model, folder, planned):
        planned.planned(()).save(folder / "mine.safetensors")
        assert "mine.safetensors belongs to this model, but it holds no plans: put Search Plans" in auto(model)[2]

    def test_what_holds_no_plan_is_not_spoken_of_beside_one_that_does(self, model, folder, planned):
        planned.save(folder / "mine.safetensors")
        planned.planned(()).save(folder / "other.safetensors")
        assert "other.safetensors" not in auto(model)[2]

    def test_a_router_alone_is_passed_by(self, model, folder, planned):
        unknown = {name: torch.full_like(planned.tables[name], torch.nan) for name in ("power", "difference")}
        replace(planned, tables=planned.tables | unknown, plans=()).save(folder / "unfinished router.safetensors")
        assert "router" not in auto(model)[2]

    def test_a_plan_of_a_model_without_branches_is_used(self, host, model, folder, planned):
        steps = planned.evaluations
        none = {"power": torch.zeros(steps, 0), "difference": torch.zeros(1, steps, 0)}
        tables = {"sigmas": planned.tables["sigmas"], **none}
        replace(planned, sites=(), tables=tables).save(folder / "mine.safetensors")
        assert "a plan was searched" in sampled(host, model)[1].notes[0]
        replace(planned, sites=(), tables=tables, plans=()).save(folder / "mine.safetensors")
        assert "mine.safetensors belongs to this model, but it holds no plans" in auto(model)[2]

    def test_what_is_out_of_reach_is_said(self, host, model, folder):
        run = sampled(host, model, 20.0)[1]
        assert "at least two steps are computed: 5x" in run.notes[0]

    def test_a_run_too_short_is_called_by_what_was_asked_for(self, host, model, folder):
        run = sampled(host, model, steps=4)[1]
        assert (run.policy, run.computed_fraction) == ("auto 2x", 1.0)

    def test_a_prior_of_another_model_is_passed_by(self, host, folder, planned):
        planned.save(folder / "mine.safetensors")
        assert "No plan was searched for this model and goal, and none is needed" in auto(host.model(depth=2))[2]

    def test_broken_files_are_named_and_stop_nothing(self, host, model, folder, planned):
        planned.save(folder / "mine.safetensors")
        (folder / "a broken one.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
        _, run, told = sampled(host, model)
        assert "a plan was searched" in run.notes[0]
        assert "a broken one.safetensors was left out: a broken one.safetensors: not a safetensors file" in told

    def test_a_plan_that_does_not_tell_its_noise_is_passed_by(self, host, model, folder, planned):
        plans = [replace(p, settings=p.settings | {"sigmas": []}) for p in planned.plans]
        planned.planned(plans).save(folder / "mine.safetensors")
        _, run, told = sampled(host, model)
        assert "mine.safetensors was left out: this plan does not tell the noise that it was searched for" in told
        assert "no plan was searched for this model and goal" in run.notes[0]

    def test_of_two_plans_the_one_judged_on_more_pictures_is_taken(self, host, model, folder, planned):
        better = [replace(p, pictures=12) for p in planned.plans]
        planned.save(folder / "a.safetensors")
        planned.planned(better).save(folder / "b.safetensors")
        assert "from b.safetensors" in sampled(host, model)[1].notes[0]

    def test_a_prior_that_is_saved_later_is_seen(self, model, folder, planned):
        import folder_paths
        from priorcache.nodes.auto import PriorCacheAuto

        before = PriorCacheAuto.fingerprint_inputs(model, 2.0)
        path = planned.save(folder / "mine.safetensors")
        folder_paths.filename_list_cache.clear()
        after = PriorCacheAuto.fingerprint_inputs(model, 2.0)
        path.unlink()
        folder_paths.filename_list_cache.clear()
        assert before == PriorCacheAuto.fingerprint_inputs(model, 2.0) != after

    def test_mean_features_are_left_in_the_file(self, folder, planned):
        from priorcache.nodes.auto import TABLES

        path = planned.save(folder / "mine.safetensors")
        assert any(name.startswith("mean/") for name in Prior.load(path).tables)
        found = Prior.load(path, TABLES)
        assert set(found.tables) == set(TABLES)
        assert found.plans == planned.plans
