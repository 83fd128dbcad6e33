"""Sentences about sampling runs."""

import re

import pytest
from drawn import SITES, compute, trace
from priorcache.cache_core.sites import MODEL, Action, Site
from priorcache.cache_core.trace import RunTrace
from priorcache.plots import words


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z])", text)


ESTIMATED = {"error": lambda step, site: None if step % 2 else 0.01 * (step + site.block + 1)}


def test_three_sentences_say_what_happened_what_it_cost_and_what_to_try():
    what, cost, advice = sentences(words.summary(trace()))
    assert what == (
        "FORA N=2 (published), euler, 1 x 4 x 8 x 8, cpu: 3 of 6 evaluations skipped work (of all that there was to "
        "compute, 50% reused) in 1.80 s in the model, 1.33x faster than its steps in full, and the cache held 3.0 MiB at "
        "most."
    )
    assert cost == "Reuse cost a relative error of 0.050 on average, 0.080 at worst (blocks.2.attn, step 5)."
    assert advice == "Try a larger interval: there is room for it."


def test_an_estimate_is_called_one():
    said = words.summary(trace(**ESTIMATED))
    assert "At the computed steps, reuse would have cost a relative error of 0.040 on average, 0.070 at worst" in said
    assert "blocks.2.attn, step 4" in said


def test_kinds_are_named_by_their_share():
    def decide(step: int, site: Site) -> Action:
        return Action.COMPUTE if step % 2 == 0 else Action.PARTIAL if site.branch == "mlp" else Action.REUSE

    assert "25% partial, 25% corrected)" in words.summary(trace(decide=decide, changed="corrected"))


def test_without_a_full_step_no_speed_is_claimed():
    said = words.summary(trace(decide=lambda step, site: Action.REUSE))
    assert "in 1.20 s in the model, with no full step to compare with" in said
    assert "faster" not in said


def test_one_step_is_one():
    said = words.summary(trace(1, compute))
    assert "its one evaluation was computed in full" in said


def test_times_in_shadow_are_called_so():
    said = words.summary(trace(measure="truth"))
    assert "computing in shadow included" in said
    assert "faster" not in said


@pytest.mark.parametrize(("store", "where"), [("device", ""), ("cpu", " of main memory"), ("8 bit", " in 8 bits")])
def test_memory_is_told_with_where_it_was_and_what_was_expected(store, where):
    run = trace()
    run.store, run.expected_bytes = store, 4 * 2**20
    assert f"the cache held 3.0 MiB{where} at most (4.0 MiB expected)." in words.summary(run)


class TestNothingSkipped:
    def test_a_policy_that_declined_gives_its_reason_and_the_smallest_change(self):
        run = trace(8, compute, lambda step, site: 0.39 if step == 5 else 0.5, policy="Forecast 2.5x")
        run.notes.append(
            "Forecast, 3 computed, linear computed everything: a schedule of 8 steps has none to spare; forecasting needs at least 10."
        )
        _, why, advice = sentences(words.summary(run))
        assert why == (
            "Nothing was skipped: a schedule of 8 steps has none to spare; forecasting needs at least 10; the smallest change from one "
            "evaluation to the next was 0.390, at step 5."
        )
        assert advice.startswith("Try 20 steps or more")

    def test_a_short_run_says_that_it_is_short(self):
        assert "a run of 4 steps leaves hardly anything to reuse" in words.summary(trace(4, compute))

    def test_a_full_policy_is_followed_by_one_that_skips(self):
        _, why, advice = sentences(words.summary(trace(20, compute, policy="Full (no caching)")))
        assert why.startswith("Nothing was skipped: the policy asked for every evaluation in full; the smallest change")
        assert advice == "Try FORA Policy with interval 2, or Forecast Policy with speedup 2."

    @pytest.mark.parametrize(
        ("policy", "other"), [("Forecast 2x", "FORA Policy"), ("EOC 0.01 on FORA N=2", "Forecast Policy")]
    )
    def test_a_policy_that_declined_is_followed_by_one_that_would_not(self, policy, other):
        run = trace(20, compute, policy=policy)
        run.notes.append(f"{policy} computed everything: the sampler adds noise.")
        assert other in sentences(words.summary(run))[-1]

    def test_unmeasured_and_undecided(self):
        run = trace(20, compute, lambda *_: None)
        assert "Nothing was skipped: the policy asked for every evaluation in full." in words.summary(run)


