"""The contract of every policy, and the published schedules of each."""

import dataclasses

import contract
import pytest
from priorcache.cache_core.policies import EOC, FORA, GOC, L2C, Budget, CachePolicy, DuCa, Forecast, Full, Taylor, ToCa
from priorcache.cache_core.sites import Action, Schedule, Site, Step
from priorcache.errors import SettingError

POLICIES = [
    Full(),
    FORA(),
    FORA(3),
    FORA(4, "aligned"),
    FORA(2, end=0.5),
    FORA(5, start=0.2),
    FORA(2, level="model"),
    Forecast(),
    Forecast(computed=(0, 3, 5)),
    GOC(FORA(2, "aligned")),
    GOC(FORA(4, "aligned"), 0.5, "recomputed"),
    L2C(((1.0,), (0.0,)) * 10, ("blocks.2.mlp",), 20),
    GOC(L2C(((1.0,), (0.0,)) * 10, ("blocks.2.mlp",), 20)),
    Taylor(FORA(4, "aligned")),
    Taylor(FORA(2, level="model"), 2, exact=True),
    ToCa(),
    ToCa("pixart", selection="entropy", faithful=True),
    DuCa(),
    DuCa("flux", 4, 0.2, "small values"),
    GOC(DuCa("hunyuan video")),
    Budget(Taylor(FORA(2)), 100.0, (("blocks.2.mlp", 0.1),)),
    EOC(FORA(2, "aligned"), trends=None),
]
SITE = Site("blocks.2.mlp", 2, 4)


def steps(total: int) -> list[Step]:
    return [Step(i, total, i / total, float(total - i)) for i in range(total)]


def reused(policy: CachePolicy, total: int) -> list[int]:
    return [s.index for s in steps(total) if policy.decide(s, SITE) is Action.REUSE]


def test_every_policy_is_here():
    assert contract.missing(POLICIES) == set()


@pytest.mark.parametrize("policy", POLICIES, ids=CachePolicy.describe)
class TestEveryPolicy:
    def test_is_frozen_and_comparable(self, policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.level = "other"
        assert policy == dataclasses.replace(policy)
        assert hash(policy) == hash(dataclasses.replace(policy))

    def test_answers_the_same_question_the_same_way(self, policy):
        first = [policy.decide(s, SITE) for s in steps(20)]
        assert first == [policy.decide(s, SITE) for s in steps(20)]

    def test_computes_the_first_step(self, policy):
        assert policy.decide(steps(20)[0], SITE) is Action.COMPUTE

    def test_knows_what_to_do_past_the_planned_steps(self, policy):
        """Samplers that call the model several times per step count on beyond total."""
        assert {policy.decide(Step(i, 10, 0.9, 0.1), SITE) for i in range(10, 25)} <= set(Action)

    def test_names_itself_in_a_few_words(self, policy):
        assert 0 < len(policy.describe()) < 60


NAN = float("nan")


@pytest.mark.parametrize("make", [
    lambda: GOC(FORA(2), NAN), lambda: EOC(FORA(2), None, NAN), lambda: ToCa(ratio=NAN), lambda: Forecast(NAN), lambda: FORA(start=NAN),
    lambda: L2C((), (), 2, NAN), lambda: GOC(FORA(2), float("inf")), lambda: FORA(level="everywhere"), lambda: Forecast(level=""),
])  # fmt: skip
def test_a_number_that_is_none_or_a_level_that_is_none_is_refused(make):
    with pytest.raises(SettingError):
        make()


def test_full_never_reuses():
    assert reused(Full(), 50) == []


def test_fora_published_250_steps_n3_computes_84():
    computed = sorted(249 - i for i in set(range(250)) - set(reused(FORA(3), 250)))
    assert computed == [*range(0, 250, 3)]
    assert len(computed) == 84


def test_fora_published_50_steps_n3_computes_49_48_45_to_0():
    computed = sorted((49 - i for i in set(range(50)) - set(reused(FORA(3), 50))), reverse=True)
    assert computed == [49, *range(48, -1, -3)]
    assert len(computed) == 18


def test_fora_published_20_steps_n2_reuses_9():
    assert reused(FORA(2), 20) == [*range(2, 20, 2)][:9]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (FORA(2, "aligned", end=0.5), [1, 3, 5, 7, 9]),  # 25 %
        (FORA(2, "aligned"), [*range(1, 20, 2)]),  # 50 %
        (FORA(4, "aligned"), [i for i in range(20) if i % 4]),  # 75 %
        (FORA(3, "aligned"), [i for i in range(20) if i % 3]),  # 65 %
        (FORA(1), []),
    ],
)
def test_fora_aligned_schedules_of_the_later_papers(policy, expected):
    assert reused(policy, 20) == expected


def test_fora_window_bounds_reuse():
    assert reused(FORA(2, "aligned", start=0.3, end=0.6), 20) == [7, 9, 11]


def test_fora_decides_per_sampler_step_where_one_step_calls_the_model_twice():
    """heun at 5 steps: positions 0, 1, 1, 2, 2, ... Both calls of a step get the same answer; the last is computed."""
    calls = [Step(i, 5, ((i + 1) // 2) / 5, 5.0 - (i + 1) // 2) for i in range(9)]
    answers = [FORA(2).decide(s, SITE) for s in calls]
    assert [a is Action.REUSE for a in answers] == [False, True, True, False, False, True, True, False, False]


@pytest.mark.parametrize("bad", [{"interval": 0}, {"phase": "sideways"}, {"start": 0.8, "end": 0.2}, {"end": 1.5}])
def test_fora_refuses_settings_without_meaning(bad):
    with pytest.raises(ValueError, match=r"^FORA: "):
        FORA(**bad)


def test_fora_declines_a_run_too_short_to_reuse_anything():
    assert FORA(2).objection(Schedule(2))
    assert FORA(2).objection(Schedule(20)) is None
    assert FORA(1).objection(Schedule(1)) is None
