"""The host's own split of conds over several devices, here two names of the CPU, with a cache attached."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from priorcache.cache_core.policies import EOC, FORA, Full, ToCa, eoc
from priorcache.cache_core.trace import Trace
from priorcache.priors.statistics import Statistics
from priorcache.priors.trend import Trend
from safetensors.torch import save_file

DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]
REUSING = (FORA(2), FORA(2, level="model"), ToCa("dit", interval=2))


@pytest.fixture
def loaded(host, tmp_path):
    """A model that the host can load again, for each device of its own."""
    _, weights = host.weights()
    save_file(weights, tmp_path / "model.safetensors", metadata={"num_heads": "4"})
    with torch.inference_mode():
        return host.loader.load(str(tmp_path / "model.safetensors"))


@pytest.fixture
def split(host, monkeypatch):
    """Puts the host's node MultiGPU CFG Split behind a model."""
    multigpu = pytest.importorskip("comfy.multigpu", reason="this ComfyUI has no multi-GPU nodes")
    monkeypatch.setattr(host.comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: DEVICES)

    manage = host.comfy.model_management

    def applied(model):
        # the host asks every loaded model for its network, those of earlier tests that are gone by now, too
        manage.current_loaded_models[:] = [m for m in manage.current_loaded_models if m.model is not None]
        with torch.inference_mode():
            model = multigpu.create_multigpu_deepclones(model, 2, reuse_loaded=True)
        assert [clone.load_device for clone in model.get_additional_models_with_key("multigpu")] == DEVICES[1:]
        return model

    return applied


@pytest.fixture
def apart(host, monkeypatch):
    """Lets the host run every cond by itself on one device, as it does where memory is short."""
    monkeypatch.setattr(host.comfy.samplers, "can_concat_cond", lambda a, b: a is b)


def test_computing_everything_is_bit_equal(host, loaded, split):
    model = split(loaded)
    assert torch.equal(host.sample(host.attach(model, Full())), host.sample(model))


@pytest.mark.parametrize("policy", REUSING, ids=lambda policy: policy.describe())
@pytest.mark.parametrize("order", ["split behind the cache", "cache behind the split"])
def test_every_device_keeps_and_reuses_its_own(host, loaded, split, apart, policy, order):
    expected, found = Trace(), Trace()
    one = host.sample(host.attach(loaded, policy, expected, "errors"))
    if order == "split behind the cache":
        model = split(host.attach(loaded, policy, found, "errors"))
    else:
        model = host.attach(split(loaded), policy, found, "errors")
    assert torch.equal(host.sample(model), one)
    assert not torch.equal(one, host.sample(loaded))
    *decisions, errors = expected.runs[-1].table()
    *theirs, measured = found.runs[-1].table()
    assert theirs == decisions
    assert torch.allclose(torch.tensor(measured), torch.tensor(errors), equal_nan=True)
    assert (found.runs[-1].notes, expected.runs[-1].notes) == ([], [])


def calibrated(host, model, statistics):
    from priorcache.nodes.calibrate import subject

    host.sample(host.attach(model, Full(), observers=(statistics,)))
    statistics.end_trajectory(2)
    return statistics.prior(subject(model), (3, 16, 16), (0,))


def test_calibration_counts_every_device(host, loaded, split, apart):
    one, both = (calibrated(host, model, Statistics(2, True)) for model in (loaded, split(loaded)))
    for name, table in one.tables.items():
        assert torch.allclose(both.tables[name], table, rtol=1e-6, equal_nan=True), name


def test_observers_are_called_by_one_thread_at_a_time(host, loaded, split):
    class Slow(Statistics):
        inside, met = 0, 0

        def branch(self, *args):
            Slow.inside += 1
            Slow.met = max(Slow.met, Slow.inside)
            time.sleep(0.002)
            super().branch(*args)
            Slow.inside -= 1

    calibrated(host, split(loaded), Slow())
    assert Slow.met == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_a_trend_serves_every_device(host, loaded, split, apart, monkeypatch, ahead):
    trend = Trend(calibrated(host, loaded, Statistics(2, True)))
    policy = EOC(FORA(2), trend)
    one = host.sample(host.attach(loaded, policy))
    if ahead:
        monkeypatch.setattr(eoc, "_room", lambda device: 2**30)
        monkeypatch.setattr(eoc, "_ahead", lambda device: True)
    assert torch.equal(host.sample(host.attach(split(loaded), policy)), one)
    assert not any(thread.name.startswith("PriorCache") for thread in threading.enumerate())
