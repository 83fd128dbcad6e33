import json

import pytest
import torch
from priorcache.cache_core.policies import EOC, FORA, GOC, Forecast, Taylor, ToCa
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, STACK, Action, Schedule, Site, Step
from priorcache.cache_core.trace import KINDS, Clock, Moment, Row, RunTrace, Trace

SITES = [Site("blocks.0.attn", 0, 2), Site("blocks.1.attn", 1, 2)]


def run_of(seconds: list[float], reused: set[int], origin=("p", "1")) -> RunTrace:
    """A finished run with one decision per step and site."""
    run = RunTrace("test", len(seconds), origin=origin, complete=True)
    for i, s in enumerate(seconds):
        action = Action.REUSE if i in reused else Action.COMPUTE
        run.moments.append(Moment(Step(i, len(seconds), i / len(seconds), 1.0), s, 100 * i))
        run.rows += [Row(i, site, action, 0.1 * i if action is Action.COMPUTE else None) for site in SITES]
    return run


def test_speedup_is_measured_against_its_own_full_steps():
    run = run_of([9.0, 1.0, 0.25, 1.0, 0.25], reused={2, 4})
    assert run.full_steps() == [0, 1, 3]
    assert run.speedup == pytest.approx(1.0 * 5 / 11.5)  # the slow first step counts in the total, not in the median


def test_a_run_without_full_steps_claims_no_speedup():
    assert run_of([0.5, 0.5], reused={0, 1}).speedup is None


def test_fraction_peak_and_total():
    run = run_of([1.0, 0.5, 1.0, 0.5], reused={1, 3})
    assert run.computed_fraction == 0.5
    assert run.seconds == 3.0
    assert run.peak_bytes == 300


def test_the_stack_beside_branches_is_no_further_work():
    """Its hidden state is there whenever the blocks ran; where it is reused, so is every branch."""
    run = run_of([1.0, 0.5, 1.0, 0.1], reused={1, 3})
    run.rows += [Row(i, STACK, Action.REUSE if i == 3 else Action.COMPUTE, None) for i in range(4)]
    assert run.computed_fraction == 0.5
    assert run.full_steps() == [0, 2]
    assert [step["computed"] for step in run.as_dict()["steps"]] == [1, 0, 1, 0]


def test_the_stack_alone_is_what_was_decided():
    run = RunTrace("test", 2, rows=[Row(0, STACK, Action.COMPUTE, None), Row(1, STACK, Action.REUSE, None)])
    assert run.computed_fraction == 0.5


def test_tokens_computed_anew_are_a_part_of_the_work():
    rows = [Row(0, SITES[0], Action.COMPUTE, None), Row(1, SITES[0], Action.PARTIAL, None, tokens=0.25)]
    assert RunTrace("test", 2, rows=rows).computed_fraction == 0.625


def test_an_error_that_is_not_finite_is_no_number_of_json():
    run = run_of([1.0, 1.0], reused=set())
    run.rows.append(Row(1, SITES[0], Action.COMPUTE, float("inf")))
    told = json.loads(json.dumps(run.as_dict(), allow_nan=False))
    assert told["steps"][1]["error_mean"] == pytest.approx(0.1)  # of the other site


def test_table_averages_streams_and_marks_the_unknown():
    run = run_of([1.0, 1.0], reused={1})
    run.rows.append(Row(0, SITES[0], Action.COMPUTE, 0.5))
    sites, actions, errors = run.table()
    assert sites == SITES
    assert actions == [["compute", "reuse"]] * 2
    assert errors[0][0] == pytest.approx(0.25)
    assert errors[0][1] != errors[0][1]


def test_as_dict_is_json_and_agrees_with_the_run():
    run = run_of([1.0, 0.5, 1.0], reused={1})
    told = json.loads(json.dumps(run.as_dict()))
    assert [s["computed"] for s in told["steps"]] == [1.0, 0.0, 1.0]
    assert [s["error_mean"] for s in told["steps"]] == [0.0, None, pytest.approx(0.2)]
    assert told["evaluations"] == 3


