"""One run after another: bypassed, stopped, changed, continued, and two hundred of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from matrix import LEVELS, everything, levels
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.trace import Trace
from subjects import close, left_over

scenario = pytest.mark.scenario
CHANGES = {
    "two samplers, one model": lambda s: {"seed": 5},
    "another size": lambda s: {"size": (s.size[0] + 8, s.size[1] + 8)},
    "another aspect": lambda s: {"size": (s.size[0] + 8, s.size[1] - 8)},
    "another batch size": lambda s: {"batch": 3},
    "another number of steps": lambda s: {"steps": 7},
    "cfg 1 after cfg 2": lambda s: {"cfg": 1.0},
    "another sampler": lambda s: {"sampler": "heun", "steps": 6},
    "another prompt": lambda s: {"positive": s.prompt(3, words=9)},
    "image to image": lambda s: {"latent": s.noise(9, 1, s.size), "denoise": 0.6},
}


def test_the_host_took_the_files_for_what_they_are(flux, sd3, pixart, flux2):
    kinds = [type(s.model.model).__name__ for s in (flux, sd3, pixart, flux2)]
    assert kinds == ["Flux", "SD3", "PixArt", "Flux2"]


@scenario("bypassed after use", "bit-equal to stock")
@levels()
def test_bypass_is_stock_before_and_after_use(subject, policy, held):
    stock = held(subject.model, policy, subject.sample).stock
    assert torch.equal(subject.sample(), stock)
    assert left_over(subject.model.model) == []


@scenario("node run again", "bit-equal to a first run")
@levels()
def test_apply_run_again_in_a_later_prompt(host, subject, policy):
    """As the host does when an input of it changed and changed back: the trace of the node goes on."""
    from priorcache.nodes.apply import PriorCacheApply

    def node(model, policy, measure="errors"):
        return PriorCacheApply.execute(model, policy, measure).args[:2]

    first, trace = node(subject.model, policy)
    once = subject.sample(first)
    other, _ = node(first, everything(policy))
    again, later = node(subject.model, policy)
    assert torch.equal(subject.sample(again), once)
    assert torch.equal(subject.sample(other), subject.sample())
    assert torch.equal(subject.sample(first), once)
    assert (len(trace.runs), len(later.runs)) == (2, 1)


@levels()
@pytest.mark.parametrize(
    "error",
    [
        pytest.param("interrupt", marks=scenario("interrupted in mid-run", "stock after it, cached again as before")),
        pytest.param("exception", marks=scenario("exception in mid-run", "stock after it, cached again as before")),
    ],
)
def test_bypass_is_stock_after_a_run_that_was_stopped(host, subject, policy, error):
    kind = host.comfy.model_management.InterruptProcessingException if error == "interrupt" else ZeroDivisionError
    stock, expected = subject.sample(), subject.sample(host.attach(subject.model, policy))

    def stop(step, *_):
        if step == 3:
            raise kind

    trace = Trace()
    patched = host.attach(subject.model, policy, trace)
    with pytest.raises(kind):
        subject.sample(patched, callback=stop)
    assert left_over(subject.model.model) == []
    assert not trace.runs[0].complete
    assert torch.equal(subject.sample(patched), expected)
    assert torch.equal(subject.sample(), stock)


@levels()
@pytest.mark.parametrize(
    "changed", [pytest.param(name, marks=scenario(name, "bit-equal to a first run")) for name in CHANGES]
)
def test_a_sampler_after_another_one_with_the_same_model(host, subject, policy, changed, held):
    settings = CHANGES[changed](subject)
    patched = host.attach(subject.model, policy)
    first = subject.sample(patched)
    again = subject.sample(patched, **settings)
    fresh = held(subject.model, policy, lambda model: subject.sample(model, **settings), computed=None)
    assert torch.equal(again, fresh.cached)
    assert torch.equal(subject.sample(patched), first)


@scenario("two KSampler (Advanced)", "bit-equal in full, error below .5 when reused")
@levels()
def test_two_advanced_samplers_share_one_schedule(host, subject, policy):
    """The host's own nodes: the second one goes on from the noisy latent of the first."""
    import nodes

    def halves(model) -> torch.Tensor:
        node, latent = nodes.KSamplerAdvanced(), {"samples": torch.zeros(1, subject.channels, *subject.size)}
        given = (8, 2.0, "euler", "simple", subject.prompt(1), subject.prompt(2))
        with torch.inference_mode():
            (half,) = node.sample(model, "enable", 3, *given, latent, 0, 4, "enable")
            return node.sample(model, "disable", 0, *given, half, 4, 10000, "disable")[0]["samples"]

    trace = Trace()
    cached = halves(host.attach(subject.model, policy, trace))
    assert [(run.total, run.computed_fraction, run.notes) for run in trace.runs] == [(4, 0.5, [])] * 2
    stock = halves(subject.model)
    assert torch.equal(halves(host.attach(subject.model, everything(policy))), stock)
    assert 0 < close(cached, stock) < 0.5


@scenario("200 prompts in a row", "no tensor, no run and no byte is left behind", policies=tuple(LEVELS))
def test_two_hundred_prompts_of_changing_sizes_leave_nothing_behind(host, dit, monkeypatch):
    """The levels take turns, and every 30 prompts meet the same sizes; after 60, nothing may grow."""
    runs, begin = weakref.WeakSet(), CacheRun.__init__

    def noted(self, *args, **kwargs):
        runs.add(self)
        begin(self, *args, **kwargs)

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [
            o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)
        ]  # not the compiler's own
        return len(tensors), sum(t.nbytes for t in tensors if t.layout is torch.strided)

    monkeypatch.setattr(CacheRun, "__init__", noted)
    traces = [Trace() for _ in LEVELS]
    models = [host.attach(dit.model, p, t, "errors") for p, t in zip(LEVELS.values(), traces, strict=True)]
    held = []
    for i in range(200):
        size = (8 + 2 * (i // 3 % 5), 8 + 2 * (i // 15 % 2))
        dit.sample(models[i % len(models)], steps=3, size=size, batch=1 + i % 2, positive=dit.prompt(i))
        if i in (59, 130, 199):
            held.append(alive())
    assert (max(held[1:]), len(runs)) == (held[0], 0)
    assert [len(trace.runs) for trace in traces] == [Trace.limit] * len(traces)
    assert all(run.computed_fraction < 1 for trace in traces for run in trace.runs)


def test_all_levels_are_shown():
    assert [policy.level for policy in LEVELS.values()] == ["branch", "stack", "model"]
