"""Every policy beside CUDA, on tensors that only have shapes: nothing is on the wrong device, and nobody waits for it.

Such tensors have no numbers, so that whatever would bring one to the CPU (`item`, `if tensor`, `equal`, `nonzero`) raises;
copies between devices are looked at besides.
"""

from contextlib import nullcontext

import contract
import pytest
import torch
from priorcache.cache_core.adapters import adapter_for, installed, sites_of
from priorcache.cache_core.codecs import CODECS, Kept
from priorcache.cache_core.policies import (
    EOC,
    FORA,
    GOC,
    L2C,
    Budget,
    CachePolicy,
    DuCa,
    Forecast,
    Full,
    Taylor,
    ToCa,
    eoc,
)
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Action, Feature, Schedule, Site, Step
from priorcache.cache_core.store import FeatureStore
from priorcache.models.dit import DiT, DiTConfig
from priorcache.priors.statistics import Statistics
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

STEPS, CONFIG = 10, DiTConfig(64, 2, 4, 2, 4, 10, learn_sigma=False, grid_size=4)
SIGMAS = tuple(float(STEPS - i) for i in range(STEPS + 1))
HALF = FORA(2, "aligned")
NAMES = ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")


class Trends:
    steps, sigmas = STEPS, SIGMAS[:-1]

    def knows(self, site: str) -> bool:
        return True

    def at(self, step: int, site: str) -> torch.Tensor:
        return torch.empty(16, 64, dtype=torch.float16)  # as priors hold them, on the CPU


POLICIES = [
    Full(),
    HALF,
    FORA(2, "aligned", level="stack"),
    FORA(2, "aligned", level="model"),
    L2C(((1.0,) * 4, (0.0, 1.0) * 2) * 5, NAMES, STEPS),
    GOC(HALF),
    EOC(HALF, Trends()),
    EOC(ToCa("dit", ratio=0.5), Trends()),
    Taylor(HALF, 2),
    Taylor(ToCa("dit", ratio=0.5)),
    *(ToCa("dit", ratio=0.5, selection=s) for s in ("random", "small values", "attention")),
    DuCa("dit", ratio=0.5),
    GOC(DuCa("dit", ratio=0.5, selection="large values")),
    Forecast(2.0),
    Taylor(FORA(2, "aligned", level="model"), 2),
    Budget(HALF, 100.0, (), ("blocks.0.mlp",)),
]


def test_every_policy_is_here():
    assert contract.missing(POLICIES) == set()