def test_finish_brings_errors_and_times_over_as_numbers():
    run = CacheRun(FORA(2, "aligned"), 2, measure="errors")
    for i in range(3):
        with run.evaluation(3.0 - i, i / 3):
            run.next_forward([(0, "u")]).branch(SITES[0], lambda x: x, torch.full((1, 1), 1.0 + i))
    run.close(True)
    assert all(r.error is None or isinstance(r.error, float) for r in run.trace.rows)
    assert [m.step.index for m in run.trace.moments] == [0, 1, 2]
    assert all(m.seconds >= 0 for m in run.trace.moments)


def kinds_of(policy, level: str = "branch", evaluations: int = 6) -> list[str]:
    """What one MLP of 64 tokens, or the whole network, was at every evaluation."""
    site = MODEL if level == "model" else Site("blocks.0.mlp", 0, 2)
    sigmas = tuple(float(evaluations - i) for i in range(evaluations + 1))
    run = CacheRun(policy, Schedule(evaluations, sigmas, "euler", "EPS"))
    for i in range(evaluations):
        with run.evaluation(sigmas[i], i / evaluations):
            run.next_forward([(0, "u")]).branch(site, lambda x: x * 2, torch.rand(1, 64, 4), tokenwise=True)
    run.close(True)
    (line,) = run.trace.kinds()[1]
    assert run.trace.shares() == [{kind: 1.0} for kind in line]
    return line


class TestKinds:
    def test_plain_reuse_is_told_from_a_correction_and_from_a_forecast(self):
        base = FORA(2, "aligned")
        assert kinds_of(base) == ["computed", "reused"] * 3
        assert kinds_of(GOC(base)) == ["computed", "reused", "computed", "corrected", "computed", "corrected"]
        assert kinds_of(GOC(base, inflections=(3,))) == ["computed", "reused"] * 2 + ["computed", "corrected"]
        assert kinds_of(Taylor(base)) == ["computed", "reused", "computed", "forecast", "computed", "forecast"]
        assert kinds_of(Forecast(3.0), "model", 12)[:4] == ["computed", "forecast", "forecast", "computed"]

    def test_tokens_computed_are_partial_even_where_the_rest_is_corrected(self):
        steps = ("F", "c") * 3
        assert kinds_of(ToCa("dit", ratio=1.0, steps=steps)) == ["computed", "partial"] * 3
        assert kinds_of(GOC(ToCa("dit", ratio=1.0, steps=steps))) == ["computed", "partial"] * 3

    def test_every_policy_names_its_changes_by_a_kind(self):
        assert {p.changes for p in (FORA, GOC, EOC, Taylor, Forecast, ToCa)} <= set(KINDS)

    def test_shares_add_up_and_follow_the_branches(self):
        run = run_of([1.0, 0.5, 1.0], reused={1})
        run.rows[2] = run.rows[2]._replace(action=Action.PARTIAL)
        run.rows[3] = run.rows[3]._replace(changed="corrected")
        assert run.shares() == [{"computed": 1.0}, {"partial": 0.5, "corrected": 0.5}, {"computed": 1.0}]
        assert run.as_dict()["steps"][1]["kinds"] == {"partial": 0.5, "corrected": 0.5}

    def test_estimates_and_true_errors_are_kept_apart(self):
        run = run_of([1.0, 0.5, 1.0], reused={1})
        run.rows[2] = run.rows[2]._replace(error=0.3)
        run.rows[3] = run.rows[3]._replace(error=0.5)
        steps = run.as_dict()["steps"]
        assert [s["error_estimated"] for s in steps] == [0.0, None, pytest.approx(0.2)]
        assert [s["error_true"] for s in steps] == [None, pytest.approx(0.4), None]


