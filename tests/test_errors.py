"""What is said is short, whatever it is about."""

import pickle

import pytest
from priorcache.cache_core.policies import FORA
from priorcache.errors import PriorCacheError, SettingError, excerpt, finite, shown
from priorcache.models.checkpoint import CheckpointError
from priorcache.priors.prior import PriorError
from priorcache.priors.router import RouterError


def test_all_are_of_one_class_that_is_a_value_error():
    for kind in (SettingError, CheckpointError, PriorError, RouterError):
        assert issubclass(kind, PriorCacheError)
    assert issubclass(PriorCacheError, ValueError)
    with pytest.raises(SettingError, match="interval is 0"):
        FORA(0)


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), {"a": "b" * 10**6}, 10**4000, [[[[[["x"]]]]]] * 99])
def test_values_are_cut(value):
    assert 0 < len(shown(value)) < 500


def test_short_values_are_as_they_are():
    assert [shown(v) for v in ("a", 1.5, None, [0, 2], (1,))] == ["'a'", "1.5", "None", "[0, 2]", "(1,)"]


def test_what_others_say_is_one_line_without_the_advice_to_read_unsafely():
    said = "Weights only load failed. Do (1) `weights_only=False` ...\n WeightsUnpickler error: Unsupported operand 0\n\nSee the docs"
    assert excerpt(pickle.UnpicklingError(said)) == "Unsupported operand 0"
    assert excerpt("x" * 999) == "x" * 200 + "..."
    assert excerpt(KeyError()) == ""


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_named_with_its_widget(number):
    finite("Plan Policy", value=2.0)
    with pytest.raises(SettingError, match="Plan Policy: value is"):
        finite("Plan Policy", value=number)
