"""Units of work as tasks of a Ray cluster of two nodes, of which one is killed, and why a worker refuses."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import fleet
import pytest
import torch

WATCHED = '''
"""The units of {module}, which say where they begin. The second one of the doomed node hangs, and the other node waits for it."""

import time
import uuid
from importlib import import_module
from pathlib import Path

import ray

LOG = Path({log!r})


def begun(node):
    return [file.read_text() for file in LOG.glob(f"{{node}}-*")]


def unit(settings, shared, *given):
    node, doomed = ray.get_runtime_context().get_node_id(), (LOG / "doomed").read_text()
    (LOG / f"{{node}}-{{uuid.uuid4()}}").write_text(repr([value for value in given if not isinstance(value, bytes)]))
    if node == doomed and len(begun(node)) > 1:
        time.sleep(600)
    while node != doomed and len(begun(node)) > 1 and len(begun(doomed)) < 2:
        time.sleep(0.05)
    return import_module("{module}").unit(settings, shared, *given)
'''


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A head of one core, connected to; workers find what lies in tmp_path."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import ray
    from ray.cluster_utils import Cluster

    soon = {
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,  # by default 15 s pass until a node is dead
        "worker_niceness": 0,  # else its work waits until all other tests are done
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    fleet.connected(cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Loss:
    """A second node of a cluster, which is killed while it works on the units of a benchmark."""

    def __init__(self, cluster, folder: Path, name: str, patch: pytest.MonkeyPatch):
        import ray
        from priorcache.benchmarks.cells import Cell

        module, self.log = f"priorcache.benchmarks.{name}", folder / name
        self.log.mkdir()
        (folder / f"watched_{name}.py").write_text(WATCHED.format(module=module, log=str(self.log)))
        node = cluster.add_node(num_cpus=1, resources={name: 1})
        self.doomed = next(n["NodeID"] for n in ray.nodes() if name in n["Resources"])
        (self.log / "doomed").write_text(self.doomed)
        patch.setattr(import_module(module), "unit", import_module(f"watched_{name}").unit)
        keep, self.kept, self.lost = Cell.keep, [], 0

        def kept(cell: Cell, batch: int, data: bytes) -> None:
            keep(cell, batch, data)
            self.kept.append((cell.folder.name, batch))
            if not self.lost and len(self.begun(self.doomed)) > 1:
                cluster.remove_node(node, allow_graceful=False)
                self.lost = len(self.kept)

        patch.setattr(Cell, "keep", kept)

    def begun(self, node: str = "") -> list[str]:
        """The units that began on a node, or on any."""
        return [file.read_text() for file in self.log.glob(f"{node}*-*")]


def test_a_lost_node_costs_nothing_and_nothing_is_counted_twice(comfy, tiny, cluster, tmp_path, monkeypatch, capsys):
    from priorcache.benchmarks import calibrate, papers
    from priorcache.priors.prior import Prior

    def calibrated(out: str, *more: str) -> Prior:
        wanted = ["--steps", "3", "--batch", "2", "--prompts", "0-3", "--seeds", "4", "--mean-features"]
        calibrate.main(["--file", str(tiny), *wanted, "--out", str(tmp_path / f"{out}.safetensors"), *more])
        return Prior.load(tmp_path / f"{out}.safetensors")

    def table(out: str, *more: str) -> dict:
        wanted = ["--steps", "4", "--images", "20", "--batch", "3", "--rows", "fora-50+eoc", "--rounds", "0"]
        papers.main(["--model", str(tiny), *wanted, "--calibration", "12", "--out", str(tmp_path / out), *more])
        return json.loads((tmp_path / out / "tiny-4" / "results.json").read_text())["rows"]

    here, figures = calibrated("here"), table("papers-here")
    with monkeypatch.context() as patch:
        loss = Loss(cluster, tmp_path, "calibrate", patch)
        there = calibrated("there", "--ray", cluster.address)
        assert 0 < loss.lost < 8
        assert sorted(loss.kept) == [("there.parts", n) for n in range(8)]
        assert len(set(loss.begun())) == 8 < len(loss.begun())  # what hung began again
    assert (there.samples, there.seeds, there.subject, there.sites) == (16, tuple(range(8)), here.subject, here.sites)
    assert there.tables.keys() == here.tables.keys()
    for name, expected in here.tables.items():
        assert torch.allclose(there.tables[name], expected, rtol=1e-6, atol=1e-9, equal_nan=True), name

    def unit(*_):
        raise AssertionError("done here, and not by the node that is left")

    unit.__module__, unit.__qualname__ = papers.unit.__module__, papers.unit.__qualname__  # what workers are told
    monkeypatch.setattr(papers, "unit", unit)
    spread = table("papers-there", "--ray", cluster.address)
    assert spread.keys() == figures.keys()
    for row, expected in figures.items():
        known, found = ({k: v for k, v in of.items() if v is not None} for of in (expected, spread[row]))
        assert found.pop("made") == known.pop("made")
        assert found == pytest.approx(known, rel=1e-6)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'^--ray needs Ray: pip install "ray>=2.40", or leave --ray out$'):
        fleet.connected("auto")


def test_a_worker_that_has_other_files_refuses(comfy, tiny, tmp_path):
    expected = fleet.here((str(tiny),))
    fleet.agree(expected)
    missing = str(tmp_path / "missing.safetensors")
    with pytest.raises(RuntimeError, match=r"ComfyUI: 0.1 there, 0.*missing.safetensors: abc there, no such file here"):
        fleet.agree(expected | {"ComfyUI": "0.1", missing: "abc"})


def test_settings_are_text_that_any_machine_can_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = argparse.Namespace(file=Path("a.pt"), steps=[20, 50], vae=None, cfg=1.5, ray="auto")
    restored = fleet.restored(fleet.settings(args, "ray"))
    assert vars(restored) == {"file": str(tmp_path / "a.pt"), "steps": [20, 50], "vae": None, "cfg": 1.5}