def test_a_policy_that_gave_up_on_the_way_says_from_where():
    run = trace()
    run.notes.append("FORA computed everything from evaluation 4 on: memory ran out.")
    assert "; everything was computed from evaluation 4 on, because memory ran out." in words.summary(run)


def test_other_notes_are_said_as_they_are():
    run = trace()
    run.notes.append("The blocks of this model are not what the adapter knows.")
    assert "; The blocks of this model are not what the adapter knows." in words.summary(run)


def test_a_stopped_run_is_called_so():
    assert sentences(words.summary(trace(complete=False)))[1::2] == [
        "The run was stopped before its end.", "Let it run to the end.",
    ]  # fmt: skip
    nothing = RunTrace("FORA", 20, about="euler")
    assert words.summary(nothing) == "FORA, euler: the run was stopped before its first evaluation."
    unseen = RunTrace("FORA", 6, about="euler", notes=["FORA computed everything: another guider."], complete=True)
    assert words.summary(unseen) == "FORA, euler: no evaluation was seen. FORA computed everything: another guider."


def test_times_that_hardly_differ_are_not_told_apart():
    assert "in the model, as fast as its steps in full, and" in words.summary(trace(skipped=0.4))


class TestAdvice:
    def test_ruined_pictures_come_before_speed(self):
        run = trace(error=lambda *_: 1.2, skipped=0.4, policy="FORA N=4 (published)")
        assert (
            words.advice(run)
            == "Try a smaller interval: what is reused has little in common with what would be computed."
        )

    def test_where_hardly_anything_was_reused_more_is(self):
        run = trace(
            20,
            decide=lambda step, site: Action.REUSE if step == 3 else Action.COMPUTE,
            skipped=0.4,
            policy="L2C 1 of 9",
        )
        assert words.advice(run) == "Try a higher threshold: 95% of the work was still done."

    @pytest.mark.parametrize(
        ("policy", "what"),
        [
            ("FORA N=2 (aligned, 90% to 100%)", "a start and an end further apart"),
            ("Budget 4 MiB on FORA N=3 (aligned, 0% to 90%)", "more megabytes in Memory Budget"),
        ],
    )
    def test_what_binds_is_to_be_loosened(self, policy, what):
        run = trace(20, lambda step, site: Action.REUSE if step == 19 else Action.COMPUTE, policy=policy)
        assert words.advice(run) == f"Try {what}: 95% of the work was still done."

    def test_errors_far_from_what_is_reused_say_nothing(self):
        """The first third is rough, and computed already."""
        run = trace(
            12,
            lambda step, site: Action.REUSE if step % 2 and step > 6 else Action.COMPUTE,
            error=lambda step, site: None if step % 2 and step > 6 else 1.5 if step < 5 else 0.15,
            policy="FORA N=2 (aligned, 50% to 100%)",
        )
        assert "0.900 on average" in words.summary(run)
        assert words.advice(run) == (
            "Try measure = truth in Apply Cache for the true error, and a larger interval if the picture holds."
        )

    def test_a_disturbed_run_is_to_be_repeated(self):
        run = trace(skipped=0.4)
        assert words.advice(run).startswith("Try larger pictures")
        run.moments[3] = run.moments[3]._replace(seconds=1.2)
        assert words.advice(run).startswith("Try it once more")

    def test_nothing_is_faster_than_two_computed_steps(self):
        run = trace(
            12,
            decide=lambda step, site: Action.REUSE if step % 6 else Action.COMPUTE,
            error=lambda *_: 0.01,
            policy="Forecast 6x",
            skipped=0.01,
            sites=[MODEL],
        )
        assert words.advice(run) == "Keep it if the picture holds: it computes two steps, the fewest possible."

    def test_unmeasured(self):
        run = trace(error=lambda *_: None, measure="off")
        assert "measure = errors" in words.advice(run)
        assert "What this cost was not measured." in words.summary(run)

    def test_one_rough_third_is_to_be_computed(self):
        run = trace(12, error=lambda step, site: 0.9 if step >= 8 else 0.1)
        assert words.advice(run) == (
            "Try start and end so that steps 8 to 11 are computed, where the error is 0.90 against 0.10 elsewhere, or more "
            "sampler steps."
        )
        run = trace(12, error=lambda step, site: 0.9 if step >= 8 else 0.1, policy="Forecast 2x", sites=[MODEL])
        assert words.advice(run) == "Try a lower speedup: at steps 8 to 11 the error is 0.90 against 0.10 elsewhere."

    def test_large_errors_everywhere_are_to_be_corrected_or_avoided(self):
        assert words.advice(trace(error=lambda *_: 0.5, policy="FORA N=3 (published)")) == (
            "Try a smaller interval, or GOC, EOC or Taylor Policy to correct what is reused."
        )
        assert words.advice(trace(error=lambda *_: 0.5, policy="GOC 0.8 on FORA N=3")) == "Try a smaller interval."

    @pytest.mark.parametrize("policy", ["FORA N=2 (published)", "GOC 0.8 on FORA N=2 (aligned)", "GOC 0.8 on FORA N=2"])
    def test_where_every_second_step_is_computed_no_smaller_interval_is_left(self, policy):
        said = words.advice(trace(error=lambda *_: 0.5, policy=policy))
        assert said.startswith("Try more sampler steps")

    def test_what_cannot_be_corrected_is_not_to_be(self):
        said = words.advice(trace(error=lambda *_: 0.5, policy="Forecast 2x", sites=[MODEL]))
        assert said == "Try a lower speedup."

    @pytest.mark.parametrize(("error", "what"), [(0.5, "of more"), (0.01, "of fewer")])
    def test_another_plan_is_what_a_plan_has(self, error, what):
        run = trace(error=lambda *_: error, policy="Forecast, 3 computed, linear, line corrector", sites=[MODEL])
        assert words.advice(run).startswith(f"Try a plan {what} computed steps")

    @pytest.mark.parametrize("error", [0.01, 0.2, 0.5, None])
    @pytest.mark.parametrize("skipped", [0.1, 0.4])
    @pytest.mark.parametrize("policy", ["FORA N=2 (aligned)", "Forecast 2x", "Forecast, 3 computed, linear"])
    def test_what_was_chosen_is_turned_where_it_was_chosen(self, policy, error, skipped):
        run = trace(error=lambda *_: error, policy=policy, skipped=skipped)
        run.automatic = True
        said = words.advice(run)
        assert not any(word in said for word in ("Apply Cache", "measure", "interval", "start and end", "plan", "GOC"))

    def test_a_node_that_chooses_is_told_to_skip_at_all(self):
        run = trace(20, compute)
        run.automatic = True
        assert words.advice(run) == "Try speedup 2."

    def test_a_calm_whole_network_promises_no_room(self):
        said = words.advice(trace(policy="Forecast 2x", error=lambda *_: 0.01, sites=[MODEL]))
        assert said == "Try a higher speedup if the picture holds, and compare with fewer steps: Sweep draws both."

    def test_a_saving_that_does_not_arrive_on_the_clock_is_named(self):
        run = trace()
        run.moments = [m._replace(seconds=0.4 if m.step.index % 2 == 0 else 0.38) for m in run.moments]
        assert "up to 2.0x was possible and 1.03x came of it" in words.advice(run)

    @pytest.mark.parametrize(
        ("policy", "more"),
        [("Forecast 2x", "speedup"), ("L2C 3 of 8 reused", "threshold"), ("Taylor 2 on DuCa N=3", "interval"), ("Mine", "skips more")],
    )  # fmt: skip
    def test_it_speaks_of_the_policys_own_knobs(self, policy, more):
        assert more in words.advice(trace(policy=policy, error=lambda *_: 0.01))

    def test_the_whole_network_is_named_so(self):
        assert "the whole network, step 5" in words.summary(trace(sites=[MODEL]))
        assert "blocks.0.attn" in words.summary(trace(sites=SITES[:1]))
