import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from priorcache.cache_core.codecs import CODECS, EightBit, page_locked

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
