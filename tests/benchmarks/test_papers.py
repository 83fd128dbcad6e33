"""The paper tables: figures against closed forms, what is kept and continued, a whole run on tiny random models."""

import json
import math

import numpy as np
import pytest
import torch
from priorcache.benchmarks.cells import Cell, CellError
from priorcache.benchmarks.metrics import frechet, moments, precision_recall
from priorcache.plots.metrics import psnr, relative_l2, ssim
from safetensors.torch import save_file
from subjects import saved_dit

STEPS = 4
COMMON = ["--steps", str(STEPS), "--rounds", "1", "--timed", "2", "--calibration", "60", "--iterations", "2"]


def gaussian(seed: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=rng, dtype=torch.float64)
    return torch.randn(dim, generator=rng, dtype=torch.float64), root @ root.T


class TestMetrics:
    def test_frechet_distance_of_commuting_covariances(self):
        """|m - n|^2 + sum (s_i^1/2 - t_i^1/2)^2 where both covariances have the same axes."""
        axes = torch.linalg.qr(gaussian(0, 5)[1])[0]
        s, t = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([5.0, 0, 1, 4, 9]).double()
        m, n = gaussian(1, 5)[0], gaussian(2, 5)[0]
        expected = (m - n).square().sum() + (s.sqrt() - t.sqrt()).square().sum()
        found = frechet((m, axes * s @ axes.T), (n, axes * t @ axes.T))
        assert found == pytest.approx(expected.item(), rel=1e-9)

    def test_frechet_distance_of_any_covariances(self):
        """tr (S T)^1/2 is the sum of the square roots of the eigenvalues of S T, which is not symmetric."""
        (m, s), (n, t) = gaussian(3, 6), gaussian(4, 6)
        cross = torch.linalg.eigvals(s @ t).real.sqrt().sum()
        expected = (m - n).square().sum() + s.trace() + t.trace() - 2 * cross
        assert frechet((m, s), (n, t)) == pytest.approx(expected.item(), rel=1e-9)
        assert frechet((m, s), (m, s)) == pytest.approx(0, abs=1e-8)

    def test_moments_are_those_of_numpy(self):
        features = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
        mean, covariance = moments(features)
        np.testing.assert_allclose(mean.numpy(), features.double().numpy().mean(0))
        np.testing.assert_allclose(covariance.numpy(), np.cov(features.double().numpy(), rowvar=False))

    def test_identical_sets_have_full_precision_and_recall_and_distant_ones_none(self):
        features = torch.randn(50, 8, generator=torch.Generator().manual_seed(6))
        assert precision_recall(features, features.clone()) == (1.0, 1.0)
        assert precision_recall(features, features + 1000) == (0.0, 0.0)

    def test_a_set_that_covers_half_of_the_other_has_half_the_recall(self):
        line = torch.arange(10.0)[:, None]
        real = torch.cat([line, line + 1000])
        assert precision_recall(line, real) == (1.0, 0.5)

    def test_psnr_is_that_of_floats(self):
        """255 apart wraps to 1 in uint8, and 16 squared to 0."""
        zero = torch.zeros(1, 3, 16, 16)
        assert psnr(zero + 1, zero).item() == pytest.approx(0, abs=1e-5)
        assert psnr(zero + 16 / 255, zero).item() == pytest.approx(20 * math.log10(255 / 16), abs=1e-3)
        assert psnr(torch.cat([zero, zero + 0.1]), torch.cat([zero, zero])).tolist() == pytest.approx(
            [math.inf, 20], abs=1e-3
        )
        with pytest.raises(TypeError, match="would wrap"):
            psnr((zero * 255).byte(), zero)

    def test_ssim_of_flat_pictures(self):
        """Without variance what remains is (2 a b + c) / (a a + b b + c), c = 0.01 squared."""
        flat = torch.ones(1, 3, 32, 32)
        expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
        assert ssim(flat * 0.5, flat * 0.25).item() == pytest.approx(expected, abs=1e-4)
        assert ssim(flat * 0.5, flat * 0.5).item() == pytest.approx(1, abs=1e-5)

    def test_relative_l2(self):
        exact = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        assert relative_l2(exact + torch.tensor([[0.0, 1.0], [0.0, 0.0]]), exact).tolist() == pytest.approx([0.2, 0])


