import math

import pytest
import torch
from priorcache.cache_core.codecs import AsIs
from priorcache.cache_core.policies import FORA, GOC, Decline, Forecast, Full, Taylor, ToCa
from priorcache.cache_core.run import CacheRun, out_of_memory, relative_error
from priorcache.cache_core.sites import MODEL, Action, Schedule, Site
from priorcache.errors import SettingError

SITE = Site("blocks.0.attn", 0, 1)
ALIGNED = FORA(2, "aligned")


def walk(run: CacheRun, values: list[float], conds=((0, "u"),), sigmas=None, site: Site = SITE) -> list[float]:
    """One evaluation per value; the branch computes that value. Returns what came out."""
    out = []
    for i, value in enumerate(values):
        sigma = sigmas[i] if sigmas else float(len(values) - i)
        with run.evaluation(sigma, i / run.total):
            forward = run.next_forward(conds)
            out.append(forward.branch(site, lambda x, v=value: x * 0 + v, torch.ones(1, 1)).item())
    return out


def test_reuses_the_last_computed_output():
    assert walk(CacheRun(ALIGNED, 6), [1, 2, 3, 4, 5, 6]) == [1, 1, 3, 3, 5, 5]


def test_full_computes_and_keeps_nothing():
    run = CacheRun(Full(), 4)
    assert walk(run, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert run.store.nbytes == 0
    assert run.trace.rows == []


def test_a_miss_computes_whatever_the_policy_says():
    run = CacheRun(ALIGNED, 4)
    walk(run, [1])
    with run.evaluation(0.5, 0.25):
        other = run.next_forward([(0, "someone else")])
        assert other.action(SITE) is Action.COMPUTE
        assert other.branch(SITE, lambda x: x + 8, torch.ones(1, 1)).item() == 9


def test_the_true_error_of_tokens_computed_anew_is_that_of_the_mixture():
    """All tokens computed anew leave none, whatever reuse alone would have made."""
    run = CacheRun(ToCa("dit", ratio=1.0, steps=("F", "c", "F")), 3, measure="truth")
    for i in range(3):
        with run.evaluation(3.0 - i, i / 3):
            forward = run.next_forward([(0, "u")])
            forward.branch(
                Site("blocks.0.mlp", 0, 1), lambda x, v=i + 1.0: x * 0 + v, torch.ones(1, 4, 1), tokenwise=True
            )
    run.close(True)
    assert (run.trace.rows[1].action, run.trace.rows[1].error) == (Action.PARTIAL, 0)


def test_who_was_away_is_computed_again_and_holds_nothing_meanwhile():
    """As a window of a video that moves on and comes back: what it left is older than any policy thinks."""
    run, seen = CacheRun(FORA(4, "aligned"), 8), []
    for i, lanes in enumerate(("ab", "a", "ab", "ab")):
        with run.evaluation(8.0 - i, i / 8):
            for lane in lanes:
                forward = run.next_forward([(0, lane)])
                seen.append((i, lane, forward.branch(SITE, lambda x, v=i: x * 0 + v, torch.ones(1, 1)).item()))
            if i == 2:
                assert {lane.key for lane in run.store._groups for lane in lane} == {"a", "b"}
    assert seen == [(0, "a", 0), (0, "b", 0), (1, "a", 0), (2, "a", 0), (2, "b", 2), (3, "a", 0), (3, "b", 2)]


@pytest.mark.parametrize(
    ("before", "now", "left"),
    [
        (["pa"], ["pb"], ["pb"]),
        (["pa", "na"], ["pb", "nb"], ["pb", "nb"]),
        (["pa", "na"], ["pb", "na"], ["pb", "na"]),
        (["pa", "pb"], ["pc", "pa"], ["pa", "pb", "pc"]),  # windows of one prompt, any of which may still come
        (["pa"], ["qa"], ["pa", "qa"]),
    ],
    ids=" ".join,
)
def test_where_a_pass_takes_the_place_of_another_both_are_not_held_at_once(before, now, left):
    """p, q and n are prompts; a, b and c functions of them, as with a ControlNet and without."""
    run = CacheRun(FORA(6, "aligned"), 12)
    for i, lanes in enumerate((before, now)):
        with run.evaluation(12.0 - i, i / 12):
            for prompt, function in lanes:
                cond = int(prompt == "n")
                run.next_forward([(cond, (prompt, function))]).branch(SITE, lambda x: x, torch.ones(1, 1))
    held = {"".join(lane.key) for lanes in run.store._groups for lane in lanes}
    assert held == set(left)


class Told:
    """In place of a corrector."""

    sigmas, excess, nbytes, said = [4.0, 3.0, 2.0, 1.0], 0.0, 0, ()

    def clear(self):
        self.said = (*self.said, "forgets")

    def __call__(self, index, x, denoised, computed):
        self.said = (*self.said, index)
        return denoised


def test_a_corrector_forgets_when_other_conds_take_part():
    run = CacheRun(FORA(2, level="model"), 4)
    run.corrector, x = Told(), torch.ones(1, 1)
    for i, conds in enumerate(("a", "a", "b", "b")):
        with run.evaluation(4.0 - i, i / 4):
            run.next_forward([(0, conds)]).branch(MODEL, lambda x: x, x)
            run.guided(x, 0 * x)
    assert run.corrector.said == ("forgets", 0, 1, "forgets", 2, 3)


def test_a_corrector_forgets_when_guidance_changes():
    run = CacheRun(FORA(2, level="model"), 4)
    run.corrector, x = Told(), torch.ones(1, 1)
    for i, scale in enumerate((7.0, 7.0, 2.0, 2.0)):
        with run.evaluation(4.0 - i, i / 4):
            run.scale = scale
            run.next_forward([(0, "a")]).branch(MODEL, lambda x: x, x)
            run.guided(x, 0 * x)
    assert run.corrector.said == ("forgets", 0, 1, "forgets", 2, 3)


def test_a_corrector_does_not_take_guidance_that_begins_with_nothing_for_the_path():
    run = CacheRun(FORA(2, level="model"), 4)
    run.corrector, x = Told(), torch.ones(1, 1)
    for i in range(3):
        with run.evaluation(4.0 - i, i / 4):
            run.scale = 7.0
            run.next_forward([(0, "a")]).branch(MODEL, lambda x: x, x)
            run.guided(x, x if i < 2 else 0 * x)
    assert run.corrector.said == ("forgets", "forgets", "forgets", 2)


@pytest.mark.parametrize(("astray", "told"), [((4, 5), "2 evaluations"), ((4,), "1 evaluation")])
def test_a_sampler_that_leaves_its_schedule_for_a_while_is_told_of_by_number(astray, told):
    run = CacheRun(Forecast(2.0, corrector="off"), Schedule(12))
    for i in range(12):
        with run.evaluation(12.0 - i, (i + (i in astray)) / 12):
            run.next_forward([(0, "a")]).branch(MODEL, lambda x: x, torch.ones(1, 1))
    run.close(complete=True)
    (note,) = run.trace.notes
    assert note.endswith(f" computed {told} at which the sampler was not where its schedule says.")


@pytest.mark.parametrize(
    ("sigmas", "rises"),
    [((0.0, 1.0, 2.0, 3.0), True), ((0.0, 1.0, 2.0, 0.0), True), ((3.0, 2.0, 1.0, 0.0), False), ((1.0, 0.0), False), ((0.0, 0.0), False)],
)  # fmt: skip
def test_noise_that_rises_is_told_though_a_schedule_says_nothing_behind_its_end(sigmas, rises):
    run = CacheRun(ALIGNED, Schedule(len(sigmas) - 1, sigmas))
    assert ("the noise of this schedule rises" in (run.declined or "")) == rises


@pytest.mark.parametrize(("places", "told"), [(1, False), (10, False), (40, True)])
def test_passes_that_are_new_at_every_step_are_told_of(places, told):
    """A window that moves on at every step, among two that stay."""
    run = CacheRun(FORA(2), 10)
    for i in range(10):
        with run.evaluation(10.0 - i, i / 10):
            for window in ("first", "last", i * places // 40):
                run.next_forward([(0, window)]).branch(SITE, lambda x: x, torch.ones(1, 1))
    run.close(complete=True)
    assert [note.split(" found no past for ")[1][:7] for note in run.trace.notes] == ["9 of 27"] * told


def test_asking_changes_nothing():
    run = CacheRun(ALIGNED, 4)
    walk(run, [1])
    with run.evaluation(0.5, 0.25):
        forward = run.next_forward([(0, "u")])
        assert [forward.action(SITE) for _ in range(5)] == [Action.REUSE] * 5
    assert len(run.trace.rows) == 1


def test_a_second_pass_in_one_evaluation_has_its_own_memory():
    run = CacheRun(ALIGNED, 4)
    seen = []
    for i, value in enumerate((1.0, 2.0)):
        with run.evaluation(2.0 - i, i / 4):
            for extra in (0.0, 100.0):
                forward = run.next_forward([(0, "u")])
                out = forward.branch(SITE, lambda x, v=value + extra: x * 0 + v, torch.ones(1, 1))
                seen.append(out.item())
    assert seen == [1.0, 101.0, 1.0, 101.0]


@pytest.mark.parametrize(("since", "seen"), [(0, [0, 100, 1, 101, 2, 102, 3, 103]), (1, [0, 0, 101, 2, 102, 3, 103])])
@pytest.mark.parametrize("measure", ["off", "errors"])
def test_what_runs_twice_in_one_forward_is_computed_and_told_of_once(since, seen, measure):
    """As where a hook calls its block twice: the second call is not the function that the first one is."""
    run, found = CacheRun(Taylor(ALIGNED), 4, measure=measure), []
    for i in range(4):
        with run.evaluation(4.0 - i, i / 4):
            forward = run.next_forward([(0, "u")])
            for value in (i, 100 + i)[: 1 + (i >= since)]:
                found.append(forward.branch(SITE, lambda x, v=value: x * 0 + v, torch.ones(1, 1)).item())
    assert found == seen
    (note,) = run.trace.notes
    assert note.endswith("another node runs blocks of this model several times in one pass.")
    assert [row.step for row in run.trace.rows] == [0, 1, 2, 3]


def test_of_what_runs_twice_in_one_forward_an_observer_is_shown_the_first_turn():
    class Noting:
        branches, history = True, 1

        def branch(self, step, site, streams, out, past):
            shown.append((out.item(), len(past)))

    shown, run = [], CacheRun(Full(), 2, observers=[Noting()])
    for i in range(2):
        with run.evaluation(2.0 - i, i / 2):
            forward = run.next_forward([(0, "u")])
            for value in (i, 100 + i):
                forward.branch(SITE, lambda x, v=value: x * 0 + v, torch.ones(1, 1))
    assert shown == [(0, 0), (1, 1)]
    assert run.trace.notes == []


def test_noise_that_goes_up_again_is_computed():
    assert walk(CacheRun(ALIGNED, 4), [1, 2, 3, 4], sigmas=[4.0, 3.0, 2.0, 2.5]) == [1, 1, 3, 4]


def test_two_runs_share_nothing():
    first, second = CacheRun(ALIGNED, 4), CacheRun(ALIGNED, 4)
    walk(first, [1])
    assert walk(second, [7, 8]) == [7, 7]


def test_close_drops_every_tensor_and_keeps_the_trace():
    run = CacheRun(ALIGNED, 4, measure="errors")
    walk(run, [1, 2, 3, 4])
    run.close(complete=True)
    assert run.store.nbytes == 0
    assert [r.action for r in run.trace.rows] == [Action.COMPUTE, Action.REUSE] * 2
    assert run.trace.complete


@pytest.mark.parametrize("evaluation", [0, 1])
def test_what_is_still_under_way_when_it_closes_leaves_nothing(evaluation):
    run = CacheRun(GOC(ALIGNED), 4, measure="truth")

    def compute(x):
        if run.evaluations == evaluation + 1:
            run.close(complete=False)
        return x

    for step in range(evaluation + 1):
        with run.evaluation(4.0 - step, step / 4):
            run.next_forward([(0, "row")]).branch(SITE, compute, torch.ones(1, 2, 3))
    assert run.nbytes == 0


def test_errors_are_what_reuse_would_have_cost():
    run = CacheRun(ALIGNED, 4, measure="errors")
    walk(run, [1.0, 2.0, 4.0, 8.0])
    run.close(True)
    assert [r.error for r in run.trace.rows] == [None, None, pytest.approx(3 / 4), None]


def test_truth_is_what_reuse_did_cost_and_changes_no_output():
    run = CacheRun(ALIGNED, 4, measure="truth")
    assert walk(run, [1.0, 2.0, 4.0, 8.0]) == [1, 1, 4, 4]
    run.close(True)
    assert [r.error for r in run.trace.rows] == [None, pytest.approx(1 / 2), pytest.approx(3 / 4), pytest.approx(1 / 2)]


def test_constant_features_cost_nothing():
    run = CacheRun(ALIGNED, 6, measure="truth")
    walk(run, [3.0] * 6)
    run.close(True)
    assert {r.error for r in run.trace.rows if r.error is not None} == {0.0}


def test_a_declined_run_computes_everything_and_says_why_once():
    run = CacheRun(ALIGNED, 6)
    walk(run, [1, 2])
    run.decline("of the weather")
    run.decline("of something else")
    assert walk(run, [3, 4, 5, 6]) == [3, 4, 5, 6]
    assert run.trace.notes == ["FORA N=2 (aligned) computed everything from evaluation 1 on: of the weather."]


def test_a_policy_is_only_asked_about_its_own_level():
    assert walk(CacheRun(FORA(2, "aligned", level="model"), 4), [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert walk(CacheRun(FORA(2, "aligned", level="model"), 4), [1, 2, 3, 4], site=MODEL) == [1, 1, 3, 3]


def test_a_long_interval_outlives_the_clearing_of_unused_lanes():
    assert walk(CacheRun(FORA(20, "aligned"), 20), [*range(20)]) == [0] * 20


def test_a_step_before_the_first_evaluation_is_an_error():
    with pytest.raises(RuntimeError, match="evaluation"):
        _ = CacheRun(Full(), 3).step


def test_relative_error_is_the_ratio_of_norms():
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(exact + torch.tensor([0.0, 1.0]), exact).item() == pytest.approx(1 / 5)
    assert math.isfinite(relative_error(exact, torch.zeros(2)).item())


class Scarce(AsIs):
    """Memory that runs out at the nth feature that is kept, or at the nth that is asked for."""

    def __init__(self, keep: int = 10**9, give: int = 10**9, error: Exception | None = None):
        self.left = {"keep": keep, "give": give}
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def _count(self, what: str) -> None:
        self.left[what] -= 1
        if self.left[what] < 0:
            raise self.error

    def encode(self, value):
        self._count("keep")
        return super().encode(value)

    def decode(self, kept):
        self._count("give")
        return super().decode(kept)


@pytest.mark.parametrize("level", ["branch", "stack", "model"])
def test_a_network_that_remembers_its_calls_is_called_every_time(level):
    """Causal Wan: each call writes keys and values that the sampler winds back; a skipped one would leave them short."""
    run = CacheRun(FORA(2, "aligned", level=level), Schedule(4, sampler="ar_video"))
    assert walk(run, [1, 2, 3, 4], site=MODEL) == [1, 2, 3, 4]
    assert len(run.trace.notes) == 1
    assert "ar_video" in run.trace.notes[0]


@pytest.mark.parametrize("measure", ["off", "errors", "truth"])
@pytest.mark.parametrize("codec", [lambda: Scarce(keep=1), lambda: Scarce(give=1)], ids=["keeping", "giving"])
def test_memory_that_runs_out_drops_the_cache_and_says_so_once(measure, codec):
    run = CacheRun(ALIGNED, 8, measure=measure, codec=codec())
    out = walk(run, [1, 2, 3, 4, 5, 6, 7, 8])
    assert out[:2] == [1, 1]
    assert out[2:] == [3, 4, 5, 6, 7, 8] or out[1:] == [2, 3, 4, 5, 6, 7, 8]
    assert run.store.nbytes == 0
    assert len(run.trace.notes) == 1
    assert "memory ran out" in run.trace.notes[0]
    assert [r.step for r in run.trace.rows] == list(range(8))


@pytest.mark.parametrize("automatic", [False, True])
def test_memory_that_ran_out_names_what_there_is_to_change(automatic, monkeypatch):
    monkeypatch.setattr(FORA, "automatic", automatic)
    run = CacheRun(ALIGNED, 8, codec=Scarce(keep=1))
    walk(run, [1, 2, 3, 4, 5, 6, 7, 8])
    assert run.trace.automatic is automatic
    assert ("store" in run.trace.notes[0]) is not automatic


def test_memory_that_runs_out_in_the_model_is_the_models_affair():
    run = CacheRun(ALIGNED, 4)

    def hungry(x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with run.evaluation(1.0, 0.0), pytest.raises(torch.OutOfMemoryError):
        run.next_forward([(0, "u")]).branch(SITE, hungry, torch.ones(1, 1))
    assert run.trace.notes == []


def test_an_observer_gets_everything_or_an_error():
    class Watcher:
        branches, history = True, 1

        def branch(self, *_): ...

        def model(self, *_): ...

    with pytest.raises(torch.OutOfMemoryError):
        walk(CacheRun(Full(), 4, observers=[Watcher()], codec=Scarce(keep=1)), [1, 2, 3])


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        walk(CacheRun(ALIGNED, 4, codec=Scarce(keep=1, error=RuntimeError("shapes differ"))), [1, 2, 3])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=repr,
)
def test_lack_of_memory_is_recognised(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("measure", ["off", "errors", "truth"])
def test_a_policy_may_decline_in_mid_run_and_everything_is_computed(measure):
    class Unfit(FORA):
        def reuse(self, step, site, past):
            raise Decline("the prior is of another size; calibrate anew")

    run = CacheRun(Unfit(2, "aligned"), 6, measure=measure)
    assert walk(run, [1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 5, 6]
    assert len(run.trace.notes) == 1
    assert run.trace.notes[0].endswith("from evaluation 1 on: the prior is of another size; calibrate anew.")
    assert run.trace.computed_fraction == 1


class Watching:
    branches, history = True, 4

    def branch(self, step, site, streams, out, past):
        self.past = len(past)

    def model(self, step, streams, derivative):
        pass


@pytest.mark.parametrize("measure", ["off", "errors"])
def test_what_an_observer_keeps_changes_nothing(measure):
    """A policy is given as many past outputs as it asks for, whoever wants more."""
    policy = Taylor(ToCa("dit", ratio=0.1, steps=("F", "F", "F", "c", "c", "c", "F", "c")))

    def outs(*observers):
        run, found = CacheRun(policy, 8, measure=measure, observers=observers), []
        for i in range(8):
            with run.evaluation(8.0 - i, i / 8):
                forward = run.next_forward([(0, "u")])
                x = torch.ones(1, 16, 1)
                found.append(forward.branch(Site("blocks.3.mlp", 3, 4), lambda x, v=i: x * v**2, x, tokenwise=True))
        return torch.stack(found)

    watching = Watching()
    assert torch.equal(outs(watching), outs())
    assert watching.past == 4


def test_what_a_trace_cannot_count_is_refused(monkeypatch):
    monkeypatch.setattr(FORA, "changes", "damped")
    with pytest.raises(SettingError, match=r"changes is 'damped'; a trace knows computed, .*forecast"):
        CacheRun(ALIGNED, 4)
