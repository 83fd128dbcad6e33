"""Ideogram 4 as the host guides it: a pass with the prompt and one without, each by a model of its own."""

import pytest
import subjects
import torch
from priorcache.cache_core.policies import FORA, Full
from priorcache.cache_core.trace import Trace

BRANCHES, STACK = FORA(2, "aligned"), FORA(2, "aligned", level="stack")
NETWORK = FORA(2, "aligned", level="model")


@pytest.fixture(scope="module")
def subject(comfy):
    pytest.importorskip("comfy.ldm.ideogram4.model", reason="newer than this host")
    return subjects.ideogram4()


@pytest.fixture(scope="module")
def attach(comfy):
    from priorcache.nodes.attach import attach

    return attach


@pytest.fixture(scope="module")
def other(subject):
    """Of the same weights."""
    return subjects.ideogram4().model


def guider(subject, model, other):
    from comfy_extras.nodes_custom_sampler import DualModelGuider

    return DualModelGuider.execute(model, subject.prompt(1), 3.0, other, None).args[0]


@pytest.mark.parametrize("policy", [Full(), FORA(1)])
def test_computing_everything_is_stock(subject, other, attach, policy):
    stock = subject.guided(guider(subject, subject.model, other))
    assert torch.equal(subject.guided(guider(subject, attach(subject.model, policy), other)), stock)


@pytest.mark.parametrize("policy", [BRANCHES, STACK, NETWORK], ids=["branches", "stack", "network"])
def test_a_second_model_is_cached_as_the_first(subject, other, attach, policy):
    """Of the same weights, it changes nothing; what is reused is each pass's own."""
    trace = Trace()
    model = attach(subject.model, policy, trace)
    alone, both = (subject.guided(guider(subject, model, negative)) for negative in (None, other))
    assert torch.equal(alone, both)
    assert 0 < subjects.close(both, subject.guided(guider(subject, subject.model, other))) < 0.5
    for run in trace.runs:
        assert run.computed_fraction == 0.5
        assert run.expected_bytes == run.peak_bytes
        assert run.notes == []
    assert subjects.left_over(subject.model.model) == subjects.left_over(other.model) == []
