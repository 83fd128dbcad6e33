"""What is chosen for which run."""

from dataclasses import replace

import pytest
from priorcache.cache_core.policies import FORA, Forecast
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.samplers import SEVERAL, noisy
from priorcache.cache_core.sites import Action, Schedule, Site, Step
from priorcache.priors.auto import Auto, Shelved, paced, preferred, reaching
from priorcache.priors.plan import Plan
from priorcache.priors.record import settings

SIGMAS = tuple(float(20 - i) for i in range(21))
SITES = (Site("blocks.0.attn", 0, 1), Site("blocks.0.mlp", 0, 1))


def schedule(sampler: str = "euler", total: int = 20, sites=SITES, sigmas=None) -> Schedule:
    sigmas = tuple(float(total - i) for i in range(total + 1)) if sigmas is None else sigmas
    return Schedule(total, sigmas, sampler, "EPS", sites)


def plan(computed: tuple[int, ...], error: float, pictures: int = 6, sigmas=SIGMAS) -> Plan:
    policy = Forecast(computed=computed, sigmas=sigmas)
    return Plan("Forecast", settings(policy), len(sigmas) - 1, len(computed), error, 2 * error, pictures)


TEN = plan((0, 1, 3, 5, 7, 9, 11, 13, 15, 18), 0.03)


def shelved(found: Plan = TEN, sampler: str = "euler") -> Shelved:
    return Shelved(found, replace(found.restored(), sampler=sampler, cfg=3.0), "a.safetensors")


class TestChoice:
    @pytest.mark.parametrize(("room", "level"), [(None, "branch"), (300, "branch"), (299, "model"), (-5, "model")])
    def test_branches_are_reused_where_there_is_room_for_them(self, room, level):
        nbytes = {SITES[0].name: 100, SITES[1].name: 200, "stack": 50}
        known = replace(schedule("euler_ancestral"), nbytes=nbytes, room=room)
        chosen, why = Auto(2.0).choice(known)
        assert chosen == paced(2.0, level)
        assert ("its branches would take" in why) == (level == "model")

    def test_without_a_plan_it_is_forecast_at_the_goal(self):
        chosen, why = Auto(2.5).choice(schedule())
        assert chosen == Forecast(2.5)
        assert "no plan was searched for this model and goal" in why
        assert Auto(2.5).prepared(schedule()) == Forecast(2.5).prepared(schedule())

    def test_a_plan_for_this_very_run_is_taken(self):
        auto = Auto(2.0, (shelved(),))
        assert auto.choice(schedule())[0] == shelved().policy
        assert auto.prepared(schedule()).computed == TEN.restored().computed
        assert "10 of 20 steps, expected error 0.030, from a.safetensors" in auto.remark(schedule())

    @pytest.mark.parametrize(
        ("other", "difference"),
        [
            (schedule("dpmpp_2m"), "the sampler euler, and this run has dpmpp_2m"),
            (replace(schedule(), cfg=1.0), "cfg 3, and this run has 1"),
            (schedule(total=21, sigmas=(*SIGMAS, 0.0)), "20 steps, and this run has 21"),
            (
                schedule(sigmas=tuple(s * 1.1 if s < 20 else s for s in SIGMAS)),
                "other noise levels than this run has at its steps (19 at step 1, here 20.9)",
            ),
            (schedule(sigmas=()), "20 steps, and this run has other ones"),
        ],
        ids=["sampler", "guidance", "steps", "noise", "unknown"],
    )
    def test_a_plan_for_another_run_is_not(self, other, difference):
        chosen, why = Auto(2.0, (shelved(),)).choice(other)
        assert chosen == Forecast(2.0)
        assert why == f"the plan from a.safetensors is for {difference}"

    def test_of_several_that_do_not_fit_the_nearest_is_told_of(self):
        """Two stages have a prior each, and so have two sizes with a scheduler that asks for the size."""
        short = plan((0, 2, 4, 6, 8), 0.01, sigmas=SIGMAS[10:])
        shelf = [shelved(sampler="dpmpp_2m"), shelved(short), shelved()._replace(source="near.safetensors")]
        other = schedule(sigmas=tuple(s * 1.1 if s < 20 else s for s in SIGMAS))
        assert "from near.safetensors is for other noise levels" in Auto(2.0, tuple(shelf)).choice(other)[1]
        (first, *_), other = shelf, schedule(total=12)
        assert "is for 10 steps, and this run has 12" in Auto(2.0, tuple(shelf)).choice(other)[1]
        assert "is for the sampler dpmpp_2m" in Auto(2.0, (first,)).choice(other)[1]

    def test_nor_is_one_that_does_not_tell_its_noise(self):
        untold = Shelved(TEN, replace(shelved().policy, sigmas=()), "a.safetensors")
        assert Auto(2.0, (untold,)).choice(schedule()) == (
            Forecast(2.0),
            "the plan from a.safetensors is for noise levels that it does not name",
        )

    @pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "ddpm"])
    def test_samplers_that_add_noise_have_single_branches_reused(self, sampler):
        assert noisy(schedule(sampler))
        chosen, why = Auto(2.0, (shelved(sampler=sampler),)).choice(schedule(sampler))
        assert chosen == FORA(2, "aligned")
        assert "adds noise" in why

    def test_or_the_whole_network_where_there_is_no_adapter(self):
        assert Auto(2.0).choice(schedule("euler_ancestral", sites=()))[0] == FORA(2, "aligned", level="model")

    @pytest.mark.parametrize("sampler", SEVERAL)
    def test_samplers_that_call_several_times_have_the_whole_network_reused(self, sampler):
        assert Auto(3.0).choice(schedule(sampler))[0] == FORA(3, "aligned", level="model")

    @pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun"])
    def test_short_runs_and_a_goal_of_1_compute_everything(self, sampler):
        for auto, run in ((Auto(2.0), schedule(sampler, 8)), (Auto(1.0), schedule(sampler, 20))):
            ready, at = auto.prepared(run), run.total
            steps = [Step(i, at, i / at, float(at - i)) for i in range(at)]
            assert ready.objection(run) or {ready.decide(step, SITES[0]) for step in steps} == {Action.COMPUTE}

    @pytest.mark.parametrize("bad", [0.5, 0.0, 25.0])
    def test_goals_out_of_reach_are_refused(self, bad):
        with pytest.raises(ValueError, match="1 \\(compute everything\\) to 20"):
            Auto(bad)

    def test_asking_changes_nothing(self):
        auto = Auto(2.0, (shelved(),))
        assert auto.choice(schedule()) == auto.choice(schedule())
        assert hash(Auto(2.0)) == hash(Auto(2.0))


