"""Calibration over prompts and seeds: the same figures as the node, whatever was interrupted."""

from __future__ import annotations

import pytest
import torch

ALWAYS = [
    "--steps", "3", "--batch", "2", "--prompts", "0-3", "--sampler", "euler", "--scheduler", "normal", "--cfg", "2",
]  # fmt: skip


@pytest.fixture
def calibrated(comfy, tiny, tmp_path):
    """Runs the command; gives its prior and how many units it sampled."""
    from priorcache.benchmarks import calibrate
    from priorcache.priors.prior import Prior

    def run(*more: str, out: str = "prior", always: list[str] = ALWAYS) -> tuple[Prior, int]:
        parts = tmp_path / f"{out}.parts"
        before = len(list(parts.glob("batch*")))
        path = tmp_path / f"{out}.safetensors"
        calibrate.main(["--file", str(tiny), *always, "--out", str(path), *more])
        return Prior.load(path), len(list(parts.glob("batch*"))) - before

    return run


def test_it_measures_what_the_node_measures(calibrated, tiny):
    from priorcache.models.host import load
    from priorcache.nodes.calibrate import PriorCacheCalibrate
    from priorcache.nodes.dit import PriorCacheDiTLabel

    found, units = calibrated("--batch", "4", "--seeds", "3", "--seed", "7")
    with torch.inference_mode():
        positive, negative = PriorCacheDiTLabel.execute("0-3").args
        node = PriorCacheCalibrate.execute(
            load(str(tiny)), positive, negative, {"samples": torch.zeros(4, 3, 32, 32)}, seed=7, runs=3, steps=3, cfg=2.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, longest_gap=2, mean_features=False,
        ).args[0]  # fmt: skip
    assert units == 3
    assert (found.subject, found.sites, found.shape) == (node.subject, node.sites, node.shape)
    assert (found.samples, found.seeds) == (node.samples, node.seeds) == (12, (7, 8, 9))
    assert found.tables.keys() == node.tables.keys()
    for name, table in node.tables.items():
        torch.testing.assert_close(found.tables[name], table, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_a_run_that_was_stopped_goes_on_and_more_seeds_add_to_it(calibrated, monkeypatch):
    from priorcache.benchmarks.cells import Cell

    whole, units = calibrated("--seeds", "3", out="whole")
    assert units == 6
    keep = Cell.keep

    def interrupted(self, batch, data):
        if batch == 2:
            raise KeyboardInterrupt
        keep(self, batch, data)

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrated("--seeds", "2")
    part, units = calibrated("--seeds", "2")
    assert (units, part.samples, part.seeds) == (2, 8, (0, 1, 2, 3))
    again, units = calibrated("--seeds", "3")
    assert (units, again.samples, again.seeds) == (2, 12, whole.seeds)
    assert all(torch.equal(again.tables[n].nan_to_num(), t.nan_to_num()) for n, t in whole.tables.items())
    assert calibrated("--seeds", "3")[1] == 0


def test_parts_of_other_settings_are_not_added(calibrated):
    from priorcache.benchmarks.cells import CellError

    calibrated("--seeds", "1")
    with pytest.raises(CellError, match=r"prior.parts holds results of other settings \(steps: 3 there, 4 now\)"):
        calibrated("--seeds", "1", "--steps", "4")
    with pytest.raises(CellError, match=r"prompts: \w+ there, \w+ now"):
        calibrated("--seeds", "1", "--prompts", "0-4")


def test_mean_features_are_kept_where_a_policy_reuses(calibrated):
    prior, _ = calibrated("--seeds", "1", "--mean-features", "--fora", "50")
    assert {name.partition("/")[0] for name in prior.tables} >= {"trend", "trend_steps"}


@pytest.mark.parametrize("kind", ["flux", "pixart"])
def test_prompts_come_from_a_file_a_line_each(calibrated, tmp_path, kind):
    (tmp_path / "prompts.txt").write_text("red star on blue\ngreen ring on pink\n")
    from priorcache.benchmarks import calibrate
    from priorcache.priors.prior import Prior

    out = tmp_path / "captions.safetensors"
    calibrate.main(
        ["--model", kind, "--prompts", f"@{tmp_path}/prompts.txt", "--steps", "2", "--seeds", "1", "--out", str(out)]
    )
    prior = Prior.load(out)
    assert (prior.samples, prior.evaluations) == (2, 2)
    assert prior.reuse_error(1)[1].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--prompts", "0-12"], "class 12 is out of range: this model knows 0 to 11"),
        (["--model", "flux", "--heads", "2"], "--heads is of a DiT, and --model is flux"),
        (["--fora", "50"], "give --mean-features, too"),
        (["--out", "prior.pt"], "the prior is a .safetensors file"),
        (["--seeds", "0"], "must be 1 or more"),
    ],
)
def test_what_cannot_be_calibrated_is_told_before(calibrated, wrong, said, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        calibrated(*wrong)
    assert said in f"{error.value} {capsys.readouterr().err}"
