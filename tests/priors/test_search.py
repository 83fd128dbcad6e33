"""What a search may take, and what it says of it: policies whose pictures and costs can be written down."""

import dataclasses

import pytest
import torch
from priorcache.cache_core.knobs import Choice, Mask
from priorcache.cache_core.policies import FORA, CachePolicy, Full
from priorcache.cache_core.sites import Action, Schedule
from priorcache.errors import SettingError
from priorcache.priors.search import Outcome, Search
from priorcache.priors.tune import told, tuned

REFERENCE = torch.tensor([[1.0, 0.0, 0.0]] * 2)


@dataclasses.dataclass(frozen=True)
class Priced(CachePolicy):
    """Errs by what interval and ratio leave, and costs by what they compute; the mask is free."""

    interval: int = 3
    ratio: int = 1
    mask: tuple[int, ...] | None = None

    def decide(self, step, site):
        return Action.COMPUTE

    def describe(self):
        return "priced"

    def knobs(self, schedule):
        return (Choice("interval", (2, 3, 4)), Choice("ratio", (0, 1, 2, 3, 4, 5)), Mask("mask", (0, 1)))


def simulate(policy: CachePolicy, pictures: int) -> Outcome:
    """Best at ratio 5, the longer interval costs little, one of the mask's two does harm."""
    wrong = [0.1 * policy.interval, 0.5 - 0.1 * policy.ratio]
    harm = 0.2 * (policy.mask is None or 1 in policy.mask)
    latents = torch.tensor([[1.0 + harm, *wrong]] * pictures)
    return Outcome(latents, 0.6 / policy.interval + 0.02 * policy.ratio)


def search(**changed) -> Search:
    return Search(**{"simulate": simulate, "reference": REFERENCE, "schedule": Schedule(10)} | changed)


class TestCeiling:
    def test_what_costs_more_is_not_taken_and_what_is_free_is(self):
        looking = search()
        found, _ = looking.best([Priced(ratio=1)], 2.0)
        assert looking.cost(found) <= looking.cost(Priced(ratio=1))
        assert found.mask == (0,)

    def test_a_saving_pays_for_what_is_worth_more(self):
        """A longer interval alone is worse and a higher ratio alone is too dear; both together are better."""
        looking = search()
        first = Priced()
        found, error = looking.best([first], 40)
        assert (found.interval, found.ratio) == (4, 3)
        assert looking.cost(found) <= looking.cost(first)
        assert error < looking.judged(first)

    def test_one_that_is_given_leaves_room(self):
        found, _ = search().best([Priced()], 40, ceiling=0.4)
        assert found.ratio == 5
        assert search().best([Priced()], 40, ceiling=0.22) == search().best([Priced()], 40)

    @pytest.mark.parametrize("samplings", [0, 0.3, 1, 3, 40])
    def test_the_first_is_judged_in_any_case(self, samplings):
        found, error = search().best([Priced()], samplings)
        assert error <= search().best([Priced()], 0)[1]
        assert samplings or found == Priced()

    @pytest.mark.parametrize("stop_after", [1, 5, 9, 12])
    def test_stopped_and_begun_anew_it_ends_where_it_would_have_ended(self, stop_after):
        calls = []

        def interrupted(policy, pictures):
            calls.append(policy)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return simulate(policy, pictures)

        stopped = search(simulate=interrupted)
        with pytest.raises(KeyboardInterrupt):
            stopped.best([Priced()], 40)
        assert search(tried=stopped.tried).best([Priced()], 40) == search().best([Priced()], 40)


@dataclasses.dataclass(frozen=True)
class Toggled(Priced):
    """The first of its mask costs, the second one saves, and neither does any good."""

    def knobs(self, schedule):
        return (Mask("mask", (0, 1)),)


def test_toggles_that_save_and_spend_come_to_an_end():
    def simulate(policy, pictures):
        mask = (0, 1) if policy.mask is None else policy.mask
        latents = torch.tensor([[1.0, 0.1 + 0.1 * len({0, 1} ^ set(mask)), 0.0]] * pictures)
        return Outcome(latents, 0.4 - 0.05 * (0 in mask) + 0.05 * (1 in mask))

    found, _ = search(simulate=simulate).best([Toggled()], 1e6, ceiling=0.9)
    assert found == Toggled()


