"""Beside torch.compile: decisions are taken anew at every step, and pictures stay what they are."""

import importlib

import pytest
import torch
from priorcache.cache_core.compiler import LACKS
from priorcache.cache_core.policies import FORA, CachePolicy, Taylor, ToCa
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close, compilable

pytestmark = pytest.mark.skipif(bool(LACKS), reason=LACKS)
ALIGNED = FORA(2, "aligned")
NETWORK = FORA(2, "aligned", level="model")


def whole(model, backend="eager"):
    """The host's own node."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, backend).args[0]


def by_block(model, **settings):
    """As packs do that compile block by block through the host's helper."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    keys = [f"diffusion_model.blocks.{i}" for i in range(len(model.model.diffusion_model.blocks))]
    set_torch_compile_wrapper(model, backend="eager", keys=keys, **settings)
    return model


def by_patch(model, **settings):
    """As packs do that put compiled blocks in the place of the model's."""
    model = model.clone()
    for i in range(len(model.model.diffusion_model.blocks)):
        block = model.get_model_object(f"diffusion_model.blocks.{i}")
        model.add_object_patch(f"diffusion_model.blocks.{i}", torch.compile(block, backend="eager", **settings))
    return model


def by_one_patch(model):
    """The whole network, put in the place of the model's."""
    model = model.clone()
    network = model.get_model_object("diffusion_model")
    model.add_object_patch("diffusion_model", torch.compile(network, backend="eager"))
    return model


@pytest.fixture
def small(host):
    """Compiling takes long."""
    return host.model(depth=2)