class TestCell:
    def test_reads_the_first_pictures_up_to_a_gap(self, tmp_path):
        cell = Cell(tmp_path / "row")
        for batch in (0, 1, 3):
            cell.put(batch, {"error": torch.full((4,), float(batch))}, "here")
        assert cell.table("error", 100).tolist() == [0.0] * 4 + [1.0] * 4
        assert cell.table("error", 6).tolist() == [0.0] * 4 + [1.0] * 2
        assert cell.table("features", 6) is None
        assert [cell.has(batch) for batch in range(4)] == [True, True, False, True]
        assert (cell.has(3, "error"), cell.has(3, "features")) == (True, False)
        assert cell.made() == {"here"}

    def test_a_batch_is_counted_once_however_often_it_is_put(self, tmp_path):
        cell = Cell(tmp_path / "row")
        for _ in range(2):
            cell.put(0, {"error": torch.zeros(4)}, "here")
        assert len(cell.table("error", 100)) == 4
        assert [p.name for p in cell.folder.iterdir()] == ["batch-00000.safetensors"]

    def test_results_of_other_settings_are_not_mixed(self, tmp_path):
        cell = Cell(tmp_path / "row")
        cell.claim(policy="FORA N=2", aids=["a"])
        cell.note(flops=0.5)
        cell.claim(policy="FORA N=2", aids=["a"])
        assert cell.notes["flops"] == 0.5
        with pytest.raises(CellError, match=r"policy: FORA N=2 there, FORA N=3 now.*delete this folder"):
            cell.claim(policy="FORA N=3", aids=["a"])


@pytest.fixture(scope="module")
def papers(comfy):
    from priorcache.benchmarks import papers

    return papers


def run(papers, model, out, *more: str) -> dict:
    papers.main(["--model", str(model), "--out", str(out), *COMMON, *more])
    return json.loads((out / f"{model.stem}-{STEPS}" / "results.json").read_text())


