"""What every policy lets a search set."""

import dataclasses
import itertools

import contract
import pytest
import torch
from priorcache.cache_core.knobs import Choice, Mask, Steps, turned, value, within
from priorcache.cache_core.policies import EOC, FORA, GOC, L2C, Budget, CachePolicy, DuCa, Forecast, Full, Taylor, ToCa
from priorcache.cache_core.sites import STACK, Action, Schedule, Site, Step
from priorcache.errors import SettingError
from priorcache.priors.record import record, recorded, restored
from priorcache.priors.search import changes

T = 12
SITES = tuple(Site(f"blocks.{i}.{name}", i, 2) for i in range(2) for name in ("attn", "mlp"))
SCHEDULE = Schedule(T, tuple(10 * 0.7**i for i in range(T)) + (0.0,), "euler", "EPS", SITES)  # noqa: RUF005
STEPS = [Step(i, T, i / T, s) for i, s in enumerate(SCHEDULE.sigmas[:-1])]


class Trends:
    """Mean changes of every branch at the steps that were kept."""

    steps, sigmas = T, SCHEDULE.sigmas[:-1]

    def __init__(self, kept: range):
        self.kept = kept

    def knows(self, site: str) -> bool:
        return True

    def at(self, step: int, site: str) -> torch.Tensor | None:
        return torch.ones(1, 1) if step in self.kept else None


GATES = tuple(tuple((t * len(SITES) + i) / 100 for i in range(len(SITES))) for t in range(T))
ROUTED = L2C(GATES, tuple(site.name for site in SITES), T, 0.1)
POLICIES = [
    FORA(2, "aligned"),
    FORA(3, level="model"),
    Forecast(2.0),
    GOC(FORA(2, "aligned"), 1.2),
    GOC(FORA(3, "aligned"), 0.77, "recomputed", (6,), T),
    GOC(ROUTED),
    EOC(FORA(2, "aligned"), Trends(range(T))),
    EOC(FORA(2, "aligned"), Trends(range(1, T, 2)), 0.03, (3, 5)),
    Taylor(FORA(4, "aligned"), 2, exact=True),
    ROUTED,
    ToCa("pixart", selection="entropy"),
    DuCa(),
    DuCa("flux", 4, 0.23),
    DuCa(steps=("F", "c", "a") * 4),
    GOC(DuCa("hunyuan video")),
    Budget(GOC(FORA(2, "aligned")), 512.0, sites=(SITES[0].name,)),
]


def actions(policy: CachePolicy) -> list[Action]:
    ready = policy.prepared(SCHEDULE)
    return [ready.decide(step, site) for step in STEPS for site in (*SITES, STACK) if ready.serves(site)]


def test_every_policy_is_here():
    assert contract.missing(POLICIES, "Full") == set()  # which has nothing to turn


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.describe())
class TestEveryPolicy:
    def test_opened_it_decides_the_same(self, policy):
        opened = policy.opened(SCHEDULE)
        assert actions(opened) == actions(policy)
        assert opened.opened(SCHEDULE) == opened
        assert opened.prepared(SCHEDULE).objection(SCHEDULE) == policy.prepared(SCHEDULE).objection(SCHEDULE)

    def test_every_knob_is_set_to_what_it_may_be(self, policy):
        opened = policy.opened(SCHEDULE)
        for knob in opened.knobs(SCHEDULE):
            now = value(opened, knob.name)
            if isinstance(knob, Choice):
                assert now in knob.options
            if isinstance(knob, Mask):
                assert set(knob.steps) <= set(range(T))
            if isinstance(knob, Mask | Steps) and now is not None:
                assert list(now) == sorted(set(now))
            assert turned(opened, knob.name, now) == opened

    def test_every_change_is_another_policy_that_can_be_used_and_kept(self, policy):
        opened = policy.opened(SCHEDULE)
        changed = [new for change in changes(opened, SCHEDULE) if (new := change(opened))]
        assert changed
        for new in changed:
            assert new != opened
            assert new.prepared(SCHEDULE).objection(SCHEDULE) is None
            assert len(actions(new)) == len(actions(policy))
            assert hash(new) == hash(dataclasses.replace(new))
            if recorded(policy):
                kept = record(new)
                again = restored(kept["policy"], kept["settings"])
                assert record(again) == kept
                assert again.prepared(SCHEDULE) == new.prepared(SCHEDULE)


def test_what_has_no_settings_has_no_knobs():
    assert Full().knobs(SCHEDULE) == FORA(1).opened(SCHEDULE).knobs(SCHEDULE) == ()


