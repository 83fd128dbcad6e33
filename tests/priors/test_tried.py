"""What a search keeps on disk while it goes on."""

import json

import pytest
import torch
from priorcache.priors.tried import MOST, Tried

ERRORS = torch.tensor([0.1, 1 / 3], dtype=torch.float64)


def filled(path) -> Tried:
    found = Tried.opened(path)
    found.tried["FORA(2)", 2] = (ERRORS, 0.5)
    found.fitted["FORA(3)"] = ([[0.25, 1.0], []], 2.5)
    return found


def test_what_was_saved_comes_back_to_the_last_bit(tmp_path):
    filled(tmp_path / "a" / "b.json").save()
    again = Tried.opened(tmp_path / "a" / "b.json")
    (errors, cost) = again.tried["FORA(2)", 2]
    assert torch.equal(errors, ERRORS)
    assert errors.dtype == ERRORS.dtype
    assert (cost, again.fitted) == (0.5, {"FORA(3)": ([[0.25, 1.0], []], 2.5)})


def test_nothing_is_written_where_nothing_came(tmp_path):
    path = tmp_path / "b.json"
    Tried.opened(path).save()
    assert not path.exists()
    found = filled(path)
    found.save()
    path.unlink()
    found.save()
    assert not path.exists()
    found.tried["FORA(4)", 2] = (ERRORS, 0.25)
    found.save()
    assert len(Tried.opened(path)) == 3


def test_a_finished_search_leaves_no_file(tmp_path):
    found, other = filled(tmp_path / "kept" / "b.json"), filled(tmp_path / "kept" / "c.json")
    found.save()
    other.save()
    found.finished()
    found.finished()
    assert list(tmp_path.rglob("*.json")) == [other.path]
    other.finished()
    assert list(tmp_path.iterdir()) == []


def test_only_the_latest_unfinished_ones_are_kept(tmp_path):
    for i in range(MOST + 3):
        filled(tmp_path / f"{i}.json").save()
    assert len(list(tmp_path.glob("*.json"))) == MOST


GOOD = {"format": 1, "tried": [["p", 1, [0.5], 0.5]], "fitted": [["p", [[1.0]], 1.0]]}


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[" * 100_000,
        [],
        GOOD | {"format": 2},
        GOOD | {"tried": [["p", 2, [0.5], 0.5]]},
        GOOD | {"tried": [["p", 1, ["x"], 0.5]]},
        GOOD | {"tried": [["p", 1, [float("nan")], 0.5]]},
        GOOD | {"tried": [["p", 1, [0.5], None]]},
        GOOD | {"tried": [["p", 1, [10**400], 0.5]]},
        GOOD | {"tried": [["p", 1, [0.5], 10**400]]},
        GOOD | {"tried": [[3, 1, [0.5], 0.5]]},
        GOOD | {"fitted": [["p", [["x"]], 1.0]]},
        GOOD | {"fitted": [["p", [[1.0]], True]]},
        {"format": 1},
    ],
)
def test_a_damaged_file_is_said_and_left_behind(tmp_path, caplog, told):
    path = tmp_path / "b.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    found = Tried.opened(path)
    assert len(found) == 0
    assert "this search begins anew" in caplog.text
    found.tried["FORA(2)", 2] = (ERRORS, 0.5)
    found.save()
    assert len(Tried.opened(path)) == 1


def test_a_file_that_is_too_large_is_said(tmp_path, caplog, monkeypatch):
    filled(tmp_path / "b.json").save()
    monkeypatch.setattr("priorcache.priors.tried.LARGEST", 10)
    assert len(Tried.opened(tmp_path / "b.json")) == 0
    assert "it is too large" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_told_of_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = filled(tmp_path / "file" / "b.json")
    found.save()
    found.tried["FORA(4)", 2] = (ERRORS, 0.25)
    found.save()
    assert caplog.text.count("cannot be written") == 1