STEADY = pytest.mark.usefixtures("steady_memory")
KINDS = pytest.mark.parametrize("compiled", [by_block, by_patch, by_one_patch])
"""The host's node alone is among the scenarios, `test_beside.py`."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@STEADY
@KINDS
@pytest.mark.parametrize("compiled_first", [True, False])
def test_decides_at_every_step_and_leaves_the_compiled_model_alone(host, small, compiled, compiled_first):
    expected, trace = host.sample(host.attach(small, ALIGNED)), Trace()
    if compiled_first:
        alone = compiled(small)
        before = host.sample(alone)
        both = host.attach(alone, ALIGNED, trace)
    else:
        both = compiled(host.attach(small, ALIGNED, trace))
    for _ in range(2):
        assert close(host.sample(both), expected) < 1e-5
    for run in trace.runs:
        for site in run.sites:
            done = [r.action for r in run.rows if r.site == site]
            assert done == [Action.COMPUTE, Action.REUSE] * 3, site
        assert len(run.sites) == 4
        assert run.notes == []
    if compiled_first:
        assert torch.equal(host.sample(alone), before)
    assert torch.equal(host.sample(host.attach(small, ALIGNED)), expected)


@STEADY
@KINDS
def test_whole_network_reuse(host, small, compiled):
    trace = Trace()
    expected = host.sample(host.attach(small, NETWORK))
    assert close(host.sample(host.attach(compiled(small), NETWORK, trace)), expected) < 1e-5
    assert trace.runs[0].computed_fraction == 0.5


@STEADY
def test_what_calls_the_network_may_be_compiled(host, small):
    expected, trace = host.sample(host.attach(small, ALIGNED)), Trace()
    model = small.clone()
    model.add_object_patch("apply_model", torch.compile(model.model.apply_model, backend="eager"))
    host.sample(model)
    assert close(host.sample(host.attach(model, ALIGNED, trace)), expected) < 1e-5
    assert (trace.runs[0].computed_fraction, trace.runs[0].notes) == (0.5, [])


@STEADY
def test_blocks_that_were_compiled_in_place(host, small):
    expected, trace = host.sample(host.attach(small, ALIGNED)), Trace()
    for block in small.model.diffusion_model.blocks:
        block.compile(backend="eager")
    assert close(host.sample(host.attach(small, ALIGNED, trace)), expected) < 1e-5
    assert trace.runs[0].computed_fraction == 0.5


@STEADY
def test_a_prior_fits_a_model_whose_blocks_were_compiled(host, small):
    """The host leaves what a node put in place of blocks until the next model is loaded."""
    from priorcache.nodes.calibrate import subject

    before = subject(small)
    host.sample(by_patch(small))
    assert any("_orig_mod" in name for name, _ in small.model.diffusion_model.named_parameters())
    assert subject(small) == before


def test_many_blocks_and_many_runs_are_not_compiled_again_and_again(host):
    from torch._dynamo.testing import CompileCounter

    counter, model, frames = CompileCounter(), host.model(depth=12), []
    compilable(model.model.diffusion_model)
    both = host.attach(whole(model, counter), ALIGNED, trace := Trace())
    for _ in range(3):
        host.sample(both)
        frames.append(counter.frame_count)
    assert frames == [1] * 3  # graphs
    assert [r.computed_fraction for r in trace.runs] == [0.5] * 3


@pytest.mark.parametrize(
    "policy", [ALIGNED, Taylor(ALIGNED), FORA(2, "aligned", level="stack")], ids=CachePolicy.describe
)
def test_nothing_is_looked_at_anew_at_every_step(host, policy):
    """A frame that fails its guards again and again is given up, then its guards are tried at every call: graphs stay few."""
    model, frames = host.model(depth=12), torch._dynamo.utils.counters["frames"]
    compilable(model.model.diffusion_model)
    both = host.attach(whole(model), policy)
    frames.clear()
    looked = []
    for _ in range(3):
        host.sample(both)
        looked.append(frames["total"])
    assert looked == [1] * 3


def test_a_compiled_model_keeps_its_graph(host):
    """A graph that is cut in a loop over blocks is given up by Dynamo, and is not tried again without a cache either."""
    calls = []

    def backend(graph, _):
        return lambda *args: calls.append(graph) or graph(*args)

    model = host.model(depth=3)
    compilable(model.model.diffusion_model)
    alone = whole(model, backend)
    stock = host.sample(alone, steps=6)
    before = calls[:]
    for policy in (ALIGNED, Mixed(2), ToCa("dit"), FORA(2, "aligned", level="stack")):
        host.sample(host.attach(alone, policy))
    calls.clear()
    assert torch.equal(host.sample(alone, steps=6), stock)
    assert calls == before
    assert len(set(map(id, calls))) == 1


def test_measuring_changes_no_picture(host, small):
    both = whole(small)
    plain = host.sample(host.attach(both, ALIGNED))
    assert close(host.sample(host.attach(both, ALIGNED, measure="truth")), plain) < 1e-5


class Mixed(FORA):
    """Reuses some branches of a block while it computes others."""

    def decide(self, step, site):
        reused = step.index % 2 == 1 if site.name.endswith("attn") else step.index % 3 > 0
        return Action.REUSE if reused else Action.COMPUTE


@STEADY
@pytest.mark.parametrize(
    "policy", [ALIGNED, Mixed(2), Taylor(Mixed(2))], ids=["whole steps", "mixed", "mixed, corrected"]
)
def test_what_a_graph_will_overwrite_is_kept_as_a_copy(host, model, policy):
    """The backend hands out the same memory at every call, as CUDA graphs do."""
    static: dict[tuple, torch.Tensor] = {}

    def backend(graph, _):
        def call(*args):
            outs = graph(*args)
            for i, out in enumerate(outs):
                if isinstance(out, torch.Tensor):
                    static.setdefault((id(graph), i), torch.empty_like(out)).copy_(out)
            return [static[id(graph), i] if isinstance(out, torch.Tensor) else out for i, out in enumerate(outs)]

        return call

    expected, trace = host.sample(host.attach(model, policy)), Trace()
    assert close(host.sample(host.attach(by_module(model, backend), policy, trace)), expected) < 1e-5
    assert 0 < trace.runs[0].computed_fraction < 1


def by_module(model, backend):
    """Only attention and MLPs are compiled, so that their outputs are outputs of graphs."""
    model = model.clone()
    for i, block in enumerate(model.model.diffusion_model.blocks):
        for name in ("attn", "mlp"):
            compiled = torch.compile(getattr(block, name), backend=backend)
            model.add_object_patch(f"diffusion_model.blocks.{i}.{name}", compiled)
    return model


@STEADY
@pytest.mark.parametrize("compiled", [by_block, by_patch], ids=["the host's", "theirs"])
@pytest.mark.parametrize("policy", [ALIGNED, FORA(2, "aligned", level="stack")], ids=["branches", "blocks"])
def test_in_an_unbroken_graph(host, small, compiled, policy):
    """Of the host's own helper, and of nodes that put compiled blocks in place themselves, as WaveSpeed's and TeaCache's."""
    compilable(small.model.diffusion_model)
    expected, trace = host.sample(host.attach(small, policy)), Trace()
    assert close(host.sample(host.attach(compiled(small, fullgraph=True), policy, trace)), expected) < 1e-5
    assert trace.runs[0].computed_fraction == 0.5
    assert trace.runs[0].notes == []


def test_inductor(host, monkeypatch):
    """With one small graph: its compiler is slow. `whole(model, "inductor")` passes as well."""
    monkeypatch.setattr(
        importlib.import_module("torch._inductor.config").cpp, "vec_isa_ok", True
    )  # trying takes longest
    model, trace = host.model(depth=1), Trace()
    expected = host.sample(host.attach(model, ALIGNED))
    both = model.clone()
    compiled = torch.compile(model.model.diffusion_model.blocks[0].mlp, backend="inductor")
    both.add_object_patch("diffusion_model.blocks.0.mlp", compiled)
    assert close(host.sample(host.attach(both, ALIGNED, trace)), expected) < 1e-4
    assert trace.runs[0].computed_fraction == 0.5
