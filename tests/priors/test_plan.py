"""The search on a small model that can be written down: the denoiser of data at -1 and 1, each a Gaussian of .5."""

import dataclasses
import json
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from priorcache.cache_core.extrapolation import resized, spread
from priorcache.cache_core.knobs import Choice, Mask, Numbers, Steps
from priorcache.cache_core.policies import FORA, CachePolicy, Forecast, Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Action, Schedule
from priorcache.errors import SettingError
from priorcache.priors.fit import cheapest, coherent_cost, gauss_newton, step_errors
from priorcache.priors.plan import LONGEST, Plan, chosen, forecasts, merged, search_plans, superseded
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.record import record, restored, settings
from priorcache.priors.search import Outcome, Search, changes

T = 16
SIGMAS = tuple(10 * 0.72**i for i in range(T)) + (0.0,)  # noqa: RUF005
SCHEDULE = Schedule(T, SIGMAS, "euler", "EPS")
NOISE = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(6, 4) * SIGMAS[0]


def denoised(x, sigma):
    both = sigma**2 + 0.25
    return (0.25 * x + sigma**2 * torch.tanh(x / both)) / both


def sampled(policy: CachePolicy, pictures: int | None = None, gram: list | None = None) -> Outcome:
    """Euler's method, with the derivative given by a run under this policy."""
    run, x = CacheRun(policy, SCHEDULE), NOISE[:pictures]
    for i, (sigma, after) in enumerate(pairwise(SIGMAS)):
        with run.evaluation(sigma, i / T):
            derivative = run.next_forward([(0, "u")]).branch(MODEL, lambda x, s=sigma: (x - denoised(x, s)) / s, x)
        if gram is not None:
            gram.append(derivative.flatten())
        x = x + (after - sigma) * derivative
    return Outcome(x, run.trace.computed_fraction)


def search(**changed) -> Search:
    return Search(**{"simulate": sampled, "reference": sampled(Full()).latents, "schedule": SCHEDULE} | changed)


def grammed() -> torch.Tensor:
    features = []
    sampled(Full(), gram=features)
    stack = torch.stack(features)
    return stack @ stack.T / stack.shape[1]


class TestSearch:
    @pytest.mark.parametrize("samplings", [0, 1, 5, 40])
    def test_is_never_worse_than_where_it_begins(self, samplings):
        begin = forecasts(SCHEDULE)(6, None)
        _, error = search().best(begin, samplings)
        assert error <= search().best(begin[:1], 0)[1]

    def test_is_never_worse_than_plain_reuse_where_nothing_can_be_extrapolated(self):
        """As with strong guidance and large steps: what a forecast exaggerates is more than what it gets right."""

        def simulate(policy, pictures):
            if policy == Full():
                return Outcome(NOISE[:pictures], 1.0)
            exaggerated = sum(abs(g) for pair in policy.gains or ((1.0, 0.0),) * T for g in pair)
            return Outcome(NOISE[:pictures] * (1.1 + exaggerated), len(policy.computed) / T)

        looking, begin = search(simulate=simulate, reference=NOISE), forecasts(SCHEDULE)(6, None)
        reused = dataclasses.replace(begin[0], gains=((0.0, 0.0),) * T)
        assert looking.best(begin, 5)[1] <= looking.judged(reused) < looking.judged(begin[0])

    def test_finds_much_better_settings(self):
        looking = search()
        begin = forecasts(SCHEDULE)(6, None)
        found, error = looking.best(begin, 60)
        assert error < 0.5 * looking.judged(begin[0])
        assert len(found.computed) == 6
        assert found.computed[0] == 0

    def test_keeps_to_its_means(self):
        looking, spent = search(), []

        def counted(policy, pictures):
            outcome = sampled(policy, pictures)
            if policy != Full():  # what pictures are judged by is sampled beyond its means
                spent.append(outcome.cost * pictures / len(NOISE))
            return outcome

        looking.simulate = counted
        looking.best(forecasts(SCHEDULE)(6, None), 12)
        assert sum(spent) == pytest.approx(looking.spent)
        assert looking.spent <= 12 + max(spent)

    @pytest.mark.parametrize("stop_after", [1, 7, 30, 55])
    def test_stopped_and_begun_anew_it_ends_where_it_would_have_ended(self, stop_after):
        begin, undisturbed = forecasts(SCHEDULE)(6, None), search()
        expected = undisturbed.best(begin, 30)
        stopped, calls = search(), []

        def interrupted(policy, pictures):
            calls.append(policy)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return sampled(policy, pictures)

        stopped.simulate = interrupted
        with pytest.raises(KeyboardInterrupt):
            stopped.best(begin, 30)
        again = search(tried=stopped.tried, fitted=stopped.fitted)
        assert again.best(begin, 30) == expected
        assert again.spent == undisturbed.spent

    def test_pictures_that_are_not_finite_are_the_worst(self):
        begin = forecasts(SCHEDULE)(6, None)

        def blown(policy, pictures):
            outcome = sampled(policy, pictures)
            outcome.latents[0] *= math.nan if policy == begin[0] else 1
            return outcome

        plan = search_plans(search(simulate=blown), forecasts(SCHEDULE), [6], 20)[0]
        assert plan.error < 1 < plan.unplanned
        assert Plan.parsed(plan.as_dict()) == plan
        for bad in (math.nan, math.inf, 1e12):  # one of six
            at = torch.tensor([1.0] * 5 + [bad])[:, None]
            nowhere = search(simulate=lambda policy, n, at=at: Outcome(NOISE[:n] * at[-n:], 0.3))
            with pytest.raises(SettingError, match="pictures are not finite; ask for a smaller speed-up"):
                search_plans(nowhere, forecasts(SCHEDULE), [6], 20)

    def test_a_run_that_computes_everything_all_the_same_gives_no_plans(self):
        full = search(simulate=lambda policy, n: Outcome(sampled(Full(), n).latents, 1.0))
        with pytest.raises(SettingError, match="computed everything on these pictures"):
            search_plans(full, forecasts(SCHEDULE), [6], 20)

    def test_what_was_tried_is_not_sampled_again(self):
        first = search()
        expected = first.best(forecasts(SCHEDULE)(6, None), 20)

        def never(policy, pictures):
            assert policy == Full(), f"sampled again: {policy}"
            return sampled(policy, pictures)

        assert (
            search(tried=first.tried, fitted=first.fitted, simulate=never).best(forecasts(SCHEDULE)(6, None), 20)
            == expected
        )