class Watched(TorchDispatchMode):
    """Notes copies between devices: those that the CPU waits for, and the others."""

    def __init__(self):
        super().__init__()
        self.waits, self.unwaited = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        names = [argument.name for argument in function._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        if "non_blocking" in names:
            source = given.get("src", given["self"])
            if source.device != out.device:
                copies = self.unwaited if given.get("non_blocking") else self.waits
                copies.append(f"{function} of {tuple(source.shape)} from {source.device} to {out.device}")
        return out


def sampled(policy: CachePolicy, dtype=torch.bfloat16, store="device", measure="off", observers=()):
    """(the run, the waits in it) of a fake DiT on CUDA; conds are in one forward, then apart, then together again."""
    known = DiT(CONFIG, device="meta")
    schedule = Schedule(STEPS, SIGMAS, "euler", "FLOW", sites_of(known))
    run = CacheRun(policy, schedule, measure=measure, codec=CODECS[store], observers=observers)
    with torch.inference_mode(), FakeTensorMode(), Watched() as watched:
        network = DiT(CONFIG, dtype=dtype, device="cuda")
        adapter = adapter_for(network)
        run.checked = {
            (network, block.kind) for block in adapter.blocks(network)
        }  # the comparison with the host looks, once
        x = torch.empty(2, 4, 8, 8, dtype=dtype, device="cuda")
        t, y = torch.empty(2, device="cuda"), torch.zeros(2, dtype=torch.long, device="cuda")
        watched.waits.clear()
        for i in range(STEPS):
            with run.evaluation(SIGMAS[i], i / STEPS):
                for conds in [[(0, "a")], [(1, "b")]] if 3 < i < 6 else [[(0, "a"), (1, "b")]]:
                    forward, rows = run.next_forward(conds), len(conds)
                    with installed(adapter, network, forward):
                        out = network(x[:rows], t[:rows], y=y[:rows])
                    assert (out.device.type, out.dtype) == ("cuda", dtype)
                    forward = run.next_forward(conds)
                    derivative = forward.branch(MODEL, lambda x: x * 2, x[:rows].float())
                    assert (derivative.device.type, derivative.dtype) == ("cuda", torch.float32)
    return run, watched.waits


def test_a_copy_that_is_waited_for_is_seen():
    with torch.inference_mode(), FakeTensorMode(), Watched() as watched:
        here, there = torch.empty(2), torch.empty(2, device="cuda")
        here.to("cuda", non_blocking=True), there.copy_(here, non_blocking=True), there.to(torch.float16)
        assert watched.waits == []
        here.to("cuda"), there.cpu(), there.copy_(here)
        assert len(watched.waits) == 3


def test_devices_other_than_cuda_are_waited_for():
    """Those of Apple bring other numbers where nobody waits (PyTorch issue 139550)."""
    other, step, site = torch.device("meta"), Step(5, STEPS, 5 / STEPS, SIGMAS[5]), Site(NAMES[1], 0, 2)
    x = torch.empty(1, 16, 64, device=other)
    with Watched() as watched:
        CODECS["cpu"].decode(Kept((torch.ones(2, 3),), torch.float32, other))
        eoc.converted(torch.ones(16, 64, dtype=torch.float16), other, torch.bfloat16)
        ToCa(ratio=0.5).select(step, site, x, [Feature(x, step, True)])
    assert (len(watched.waits), watched.unwaited) == (3, [])


@pytest.fixture(autouse=True)
def weightless(monkeypatch):
    """Shapes have no memory to count, and their device tells of none."""
    monkeypatch.setattr(FeatureStore, "nbytes", 0)
    monkeypatch.setattr(eoc, "_room", lambda device: eoc.ROOM)


@pytest.mark.parametrize("policy", POLICIES, ids=CachePolicy.describe)
def test_nothing_is_on_the_wrong_device_and_nobody_waits(policy):
    run, waits = sampled(policy)
    assert waits == []
    assert run.declined is None
    actions = {row.action for row in run.trace.rows}
    if policy.history:
        assert actions > {Action.COMPUTE}
    kept = [p.kept for groups in run.store._groups.values() for past in groups.values() for p in past]
    assert {k.parts[0].device.type for k in kept} <= {"cuda"}
    assert {k.dtype for k in kept} <= {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("measure", ["errors", "truth"])
@pytest.mark.parametrize("policy", [HALF, GOC(HALF), ToCa("dit", ratio=0.5)], ids=CachePolicy.describe)
def test_measured_errors_stay_on_the_device(policy, measure):
    run, waits = sampled(policy, torch.float16, "8 bit", measure)
    assert waits == []
    errors = [row.error for row in run.trace.rows if row.error is not None]
    assert errors
    assert {(error.device.type, error.dtype, error.ndim) for error in errors} == {("cuda", torch.float32, 0)}


def test_nobody_waits_for_what_is_kept_in_main_memory(monkeypatch):
    """Except where conds are grouped anew, which joins features in main memory."""
    empty, waited = torch.empty, []

    def locked(*args, pin_memory=False, **kwargs):
        waited.append(pin_memory)
        return empty(*args, **kwargs)  # there is no driver that could lock pages

    monkeypatch.setattr(torch, "empty", locked)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(waited))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(waited))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    run, waits = sampled(GOC(HALF), store="cpu")
    assert waits == []
    assert True in waited
    assert "synchronized" in waited
    kept = [p.kept for groups in run.store._groups.values() for past in groups.values() for p in past]
    assert {(k.parts[0].device.type, k.device.type) for k in kept} == {("cpu", "cuda")}


class Stream:
    def __init__(self, waited: list):
        self.waited = waited

    def synchronize(self) -> None:
        self.waited.append("synchronized")

    def wait_stream(self, other: "Stream") -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record_event(self) -> object:
        return object()


def test_nobody_waits_while_calibrating():
    statistics = Statistics(2, features=True)
    _, waits = sampled(Full(), observers=(statistics,))
    assert waits == []
    assert {noted.total.device.type for noted in statistics._noted} == {"cuda"}