class TestTrace:
    def test_a_run_is_named_after_what_was_chosen_and_notes_why(self):
        trace = CacheRun(Auto(2.0, (shelved(),)), schedule()).trace
        assert trace.policy == TEN.restored().prepared(schedule()).describe()
        assert len(trace.notes) == 1
        assert trace.notes[0].startswith(f"auto 2x chose {trace.policy}: a plan was searched for this model")

    def test_a_short_run_also_notes_why_nothing_is_skipped(self):
        run = CacheRun(Auto(2.0), schedule(total=8))
        assert run.trace.notes[0] == "auto 2x chose to compute every step."
        assert "a schedule of 8 steps has none to spare" in run.trace.notes[1]

    def test_other_policies_remark_nothing(self):
        assert CacheRun(Forecast(2.0), schedule()).trace.notes == []


class TestReaching:
    def test_as_many_steps_as_forecast_or_one_fewer(self):
        plans = [plan(tuple(range(n)), 0.1 / n) for n in (14, 10, 9, 8, 5)]
        assert reaching(plans, 2.0).evaluations == 10
        assert reaching(plans, 20 / 11).evaluations == 10  # 11 are asked for
        assert reaching(plans, 2.2).evaluations == 9
        assert reaching(plans, 1.5) is None  # 13 are asked for; 10 would be rougher than need be
        assert reaching(plans, 3.0).evaluations == 5  # 6 are asked for
        assert reaching([], 2.0) is None

    def test_the_least_error_first(self):
        plans = [plan(tuple(range(n)), error) for n, error in ((10, 0.03), (9, 0.02))]
        assert reaching(plans, 2.0).evaluations == 9

    def test_plans_of_policies_that_it_does_not_know_are_passed_by(self):
        other = Plan("FORA", {"interval": 2}, 20, 10, 0.01, 0.02, 6)
        assert reaching([other], 2.0) is None

    def test_more_pictures_are_preferred_then_less_error(self):
        few, many, worse = (shelved(plan((0, 4), e, n)) for e, n in ((0.01, 4), (0.02, 12), (0.03, 12)))
        assert preferred([few, worse, many]) == [many, worse, few]


@pytest.mark.parametrize("level", ["branch", "model"])
@pytest.mark.parametrize("speedup", [1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 7.3])
def test_fora_is_paced_to_the_goal(speedup, level):
    """Of 120 steps, all that is left out by the window are the last ones."""
    policy, total = paced(speedup, level), 120
    steps = [Step(i, total, i / total, float(total - i)) for i in range(total)]
    computed = [step.index for step in steps if policy.decide(step, SITES[0]) is Action.COMPUTE]
    assert len(computed) == pytest.approx(total / speedup, abs=policy.interval)
    assert policy.level == level