@dataclasses.dataclass(frozen=True)
class Knobbed(CachePolicy):
    """Latents are what the knobs say: the reference is reached at mask (1, 3), mode "c", and every shift at 2."""

    mask: tuple[int, ...] = ()
    mode: str = "a"
    shift: tuple[tuple[float], ...] = ()

    def decide(self, step, site):
        return Action.COMPUTE

    def describe(self):
        return "knobbed"

    def knobs(self, schedule):
        return (
            Mask("mask", tuple(range(4))),
            Choice("mode", ("a", "b", "c")),
            Numbers("shift", (0.0,), tuple((t, 0) for t in range(4))),
        )


def test_a_search_begins_from_the_default_too_and_with_speed_ups_that_it_has_not():
    schedule = dataclasses.replace(SCHEDULE, prediction="FLUX", cfg=1.0)
    default = Forecast(2.0).prepared(schedule)
    begin = forecasts(schedule)(len(default.computed), None)
    assert (begin[1].computed, begin[1].corrector) == (default.computed, "linear")
    fine = dataclasses.replace(schedule, total=50, sigmas=tuple(1 - i / 50 for i in range(51)))
    assert [len(policy.computed) for policy in forecasts(fine)(2, None)] == [2] * len(forecasts(fine)(2, None))


def test_any_policy_that_declares_knobs_is_searched():
    def simulate(policy, pictures):
        wrong = [float(t in policy.mask) - float(t in (1, 3)) for t in range(4)]
        shifts = [row[0] - 2 for row in policy.shift or [(0.0,)] * 4]
        return Outcome(torch.tensor([[1.0, *wrong, "abc".index(policy.mode) - 2.0, *shifts]] * 2), 0.1)

    reference = torch.tensor([[1.0, *[0.0] * 9]] * 2)
    found, error = Search(simulate, reference, Schedule(4)).best([Knobbed()], 20)
    assert (found.mask, found.mode) == ((1, 3), "c")
    assert error < 0.2
    assert [row[0] for row in found.shift] == pytest.approx([2.0] * 4, abs=0.1)


def test_changes_of_steps_keep_the_first_and_the_number():
    policy = Forecast(computed=(0, 4, 9)).prepared(SCHEDULE)
    moved = {change(policy) for change in changes(policy, SCHEDULE)} - {None}
    schedules = {p.computed for p in moved}
    assert {(0, 5, 9), (0, 3, 9), (0, 4, 10), (0, 4, 11), (0, 2, 9)} <= schedules
    assert all(len(s) == 3 and s[0] == 0 for s in schedules)
    assert any(isinstance(k, Steps) for k in policy.knobs(SCHEDULE))


