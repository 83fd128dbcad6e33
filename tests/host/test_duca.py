"""ToCa and DuCa in sampling runs of the real host."""

import pytest
import subjects
import torch
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.policies import DuCa, ToCa
from priorcache.cache_core.sites import STACK, Action
from priorcache.cache_core.trace import Trace

EACH = pytest.mark.parametrize("policy", [ToCa(ratio=0.3), DuCa(interval=4, ratio=0.3)], ids=["ToCa", "DuCa"])
SELECTIONS = pytest.mark.parametrize("selection", ["random", "small values", "large values", "attention", "entropy"])


@EACH
@pytest.mark.parametrize("store", CODECS)
def test_memory_is_told_within_five_percent(host, model, policy, store):
    trace = Trace()
    host.sample(host.attach(model, policy, trace, store=store), size=(32, 32))
    run = trace.runs[0]
    assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)
    assert run.peak_bytes > 0


@EACH
def test_measuring_changes_no_picture(host, model, policy):
    plain = host.sample(host.attach(model, policy, measure="off"))
    assert not torch.equal(plain, host.sample(model))
    for measure in ("errors", "truth"):
        trace = Trace()
        assert torch.equal(host.sample(host.attach(model, policy, trace, measure=measure)), plain)
    assert all(row.error is not None for row in trace.runs[0].rows if row.site == STACK and row.action is Action.REUSE)


def test_the_same_tokens_are_chosen_again(host, model):
    attached = host.attach(model, DuCa(ratio=0.3))
    assert torch.equal(host.sample(attached), host.sample(attached))


@SELECTIONS
@pytest.mark.parametrize(("kind", "preset"), [("dit", "dit"), ("pixart", "pixart"), ("flux", "flux")])
def test_on_every_architecture_of_the_papers(host, tmp_path, kind, preset, selection):
    """Some tokens, all blocks and everything in turn; what a model does not tell of its tokens is said once."""
    subject = getattr(subjects, kind)(*([tmp_path] if kind == "flux" else []))
    policy = DuCa(preset, ratio=0.5, selection=selection, steps=("F", "c", "c", "a", "F", "a"))
    stock, trace = subject.sample(steps=6), Trace()
    ours = subject.sample(host.attach(subject.model, policy, trace), steps=6)
    run = trace.runs[0]
    known = {"dit": ("values", "received"), "pixart": ("values", "entropy"), "flux": ("values",)}[kind]
    assert bool(run.notes) == (policy.marks not in ("", *known))
    assert 0 < subjects.close(ours, stock) < 0.5
    by_step = [{r.action for r in run.rows if r.step == i and r.site != STACK} for i in range(6)]
    some = {Action.PARTIAL, Action.REUSE}
    assert by_step == [{Action.COMPUTE}, some, some, {Action.REUSE}, {Action.COMPUTE}, {Action.REUSE}]
    assert subjects.left_over(subject.model.model) == []