class TestTraceHandle:
    def test_two_samplers_of_one_prompt_stay_apart(self):
        trace = Trace()
        trace.add(run_of([1.0], set(), ("p1", "6")))
        trace.add(run_of([1.0], set(), ("p1", "7")))
        assert [r.origin[1] for r in trace.runs] == ["6", "7"]

    def test_a_node_that_runs_again_replaces_its_old_runs_only(self):
        trace = Trace()
        for origin in (("p1", "6"), ("p1", "7"), ("p2", "7"), ("p2", "7")):
            trace.add(run_of([1.0], set(), origin))
        assert [r.origin for r in trace.runs] == [("p1", "6"), ("p2", "7"), ("p2", "7")]

    def test_a_node_that_has_nothing_to_sample_any_more_leaves_no_old_runs(self):
        trace = Trace()
        for origin in (("p1", "6"), ("p1", "7"), ("", "")):
            trace.add(run_of([1.0], set(), origin))
        trace.renew("p1", "6")
        trace.renew("", "")
        assert [r.origin[1] for r in trace.runs] == ["6", "7", ""]
        trace.renew("p2", "6")
        assert [r.origin[1] for r in trace.runs] == ["7", ""]

    def test_picks_the_runs_that_led_to_a_latent(self):
        trace = Trace()
        for origin in (("p1", "6"), ("p1", "7"), ("p1", "8.0.0.1")):
            trace.add(run_of([1.0], set(), origin))
        assert [r.origin[1] for r in trace.of_nodes({"6"})] == ["6"]
        assert [r.origin[1] for r in trace.of_nodes({"8"})] == ["8.0.0.1"]
        assert len(trace.of_nodes(None)) == 3
        assert trace.of_nodes(set()) == []
        assert trace.of_nodes({"9"}) == []  # sampled by another model
        trace.add(run_of([1.0], set(), ("", "")))
        assert [r.origin[1] for r in trace.of_nodes({"6"})] == ["6", ""]

    def test_is_bounded(self):
        trace = Trace()
        for _ in range(Trace.limit + 9):
            trace.add(run_of([1.0], set(), ("p", "1")))
        assert len(trace.runs) == Trace.limit


class TestCost:
    """In full runs, by the operations of each branch."""

    def test_is_the_share_of_operations_that_were_computed(self):
        run = run_of([1.0] * 4, reused={1, 3})
        assert run.cost() == 0.5
        run.rows[2] = run.rows[2]._replace(action=Action.COMPUTE)  # the first branch of the second evaluation
        assert run.cost() == pytest.approx(5 / 8)
        assert run.cost({SITES[0].name: 3, SITES[1].name: 1}) == pytest.approx((1 + 3 / 4 + 1 + 0) / 4)

    def test_counts_tokens_computed_anew_as_what_they_are_of_all(self):
        run = run_of([1.0] * 2, reused={1})
        run.rows[2:] = [Row(1, site, Action.PARTIAL, None, tokens=0.25) for site in SITES]
        assert run.cost() == run.computed_fraction == pytest.approx((1 + 0.25) / 2)

    def test_the_stack_is_no_further_work_beside_branches_and_all_there_is_without_them(self):
        run = run_of([1.0] * 2, reused={1})
        run.rows += [Row(0, STACK, Action.COMPUTE, None), Row(1, STACK, Action.REUSE, None)]
        assert run.cost() == 0.5
        run.rows = [row for row in run.rows if row.site == STACK]
        assert run.cost({"blocks.0.attn": 10}) == 0.5

    def test_what_decided_nothing_was_computed(self):
        run = run_of([1.0] * 4, reused={1})
        run.rows = [row for row in run.rows if row.step < 2]
        assert run.cost() == 0.75
        assert RunTrace("test", 2).cost() == 1.0

    def test_a_run_notes_the_share_of_tokens(self):
        policy, site = ToCa("dit", ratio=0.05, steps=("F", "c", "F", "F")), Site("blocks.0.mlp", 0, 1)
        run = CacheRun(policy, 4)
        for step in range(4):
            with run.evaluation(4.0 - step, step / 4):
                run.next_forward([(0, "u")]).branch(site, lambda x: 2 * x, torch.randn(1, 16, 4), tokenwise=True)
        share = int(16 * policy.share(Step(1, 4, 0.25, 3.0), site)) / 16
        run.close(True)
        assert 0 < share < 1
        assert run.trace.rows[1].tokens == share
        assert run.trace.cost() == pytest.approx((3 + share) / 4)


def test_other_devices_than_cuda_are_waited_for(monkeypatch):
    """Their work is queued: without it only the queueing would be timed."""
    waited = []
    monkeypatch.setattr(torch.xpu, "synchronize", lambda: waited.append("xpu"))
    clock = Clock(torch.device("xpu"))
    begin, end = clock.mark(), clock.mark()
    assert waited == ["xpu", "xpu"]
    assert clock.seconds(begin, end) >= 0
