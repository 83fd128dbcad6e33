"""Whatever bytes a file holds: Prior.load gives a prior that works, or raises PriorError."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from priorcache.priors.prior import Prior, PriorError, Subject
from safetensors.torch import save

SUBJECT = Subject("DiT", "0123456789abcdef", "EPS", "euler", "normal", steps=3, cfg=4.0)
ABOUT = {"format": 1, "subject": asdict(SUBJECT), "sites": ["a", "b"], "samples": 2, "shape": [3, 8, 8], "seeds": [0]}
TABLES = {
    "sigmas": torch.tensor([3.0, 2.0, 1.0]),
    "power": torch.ones(3, 2),
    "difference": torch.ones(2, 3, 2),
    "gram/positive": torch.ones(3, 3),
    "mean/a": torch.ones(3, 2, 2),
    "mean/b": torch.ones(3, 2, 2),
}
VALID = save(TABLES, {"priorcache": json.dumps(ABOUT)})
HEADER = 8 + int.from_bytes(VALID[:8], "little")

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip
NUMBERS = [0.0, 1.0, 2.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "b", "format"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
shapes = st.none() | st.lists(st.integers(0, 4), max_size=4)  # None: the right one
names = st.sampled_from([*TABLES, "gram/negative", "mean/c", "mean/", "later"]) | st.text(max_size=8)


def examples(count: int):
    return settings(
        deadline=None, derandomize=True, max_examples=count, database=None, suppress_health_check=[HealthCheck.too_slow]
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.safetensors"


def check(path, content: bytes) -> bool:
    """Whether the file was a prior; every other end than PriorError is an error of this test."""
    path.write_bytes(content)
    try:
        prior = Prior.load(path)
    except PriorError as error:
        assert path.name in str(error)  # noqa: PT017 - the other end is as good
        return False
    finally:
        assert path.read_bytes() == content
    shape = (prior.evaluations, len(prior.sites))
    assert prior.samples >= 1
    for gap in range(1, len(prior.tables["difference"]) + 1):
        error = prior.reuse_error(gap)
        assert tuple(error.shape) == shape
        assert torch.equal(error.isnan(), (prior.tables["difference"][gap - 1] + prior.tables["power"]).isnan())
    again = Prior.load(prior.save(path.with_name("again.safetensors")))
    assert (again.subject, again.sites, again.samples) == (prior.subject, prior.sites, prior.samples)
    assert Prior.merge([prior, again]).samples == 2 * prior.samples
    return True


def test_the_file_that_is_mutated_is_a_prior(path):
    assert check(path, VALID)


@examples(400)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.integers(0, len(VALID)) | st.just(len(VALID)),
    tail=st.binary(max_size=9),
)
def test_changed_bytes(path, edits, keep, tail):
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    check(path, bytes(content[:keep]) + tail)


@examples(300)
@given(position=st.integers(0, HEADER - 1), bit=st.integers(0, 7))
def test_single_bits_of_the_header(path, position, bit):
    content = bytearray(VALID)
    content[position] ^= 1 << bit
    check(path, bytes(content))


@examples(150)
@given(content=st.binary(max_size=300))
def test_random_bytes(path, content):
    assert not check(path, content)


@examples(150)
@given(header=anything, body=st.binary(max_size=32))
def test_a_header_of_any_json(path, header, body):
    text = json.dumps(header).encode()
    assert not check(path, len(text).to_bytes(8, "little") + text + body)


@examples(300)
@given(key=st.sampled_from([*ABOUT, "extra"]), value=anything, drop=st.booleans())
def test_metadata_with_one_entry_replaced(path, key, value, drop):
    about = {k: v for k, v in ABOUT.items() if not (drop and k == key)} | ({} if drop else {key: value})
    check(path, save(TABLES, {"priorcache": json.dumps(about)}))


@examples(200)
@given(field=st.sampled_from([*ABOUT["subject"], "extra"]), value=anything)
def test_a_subject_with_one_field_replaced(path, field, value):
    about = ABOUT | {"subject": ABOUT["subject"] | {field: value}}
    check(path, save(TABLES, {"priorcache": json.dumps(about)}))


@examples(150)
@given(text=st.text(max_size=60) | anything.map(json.dumps))
def test_metadata_of_any_text(path, text):
    assert not check(path, save(TABLES, {"priorcache": text}))


@examples(400)
@given(
    changes=st.dictionaries(
        names, st.none() | st.tuples(shapes, st.sampled_from(KINDS), st.sampled_from(NUMBERS)), min_size=1, max_size=3
    )
)
def test_any_tables(path, changes):
    tables = dict(TABLES)
    for name, change in changes.items():
        if change is None:
            tables.pop(name, None)
        else:
            shape, kind, number = change
            whole = kind in (torch.int64, torch.uint8, torch.bool)
            shape = TABLES.get(name, TABLES["power"]).shape if shape is None else shape
            tables[name] = torch.full(shape, 1.0 if whole else number).to(kind)
    check(path, save(tables, {"priorcache": json.dumps(ABOUT)}))


@examples(150)
@given(evaluations=st.integers(0, 5), gaps=st.integers(0, 3), sites=st.integers(0, 3), kind=st.sampled_from(KINDS[:4]))
def test_consistent_tables_of_any_size(path, evaluations, gaps, sites, kind):
    tables = {
        "sigmas": torch.arange(evaluations, 0, -1).to(kind),
        "power": torch.ones(evaluations, sites, dtype=kind),
        "difference": torch.ones(gaps, evaluations, sites, dtype=kind),
    }
    about = ABOUT | {"sites": [f"s{i}" for i in range(sites)]}
    good = check(path, save(tables, {"priorcache": json.dumps(about)}))
    assert good or not (evaluations and gaps) or kind is torch.bfloat16