def test_two_rows_of_24_images(papers, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(papers, "DOC", tmp_path / "docs" / "papers.md")
    run_it = ["--images", "24", "--batch", "12", "--rows", "fora-50", "--write"]
    report = run(papers, tiny, tmp_path / "out", *run_it)
    none, fora = (report["rows"][name] for name in ("none", "fora-50"))
    assert list(report["rows"]) == ["none", "fora-50"]
    assert none["relative_l2"] == 0.0
    assert (none["flops"], none["time"], none["ssim"], none["psnr"]) == (1.0, 1.0, pytest.approx(1), None)
    assert all(math.isfinite(v) for key, v in fora.items() if key != "made")
    assert fora["relative_l2"] > 0
    assert 0.5 < fora["flops"] < 0.6
    assert set(fora) >= {"frechet", "precision", "recall", "named_right", "psnr", "ssim", "time"}
    assert "| fora-50 | 24 |" in capsys.readouterr().out
    written = papers.DOC.read_text()
    assert "--rows fora-50 --write" in written
    papers.DOC.write_text(written + "By hand.\n")
    run(papers, tiny, tmp_path / "out", *run_it, "--table")
    assert papers.DOC.read_text() == written.replace("--write`", "--write --table`") + "By hand.\n"


def test_what_was_measured_before_stays_until_there_is_as_much(papers):
    def report(made, claims, **rows):
        rows = {name: {"images": images, "by": made} for name, images in rows.items()}
        claims = [{"claim": claim, "by": made, "images": images} for claim, images in claims.items()]
        return {"steps": 20, "made": [made], "rows": rows, "claims": claims}

    first, second, third = (claim for claim, *_ in papers.CLAIMS[:3])
    before = report("there", {third: 5000, second: 100, first: 5000}, none=5000, few=5000, old=5000)
    now = report("here", {first: 100, second: 5000}, none=5000, few=100, new=50)
    found = papers.joined(now, before, ["none", "new", "few", "old", "missing"])
    assert {name: row["by"] for name, row in found["rows"].items()} == {
        "none": "here", "new": "here", "few": "there", "old": "there",
    }  # fmt: skip
    assert [(c["claim"], c["by"]) for c in found["claims"]] == [(first, "there"), (second, "here"), (third, "there")]
    assert found["made"] == ["here", "there"]
    assert papers.makers(found) == "here; few, old on there"
    assert papers.setting_of(found) == {"steps": 20}


def test_an_interrupted_run_goes_on_and_equals_one_that_was_not(papers, tiny, tmp_path, monkeypatch):
    wanted = ["--images", "20", "--batch", "8", "--rows", "fora-75"]
    whole = run(papers, tiny, tmp_path / "whole", *wanted)
    sample, calls = papers.Bench.sample, []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 5:  # three batches of the uncached row, then the second of this one
            raise KeyboardInterrupt
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(papers.Bench, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(papers, tiny, tmp_path / "parts", *wanted, "--rounds", "0")
    folder = tmp_path / "parts" / f"tiny-{STEPS}"
    assert sorted(p.name for p in (folder / "fora-75").glob("batch*")) == ["batch-00000.safetensors"]
    again = run(papers, tiny, tmp_path / "parts", *wanted)
    assert len(calls) == 5 + 2 + 3  # the two batches that were missing, and the timing
    times = {"time", "rounds"}
    assert {k: v for k, v in again["rows"]["fora-75"].items() if k not in times} == {
        k: v for k, v in whole["rows"]["fora-75"].items() if k not in times
    }
    run(papers, tiny, tmp_path / "parts", *wanted)
    assert len(calls) == 10  # nothing is done twice


def test_a_batch_may_be_sampled_in_parts(papers, tiny, tmp_path):
    wanted = ["--images", "20", "--batch", "10", "--rows", "fora-75", "--rounds", "0"]
    whole, parts = (run(papers, tiny, tmp_path / n, *wanted, "--together", n)["rows"] for n in "04")
    latents = (Cell(tmp_path / n / f"tiny-{STEPS}" / "none").get(1)["latents"] for n in "04")
    torch.testing.assert_close(*latents)
    assert whole["fora-75"]["relative_l2"] == pytest.approx(parts["fora-75"]["relative_l2"], rel=1e-3)


def test_a_row_whose_policy_warns_of_itself_is_measured_all_the_same(papers, tiny, tmp_path):
    name, more = "fora-75+goc-used-1.2", ["--images", "12", "--batch", "12", "--rounds", "0"]
    papers.main(["--model", str(tiny), "--out", str(tmp_path), *COMMON, "--steps", "9", *more, "--rows", name])
    report = json.loads((tmp_path / "tiny-9" / "results.json").read_text())
    assert report["rows"][name]["relative_l2"] > 0


def test_time_that_is_up_ends_a_run_between_batches(papers, tiny, tmp_path):
    papers.main(["--model", str(tiny), "--out", str(tmp_path), *COMMON, "--rows", "fora-50", "--minutes", "0"])
    assert list(tmp_path.rglob("batch*")) == []


def test_every_kind_of_row_is_sampled_with_what_its_paper_needs(papers, tiny, tmp_path):
    kinds = [
        "steps-2", "toca-small-values", "duca-random", "fora-50+eoc", "fora-50+goc-used-1.2", "fora-75+goc-recomputed-0.5",
        "fora-50+taylor-2", "l2c", "l2c+eoc", "l2c+goc-used-0.8",
    ]  # fmt: skip
    more = ["--images", "12", "--batch", "12", "--rounds", "0", "--penalty", "1", "--rows", *kinds]
    report = run(papers, tiny, tmp_path, *more)
    assert set(report["rows"]) == {"none", *kinds}
    assert all(row["relative_l2"] > 0 for name, row in report["rows"].items() if name != "none")
    saved = {name: row["flops"] for name, row in report["rows"].items()}
    assert saved["steps-2"] == 0.5
    assert saved["fora-50+eoc"] == saved["fora-50+goc-used-1.2"] == saved["fora-50+taylor-2"] < 0.6
    assert saved["l2c"] == saved["l2c+eoc"] == saved["l2c+goc-used-0.8"] < 1
    claimed = {c["claim"] for c in report["claims"]}
    assert claimed == {"EOC on L2C"}  # the other bases were not asked for
    folder = tmp_path / f"tiny-{STEPS}"
    made = json.loads((folder / "l2c+eoc" / "cell.json").read_text())["identity"]
    assert made["aids"] == ["prior-60.safetensors", "router-1-2.safetensors"]
    assert "L2C 4 of 16 reused" in made["policy"]  # 22 % of the branches of all steps
    said = {kind: json.loads((folder / kind / "cell.json").read_text())["identity"]["policy"] for kind in kinds}
    assert said["fora-50+eoc"].endswith("on FORA N=2 (aligned)")
    assert said["fora-50+goc-used-1.2"].startswith("GOC 1.2 (used) on FORA N=2")
    assert said["l2c+goc-used-0.8"].startswith("GOC 0.8 (used) on L2C")
    from priorcache.benchmarks.tables import SEED, TIMED_SEED
    from priorcache.priors.prior import Prior

    tuned = {s for file in folder.glob("*.safetensors") for s in Prior.load(file).seeds}
    assert tuned
    assert max(tuned) + 1 < min(SEED, TIMED_SEED)


def test_ruined_pictures_are_a_row_without_a_distance(papers, tiny, tmp_path, monkeypatch):
    sample = papers.Bench.sample

    def ruined(self, model, *args):
        found = sample(self, model, *args)
        return found if model is self.model else found * torch.nan

    monkeypatch.setattr(papers.Bench, "sample", ruined)
    rows = ["--rows", "fora-50", "fora-50+goc-used-1.2"]
    report = run(papers, tiny, tmp_path, "--images", "12", "--batch", "12", "--rounds", "0", *rows)
    assert math.isfinite(report["rows"]["none"]["frechet"])
    row = report["rows"]["fora-50"]
    assert row["images"] == 12
    assert row["relative_l2"] is None
    assert "frechet" not in row
    assert report["claims"] == []


def test_a_policy_that_declines_is_no_row(papers, tiny, tmp_path):
    with pytest.raises(RuntimeError, match=r"^l2c: L2C .* computed everything: no gate of its router"):
        run(papers, tiny, tmp_path, "--images", "2", "--batch", "2", "--threshold", "0", "--rows", "l2c")


def test_a_row_nobody_knows(papers, tiny, tmp_path):
    with pytest.raises(SystemExit, match="no row is called fora-51; there are: none, steps-3"):
        run(papers, tiny, tmp_path, "--rows", "fora-51")


def published_router(folder, depth: int, total: int = STEPS):
    """A file in the layout of the DiT routers; every attention is reused at cache steps, and no MLP."""
    gates = torch.tensor([-5.0, 5.0]).repeat(depth)
    torch.save({"routers": {f"{i}.prob": gates for i in range(total)}}, folder / "theirs.pt")
    return folder / "theirs.pt"


def test_a_published_router_and_the_steps_of_the_papers(papers, tiny, tmp_path, comfy):
    more = ["--images", "4", "--batch", "4", "--rounds", "0", "--rows", "l2c", "--scheduler", "normal"]
    depth = papers.opened(papers.parsed(["--model", str(tiny)]))[0].model.diffusion_model.config.depth
    report = run(papers, tiny, tmp_path, *more, "--router", str(published_router(tmp_path, depth)))
    assert report["sampler"] == ["ddim", "normal"]
    assert report["rows"]["l2c"]["relative_l2"] > 0
    folder = tmp_path / f"{tiny.stem}-{STEPS}"
    assert Cell(folder / "l2c").notes["identity"]["aids"] == ["router-theirs.safetensors"]
    assert not list(folder.glob("router-5e*"))  # none was trained
    with pytest.raises(SystemExit, match=r"no scheduler is called nomal; there are: .*normal"):
        run(papers, tiny, tmp_path / "c", *more[:-1], "nomal")
    with pytest.raises(SystemExit, match="a router for 6 steps: give --steps 6"):
        run(papers, tiny, tmp_path / "b", *more, "--router", str(published_router(tmp_path, depth, 6)))


class TestLatentModel:
    """The geometry of DiT-XL/2, small: 4 channels, patch 2, 1000 classes, learned sigma, a VAE."""

    IMAGES = ("--images", "6", "--batch", "4", "--rounds", "0", "--rows", "fora-50")

    @pytest.fixture(scope="class")
    def files(self, comfy, tmp_path_factory):
        import comfy.taesd.taesd

        folder = tmp_path_factory.mktemp("latent")
        model = saved_dit(
            folder,
            "xl",
            hidden_size=32,
            patch_size=2,
            in_channels=4,
            num_classes=1000,
            learn_sigma=True,
            grid_size=4,
            prediction="epsilon",
        )
        rng = torch.Generator().manual_seed(0)
        shapes = comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()
        vae = {k: torch.randn(v.shape, generator=rng) * 0.05 for k, v in shapes.items()}
        save_file(vae, folder / "vae.safetensors")
        return model, folder / "vae.safetensors"

    def test_without_more_it_gives_what_needs_no_pictures(self, papers, files, tmp_path):
        report = run(papers, files[0], tmp_path, *self.IMAGES)
        assert report["rows"]["fora-50"]["relative_l2"] > 0
        assert report["rows"]["fora-50"]["flops"] < 0.7
        assert (report["rows"]["fora-50"]["psnr"], "frechet" in report["rows"]["fora-50"]) == (None, False)
        with pytest.raises(SystemExit, match="give --vae"):
            run(papers, files[0], tmp_path, *self.IMAGES, "--export")

    def test_exports_pictures_and_judges_by_given_features(self, papers, files, tmp_path):
        more = [*self.IMAGES, "--vae", str(files[1]), "--export"]
        report = run(papers, files[0], tmp_path, *more)
        folder = tmp_path / f"xl-{STEPS}"
        for row in ("none", "fora-50"):
            samples = np.load(folder / row / "samples.npz")["arr_0"]
            assert (samples.shape, samples.dtype) == ((6, 64, 64, 3), np.uint8)
        assert report["rows"]["fora-50"]["psnr"] > 0
        rng = np.random.default_rng(0)
        real = rng.normal(size=(20, 3))
        np.savez(folder / "none" / "features.npz", features=real[:6])
        np.savez(tmp_path / "moments.npz", mu=real.mean(0), sigma=np.cov(real, rowvar=False))
        np.savez(tmp_path / "features.npz", features=real)
        by_moments, by_features = (
            run(papers, files[0], tmp_path, *more, "--reference", str(tmp_path / f"{name}.npz"))["rows"]["none"]
            for name in ("moments", "features")
        )
        assert by_moments["frechet"] == pytest.approx(by_features["frechet"])
        assert "precision" not in by_moments
        assert by_features["precision"] == 1.0
        np.savez(tmp_path / "wrong.npz", arr_0=real)
        with pytest.raises(SystemExit, match=r"wrong.npz holds arr_0; features, or mu and sigma, are needed"):
            run(papers, files[0], tmp_path, *more, "--reference", str(tmp_path / "wrong.npz"))
