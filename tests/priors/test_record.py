"""Policies told as JSON and made again."""

import json
from dataclasses import replace

import contract
import pytest
from priorcache.cache_core.policies import EOC, FORA, GOC, L2C, Budget, DuCa, Forecast, Full, Taylor, ToCa
from priorcache.cache_core.sites import Schedule, Site
from priorcache.errors import SettingError
from priorcache.priors.record import record, recorded, restored

SCHEDULE = Schedule(16, tuple(16 - float(i) for i in range(17)), "euler", "FLOW")
POLICIES = [
    Full(), FORA(3, "aligned", end=0.5, level="stack"), Forecast(2.5), Forecast(2.0, order=1, coordinate="log snr"),
    GOC(FORA(2), eta=0.5), Taylor(FORA(2, level="model"), order=2), ToCa(), ToCa("flux", 4), DuCa(),
    Budget(GOC(FORA(2)), 512.0, (("blocks.0.attn", 0.25),), ("blocks.0.attn", "blocks.1.mlp")),
]  # fmt: skip


def test_every_policy_is_here():
    assert contract.missing(POLICIES, "L2C", "EOC") == set()  # which are made of tables


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.describe())
@pytest.mark.parametrize("ready", [False, True], ids=["as set", "prepared"])
def test_a_record_gives_the_same_policy(policy, ready):
    policy = policy.prepared(SCHEDULE) if ready else policy
    told = json.loads(json.dumps(record(policy)))
    made = restored(told["policy"], told["settings"])
    assert made.prepared(SCHEDULE) == policy.prepared(SCHEDULE)
    assert record(made) == told


def test_a_record_of_before_correctors_is_made_again_without_one():
    told = record(Forecast(2.0).prepared(SCHEDULE))["settings"]
    assert told.pop("corrector") == "quadratic"
    assert restored("Forecast", told).prepared(SCHEDULE).corrector == "off"


@pytest.mark.parametrize("kind", [ToCa, DuCa])
class TestPresets:
    def test_a_record_without_one_is_made_again_with_what_was_the_default(self, kind):
        told = record(kind("dit", 4))["settings"]
        assert told.pop("preset") == "dit"
        assert restored(kind.__name__, told) == kind("dit", 4)

    def test_a_record_of_a_run_has_the_one_that_was_chosen(self, kind):
        sites = tuple(Site(f"blocks.0.{name}", 0, 1) for name in ("attn", "cross_attn", "mlp"))
        told = record(kind().prepared(replace(SCHEDULE, sites=sites)))
        assert told["settings"]["preset"] == "pixart"
        again = restored(told["policy"], told["settings"]).prepared(SCHEDULE)  # whatever model it is replayed on
        assert again == kind("pixart").prepared(SCHEDULE)


@pytest.mark.parametrize("kind", [L2C, EOC])
def test_what_is_made_of_tables_has_none(kind):
    policy = {L2C: lambda: L2C(((1.0,), (0.0,)), ("blocks.0.attn",), 2), EOC: lambda: EOC(FORA(2), trends=None)}[kind]()
    assert recorded(policy) is None
    with pytest.raises(SettingError, match="tables"):
        record(policy)


NESTED = {"policy": "Full", "settings": {}}
for _ in range(2000):
    NESTED = {"policy": "GOC", "settings": {"base": NESTED}}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("NoSuchPolicy", {}), ("CachePolicy", {}), ("dataclass", {}), ("__builtins__", {}), ("FORA", {"interval": "2"}),
        ("FORA", {"interval": 0}), ("GOC", {"base": 3}), ("GOC", {"base": {"policy": "open", "settings": {}}}),
        ("FORA", {"computed": [0, 2], "steps": 10**12}), ("FORA", {"steps": -1}), ("GOC", {"base": record(FORA(2)), "steps": 10**9}),
        ("GOC", {}), ("EOC", {"base": {"policy": "FORA", "settings": {}}}), (NESTED["policy"], NESTED["settings"]),
    ],
)  # fmt: skip
def test_anything_else_is_refused(name, settings):
    with pytest.raises(SettingError):
        restored(name, settings)