class TestFits:
    def test_gauss_newton_solves_a_linear_problem(self):
        slopes = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
        assert gauss_newton(slopes, slopes @ torch.tensor([0.5, -2.0]), 1e-9).tolist() == pytest.approx(
            [0.5, -2.0], rel=1e-6
        )

    @pytest.mark.parametrize(
        "places", [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [9.0, 7.0, 7.0, 4.0, 4.0, 1.0]], ids=["even", "some twice"]
    )
    def test_the_cost_of_a_gap_is_the_square_of_what_its_steps_move_together(self, places):
        """Skipped steps move the end point by the error of a line through two computed ones, or of the last one alone."""
        features = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        moves = np.diff(SIGMAS[:7])
        cost = coherent_cost(features @ features.T, SIGMAS[:7], places)
        for j in range(6):
            for i in range(j + 1):
                error = torch.zeros(40, dtype=torch.float64)
                for k in range(j + 1, 7):
                    assert cost[i, j, k] == pytest.approx(error.square().sum().item(), abs=1e-9)
                    if k < 6:
                        reach = (places[k] - places[j]) / (places[j] - places[i]) if places[i] != places[j] else 0.0
                        line = features[j] + reach * (features[j] - features[i])
                        error += moves[k] * (line - features[k])
            assert np.isinf(cost[j, j, : j + 1]).all()

    def test_long_schedules_begin_without_it(self):
        long = Schedule(LONGEST + 1, tuple(np.geomspace(10, 0.1, LONGEST + 2)), "euler", "EPS")
        gram = torch.eye(LONGEST + 1, dtype=torch.float64)
        assert forecasts(long, gram)(50, None) == forecasts(long)(50, None)

    def test_the_cheapest_schedule_is_the_cheapest_of_all(self):
        cost = coherent_cost(grammed()[:9, :9], SIGMAS[:10], [float(i) for i in range(9)])

        def total(computed):
            before = [0, *computed[:-1]]
            return sum(cost[i, j, k] for i, j, k in zip(before, computed, [*computed[1:], 9], strict=True))

        every = [(0, *rest) for rest in combinations(range(1, 9), 3)]
        assert total(cheapest(cost, 4)) == pytest.approx(min(map(total, every)))
        assert cheapest(cost, 9) == tuple(range(9))
        assert cheapest(cost, 1) == (0,)

    def test_step_errors_are_those_of_the_forecast(self):
        features = torch.randn(5, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        errors = step_errors(features @ features.T / 100, [0.0, 1.0, 2.0, 3.0, 4.0], (0, 1, 4), [(1.0, 0.0)] * 5)
        guess = 2 * features[1] - features[0]
        assert errors[2] == pytest.approx(((guess - features[2]).norm() / features[2].norm()).item())
        assert (errors[0], errors[1], errors[4]) == (0.0, 0.0, 0.0)


def test_other_pictures_have_the_last_word():
    """What leads on the pictures of the search is worse than where it began on those of the judge."""
    begin, exact = forecasts(SCHEDULE)(6, None)[:2], torch.tensor([[1.0, 0.0]] * 3)

    def of(found: float, costs: list[float]) -> Search:
        def simulate(policy, pictures):
            costs.append(0.4)
            error = 0.1 if policy in begin else found
            return Outcome(torch.tensor([[1.0, error]] * pictures), 0.4)

        return Search(simulate, exact, SCHEDULE)

    for fresh, error in ((0.2, 0.1), (0.05, 0.05)):
        search, judge = of(0.02, searched := []), of(fresh, judged := [])
        (plan,) = search_plans(search, lambda *_: begin, [6], 10, judge)
        assert (plan.error, plan.unplanned, plan.pictures) == (pytest.approx(error), pytest.approx(0.1), 3)
        assert (plan.settings in [record(policy)["settings"] for policy in begin]) == (fresh > 0.1)
        assert len(judged) == 3
        assert sum(searched) + sum(judged) == pytest.approx(search.spent + judge.spent)
        assert 9 < search.spent + judge.spent < 11


class TestPlans:
    @pytest.fixture(scope="class")
    def plans(self):
        return search_plans(search(), forecasts(SCHEDULE, grammed()), (8, 5), 40)

    def test_one_search_gives_a_plan_per_count(self, plans):
        assert [p.evaluations for p in plans] == [8, 5]
        assert all(p.error <= p.unplanned and p.pictures == 6 for p in plans)

    def test_a_plan_restored_from_json_gives_the_same_pictures(self, plans):
        for plan in plans:
            again = Plan.parsed(json.loads(json.dumps(plan.as_dict()))).restored()
            exact = sampled(Full()).latents
            error = ((sampled(again).latents - exact).norm(dim=1) / exact.norm(dim=1)).mean().item()
            assert error == pytest.approx(plan.error)

    def test_goals(self, plans):
        assert chosen(plans, speedup=2.0).evaluations == 8
        assert chosen(plans, speedup=3.0).evaluations == 5
        assert chosen(plans, evaluations=7).evaluations == 5
        assert chosen(plans, error=plans[1].error).evaluations == 5
        for goal in ({"speedup": 4.0}, {"evaluations": 4}, {"error": 1e-9}):
            with pytest.raises(ValueError, match=r"There are: 2\.00x \(8 of 16 steps\)"):
                chosen(plans, **goal)

    @pytest.mark.parametrize("bad", [
        {"policy": "os"}, {"policy": "CACHES"}, {"evaluations": 99}, {"steps": True}, {"error": float("nan")}, {"settings": []},
    ])  # fmt: skip
    def test_nonsense_from_a_file_is_refused(self, plans, bad):
        with pytest.raises((ValueError, TypeError)):
            Plan.parsed(plans[0].as_dict() | bad).restored()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("speedup", "2"), ("speedup", True), ("speedup", float("nan")), ("order", 1.0), ("computed", [0, "2"]),
            ("computed", [0, 99]), ("computed", 3), ("gains", [1.0, 0.5]), ("gains", [[1.0]] * T), ("sigmas", [0.0] * (T + 1)),
            ("sigmas", [1.0]), ("sigmas", [10**400]), ("level", "everywhere"), ("coordinate", ["sigma"]), ("coordinate", "x" * 10**6),
        ],
    )  # fmt: skip
    def test_settings_that_are_none_are_refused_by_name(self, plans, name, value):
        plan = dataclasses.replace(plans[0], settings=plans[0].settings | {name: value})
        with pytest.raises(SettingError, match=rf"{name}|step 99"):
            plan.restored()

    def test_what_is_no_setting_is_passed_by(self, plans):
        plan = dataclasses.replace(plans[0], settings=plans[0].settings | {"places": ["x"], "later": [1]})
        assert plan.restored() == plans[0].restored()

    @pytest.mark.parametrize("policy", ["GOC", "EOC", "L2C", "Taylor", "CachePolicy", "Decline", "os"])
    def test_policies_that_no_file_can_hold_are_refused(self, plans, policy):
        for told in ({}, {"base": "FORA"}, {"base": 3, "trends": []}):
            with pytest.raises(SettingError, match="Search again"):
                dataclasses.replace(plans[0], policy=policy, settings=told).restored()

    def test_a_prior_carries_them_and_an_old_one_has_none(self, plans, tmp_path):
        subject = Subject("DiT", "0" * 16, "EPS", "euler", "karras", T, 1.0)
        tables = {"sigmas": torch.tensor(SIGMAS[:-1]), "power": torch.ones(T, 0), "difference": torch.ones(1, T, 0)}
        prior = Prior(subject, (), 6, tables)
        assert Prior.load(prior.save(tmp_path / "a.safetensors")).plans == ()
        prior = dataclasses.replace(prior, plans=tuple(plans))
        again = Prior.load(prior.save(tmp_path / "b.safetensors"))
        assert again.plans == prior.plans
        assert [p.evaluations for p in Prior.merge([again, prior]).plans] == [8, 5]
        broken = dataclasses.replace(prior, plans=(dataclasses.replace(plans[0], error=-1.0),))
        with pytest.raises(PriorError, match=r"b\.safetensors"):
            Prior.load(broken.save(tmp_path / "b.safetensors"))

    def test_of_two_for_one_goal_the_better_judged_is_kept(self, plans):
        more = dataclasses.replace(plans[0], pictures=60, error=1.0)
        assert merged([plans, [more]]) == (more, plans[1])

    def test_what_is_searched_again_takes_the_place_of_what_was(self, plans):
        before = [dataclasses.replace(plans[0], pictures=60), dataclasses.replace(plans[1], evaluations=4)]
        assert superseded(before, plans) == (*plans, before[1])

    def test_settings_are_a_policys_own(self):
        assert restored("FORA", settings(FORA(3, "aligned"))) == FORA(3, "aligned")


@pytest.mark.parametrize(("count", "steps"), [(10, 20), (5, 20), (14, 28), (20, 20), (1, 7)])
def test_a_resized_schedule_has_the_wanted_number_of_steps(count, steps):
    for shape, total in (((0, 1, 2, 3, 4, 6, 11, 19, 30, 44), 50), (spread(50, 10), 50)):
        found = resized(shape, total, count, np.linspace(0, total, steps, endpoint=False))
        assert len(set(found)) == count
        assert list(found) == sorted(found)
        assert found[0] == 0
        assert found[-1] < steps
