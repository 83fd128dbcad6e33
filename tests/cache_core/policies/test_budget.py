"""A policy within a limit of memory: what is kept, and what of it can be told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from priorcache.cache_core.policies import EOC, FORA, GOC, L2C, Budget, DuCa, Forecast, Full, Taylor
from priorcache.cache_core.policies.budget import MIB, fitting
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import STACK, Action, Feature, Schedule, Site, Step
from priorcache.errors import SettingError

SITES = tuple(Site(f"blocks.{b}.{name}", b, 2) for b in range(2) for name in ("attn", "mlp"))
A0, M0, A1, M1 = (site.name for site in SITES)
BASE = FORA(2, "aligned")
RUN = Schedule(
    10,
    sites=SITES,
    nbytes={A0: MIB, M0: MIB, A1: MIB, M1: MIB, STACK.name: MIB},
    flops={A0: 100, M0: 200, A1: 100, M1: 200, STACK.name: 600},
)


def kept(policy, schedule: Schedule = RUN) -> set[str]:
    return set(policy.prepared(schedule).sites)


class TestFitting:
    def test_takes_what_is_worth_most_per_byte(self):
        assert fitting(10, {"a": 10, "b": 5, "c": 5}, {"a": 12, "b": 8, "c": 7}) == ("b", "c")

    def test_passes_over_what_does_not_fit(self):
        assert fitting(7, {"a": 5, "b": 4, "c": 2}, {"a": 10, "b": 4, "c": 1}) == ("a", "c")

    def test_takes_nothing_that_is_worth_nothing(self):
        assert fitting(9, {"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 1, "c": 1}) == ("b",)


class TestChoice:
    def test_everything_where_there_is_room(self):
        assert kept(Budget(BASE, 4)) == {A0, M0, A1, M1}

    def test_most_arithmetic_per_byte_where_errors_are_unknown(self):
        assert kept(Budget(BASE, 2)) == {M0, M1}
        smaller = replace(RUN, nbytes=RUN.nbytes | {A1: MIB // 4})
        assert kept(Budget(BASE, 1.5), smaller) == {A1, M0}

    def test_least_error_where_it_is_known(self):
        errors = ((A0, 0.01), (M0, 0.5), (A1, 0.4), (M1, 0.1))
        assert kept(Budget(BASE, 2, errors)) == {A0, M1}

    def test_a_branch_of_unknown_error_counts_as_the_worst(self):
        assert kept(Budget(BASE, 2, ((M0, 0.5), (A1, 0.4)))) == {M0, M1}
        assert kept(Budget(BASE, 2, ((M0, 0.5), (A1, 0.1)))) >= {A1}

    def test_asks_of_each_step_once_whether_it_skips_all_blocks(self, monkeypatch):
        decide, asked = DuCa.decide, []
        monkeypatch.setattr(DuCa, "decide", lambda *of: (asked.append(of[2]), decide(*of))[1])
        assert STACK.name in kept(Budget(DuCa("dit"), 4), replace(RUN, total=100))
        assert asked.count(STACK) == 99

    def test_counts_every_output_that_a_correction_keeps(self):
        assert len(kept(Budget(Taylor(BASE), 4))) == 2
        assert len(kept(Budget(Taylor(BASE, 2), 4))) == 1

    def test_leaves_a_correction_nothing_to_hold_besides(self):
        trends = SimpleNamespace(knows=lambda site: True, at=lambda step, site: torch.ones(3, 4))
        assert EOC(BASE, trends).prepared(RUN).aside.uses
        assert Budget(EOC(BASE, trends), 4).prepared(RUN).aside is None

    def test_keeps_nothing_that_is_never_reused(self):
        router = L2C(((1.0,) * 4, (0.0, 1.0, 0.0, 1.0)) * 5, (A0, M0, A1, M1), 10)
        assert kept(Budget(router, 4)) == {A0, A1}

    def test_all_blocks_at_once_come_first(self):
        assert kept(Budget(DuCa("dit", interval=4), 1)) == {STACK.name}
        assert kept(Budget(DuCa("dit", interval=4), 2)) > {STACK.name}
        assert STACK.name not in kept(Budget(BASE, 4))

    def test_stays_what_it_is_when_prepared_again(self):
        ready = Budget(BASE, 2).prepared(RUN)
        assert ready.prepared(replace(RUN, nbytes=dict.fromkeys(RUN.nbytes, MIB * 9))).sites == ready.sites

    def test_is_told_with_what_it_saves(self):
        assert Budget(BASE, 2).remark(RUN) == (
            "Budget 2 MiB on FORA N=2 (aligned) keeps 2 of 4 branches, 2.0 MiB of 4.0 MiB; "
            "33% of the blocks' arithmetic is reused instead of 50%."
        )
        policy = Budget(DuCa("dit", interval=4), 1)
        total = [policy.base.decide(Step(i, 10, i / 10, 0.0), STACK) for i in range(10)].count(Action.REUSE)
        assert f"0 of 4 branches and the state after all blocks, 1.0 MiB of 5.0 MiB; {total * 10}%" in policy.remark(
            RUN
        )

    def test_what_its_base_has_to_say_is_said_as_well(self):
        told = Budget(DuCa(), 4).remark(RUN)
        assert told.startswith("Budget 4 MiB on DuCa (auto, random) keeps ")
        assert told.endswith(f" {DuCa().remark(RUN)}")
        base = GOC(FORA(4, "aligned"))
        assert base.remark(RUN)
        assert Budget(base, 4, sites=(A0,)).remark(RUN) == base.remark(RUN)
        assert CacheRun(Budget(DuCa(), 4), RUN).trace.policy == "Budget 4 MiB on DuCa N=3 r=0.05 (dit, random)"

    def test_what_is_too_small_or_unknown_declines(self):
        for policy, schedule, why in (
            (Budget(BASE, 0.5), RUN, "not one branch fits into 512 KiB, the smallest takes 1.0 MiB"),
            (Budget(BASE, 2), Schedule(10, sites=SITES), "sizes of this model's branches are not known"),
            (Budget(BASE, 2), Schedule(10), "sizes of this model's branches are not known"),
            (Budget(BASE, 2), replace(RUN, total=2), "leaves nothing to reuse"),
            (Budget(FORA(1), 2), RUN, "FORA N=1 (published) reuses nothing in this run"),
            (Budget(L2C(((0.9,) * 4,) * 10, tuple(s.name for s in SITES), 10), 2), RUN, "no gate of its router"),
        ):
            run = CacheRun(policy, schedule)
            assert why in run.declined
            assert run.remark is None


class TestComposition:
    @pytest.mark.parametrize("base", [BASE, GOC(BASE), Taylor(BASE), DuCa("dit")], ids=lambda p: p.describe())
    def test_decides_and_reuses_as_its_base(self, base):
        policy, steps = Budget(base, 2), [Step(i, 10, i / 10, 10.0 - i) for i in range(10)]
        past = [Feature(torch.tensor([[[float(t) ** 2]]]), steps[t], True) for t in (4, 2, 0)]
        for step in steps:
            assert policy.decide(step, SITES[0]) is base.decide(step, SITES[0])
        assert torch.equal(policy.reuse(steps[5], SITES[0], past), base.reuse(steps[5], SITES[0], past))
        for name in ("history", "keeps_reused", "stack", "marks", "changes", "level"):
            assert getattr(policy, name) == getattr(base, name)

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda: GOC(Budget(BASE, 2)), "put the budget behind GOC"),
            (lambda: Budget(Budget(BASE, 2), 1), "already has one"),
            (lambda: Budget(FORA(2, level="model"), 2), "keeps none"),
            (lambda: Budget(FORA(2, level="stack"), 2), "keeps none"),
            (lambda: Budget(Forecast(), 2), "keeps none"),
            (lambda: Budget(Full(), 2), "keeps none"),
            (lambda: Budget(BASE, 0), "megabytes is 0"),
            (lambda: Budget(BASE, float("nan")), "megabytes is nan"),
            (lambda: Budget(BASE, 2, ((A0, -1.0),)), "an error is -1.0"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, make, why):
        with pytest.raises(SettingError, match=why):
            make()
