"""Courier: what is brought is what was sent for, whole or not at all. Here from main memory to main memory."""

from contextlib import nullcontext
from functools import partial
from threading import Event
from weakref import ref

import pytest
import torch
from priorcache.cache_core import courier
from priorcache.cache_core.courier import Courier

CPU = torch.device("cpu")


@pytest.fixture
def brought():
    """(tensors that arrived, whether each was there) for what gives each of them, and where to."""

    def bring(loads, places):
        carrier = Courier(CPU)
        try:
            return carrier.met(carrier.bring(list(zip(places, loads, strict=True))))
        finally:
            carrier.close()

    return bring


@pytest.mark.parametrize("load", [16, 100, 2**20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_everything_arrives_in_its_place_and_dtype(brought, monkeypatch, load, dtype):
    monkeypatch.setattr(courier, "LOAD", load)
    rng = torch.Generator().manual_seed(0)
    sent = [torch.randn(3 + i % 2, 7, generator=rng).half() for i in range(9)]
    places = [torch.empty(t.shape, dtype=dtype) for t in sent]
    assert brought([partial(lambda t: t, t) for t in sent], places) == [True] * 9
    assert all(torch.equal(there, t.to(dtype)) for there, t in zip(places, sent, strict=True))


def test_dtypes_may_differ_from_one_to_the_next(brought):
    sent = [
        torch.full((3,), 1.5, dtype=torch.float16),
        torch.full((3,), 2.5),
        torch.full((1,), 3.5, dtype=torch.float64),
    ]
    places = [torch.empty(3), torch.empty(3), torch.empty(1)]
    brought([partial(lambda t: t, t) for t in sent], places)
    assert [there[0].item() for there in places] == [1.5, 2.5, 3.5]


def test_what_one_buffer_takes_is_made_at_a_time_and_one_ahead(brought, monkeypatch):
    monkeypatch.setattr(courier, "LOAD", 32)
    made, alive = [], []

    def load():
        alive.append(sum(tensor() is not None for tensor in made))
        tensor = torch.ones(4)
        made.append(ref(tensor))
        return tensor

    assert brought([load] * 20, [torch.zeros(4) for _ in range(20)]) == [True] * 20
    assert max(alive) <= 5


def test_buffers_grow_to_what_is_carried(monkeypatch):
    monkeypatch.setattr(courier, "LOAD", 32)
    carrier = Courier(CPU)
    for numbers in (1, 100, 4):  # one in the middle exceeds a load
        place = torch.zeros(numbers)
        assert carrier.met(carrier.bring([(place, partial(torch.ones, numbers))])) == [True]
        assert place.sum() == numbers
    assert {len(buffer) for buffer, _ in carrier._buffers} == {16, 512}
    carrier.close()


def test_what_is_not_there_is_told(brought):
    places = [torch.zeros(2), torch.zeros(2), torch.zeros(2)]
    assert brought([lambda: torch.ones(2), lambda: None, lambda: torch.ones(2)], places) == [True, False, True]
    assert [there.sum().item() for there in places] == [2, 0, 2]
    assert brought([lambda: None], places[:1]) == [False]
    assert brought([], []) == []


def test_views_and_strides(brought):
    table, places = torch.arange(24.0).view(2, 3, 4), [torch.empty(4, 3)]
    brought([lambda: table[1].T], places)
    assert torch.equal(places[0], table[1].T)


def test_what_goes_wrong_is_raised_where_it_is_met():
    carrier = Courier(CPU)

    def lost():
        raise MemoryError("out of memory")

    errand = carrier.bring([(torch.empty(1), lost)])
    with pytest.raises(MemoryError):
        carrier.met(errand)
    carrier.close()


def test_who_closes_waits_for_what_is_under_way_and_leaves_the_rest(monkeypatch):
    monkeypatch.setattr(courier, "LOAD", 16)
    carrier, begun, go = Courier(CPU), Event(), Event()

    def slow():
        begun.set()
        assert go.wait(10)
        return torch.ones(1)

    places = [torch.zeros(1), torch.zeros(1)]
    first = carrier.bring([(places[0], slow)])
    second = carrier.bring([(places[1], lambda: torch.ones(1))])
    assert begun.wait(10)
    carrier._left.set()
    go.set()
    carrier.close()
    assert first.done()
    assert second.cancelled() or places[1].item() == 0
    assert places[0].item() == 0


def test_streams_wait_for_one_another(monkeypatch):
    """What is asked of CUDA, in its order, by two loads, one after the other in time."""
    asked = []

    class Moment:
        def record(self, stream):
            asked.append(f"{stream} leaves a buffer")

        def synchronize(self):
            asked.append("a buffer is free")

    class Stream(str):
        def record_event(self):
            asked.append(f"{self} is marked")
            return f"the mark of {self}"

        def wait_event(self, mark):
            asked.append(f"{self} waits for {mark}")

        def wait_stream(self, other):
            asked.append(f"{self} waits for {other}")

    cuda = {"Stream": lambda device: Stream("side"), "current_stream": lambda device: Stream("main"), "Event": Moment}
    for name, fake in (cuda | {"stream": nullcontext}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(courier, "LOAD", 16)
    carrier, place = Courier(torch.device("cuda", 0)), torch.zeros(2, 4)
    errand = carrier.bring([(row, lambda: torch.ones(4)) for row in place])
    assert carrier.met(errand) == [True, True]
    carrier.close()
    passes = ["a buffer is free", "side leaves a buffer"]
    sent = ["main is marked", "side waits for the mark of main", *passes, *passes, "side is marked"]
    assert asked == [*sent, "main waits for the mark of side", "main waits for side"]
    assert place.sum() == 8
