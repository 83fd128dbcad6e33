"""The speed benchmark itself: that it tells steps apart, counts what was done, and writes what it found."""

import json

import pytest
import torch
from priorcache.benchmarks.pages import REMARKS
from priorcache.cache_core.sites import Action, Site
from priorcache.cache_core.trace import Row, RunTrace


@pytest.fixture
def speed(comfy):
    from priorcache.benchmarks import speed

    return speed


def test_steps_are_told_apart_by_what_was_done_in_them(speed):
    run, site, other = RunTrace("policy", 4), Site("a", 0, 1), Site("b", 0, 1)
    for step, done in enumerate(
        [(Action.COMPUTE,) * 2, (Action.REUSE,) * 2, (Action.REUSE, Action.COMPUTE), (Action.REUSE, Action.PARTIAL)]
    ):
        run.rows += [Row(step, s, action, None) for s, action in zip((site, other), done, strict=True)]
    assert speed.kinds(run)[:4] == ["full", "reused", "some branches", "some tokens"]
    assert speed.kinds(None) == ["full"] * speed.STEPS


def test_every_policy_is_measured_against_the_run_without_one(speed):
    from priorcache.benchmarks.overhead import Ground, randomised
    from priorcache.models import host
    from priorcache.models.dit import DiT, DiTConfig
    from priorcache.nodes.dit import conditioning

    config = DiTConfig(64, 2, 4, 2, 4, 10, learn_sigma=False, grid_size=8)
    with torch.inference_mode():
        randomised(network := DiT(config))
        model = host.from_weights(config, network.state_dict())
    prompts = [conditioning(torch.tensor([n])) for n in (1, -1)]
    case = speed.Case("a small DiT", 2.0)
    rounds, found = speed.measured(Ground(model, torch.zeros(1, 4, 16, 16), prompts, 64), case, 1)
    assert rounds == 1
    assert set(found) >= {speed.STOCK, "FORA", "GOC", "EOC", "L2C, half of the branches", "ToCa", "DuCa", "Forecast"}
    assert {name: of["notes"] for name, of in found.items() if of["notes"]} == {}
    assert found[speed.STOCK]["faster"] == found[speed.STOCK]["fewer_flops"] == 1.0
    assert found[speed.EVERYTHING]["fewer_flops"] == 1.0
    assert found[speed.EVERYTHING]["equal"]
    assert not found["FORA"]["equal"]
    # nine steps after the first, five of them computed
    assert found["FORA, whole network"]["fewer_flops"] == pytest.approx(9 / 5)
    assert 1.5 < found["FORA"]["fewer_flops"] < 9 / 5  # what is left of a reused step are gates and the last layer
    assert found["GOC"]["fewer_flops"] == found["EOC"]["fewer_flops"] == found["FORA"]["fewer_flops"]
    assert set(found["FORA"]["milliseconds"]) == {"full", "reused"}
    assert set(found["ToCa"]["milliseconds"]) == {"full", "some tokens"}
    assert found[speed.STOCK]["bytes"] == 0
    assert found["FORA"]["bytes"] == found["FORA"]["expected_bytes"] > 0


def test_what_was_measured_elsewhere_stays(speed, monkeypatch, tmp_path, capsys):
    from priorcache.benchmarks.overhead import dit

    other = {"about": "Elsewhere.", "networks": {}}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"NVIDIA X": other}))
    (tmp_path / "benchmarks.md").write_text(f"An older table.\n\n{REMARKS}\n\nA remark.\n")
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    monkeypatch.setitem(speed.NETWORKS, "DiT-XL/2 256", (lambda full: dit(), "a small one"))
    row = {
        "milliseconds": {"full": 1.0}, "faster": 1.0, "spread": [1.0, 1.0], "fewer_flops": 1.0, "wall_over_flops": 1.0,
        "bytes": 0, "expected_bytes": 0, "peak_device_bytes": None, "notes": [], "equal": True,
    }  # fmt: skip
    asked = []

    def measured(ground, case, rounds, seconds):
        asked.append((case, rounds))
        return speed.Measured(5, {"none": row})

    monkeypatch.setattr(speed, "measured", measured)
    speed.main(
        ["--networks", "DiT-XL/2 256", "--cfg", "1", "--rounds", "2", "--compile", "--batch", "3", "--remark", "Quiet."]
    )
    assert asked == [(speed.Case("DiT-XL/2 256", 1.0, 3, compiled=True), 2)]
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written.pop("NVIDIA X") == other
    (mine,) = written.values()
    assert mine["networks"]["DiT-XL/2 256, 256 tokens, 3 pictures, cfg 1, compiled"]["policies"] == {"none": row}
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Elsewhere." in page
    assert "### DiT-XL/2 256, 256 tokens, 3 pictures, cfg 1, compiled\n\nA small one; 5 rounds. Quiet.\n" in page
    assert "Not measured yet" not in page
    assert page.count("Not measured: DiT-XL/2 256, 8 pictures, cfg 4; ") == 1  # of the accelerator
    assert page.count("Not measured: DiT-XL/2 256, 8 pictures, cfg 1; ") == 1  # and of this machine
    assert page.endswith("A remark.\n")
    assert page.count(REMARKS) == 1
    assert "An older table" not in page
    assert "written to docs/benchmarks.md" in capsys.readouterr().out


