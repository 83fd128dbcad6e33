from types import SimpleNamespace
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from priorcache.cache_core.codecs import CODECS, EightBit, page_locked
from priorcache.cache_core.sites import Site, Step
from priorcache.cache_core.store import FeatureStore
from streams import Late, copying_late

EVERY = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def error(codec, value: torch.Tensor) -> float:
    back = codec.decode(codec.encode(value)).float()
    return ((back - value.float()).norm() / value.float().norm()).item()


def held(kept) -> int:
    return sum(part.untyped_storage().nbytes() for part in kept.parts)


@EVERY
@DTYPES
@pytest.mark.parametrize("shape", [(2, 9, 64), (3, 5, 40), (2, 4, 8, 6), (2, 1)], ids=str)
def test_shape_dtype_and_bytes_are_as_told(codec, dtype, shape):
    value = torch.randn(shape).to(dtype)
    kept = codec.encode(value)
    back = codec.decode(kept)
    assert (back.shape, back.dtype, back.device) == (value.shape, value.dtype, value.device)
    assert held(kept) == codec.nbytes(shape, dtype)
    assert {part.shape[0] for part in kept.parts} == {shape[0]}


@pytest.mark.parametrize("name", ["device", "cpu"])
def test_nothing_is_lost_where_features_only_move(name):
    value = torch.randn(2, 3, 8)
    assert torch.equal(CODECS[name].decode(CODECS[name].encode(value)), value)


@DTYPES
def test_eight_bits_are_off_by_less_than_one_percent_for_even_features(dtype):
    assert error(EightBit(), torch.randn(4, 64, 384).to(dtype)) < 0.01


def test_one_large_channel_blurs_its_neighbours_only():
    value = torch.randn(4, 64, 384)
    value[..., 5] *= 100
    back = EightBit().decode(EightBit().encode(value))
    rest = slice(EightBit.GROUP, None)
    assert ((back - value)[..., rest].norm() / value[..., rest].norm()).item() < 0.01


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(1e-30, 1e30), st.integers(0, 2**32), st.sampled_from([1, 7, 32, 96]))
def test_no_number_is_off_by_more_than_a_254th_of_its_groups_largest(scale, seed, width):
    value = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(seed)) * scale
    back = EightBit().decode(EightBit().encode(value))
    groups = value.unflatten(-1, (-1, 32 if width % 32 == 0 else width))
    bound = groups.abs().amax(-1, keepdim=True) / 254 * 1.01
    assert ((back - value).view_as(groups).abs() <= bound).all()


def test_zero_stays_zero():
    assert torch.equal(EightBit().decode(EightBit().encode(torch.zeros(2, 3, 64))), torch.zeros(2, 3, 64))


def test_what_is_no_number_stays_none():
    value = torch.ones(1, 2, 64)
    value[0, 0, 0] = float("inf")
    back = EightBit().decode(EightBit().encode(value))
    assert not torch.isfinite(back[0, 0, :32]).all()
    assert torch.isfinite(back[0, 1]).all()


def test_ordinary_memory_serves_where_no_page_can_be_locked(monkeypatch):
    empty = torch.empty

    def refusing(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: operation not supported")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", refusing)
    assert page_locked((2, 3), torch.bfloat16).shape == (2, 3)


@pytest.fixture
def late(monkeypatch) -> list[Late]:
    return copying_late(monkeypatch)


class TestBesideWhatIsComputed:
    def test_whatever_comes_back_has_arrived_before(self, late):
        codec, values = CODECS["cpu"].for_run(), [torch.randn(2, 3) for _ in range(6)]
        kept = []
        for value in values:
            kept.append(codec.encode(value.clone()))  # nobody else has it
            assert torch.equal(codec.decode(kept[len(kept) // 2]), values[len(kept) // 2])
        assert len(late) == 1
        for value, one in zip(values, kept, strict=True):
            assert torch.equal(codec.decode(one), value)

    def test_the_next_is_computed_meanwhile_and_only_that(self, late):
        codec, seen = CODECS["cpu"].for_run(), []
        for n in range(4):
            value = torch.full((2, 3), float(n))
            seen.append(ref(value))
            codec.encode(value)
            del value
            assert late[0].done == n  # this one is still under way
            assert [one() is None for one in seen] == [True] * n + [False]

    def test_conds_are_grouped_anew_once_all_is_there(self, late):
        store, site = FeatureStore(1, CODECS["cpu"]), Site("blocks.0.attn", 0, 1)
        together, (a, b) = ((0, "a"), (1, "b")), ([(0, "a")], [(1, "b")])
        value = torch.randn(2, 3, 4)
        store.put(site, together, value.clone(), Step(0, 2, 0.0, 1.0), True)
        assert late[0].done == 0
        rows = [store.get(site, tuple(lane))[0].value for lane in (a, b)]
        assert torch.equal(torch.cat(rows), value)
        store.put(site, tuple(a), value[:1] + 1, Step(1, 2, 0.5, 0.5), True)
        store.put(site, tuple(b), value[1:] + 1, Step(1, 2, 0.5, 0.5), True)
        assert torch.equal(store.get(site, together)[0].value, value + 1)

    def test_nothing_is_held_any_more_where_a_run_drops_what_it_has(self, late):
        store, value = FeatureStore(1, CODECS["cpu"]), torch.randn(1, 2, 2)
        seen = ref(value)
        store.put(Site("blocks.0.attn", 0, 1), ((0, "a"),), value, Step(0, 2, 0.0, 1.0), True)
        del value
        assert seen() is not None
        store.clear()
        assert (seen(), late[0].done) == (None, 1)

    def test_every_run_has_its_own(self, late):
        stores = [FeatureStore(1, CODECS["cpu"]) for _ in range(2)]
        assert len({id(store.codec) for store in (*stores, SimpleNamespace(codec=CODECS["cpu"]))}) == 3
        value = torch.randn(1, 2, 2)
        seen = ref(value)
        stores[0].put(Site("blocks.0.attn", 0, 1), ((0, "a"),), value, Step(0, 2, 0.0, 1.0), True)
        del value, stores
        assert seen() is None