def test_a_knob_within_is_turned_within():
    policy = GOC(FORA(2, "aligned"))
    knob = within("base", Choice("interval", (2, 3)))
    assert value(policy, knob.name) == 2
    assert turned(policy, knob.name, 3) == GOC(FORA(3, "aligned"))


class TestGOC:
    def test_only_steps_with_a_change_to_go_on_with_may_be_left_out(self):
        policy = GOC(FORA(2, "aligned")).opened(SCHEDULE)
        (mask,) = (knob for knob in policy.knobs(SCHEDULE) if isinstance(knob, Mask))
        assert mask.steps == (3, 5, 7, 9, 11)

    def test_steps_that_were_found_belong_to_their_run(self):
        found = turned(GOC(FORA(2, "aligned")).opened(SCHEDULE), "inflections", (5,))
        assert found.objection(SCHEDULE) is None
        assert "12 steps and this one has 20" in found.objection(Schedule(20, tuple(range(21, 0, -1))))

    def test_constants_of_another_run_are_not_taken_for_those_of_this_one(self):
        policy = GOC(FORA(2, "aligned"), inflections=(17,), steps=20)
        assert "20 steps and this one has 12" in policy.opened(SCHEDULE).objection(SCHEDULE)


class TestEOC:
    def test_none_is_every_reused_step(self):
        policy = EOC(FORA(3, "aligned"), Trends(range(T))).opened(SCHEDULE)
        masks = {new.judged for change in changes(policy, SCHEDULE) if (new := change(policy)) and new.judged}
        assert len(masks) == 8
        assert (1, 2, 4, 7, 8, 10, 11) in masks

    @pytest.mark.parametrize(("kept", "moves"), [(range(T), True), (range(1, T, 2), False)])
    def test_what_is_computed_moves_only_where_trends_are_known(self, kept, moves):
        policy = EOC(FORA(2, "aligned"), Trends(kept)).opened(SCHEDULE)
        assert ("base.computed" in [knob.name for knob in policy.knobs(SCHEDULE)]) == moves


class TestFORA:
    def test_computes_the_steps_it_is_told(self):
        policy = FORA(computed=(0, 2, 3, 9), steps=T)
        assert [s.index for s in STEPS if policy.decide(s, SITES[0]) is Action.COMPUTE] == [0, 2, 3, 9]
        assert policy.describe() == "FORA, 4 of 12 computed"
        assert "12 steps and this one has 20" in policy.objection(Schedule(20))

    @pytest.mark.parametrize("bad", [(1, 2), (0, 3, 2), (0, 2, 2), (0, 12)])
    def test_refuses_steps_that_are_none(self, bad):
        with pytest.raises(SettingError, match="FORA: "):
            FORA(computed=bad, steps=T)


class TestDuCa:
    def test_the_presets_constants_are_written_out(self):
        policy = DuCa("flux").opened(SCHEDULE)
        assert (policy.interval, policy.ratio, policy.staleness, policy.bonus) == (5, 0.1, 0.0, 0.0)
        assert policy.settings == DuCa("flux").settings
        assert turned(policy, "bonus", 0.4).settings.bonus == 0.4

    def test_a_preset_that_was_left_open_is_written_out_too(self):
        joint = tuple(Site(f"blocks.0.{name}", 0, 1) for name in ("attn", "img_mlp", "txt_mlp"))
        run = dataclasses.replace(SCHEDULE, sites=joint)
        assert DuCa().opened(run) == DuCa("flux").opened(run)
        assert GOC(DuCa()).opened(run).base == DuCa("flux").opened(run)

    def test_attention_maps_are_asked_for_only_where_they_were(self):
        for selection, offered in (("random", False), ("attention", True)):
            knobs = {knob.name: knob for knob in DuCa(selection=selection).opened(SCHEDULE).knobs(SCHEDULE)}
            assert ("attention" in knobs["selection"].options) == offered
            assert "entropy" not in knobs["selection"].options

    def test_a_given_schedule_is_left_alone(self):
        policy = DuCa(steps=("F", "c", "a") * 4).opened(SCHEDULE)
        assert "interval" not in [knob.name for knob in policy.knobs(SCHEDULE)]


def test_thresholds_of_a_router_are_few_and_rise():
    (knob,) = ROUTED.knobs(SCHEDULE)
    assert ROUTED.threshold in knob.options
    assert len(knob.options) < 30
    assert all(a < b for a, b in itertools.pairwise(knob.options))
