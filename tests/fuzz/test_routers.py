"""Published router files: a prior with a router, or RouterError; and nothing in a file is executed."""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict

import pytest
import torch
from fuzzing import KINDS, NUMBERS, cases, edited, filled, put, tried
from hypothesis import given
from hypothesis import strategies as st
from pickles import archive, call, harm, number, packed, program, records, storage, table, tensor, text, with_pickle
from priorcache.cache_core.sites import Schedule
from priorcache.priors import published
from priorcache.priors.prior import Prior
from priorcache.priors.router import RouterError, policy

ENTRIES = OrderedDict((f"{i}.prob", torch.full((4,), i - 2.0)) for i in range(6))
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(9.0)}},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99), "params": [0]}],
}
DIT = packed({"routers": ENTRIES, "opt": OPTIMIZER, "args": argparse.Namespace(l1=5e-6)})
UVIT = packed(ENTRIES)
PICKLE = next(data for name, data in records(UVIT).items() if name.endswith("data.pkl"))

rules = st.sampled_from(published.RULES)
files = st.sampled_from([DIT, UVIT])


@pytest.fixture(scope="module", autouse=True)
def warm(folder):
    for valid in (DIT, UVIT):
        used(published.read(put(folder / "router.pt", valid)))


def used(prior: Prior) -> Prior:
    made = policy(prior, 0.5)
    made.describe()
    made.objection(Schedule(prior.subject.steps))
    gates = prior.tables["router"]
    assert gates[~gates.isnan()].isfinite().all()
    assert tuple(gates.shape) == (prior.evaluations, len(prior.sites))
    assert (prior.tables["sigmas"].diff() <= 0).all()
    return prior


def check(folder, content: bytes, rule: str = "auto") -> Prior | None:
    path, marker = put(folder / "router.pt", content), folder.parent / "executed"
    found = tried("published router", lambda: used(published.read(path, rule)), RouterError, folder, says=path.name)
    assert not marker.exists()
    if found is not None:
        Prior.load(found.save(folder.parent / "again" / "router.safetensors"))
    return found


class TestBytes:
    @cases(500)
    @given(content=files.flatmap(edited), rule=rules)
    def test_changed(self, folder, content, rule):
        check(folder, content, rule)

    @cases(100)
    @given(content=st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: b"PK\3\4" + b))
    def test_random(self, folder, content):
        assert check(folder, content) is None

    @cases(700)
    @given(pickled=edited(PICKLE), rule=rules)
    def test_changed_within_a_file_whose_checksums_are_right(self, folder, pickled, rule):
        check(folder, with_pickle(UVIT, pickled), rule)


class TestContent:
    values = st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=5), st.just({}), st.just([]),
        st.builds(
            filled, st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(KINDS), st.sampled_from(NUMBERS)
        ),
        st.sampled_from([torch.zeros(1).expand(4), torch.zeros(1).expand(10**10), torch.zeros(4, requires_grad=True),
                         torch.zeros(4).to_sparse(), torch.zeros(4, device="meta"), torch.nn.Parameter(torch.zeros(4))]),
    )  # fmt: skip
    names = st.sampled_from(
        [*ENTRIES, "6.prob", "7.prob", "00.prob", "٣.prob", "-1.prob", "0.weight", "99999.prob", ""]
    )

    @cases(600)
    @given(
        changes=st.dictionaries(names | st.integers(0, 3), st.none() | values, min_size=1, max_size=3),
        nested=st.booleans(), rule=rules, every=st.none() | values,
    )  # fmt: skip
    def test_with_entries_replaced(self, folder, changes, nested, rule, every):
        entries = {k: v for k, v in (ENTRIES | changes).items() if v is not None}
        if every is not None:
            entries = dict.fromkeys(entries, every)
        check(folder, packed({"routers": entries} if nested else entries), rule)

    @cases(150)
    @given(
        content=values
        | st.dictionaries(st.sampled_from(["routers", "opt", "args", "0.prob"]), values)
        | st.lists(values)
    )
    def test_of_any_object(self, folder, content):
        assert check(folder, packed(content)) is None

    @cases(200)
    @given(
        total=st.integers(0, 12) | st.sampled_from([998, 1000, 1002, 4096, 4098]), width=st.integers(0, 6), rule=rules
    )
    def test_of_any_size(self, folder, total, width, rule):
        check(folder, packed({f"{i}.prob": torch.zeros(width) for i in range(total)}), rule)


