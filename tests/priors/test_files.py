"""Files written in one step."""

import pytest
from priorcache.priors.files import replace, write


def test_the_new_file_takes_the_place_of_the_old_one_and_nothing_stays(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    for content in (b"1", "2 \u00b1 1\n"):
        write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def broken(part):
        part.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_a_link_points_at_is_not_written_to(tmp_path):
    outside, link = tmp_path / "outside", tmp_path / "models" / "a.bin"
    outside.write_bytes(b"untouched")
    link.parent.mkdir()
    link.symlink_to(outside)
    replace(link, lambda part: part.write_bytes(b"new"))
    assert outside.read_bytes() == b"untouched"
    assert link.read_bytes() == b"new"
    assert not link.is_symlink()
