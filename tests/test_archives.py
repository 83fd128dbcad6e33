"""What is refused of a file before any tensor of it is read."""

import argparse
import io
import zipfile

import pytest
import torch
from pickles import archive, call, name, number, packed, program, records, storage, table, tensor, with_pickle
from priorcache.archives import MAX_HEADER, MAX_PICKLE, check_pickled, check_safetensors
from priorcache.errors import PriorCacheError
from safetensors.torch import save

WEIGHTS = {"a.weight": torch.ones(3, 2), "b": torch.ones(2).half()}
VALID = packed(WEIGHTS)


def refused(path, content: bytes, check) -> str:
    path.write_bytes(content)
    with pytest.raises(PriorCacheError) as error:
        check(path)
    return str(error.value)


@pytest.mark.parametrize("content", [
    WEIGHTS, {"routers": WEIGHTS, "args": argparse.Namespace(l1=1.0), "opt": {"state": {}}},
    {"p": torch.nn.Parameter(torch.ones(2)), "d": torch.float32, "s": torch.Size([1])},
])  # fmt: skip
def test_what_torch_saves_of_weights_passes(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(packed(content))
    check_pickled(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (call("os.system", b"X\0\0\0\0"), "refers to 'os system'"),
        (call("builtins.bytearray", number(2**31)), "refers to 'builtins bytearray'"),
        (call("torch.FloatTensor", number(2**31)), "refers to 'torch FloatTensor'"),
        (table(a=tensor(storage(), (4,), (1,)), b=name("numpy.memmap")), "refers to 'numpy memmap'"),
        (b"\x8f", "uses EMPTY_SET"),
    ],
)
def test_names_that_weights_do_not_need_are_refused(tmp_path, body, said):
    assert said in refused(tmp_path / "a.pt", with_pickle(VALID, program(body)), check_pickled)


@pytest.mark.parametrize("which", ["data.pkl", "data/0", "version"])
def test_what_unpacks_to_more_than_it_is(tmp_path, which):
    entries = {k: bytes(10**6) if k.endswith(which) else v for k, v in records(VALID).items()}
    assert "unpacks to more" in refused(tmp_path / "a.pt", archive(entries, zipfile.ZIP_DEFLATED), check_pickled)


def test_a_list_of_tensors_without_end(tmp_path):
    content = with_pickle(VALID, program(b"N" * (MAX_PICKLE + 1)))
    assert "longer than any" in refused(tmp_path / "a.pt", content, check_pickled)


def test_a_file_of_an_old_torch_is_named_with_the_remedy(tmp_path):
    file = io.BytesIO()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)
    assert "save it anew" in refused(tmp_path / "a.pt", file.getvalue(), check_pickled)


def test_safetensors(tmp_path):
    valid = save(WEIGHTS)
    (tmp_path / "a.safetensors").write_bytes(valid)
    check_safetensors(tmp_path / "a.safetensors")
    for content, said in [
        (b"", "cut off"), (valid[:20], "cut off"), ((MAX_HEADER + 1).to_bytes(8, "little") + valid[8:], "cut off"),
        (valid[:-1], "damaged"), (valid[:8] + b"x" + valid[9:], "damaged"),
    ]:  # fmt: skip
        assert said in refused(tmp_path / "b.safetensors", content, check_safetensors)


@pytest.mark.parametrize("check", [check_pickled, check_safetensors])
def test_what_is_no_file(tmp_path, check):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        with pytest.raises(PriorCacheError, match="no such file"):
            check(path)
