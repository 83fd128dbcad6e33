"""The table of hosts is what the tests reported."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import hosts
import pytest
import scenarios

REPORT = """<testsuites><testsuite>
<testcase name="a" /><testcase name="b" />
<testcase name="c"><skipped message="no such class" /></testcase>
<testcase name="d"><failure message="AssertionError: 1 is not 2&#10;more" /></testcase>
<testcase name="e"><error message="ImportError: gone" /></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_with_the_reason_of_every_failure():
    found = hosts.counted(ElementTree.fromstring(REPORT))
    assert found == {
        "passed": 2,
        "skipped": 1,
        "failed": {"d": "AssertionError: 1 is not 2", "e": "ImportError: gone"},
    }


@pytest.fixture
def record():
    good, bad = {"passed": 5, "skipped": 0, "failed": {}}, {"passed": 4, "skipped": 0, "failed": {"x": "why"}}
    return {"0.9.1": dict.fromkeys(hosts.CORE, good), "0.10.0": dict.fromkeys(hosts.CORE, good) | {"nodes": bad}}


def test_rows_are_newest_first_and_tell_what_failed(record):
    newest, oldest = hosts.rows(record)
    assert (newest[0], oldest[0]) == ("0.10.0", "0.9.1")
    assert newest[1 + list(hosts.CORE).index("nodes")] == "4 of 5"
    assert set(oldest[1:]) == {"✓ 5"}


def test_a_part_that_was_not_run_is_not_shown_as_passed(record):
    del record["0.9.1"]["sampling"]
    assert hosts.rows(record)[1][1 + list(hosts.CORE).index("sampling")] == "not run"


def test_the_readme_changes_between_its_marks_only(record):
    text = f"before\n{hosts.BEGIN}old\n{hosts.END}after\n"
    found = hosts.inserted(text, record)
    assert found.startswith(f"before\n{hosts.BEGIN}")
    assert found.endswith(f"{hosts.END}after\n")
    assert "old" not in found
    assert hosts.inserted(found, record) == found


def test_what_is_not_ours_to_mend_is_said_where_it_fails(record, monkeypatch):
    monkeypatch.setattr(hosts, "KNOWN", {"0.10.0": "Why it fails.", "0.9.1": "Not shown: nothing failed."})
    found = hosts.inserted(f"{hosts.BEGIN}{hosts.END}.", record)
    assert "0.10.0: Why it fails.\n" in found
    assert "Not shown" not in found


def test_a_readme_without_marks_is_told(record):
    with pytest.raises(SystemExit, match="no place for the table"):
        hosts.inserted("nothing here", record)


def test_every_part_names_tests_that_there_are():
    for tests in hosts.CORE.values():
        for test in tests:
            path, _, name = test.partition("::")
            assert f"def {name.split('::')[-1]}(" in (text := (hosts.dev.ROOT / path).read_text()) or not name, test
            assert "def test_" in text


def test_the_readme_shows_what_was_recorded():
    record = json.loads(hosts.RECORD.read_text())
    assert set(record) == set(hosts.dev.HOSTS)
    readme = hosts.README.read_text()
    assert hosts.inserted(readme, record) == readme


def test_who_stops_it_while_it_writes_finds_the_old_record(record, tmp_path, monkeypatch):
    def half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    told, readme = tmp_path / "hosts.json", tmp_path / "README.md"
    told.write_text(json.dumps(record))
    readme.write_text(f"{hosts.BEGIN}{hosts.END}.")
    monkeypatch.setattr(hosts, "RECORD", told)
    monkeypatch.setattr(hosts, "README", readme)
    monkeypatch.setattr(hosts, "outcome", lambda *_: {})
    monkeypatch.setattr(hosts.dev, "fetch_host", lambda *_: tmp_path)
    monkeypatch.setattr(sys, "argv", ["hosts", "--only", hosts.dev.LATEST])
    hosts.main()
    before = told.read_text(), readme.read_text()
    assert hosts.dev.LATEST in before[0]
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        hosts.main()
    with pytest.raises(KeyboardInterrupt):
        scenarios.put(readme, "something else")
    assert (told.read_text(), readme.read_text()) == before
