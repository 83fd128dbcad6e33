"""Beside torch.compile: a network stays the graph that it is, and what reuses runs without it."""

import importlib.util
import sys
import threading

import architectures
import pytest
import torch
from architectures import count
from priorcache.cache_core import compiler
from priorcache.cache_core.adapters import adapter_for, installed, routes
from priorcache.cache_core.compiler import Outlet, interpreted
from priorcache.cache_core.policies import FORA, Decline, Full, ToCa
from priorcache.cache_core.run import CacheRun, OutOfMemory
from priorcache.cache_core.sites import Action
from priorcache.errors import SettingError
from priorcache.priors.statistics import Statistics
from subjects import close, compilable
from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = pytest.mark.skipif(bool(compiler.LACKS), reason=compiler.LACKS)
CASES = architectures.cases()
PLAIN = {architecture: name for name, (architecture, _) in reversed(CASES.items())}
FAILING = {"hunyuan_dit"}
"""Which torch.compile cannot do without a cache either: a tensor made of an array, in inference mode."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def accelerated(monkeypatch):
    """The host's attention of a machine with an accelerator; that of a CPU asks how much memory is free."""
    from comfy.ldm.modules import attention

    for module in [m for name, m in sys.modules.items() if name.startswith("comfy.ldm")]:
        for name in ("optimized_attention", "optimized_attention_masked"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, attention.attention_pytorch)


def made(architecture: str):
    """(network, inputs of a step, adapter)"""
    network, inputs = CASES[PLAIN[architecture]][1]()
    return network, inputs, adapter_for(network)


def sampled(network, called, inputs, adapter, policy, steps=3, **settings) -> tuple[list[torch.Tensor], CacheRun]:
    run, out = CacheRun(policy, steps, compiled=called is not network, **settings), []
    for step in range(steps):
        given = inputs(step)
        with run.evaluation(float(steps - step), step / steps):
            forward = run.next_forward(((0, "a"), (1, "b"))[: count(given)], count(given))
            with installed(adapter, network, forward):
                out.append(called(**given))
    return out, run


