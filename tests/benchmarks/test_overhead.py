"""The overhead benchmark itself: that it compares what it says, and refuses a picture that is not stock."""

import json
import time

import pytest


@pytest.fixture
def overhead(comfy):
    from priorcache.benchmarks import overhead

    return overhead


def test_a_ratio_compares_steps_of_one_round(overhead):
    later = {"stock": [10.0, 20.0, 40.0], "kept": [11.0, 22.0, 44.0]}
    first = {"stock": [15.0, 30.0, 50.0], "kept": [18.0, 33.0, 54.0]}
    told = overhead.summary(first, later, "kept")
    assert told["ratio"] == pytest.approx(1.1)
    assert told["quartiles"] == pytest.approx([1.1, 1.1])
    assert (told["step_ms"], told["first_step_more_ms"]) == (22.0, 3.0)


def test_runs_and_writes_what_it_prints(overhead, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(overhead, "OUT", tmp_path / "demo" / "out" / "overhead.json")
    overhead.main(["--networks", "dit", "--rounds", "2", "--steps", "2", "--threads", "1"])
    written = json.loads(overhead.OUT.read_text())["networks"]["dit"]
    assert written["tokens"] == 256
    assert list(written["variants"]) == list(overhead.VARIANTS)
    assert written["variants"]["stock"]["ratio"] == 1.0
    printed = capsys.readouterr().out
    assert [name for name in overhead.VARIANTS if f"| {name} |" not in printed] == []


def test_planning_is_timed_with_plans_that_were_searched(overhead):
    ticks = iter(range(1000))
    found = overhead.planning(lambda: float(next(ticks)), steps=10, times=2)
    assert list(found) == [
        "Load Prior", "Plan Policy", "Forecast, as a sampling begins", "a plan, as a sampling of other steps begins",
        "Search Plans, besides sampling",
    ]  # fmt: skip
    assert set(map(tuple, found.values())) == {(1.0, 1.0)}  # the clock is asked before and after, and never within


def test_a_picture_that_is_not_stock_is_an_error(overhead, monkeypatch):
    from priorcache.cache_core.policies import FORA

    monkeypatch.setattr(overhead, "VARIANTS", {"stock": None, "wrong": {"policy": FORA(2, "aligned")}})
    with pytest.raises(RuntimeError, match=r"^wrong: the picture is not bit-equal"):
        overhead.measured(overhead.dit(), 1, 3, time.perf_counter)


@pytest.mark.parametrize("name", ["dit", "flux", "pixart", "sd3"])
def test_every_network_has_the_tokens_that_it_names(overhead, name):
    from priorcache.cache_core.adapters import adapter_for

    ground = overhead.NETWORKS[name]()
    network = ground.model.model.diffusion_model
    sizes = adapter_for(network).sizes(network, [tuple(ground.latent.shape[1:])], 0)
    assert ground.tokens >= 256
    assert ground.tokens in {size[0] for size in sizes.values()}
