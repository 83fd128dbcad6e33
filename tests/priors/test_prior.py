"""Prior files: what is written is read back, priors add up, and no broken file gets past the door."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from priorcache.archives import MAX_HEADER
from priorcache.priors.prior import GIVEN, Prior, PriorError, Subject
from safetensors.torch import save

SUBJECT = Subject("DiT", "0123456789abcdef", "EPS", "euler", "normal", steps=3, cfg=4.0)
SITES = ("blocks.0.attn", "blocks.0.mlp")
NAN = float("nan")


def tables(seed: int = 0, evaluations: int = 3, sites: int = 2, gaps: int = 2) -> dict[str, torch.Tensor]:
    """Random tables of every kind; `difference` is nan where there is no past."""
    own = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=own) + 0.5

    difference = random(gaps, evaluations, sites)
    for gap in range(1, gaps + 1):
        difference[gap - 1, :gap] = NAN
    means = {f"mean/{site}": random(evaluations, 4, 6).half() for site in SITES}
    return means | {
        "sigmas": torch.arange(evaluations, 0, -1, dtype=torch.float64),
        "power": random(evaluations, sites),
        "difference": difference,
        "gram/positive": random(evaluations, evaluations),
        "gram/negative": random(evaluations, evaluations),
        "schedule": torch.arange(evaluations, -1, -1, dtype=torch.float64),
    }


def prior(seed: int = 0, samples: int = 2, **kwargs) -> Prior:
    return Prior(SUBJECT, SITES, samples, tables(seed), (3, 8, 8), (seed,), **kwargs)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def about(**edits) -> dict:
    return {
        "format": 1,
        "subject": asdict(SUBJECT),
        "sites": list(SITES),
        "samples": 2,
        "shape": [3, 8, 8],
        "seeds": [0],
    } | edits


def file_bytes(text: str | None = None, of: dict[str, torch.Tensor] | None = None, **edits) -> bytes:
    """A prior file made without Prior.save, so that it may be wrong."""
    return save(of or tables(), {"priorcache": json.dumps(about(**edits)) if text is None else text})


# --- writing and reading ---


def test_loading_gives_exactly_what_was_saved(tmp_path):
    before = prior()
    after = Prior.load(before.save(tmp_path / "a.safetensors"))
    assert (after.subject, after.sites, after.samples) == (before.subject, before.sites, before.samples)
    assert (after.shape, after.seeds) == (before.shape, before.seeds)
    assert after.tables.keys() == before.tables.keys()
    assert all(same(after.tables[name], before.tables[name]) for name in before.tables)


def test_a_loaded_prior_can_be_saved_over_its_own_file(tmp_path):
    path = prior().save(tmp_path / "a.safetensors")
    content = path.read_bytes()
    Prior.load(path).save(path)
    assert path.read_bytes() == content


def test_writing_into_loaded_tables_does_not_reach_the_file(tmp_path):
    path = prior().save(tmp_path / "a.safetensors")
    content = path.read_bytes()
    Prior.load(path).tables["power"].zero_()
    assert path.read_bytes() == content


def test_save_makes_folders_and_takes_any_name(tmp_path):
    path = tmp_path / "neu" / "Prior für DiT, 4.0.safetensors"
    assert prior().save(str(path)) == path
    assert Prior.load(str(path)).sites == SITES


def test_tables_that_are_views_are_saved_as_they_read(tmp_path):
    gram = tables()["gram/positive"]
    before = replace(prior(), tables=tables() | {"gram/positive": gram.T})
    after = Prior.load(before.save(tmp_path / "a.safetensors"))
    assert torch.equal(after.tables["gram/positive"], gram.T)


def test_tables_of_a_later_version_survive(tmp_path):
    before = replace(prior(), tables=tables() | {"later/thing": torch.arange(5)})
    after = Prior.load(before.save(tmp_path / "a.safetensors"))
    assert torch.equal(after.tables["later/thing"], torch.arange(5))


def test_save_leaves_one_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.safetensors"
    prior(0).save(path)
    prior(1).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert Prior.load(path).seeds == (1,)


def test_an_invalid_prior_is_refused_and_nothing_is_written(tmp_path):
    broken = replace(prior(), sites=SITES[:1])
    with pytest.raises(PriorError, match=r"'power' has shape \(3, 2\); \(3, 1\) was expected"):
        broken.save(tmp_path / "new" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_prior_leaves_the_old_file_alone(tmp_path):
    path = prior().save(tmp_path / "a.safetensors")
    content = path.read_bytes()
    with pytest.raises(PriorError, match="not finite"):
        replace(prior(), tables=tables() | {"power": torch.full((3, 2), float("inf"), dtype=torch.float64)}).save(path)
    assert path.read_bytes() == content


def test_a_crash_while_writing_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = prior().save(tmp_path / "a.safetensors")
    content = path.read_bytes()

    def half(tables, part, metadata):
        part.write_bytes(b"half of a file")
        raise OSError("disk full")

    monkeypatch.setattr("priorcache.priors.prior.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        prior(1).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == content


# --- questions ---


def hand() -> Prior:
    """Two evaluations, one site: power 4 then 16, change 1, so that reuse costs sqrt(1 / 16)."""
    numbers = {
        "sigmas": torch.tensor([2.0, 1.0]),
        "power": torch.tensor([[4.0], [16.0]]),
        "difference": torch.tensor([[[NAN], [1.0]]]),
        "mean/blocks.0.attn": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]),
    }
    return Prior(SUBJECT, SITES[:1], 1, numbers)


def test_reuse_error_is_the_root_of_change_over_power():
    error = hand().reuse_error(1)
    assert error[0].isnan().all()
    assert error[1].tolist() == [0.25]


def test_reuse_error_of_an_output_that_is_always_zero_is_zero():
    quiet = replace(hand(), tables=hand().tables | {"power": torch.zeros(2, 1), "difference": torch.zeros(1, 2, 1)})
    assert quiet.reuse_error().tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reuse_error_survives_any_precision_a_file_may_have(kind):
    numbers = {"power": torch.tensor([[0.0], [1.0]]).to(kind), "difference": torch.tensor([[[0.0], [0.25]]]).to(kind)}
    assert replace(hand(), tables=hand().tables | numbers).reuse_error().tolist() == [[0.0], [0.5]]


@pytest.mark.parametrize("gap", [0, -1, 2])
def test_a_gap_that_was_not_measured_is_named(gap):
    with pytest.raises(PriorError, match=rf"gap {gap} was not measured: this prior has gaps 1 to 1"):
        hand().reuse_error(gap)


def test_at_picks_one_entry():
    assert hand().at("power", 1, "blocks.0.attn").item() == 16.0
    assert hand().at("difference", 1, "blocks.0.attn").tolist() == [1.0]
    assert hand().at("mean", 1, "blocks.0.attn").tolist() == [[3.0, 4.0]]


def test_at_keeps_sites_apart():
    p = prior()
    assert p.at("power", 2, SITES[1]) == p.tables["power"][2, 1]
    assert torch.equal(p.at("difference", 2, SITES[0]), p.tables["difference"][:, 2, 0])


def test_an_unknown_site_is_named_beside_one_that_exists():
    with pytest.raises(PriorError, match=r"no site 'blocks.9.mlp'; it has 1, such as 'blocks.0.attn'"):
        hand().at("power", 0, "blocks.9.mlp")


def test_a_prior_without_sites_says_so_too():
    empty = replace(hand(), sites=(), tables={"sigmas": torch.ones(1)})
    with pytest.raises(PriorError, match=r"no site 'blocks.0.mlp'"):
        empty.at("power", 0, "blocks.0.mlp")


@pytest.mark.parametrize(("table", "site"), [("mean", "blocks.0.mlp"), ("gram", "blocks.0.attn")])
def test_a_missing_table_is_named_with_the_remedy(table, site):
    with pytest.raises(PriorError, match=rf"no table '{table}.*only: difference, mean, power, sigmas. Calibrate again"):
        hand().at(table, 0, site)


def test_evaluations_and_bytes_are_counted():
    assert hand().evaluations == 2
    assert hand().nbytes == 4 * (2 + 2 + 2 + 4)


def test_a_prior_matches_its_own_model_whatever_the_sampler():
    prior().matches(replace(SUBJECT, sampler="heun", steps=7))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("architecture", "Flux", f"{SUBJECT.architecture} in the prior, Flux here"),
        ("geometry", "ffff", "other layers or widths"),
        ("prediction", "FLOW", f"{SUBJECT.prediction} in the prior, FLOW here"),
    ],
)
def test_a_prior_of_another_model_is_refused_naming_field_and_remedy(field, value, said):
    with pytest.raises(PriorError, match=f"{field}: {said}.*Calibrate"):
        prior().matches(replace(SUBJECT, **{field: value}))


def test_matches_checks_the_fields_it_is_asked_for():
    prior().matches(replace(SUBJECT, prediction="FLOW"), only=("steps",))
    with pytest.raises(
        PriorError, match=r"made with other settings .steps: 3 in the prior, 7 here.*Set those of"
    ) as caught:
        prior().matches(replace(SUBJECT, steps=7, prediction="FLOW"), only=("steps",))
    assert "prediction" not in str(caught.value)


def test_every_difference_is_named_at_once():
    with pytest.raises(PriorError, match=r"architecture: .*; geometry: .*; prediction: "):
        prior().matches(Subject("a", "b", "c", "euler", "normal", 3, 4.0))


# --- merging ---


@pytest.mark.parametrize("samples", [(1, 1), (1, 3), (5, 2)])
def test_merging_is_the_mean_over_all_pictures(samples):
    a, b = prior(0, samples[0]), prior(1, samples[1])
    merged = Prior.merge([a, b])
    assert merged.samples == sum(samples)
    assert merged.seeds == (0, 1)
    for name, table in merged.tables.items():
        parts = [p.tables[name].double() for p in (a, b)]
        expected = (samples[0] * parts[0] + samples[1] * parts[1]) / sum(samples)
        tolerance = 1e-3 if table.dtype is torch.float16 else 1e-6
        assert torch.allclose(table.double(), expected, rtol=tolerance, atol=0, equal_nan=True), name
        assert table.dtype == a.tables[name].dtype


def test_merging_does_not_depend_on_grouping():
    a, b, c = prior(0, 1), prior(1, 2), prior(2, 4)
    flat, nested = Prior.merge([a, b, c]), Prior.merge([Prior.merge([a, b]), c])
    assert (flat.samples, flat.seeds) == (nested.samples, nested.seeds)
    assert torch.allclose(flat.tables["difference"], nested.tables["difference"], rtol=1e-6, equal_nan=True)


def test_merging_keeps_unknown_entries_unknown_and_no_others():
    merged = Prior.merge([prior(0), prior(1)])
    assert torch.equal(merged.tables["difference"].isnan(), prior().tables["difference"].isnan())


def test_a_merged_prior_can_be_saved_and_its_parts_are_untouched(tmp_path):
    a = prior(0)
    before = {name: table.clone() for name, table in a.tables.items()}
    Prior.load(Prior.merge([a, prior(1)]).save(tmp_path / "a.safetensors"))
    assert all(same(a.tables[name], before[name]) for name in before)


def test_merging_one_prior_gives_it_back():
    assert torch.equal(Prior.merge([prior()]).tables["power"], prior().tables["power"])


def test_merging_nothing_is_refused():
    with pytest.raises(PriorError, match="at least one"):
        Prior.merge([])


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (replace(prior(), subject=replace(SUBJECT, cfg=7.5)), "cfg: 4.0 in the prior, 7.5 here"),
        (replace(prior(), subject=replace(SUBJECT, steps=20)), "steps: 3 in the prior, 20 here"),
        (replace(prior(), sites=SITES[::-1]), "sites"),
        (replace(prior(), tables=tables(gaps=1)), "table difference"),
        (replace(prior(), tables={k: v for k, v in tables().items() if k[:4] != "mean"}), "table mean/blocks.0.attn"),
        (replace(prior(), tables=tables() | {"later/thing": torch.ones(1)}), "table later/thing"),
        (replace(prior(), shape=(3, 16, 16)), r"shape: \(3, 8, 8\) and \(3, 16, 16\)"),
        (replace(prior(), tables=tables() | {"sigmas": torch.tensor([9.0, 2.0, 1.0]).double()}), "sigmas"),
        (replace(prior(), tables=tables() | {"schedule": torch.tensor([3.0, 2.0, 1.0, 0.5]).double()}), "schedule"),
    ],
)
def test_priors_that_differ_are_not_merged_and_the_difference_is_named(other, name):
    with pytest.raises(PriorError, match=f"cannot be merged: they differ in .*{name}"):
        Prior.merge([prior(), other])


def test_priors_of_other_precision_are_merged_or_refused():
    """Files of 32 and of 64 bits both load, so merging them must not end in a torch error."""
    single = replace(prior(1), tables={k: v.float() for k, v in tables(1).items()})
    try:
        merged = Prior.merge([prior(0), single])
    except PriorError:
        return
    assert torch.allclose(merged.tables["power"], (tables(0)["power"] + tables(1)["power"]) / 2, rtol=1e-6)


# --- broken files ---


def refused(path, content: bytes, match: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(PriorError, match=match) as caught:
        Prior.load(path)
    assert path.name in str(caught.value)
    assert path.read_bytes() == content


def test_the_file_these_tests_break_is_good(tmp_path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(file_bytes())
    assert Prior.load(path).samples == 2


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = file_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in {*range(12), *range(12, len(whole), 37), header - 1, header, header + 1, len(whole) - 1}:
        refused(tmp_path / "cut.safetensors", whole[:length])


def test_a_file_with_bytes_behind_its_end_is_refused(tmp_path):
    refused(tmp_path / "long.safetensors", file_bytes() + b"\0")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(PriorError, match=path.name):
            Prior.load(path)


def test_weights_are_told_apart_from_priors(tmp_path):
    for content in (save({"w": torch.ones(2)}), save({"w": torch.ones(2)}, {"format": "pt"})):
        refused(tmp_path / "weights.safetensors", content, "but not a prior. Priors are made by the Calibrate node")


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], True])
def test_another_format_version_is_named(tmp_path, version):
    refused(
        tmp_path / "new.safetensors",
        file_bytes(format=version),
        f"prior format {version!r}.*Update".replace("[", r"\["),
    )


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER + 1, 2**32, 2**63, 2**64 - 1])
def test_a_header_of_impossible_length_is_refused(tmp_path, length):
    refused(tmp_path / "header.safetensors", length.to_bytes(8, "little") + file_bytes()[8:])


def test_a_large_file_with_a_header_over_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:  # sparse: takes no room on the disk
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER)
    with pytest.raises(PriorError, match="not a safetensors file"):
        Prior.load(path)


def test_a_file_larger_than_any_prior_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("priorcache.priors.prior.MAX_BYTES", 100)
    refused(tmp_path / "huge.safetensors", file_bytes(), "larger than any prior")


def test_a_prior_larger_than_any_file_that_is_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("priorcache.priors.prior.MAX_BYTES", 100)
    with pytest.raises(PriorError, match="calibrate without mean_features"):
        prior().save(tmp_path / "huge.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"\xff" * 64,
        b"PK\x03\x04" + b"\0" * 60,
        pickle.dumps({"power": [1.0]}),
        b"\x10\0\0\0\0\0\0\0" + b"\xff" * 16,
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
        b"\xa0\x0f\0\0\0\0\0\0" + b"[" * 4000,
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    refused(tmp_path / "other.safetensors", content)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").mkdir, ()

    refused(tmp_path / "trap.safetensors", pickle.dumps(Trap()))
    torch.save({"w": torch.ones(2)}, tmp_path / "torch.safetensors")
    refused(tmp_path / "torch.safetensors", (tmp_path / "torch.safetensors").read_bytes())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1",
        '"prior"',
        "{",
        "{}",
        '{"format": 1}',
        "[" * 100_000,
        '{"format": 1, "a": ' + "[" * 100_000,
    ],
)
def test_metadata_that_is_not_a_prior_is_refused(tmp_path, text):
    refused(tmp_path / "text.safetensors", file_bytes(text))


@pytest.mark.parametrize("key", ["subject", "sites", "samples", "shape", "seeds"])
@pytest.mark.parametrize("value", [None, 1.5, True, -1, [None], [["a"]], [-1], {"a": 1}, "ab"])
def test_metadata_of_the_wrong_type_is_refused(tmp_path, key, value):
    refused(tmp_path / "wrong.safetensors", file_bytes(**{key: value}))


@pytest.mark.parametrize("key", ["format", "subject", "sites", "samples", "shape", "seeds"])
def test_metadata_without_one_of_its_keys_is_refused(tmp_path, key):
    text = json.dumps({k: v for k, v in about().items() if k != key})
    refused(tmp_path / "lacks.safetensors", file_bytes(text))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", "3"), ("steps", 3.0), ("steps", True), ("cfg", "4"), ("cfg", None), ("cfg", NAN),
        ("cfg", float("inf")), ("cfg", 10**400), ("denoise", False), ("denoise", 1e-7), ("denoise", float("nan")), ("denoise", 1.5), ("sampler", 1), ("sampler", "a\nb"), ("scheduler", "\ud800"), ("geometry", None),
    ],
)  # fmt: skip
def test_a_subject_of_wrong_values_is_refused(tmp_path, field, value):
    refused(tmp_path / "subject.safetensors", file_bytes(subject=asdict(SUBJECT) | {field: value}))


@pytest.mark.parametrize("field", ["steps", "made"])
def test_a_number_of_steps_that_no_sampler_has_is_refused(tmp_path, field):
    """What it will take is told from a list of them, which did not end."""
    named = {name: table for name, table in tables().items() if name != "schedule"}
    path = tmp_path / "steps.safetensors"
    for value in (-1, 10_001, 2**62):
        path.write_bytes(file_bytes(of=named, subject=asdict(SUBJECT) | {field: value}))
        with pytest.raises(PriorError, match=f"its subject's {field} is {value}; whole numbers from 0"):
            Prior.load(path)
    path.write_bytes(file_bytes(of=named, subject=asdict(SUBJECT) | {field: 10_000}))
    assert Prior.load(path).subject.total == 10_000


@pytest.mark.parametrize("field", [f for f in asdict(SUBJECT) if f not in ("denoise", "made")])
def test_a_subject_must_have_its_fields(tmp_path, field):
    subject = {k: v for k, v in asdict(SUBJECT).items() if k != field}
    refused(tmp_path / "fields.safetensors", file_bytes(subject=subject))


def test_a_subject_must_be_a_table(tmp_path):
    for subject in (list(asdict(SUBJECT)), " ".join(asdict(SUBJECT)), []):
        refused(tmp_path / "fields.safetensors", file_bytes(subject=subject))


@pytest.mark.parametrize(("key", "value"), [("sites", "ab"), ("sites", {"a": 0, "b": 0}), ("shape", {}), ("seeds", "")])
def test_what_must_be_a_list_is_not_read_from_anything_else(tmp_path, key, value):
    without_mean = {k: v for k, v in tables().items() if k[:4] != "mean"}
    refused(tmp_path / "list.safetensors", file_bytes(of=without_mean, **{key: value}))


def test_sites_must_differ(tmp_path):
    refused(tmp_path / "twice.safetensors", file_bytes(sites=["a", "a"]), "different names")


@pytest.mark.parametrize("name", ["sigmas", "power", "difference"])
def test_a_table_that_is_missing_is_named(tmp_path, name):
    rest = {k: v for k, v in tables().items() if k != name}
    refused(tmp_path / "lacks.safetensors", file_bytes(of=rest), f"table '{name}' is missing")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("sigmas", torch.ones(())),
        ("sigmas", torch.ones(2)),
        ("sigmas", torch.ones(3, 1)),
        ("power", torch.ones(())),
        ("power", torch.ones(3)),
        ("power", torch.ones(2, 3)),
        ("power", torch.ones(3, 2, 1)),
        ("difference", torch.ones(3, 2)),
        ("difference", torch.ones(2, 2, 2)),
        ("difference", torch.ones(2, 3, 3)),
        ("schedule", torch.ones(3)),
        ("schedule", torch.ones(4, 1)),
        ("gram/positive", torch.ones(())),
        ("gram/positive", torch.ones(3, 2)),
        ("gram/other", torch.ones(2, 2)),
        ("mean/blocks.0.attn", torch.ones(())),
        ("mean/blocks.0.attn", torch.ones(3)),
        ("mean/blocks.0.attn", torch.ones(2, 4, 6)),
        ("mean/blocks.7.attn", torch.ones(3, 4, 6)),
    ],
)
def test_a_table_of_the_wrong_shape_is_refused(tmp_path, name, table):
    refused(tmp_path / "shape.safetensors", file_bytes(of=tables() | {name: table}))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in tables() for value in (float("inf"), -float("inf"))]
    + [(name, NAN) for name in tables() if name not in ("power", "difference")],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, value):
    table = tables()[name]
    table.view(-1)[-1] = value
    refused(tmp_path / "nan.safetensors", file_bytes(of=tables() | {name: table}), f"'{name}' .*not finite")


def test_a_branch_that_was_not_seen_is_unknown_and_no_error(tmp_path):
    unseen = tables()
    unseen["power"][1, 0] = unseen["difference"][:, 1, 0] = NAN
    loaded = Prior.load(replace(prior(), tables=unseen).save(tmp_path / "a.safetensors"))
    assert loaded.reuse_error()[1].isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", list(tables()))
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_tables_that_hold_no_floating_point_numbers_are_refused(tmp_path, name, kind):
    table = torch.ones(tables()[name].shape).to(kind)
    refused(tmp_path / "int.safetensors", file_bytes(of=tables() | {name: table}), f"'{name}' holds {kind}")


@pytest.mark.parametrize("name", ["sigmas", "power", "difference", "gram/positive"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.bfloat16])
def test_a_file_of_any_floating_point_numbers_is_refused_or_works(tmp_path, name, kind):
    path = tmp_path / "float8.safetensors"
    path.write_bytes(file_bytes(of=tables() | {name: torch.ones(tables()[name].shape).to(kind)}))
    try:
        loaded = Prior.load(path)
    except PriorError:
        return
    assert loaded.reuse_error(1)[1:].isfinite().all()
    assert torch.equal(Prior.merge([loaded, loaded]).tables[name].double(), torch.ones(tables()[name].shape).double())


@pytest.mark.parametrize("name", ["power", "difference"])
def test_mean_squares_below_zero_are_refused(tmp_path, name):
    refused(tmp_path / "negative.safetensors", file_bytes(of=tables() | {name: -tables()[name]}))


def test_no_distance_of_reuse_at_all_is_refused(tmp_path):
    none = torch.ones(0, 3, 2, dtype=torch.float64)
    refused(tmp_path / "gaps.safetensors", file_bytes(of=tables() | {"difference": none}))


def test_settings_in_words_count_their_steps():
    assert (
        replace(SUBJECT, sampler="euler", scheduler=GIVEN, steps=1, cfg=1.0).settings
        == f"euler, {GIVEN}, 1 step, cfg 1"
    )
    assert ", 20 steps, " in replace(SUBJECT, steps=20).settings