@pytest.mark.parametrize(
    ("architecture", "policy"),
    [
        *((architecture, FORA(2)) for architecture in PLAIN if architecture not in FAILING),
        *((architecture, FORA(2, level="stack")) for architecture in ("dit", "flux", "ltxav")),
        *((architecture, ToCa("dit")) for architecture in ("dit", "pixartms")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.describe(),
)
@torch.inference_mode()
def test_a_step_that_computes_everything_is_the_networks_own_graph(comfy, accelerated, architecture, policy):
    network, inputs, adapter = made(architecture)
    graphs = CompileCounterWithBackend("aot_eager")  # which drops what nothing needs, as inductor does
    called = torch.compile(network, backend=graphs)
    for step in range(3):
        called(**inputs(step))
    stock = graphs.frame_count
    expected, plain = sampled(network, network, inputs, adapter, policy)
    ours, run = sampled(network, called, inputs, adapter, policy)
    assert max(map(close, ours, expected)) < 1e-4
    assert run.trace.notes == []
    assert [(row.step, row.site) for row in run.trace.rows] == [(row.step, row.site) for row in plain.trace.rows]
    done = [{row.action for row in run.trace.rows if row.step == step} for step in range(3)]
    assert done[::2] == [{Action.COMPUTE}] * 2
    assert Action.COMPUTE not in done[1]
    with_notes = graphs.frame_count - stock
    assert 0 < with_notes <= stock
    sampled(network, called, inputs, adapter, policy)
    called(**inputs(0))
    assert graphs.frame_count == stock + with_notes  # neither compiles again, nor did the network lose its own


@torch.inference_mode()
def test_an_unbroken_graph_tells_too(comfy):
    network, inputs, adapter = made("dit")
    compilable(network)
    called = torch.compile(network, backend="aot_eager", fullgraph=True)
    expected, _ = sampled(network, network, inputs, adapter, FORA(2))
    ours, run = sampled(network, called, inputs, adapter, FORA(2))
    assert max(map(close, ours, expected)) < 1e-4
    assert (run.trace.notes, run.trace.rows[-1].action) == ([], Action.COMPUTE)


@torch.inference_mode()
def test_a_forward_that_was_compiled_by_itself_is_compiled_once(comfy, accelerated):
    """Of a network whose blocks may write to what is noted, which is asked for where nothing is copied anyway."""
    network, inputs, adapter = made("flux")
    expected, _ = sampled(network, network, inputs, adapter, FORA(2))
    graphs = CompileCounterWithBackend("eager")
    network.forward = torch.compile(network.forward, backend=graphs)
    for _ in range(2):
        ours, run = sampled(network, network, inputs, adapter, FORA(2))
        assert max(map(close, ours, expected)) < 1e-4
        assert run.trace.notes == []
    assert graphs.frame_count == 1


@pytest.mark.parametrize("measure", ["off", "errors"])
@torch.inference_mode()
def test_a_torch_that_cannot_leave_its_graphs_alone_computes_everything(monkeypatch, measure):
    monkeypatch.setattr(routes, "LACKS", "torch 2.6 is needed, and this one is older")
    network, inputs, adapter = made("dit")
    called = torch.compile(network, backend="eager")
    out, run = sampled(network, called, inputs, adapter, FORA(2), measure=measure)
    assert max(map(close, out, [network(**inputs(step)) for step in range(3)])) < 1e-5
    assert run.trace.rows == []
    (note,) = run.trace.notes
    assert "beside torch.compile torch 2.6 is needed" in note


def test_nor_is_anything_watched_there(monkeypatch):
    monkeypatch.setattr(routes, "LACKS", "torch 2.6 is needed, and this one is older")
    with torch.inference_mode():
        network, inputs, adapter = made("dit")
        with pytest.raises(SettingError, match="Take the compile node out"):
            sampled(
                network, torch.compile(network, backend="eager"), inputs, adapter, Full(), observers=(Statistics(),)
            )


@pytest.mark.parametrize("policy", [FORA(2), FORA(2, level="stack")], ids=["branches", "blocks"])
@torch.inference_mode()
def test_memory_that_runs_out_within_a_graph_ends_nothing(monkeypatch, policy):
    network, inputs, adapter = made("dit")
    compilable(network)
    expected = network(**inputs(4))

    def none_left(tensor):
        raise OutOfMemory("out of memory")

    def given(step):
        if step == 4:  # compiled by then
            monkeypatch.setattr(torch.Tensor, "clone", none_left)
        return inputs(step)

    called = torch.compile(network, backend="eager", fullgraph=True)
    out, run = sampled(network, called, given, adapter, policy, steps=5)
    assert close(out[4], expected) < 1e-5
    (note,) = run.trace.notes
    assert "memory ran out while keeping features" in note


class One(FORA):
    """Keeps the output of one branch only."""

    def keeps(self, site):
        return site.name == "blocks.0.mlp"


class Unfit(FORA):
    """Ends its run where it would reuse."""

    def reuse(self, step, site, past):
        raise Decline("of the weather")


@pytest.mark.parametrize(
    ("policy", "copied"), [(FORA(2), 6), (One(2), 1), (Unfit(2), 0)], ids=["all", "one", "none any more"]
)
@torch.inference_mode()
def test_only_what_is_kept_is_copied(monkeypatch, policy, copied):
    network, inputs, adapter = made("dit")
    compilable(network)
    copies, clone = [], torch.Tensor.clone

    def counted(tensor, **settings):
        copies.append(tensor)
        return clone(tensor, **settings)

    def given(step):
        found = inputs(step)
        if step == 4:  # compiled by then
            monkeypatch.setattr(torch.Tensor, "clone", counted)
        return found

    called = torch.compile(network, backend="eager", fullgraph=True)
    expected = [network(**inputs(step)) for step in range(5)]
    out, _ = sampled(network, called, given, adapter, policy, steps=5)
    assert close(out[4], expected[4]) < 1e-5
    assert len(copies) == copied


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_what_a_graph_tells_is_lent():
    found = []
    outlet = Outlet(lambda out, lent=False: found.append((out.clone() if lent else out, lent)))
    told = outlet.after(double)
    x = torch.ones(3)
    out = told(x)
    assert found.pop() == (out, False)
    out = torch.compile(told, backend="aot_eager", fullgraph=True)(x)
    seen, lent = found.pop()
    assert lent
    assert torch.equal(seen, out)


def test_what_nothing_else_needs_is_told_of_too_and_in_order():
    found = []
    outlets = [Outlet(lambda out, n=n, lent=False: found.append((n, out[0].item()))) for n in range(3)]
    first, second, third = (outlet.after(double) for outlet in outlets)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def called(x):
        first(x)
        out = second(x + 1)
        third(x + 2)
        return out.add_(1)

    called(torch.ones(3))
    assert found == [(0, 2.0), (1, 4.0), (2, 6.0)]


def test_one_graph_serves_every_outlet():
    graphs = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=graphs, fullgraph=True)
    def called(told, x):
        return told(x) + 1

    found = []
    for number in range(4):
        outlet = Outlet(lambda out, number=number, lent=False: found.append(number))
        called(outlet.after(double), torch.ones(3))
    assert found == [0, 1, 2, 3]
    assert graphs.frame_count == 1
    told = outlet.after(double)
    del outlet
    assert torch.equal(called(told, torch.ones(3)), torch.full((3,), 3.0))
    assert found == [0, 1, 2, 3]


def test_of_several_outputs_one_or_all_are_told_of():
    found = []
    outlet = Outlet(lambda out, lent=False: found.append(out))
    x = torch.ones(3)
    for told in (outlet.after(lambda x: (x + 1, x + 2), place=1), outlet.after(lambda x: (x + 1, x + 2))):
        torch.compile(told, backend="aot_eager", fullgraph=True)(x)
    one, both = found
    assert torch.equal(one, x + 2)
    assert list(map(torch.equal, both, (x + 1, x + 2))) == [True, True]


@pytest.mark.parametrize(
    "name", ["/home/图像/ComfyUI/custom_nodes/priorcache.cache_core.compiler", "3d", compiler.__name__]
)
def test_the_pack_may_lie_in_any_folder_and_in_two(name):
    """The host names a pack by its path."""
    spec = importlib.util.spec_from_file_location(name, compiler.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    found = []
    for place, kind in enumerate((another.Outlet, Outlet)):
        outlet = kind(lambda out, place=place, lent=False: found.append(place))
        torch.compile(outlet.after(double), backend="aot_eager", fullgraph=True)(torch.ones(3))
    assert found == [0, 1]


def test_nothing_is_compiled_until_the_last_thread_is_through():
    graphs = CompileCounterWithBackend("eager")
    called = torch.compile(double, backend=graphs)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with interpreted():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with interpreted():
        thread.start()
        inside.wait()
        called(torch.ones(3))
    called(torch.ones(3))
    assert graphs.frame_count == 0
    leave.set()
    thread.join()
    called(torch.ones(3))
    assert graphs.frame_count == 1


def test_an_error_inside_ends_it():
    graphs = CompileCounterWithBackend("eager")
    with pytest.raises(ZeroDivisionError), interpreted():
        raise ZeroDivisionError
    torch.compile(double, backend=graphs)(torch.ones(3))
    assert graphs.frame_count == 1
    assert compiler._stance is None


def test_nor_does_one_where_it_cannot_begin():
    """Within a compiled function."""

    @torch.compile(backend="eager")
    def outer(x):
        torch._dynamo.graph_break()
        with interpreted():
            return 2 * x

    with pytest.raises(RuntimeError, match="set_stance"):
        outer(torch.ones(3))
    test_an_error_inside_ends_it()
    with interpreted():
        assert compiler._stance is not None