class TestHarm:
    @cases(1200)
    @given(data=st.data())
    def test_pickles_that_would_execute_something(self, folder, data):
        body = data.draw(harm(folder.parent / "executed"))
        place = data.draw(st.sampled_from(["alone", "entry", "beside"]))
        if place == "entry":
            body = table(**{"0__prob": body})
        elif place == "beside":
            body = table(
                routers=table(**{f"{i}__prob": tensor(storage(key=str(i)), (4,), (1,)) for i in range(6)}), args=body
            )
        check(folder, with_pickle(UVIT, program(body)))

    @cases(60)
    @given(
        count=st.sampled_from([2**31, 10**9, 10**10, 2**40]),
        made=st.sampled_from(["builtins.bytearray", "torch.FloatTensor", "torch.HalfTensor", "torch.storage.UntypedStorage",
                              "torch._utils._rebuild_meta_tensor_no_storage"]),
        place=st.sampled_from(["alone", "beside"]),
    )  # fmt: skip
    def test_pickles_that_ask_for_much_memory(self, folder, count, made, place):
        body = call(made, number(count))
        check(folder, with_pickle(UVIT, program(body if place == "alone" else table(routers=b"}", args=body))))

    @cases(20)
    @given(depth=st.sampled_from([10**3, 10**5]), op=st.sampled_from([b"\x85", b"]", b"}", b"(", b"N", b"K\0"]))
    def test_pickles_that_are_deep_or_long(self, folder, depth, op):
        check(folder, with_pickle(UVIT, program(b"N" + op * depth)))

    @cases(60)
    @given(
        name=st.sampled_from(["../../escaped", "/tmp/escaped", "..\\escaped", "a/data/0", "router/data.pkl", "", "x" * 5000,
                              "router/.data/serialization_id", "router/version", "router/byteorder"]) | st.text(max_size=9),
        data=st.binary(max_size=20) | st.just(bytes(3 * 2**20)),
        compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    )  # fmt: skip
    def test_other_records(self, folder, name, data, compression):
        name = name.encode("utf-8", "ignore").decode() or "x"
        check(folder, archive(records(UVIT) | {name: data}, compression))

    @pytest.mark.parametrize("size", [2**20 + 1, published.MAX_BYTES + 1, 64 * 2**20])
    @pytest.mark.parametrize("name", ["data.pkl", "data/0"])
    def test_what_unpacks_to_much_more(self, folder, size, name):
        entries = {k: bytes(size) if k.endswith(name) else v for k, v in records(UVIT).items()}
        assert check(folder, archive(entries, zipfile.ZIP_DEFLATED)) is None


def test_the_files_that_are_changed_are_routers(folder):
    assert check(folder, DIT).sites == check(folder, UVIT, "DiT").sites
    built = {f"{i}__prob": tensor(storage(key=str(i)), (4,), (1,)) for i in range(6)}
    assert check(folder, with_pickle(UVIT, program(table(**built)))) is not None


def test_the_marker_would_show(folder):
    """A reader that executes what it reads does leave the marker, and is heard."""
    import pickle

    marker = folder.parent / "executed"
    with pytest.raises(AssertionError, match=r"os\.system"):
        tried("", lambda: pickle.loads(program(call("os.system", text(f"touch {marker}")))), RouterError, folder)  # noqa: S301
    assert marker.exists()
    marker.unlink()