class TestTuned:
    def test_says_what_each_setting_was_and_became(self):
        tuning = tuned(search(), Priced(), 40)
        assert tuning.settings == {
            "Priced interval": (3, 4), "Priced ratio": (1, 3), "Priced mask": (None, (0,)),
        }  # fmt: skip
        text = told(tuning)
        assert "Priced interval: 3 -> 4" in text
        assert "Priced mask: all -> 0" in text
        assert "2 pictures" in text
        assert f"{tuning.errors[0]:.4f} before, {tuning.errors[1]:.4f} after" in text
        assert "22.0% before, 21.0% after" in text

    def test_reports_what_was_sampled(self):
        costs = []

        def counted(policy, pictures):
            outcome = simulate(policy, pictures)
            costs.append(outcome.cost)
            return outcome

        tuning = tuned(search(simulate=counted), Priced(), 3)
        assert tuning.samplings == pytest.approx(sum(costs))
        assert tuning.samplings <= 3 + max(costs)

    def test_where_nothing_is_better_the_given_one_is_returned(self):
        best = Priced(4, 3, (0,))
        tuning = tuned(search(), best, 40)
        assert tuning.after == best
        assert tuning.errors[0] == tuning.errors[1]
        assert "nothing better was found" in told(tuning)
        assert "Priced ratio: 3 (kept)" in told(tuning)

    def test_what_was_found_has_to_be_better_on_other_pictures_too(self):
        tuning = tuned(search(), Priced(), 40, judge=search)
        assert tuning.judged == tuning.errors
        assert f"On as many other pictures: {tuning.judged[0]:.4f} before, {tuning.judged[1]:.4f} with" in told(tuning)
        assert tuning.after == tuned(search(), Priced(), 40 - 2 * 0.22).after

        def contrary(policy, pictures):
            """The farther from where it began, the worse."""
            return Outcome(REFERENCE[:pictures] * (1 + (0.3 if policy != Priced() else 0.1)), 0.2)

        judge = search(simulate=contrary)
        tuning = tuned(search(), Priced(), 40, judge=lambda: judge)
        assert tuning.after == Priced()
        assert tuning.errors[0] == tuning.errors[1]
        assert tuning.judged == (judge.judged(Priced()), pytest.approx(0.3))
        assert "so that the given settings are kept" in told(tuning)
        assert tuning.samplings == pytest.approx(tuned(search(), Priced(), 40 - 2 * 0.22).samplings + judge.spent)

    @pytest.mark.parametrize("policy", [Full(), FORA(1)])
    def test_what_cannot_be_tuned_is_refused(self, policy):
        with pytest.raises(SettingError, match="leaves nothing to tune"):
            tuned(search(), policy, 5)

    def test_what_computes_everything_or_too_much_is_refused(self):
        everything = search(simulate=lambda policy, n: Outcome(REFERENCE, 1.0))
        with pytest.raises(SettingError, match="computed everything"):
            tuned(everything, FORA(2), 5)
        with pytest.raises(
            SettingError, match=r"already costs 0\.220 of a full sampling, more than the ceiling of 0\.1"
        ):
            tuned(search(), Priced(), 5, 0.1)


@dataclasses.dataclass(frozen=True)
class Mixed(CachePolicy):
    """Its option chooses among errors of eight pictures."""

    option: int = 0

    def decide(self, step, site):
        return Action.COMPUTE

    def describe(self):
        return "mixed"

    def knobs(self, schedule):
        return (Choice("option", (0, 1, 2)),)


class TestHead:
    """Two of eight pictures are sampled first."""

    def found(self, errors: list[list[float]]) -> tuple[int, list[tuple[int, int]]]:
        """What a search comes to that begins from option 0, and what it sampled: option and pictures."""
        asked, reference = [], torch.tensor([[1.0, 0.0]] * len(errors[0]))

        def simulate(policy, pictures):
            """Noise is another where fewer pictures are sampled, as with ancestral samplers."""
            noise = float(pictures < len(reference))
            if policy == Full():
                return Outcome(reference[:pictures] + noise, 1.0)
            asked.append((policy.option, pictures))
            return Outcome(torch.tensor([[1.0, error] for error in errors[policy.option][:pictures]]) + noise, 0.5)

        looking = Search(simulate, reference, Schedule(10))
        best, error = looking.best([Mixed(0)], 40)
        assert error == pytest.approx(sum(errors[best.option]) / len(reference))
        assert looking.spent == pytest.approx(sum(0.5 * pictures / len(reference) for _, pictures in asked))
        assert len(looking.settings) == len({option for option, _ in asked})
        return best.option, asked

    def test_what_loses_on_the_first_pictures_is_not_sampled_on(self):
        best, asked = self.found([[0.2] * 8, [0.3] * 2 + [0.0] * 6, [0.1] * 8])
        assert best == 0
        assert (1, 8) not in asked
        assert asked.count((1, 2)) == 1

    def test_what_wins_there_is_judged_by_all(self):
        best, asked = self.found([[0.2] * 8, [0.1] * 2 + [0.3] * 6, [0.1] * 8])
        assert best == 0
        assert (1, 8) in asked

    def test_what_loses_there_by_no_more_than_chance_may_still_win(self):
        best, asked = self.found([[0.2] * 8, [0.1, 0.32] + [0.1] * 6, [0.3] * 8])
        assert best == 1
        assert (2, 8) not in asked

    def test_what_is_to_be_judged_in_any_case_is(self):
        errors, reference = [[0.2] * 8, [0.3] * 2 + [0.0] * 6, [0.2] * 8], torch.tensor([[1.0, 0.0]] * 8)

        def simulate(policy, pictures):
            off = errors[policy.option][:pictures] if policy != Full() else [0.0] * pictures
            return Outcome(torch.tensor([[1.0, error] for error in off]), 0.5)

        assert Search(simulate, reference, Schedule(10)).best([Mixed(0), Mixed(1)], 1, surely=2)[0] == Mixed(1)

    def test_three_pictures_are_sampled_together(self):
        best, asked = self.found([[0.25] * 3, [0.3, 0.3, 0.0], [0.1] * 3])
        assert best == 2
        assert {pictures for _, pictures in asked} == {3}