def test_peaks_are_held_against_what_was_said_before():
    from priorcache.benchmarks.speed_page import table, unforeseen

    def row(peak: int | None, said: int | None) -> dict:
        return {
            "milliseconds": {"full": 1.0}, "faster": 1.0, "spread": [1.0, 1.0], "fewer_flops": 1.0, "wall_over_flops": 1.0,
            "bytes": 0, "expected_bytes": said, "peak_device_bytes": peak,
        }  # fmt: skip

    def network(*rows: dict) -> dict:
        return {"size": "small", "rounds": 2, "policies": dict(zip(("none", "FORA", "GOC", "EOC"), rows, strict=False))}

    device = {"a": network(row(100, None), row(150, 50), row(209, 90), row(100, None)), "b": network(row(10, None))}
    assert unforeseen(device) == pytest.approx([0, 0.1, 0])
    assert "of the 3 cached rows are stock's and what was said before, to 10.0% at most, 0.00% in the median" in table(
        {"NVIDIA X": {"about": "", "networks": device}}
    )
    assert unforeseen({"a": network(row(None, None), row(None, 50))}) == []


def test_a_run_is_timed_from_the_first_step_to_the_last(speed, monkeypatch):
    waited = []
    monkeypatch.setattr(speed, "now", lambda: waited.append(clock.marks) or 0.0)
    clock = speed.Ends()
    for _ in range(speed.STEPS + 1):
        clock()
    assert waited == [1, 2, speed.STEPS + 1]


def test_one_command_measures_everything_that_the_page_has(speed, monkeypatch, tmp_path, capsys):
    from priorcache.benchmarks.overhead import dit
    from priorcache.benchmarks.speed_page import cases, missing

    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    made, asked = [], []
    for name in speed.NETWORKS:
        monkeypatch.setitem(speed.NETWORKS, name, (lambda full, name=name: made.append(name) or dit(), "a small one"))

    def measured(ground, case, rounds, seconds):
        asked.append(case)
        return speed.Measured(rounds, {})

    monkeypatch.setattr(speed, "measured", measured)
    speed.main(["--minutes", "-1"])
    said = capsys.readouterr().out
    assert asked == []
    assert all(case.title() in said for case in cases(False))
    speed.main([])
    assert asked == cases(False)
    assert made == list(speed.NETWORKS)  # each once
    (mine,) = json.loads((tmp_path / "benchmarks.json").read_text()).values()
    assert missing(mine["networks"], False) == []
    assert "Not measured:" not in (tmp_path / "benchmarks.md").read_text()
    (first, *_), left = mine["networks"], list(mine["networks"])[1:]
    assert missing(left, False) == [cases(False)[0].title()]
    assert first == cases(False)[0].title(256)


def test_rounds_go_on_while_they_are_short(speed, monkeypatch):
    from priorcache.benchmarks.overhead import dit

    ground, passed = dit(), [0.0]

    def sample(*_):
        passed[0] += 0.5
        return torch.zeros(1), [0.5 / speed.STEPS] * speed.STEPS

    monkeypatch.setattr(speed.time, "perf_counter", lambda: passed[0])
    monkeypatch.setattr(speed, "sample", sample)
    monkeypatch.setattr(speed, "counted", lambda *args: [1] * speed.STEPS)
    case = speed.Case("a small DiT", 2.0, policies=("FORA, whole network",))
    assert speed.measured(ground, case, 2).rounds == 2
    rounds, found = speed.measured(ground, case, 2, seconds=5)
    assert rounds == 5
    assert list(found) == ["none", "FORA, whole network"]


def test_short_steps_are_told_in_tenths(speed):
    from priorcache.benchmarks.speed_page import _ms

    assert [_ms(ms) for ms in (3186.4, 100.0, 12.34, 0.2)] == ["3186", "100", "12.3", "0.2"]
