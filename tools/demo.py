"""The demo: calibrate, sample in full and cached, inspect, in a real ComfyUI over its HTTP API -> demo/out/."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_server import ROOT, Result, Server, started
from pack import load_pack

OUT = ROOT / "demo" / "out"
FIRST_SEED = 7
INTERVALS = (2, 3)
STEPS = 50
PICTURES = 12
ORDINAL = {2: "second", 3: "third"}


def workflow(name: str) -> tuple[dict, dict[str, str]]:
    """A shipped workflow in API form, and its node ids by title."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    return prompt, {node["_meta"]["title"]: key for key, node in prompt.items()}


def first_run(seed: int, interval: int) -> tuple[dict, dict[str, str]]:
    """The shipped first workflow with another seed and interval, and the two latents saved as well."""
    prompt, ids = workflow("01_first_run")
    full, cached = ids["KSampler: every step in full"], ids["KSampler: cached"]
    prompt[ids["PriorCacheFORA"]]["inputs"]["interval"] = interval
    prompt[ids["EmptyLatentImage"]]["inputs"]["batch_size"] = PICTURES
    for key, name in ((full, "full"), (cached, "cached")):
        prompt[key]["inputs"]["seed"] = seed
        prompt[name] = {"class_type": "SaveLatent", "inputs": {"samples": [key, 0], "filename_prefix": f"demo/{name}"}}
    return prompt, ids


def grid(server: Server, result: Result, node: str, columns: int = 6) -> Image.Image:
    """The pictures that a PreviewImage node showed, as one."""
    tiles = [Image.open(BytesIO(server.image(entry))) for entry in result.outputs[node]["images"]]
    width, height = tiles[0].size
    gap, rows = 6, -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return sheet


def picture(server: Server, result: Result, node: str) -> Image.Image:
    return Image.open(BytesIO(server.image(result.outputs[node]["images"][0])))


def latent(server: Server, result: Result, node: str) -> torch.Tensor:
    entry = result.outputs[node]["latents"][0]
    return load_file(server.base / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"].float()


def flops_ratios() -> dict[int, dict[str, float]]:
    """Per interval: FLOPs of the cached run over the full run, counted by the engine and by hand from the schedule."""
    load_pack()
    from priorcache.benchmarks import flops
    from priorcache.cache_core.policies import FORA, Full
    from priorcache.models.checkpoint import read
    from safetensors import safe_open

    file = ROOT / "demo" / "shapes-dit.safetensors"
    with safe_open(file, framework="pt") as opened:
        config, _ = read(load_file(file), metadata=opened.metadata())
    size = config.grid_size * config.patch_size
    branches, rest = flops.expected(config, size)
    full = STEPS * flops.sampling(Full(), config, 1, size)  # every step alike
    out = {}
    for interval in INTERVALS:
        computed = 1 + len(range(0, STEPS - 1, interval))  # the first step, and every N-th counted from the last
        out[interval] = {
            "counted": flops.sampling(FORA(interval), config, STEPS, size) / full,
            "expected": (computed * branches + STEPS * rest) / (STEPS * (branches + rest)),
        }
    return out


def measure(server: Server, count: int, ratios: dict[int, dict[str, float]]) -> dict:
    """Run everything with this many seeds; pictures go to OUT, figures into the returned report."""
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + count))
    prompt, ids = workflow("01_calibrate")
    prompt[ids["PriorCacheCalibrate"]]["inputs"]["runs"] = 1  # of as many pictures, so that nothing cold is timed below
    calibrated = server.run(prompt)
    picture(server, calibrated, ids["PriorCacheCalibrate"]).save(OUT / "prior.png")
    rows = {n: {"errors": [], "full": [], "cached": []} for n in INTERVALS}
    for seed in seeds:
        for interval in INTERVALS:
            prompt, ids = first_run(seed, interval)
            full_id, cached_id = ids["KSampler: every step in full"], ids["KSampler: cached"]
            result, row = server.run(prompt), rows[interval]
            row["full"].append(result.seconds[full_id])
            row["cached"].append(result.seconds[cached_id])
            reference, found = latent(server, result, "full"), latent(server, result, "cached")
            row["errors"].append(float((found - reference).norm() / reference.norm()))
            if seed == FIRST_SEED:
                inspected = result.outputs[ids["PriorCacheInspect"]]
                row["trace"] = inspected["priorcache"][0]
                grid(server, result, ids["In full"]).save(OUT / "uncached.png")
                grid(server, result, ids["Cached"]).save(OUT / f"cached-n{interval}.png")
                picture(server, result, ids["PriorCacheInspect"]).save(OUT / f"inspector-n{interval}.png")
    report = {"steps": STEPS, "cfg": 1.5, "pictures": PICTURES, "seeds": seeds, "runs": []}
    for interval in INTERVALS:
        row = rows[interval]
        pairs = [full / own for full, own in zip(row["full"], row["cached"], strict=True)]  # neighbours in time
        speedup = statistics.median(pairs)
        report["runs"].append(
            {
                "policy": row["trace"]["policy"],
                "computed_fraction": row["trace"]["computed_fraction"],
                "flops_ratio": ratios[interval]["counted"],
                "flops_ratio_expected": ratios[interval]["expected"],
                "flops_speedup": 1 / ratios[interval]["counted"],
                "full_seconds": row["full"],
                "seconds": row["cached"],
                "wall_speedup": speedup,
                "wall_over_flops": speedup * ratios[interval]["counted"],
                "speedup_against_own_full_steps": row["trace"]["speedup"],
                "latent_relative_l2": statistics.fmean(row["errors"]),
                "cache_bytes": row["trace"]["peak_bytes"],
                "per_step": row["trace"]["steps"],
            }
        )
    report["system"] = server.get("/system_stats")["system"]["comfyui_version"]
    return report


def poster(interval: int = 2) -> Image.Image:
    """In full, cached, and what it cost: the three pictures of one run side by side."""
    full, cached, cost = (
        Image.open(OUT / f"{n}.png").convert("RGB")
        for n in ("uncached", f"cached-n{interval}", f"inspector-n{interval}")
    )
    margin, line = 24, 44
    height = 2 * (full.height + line) + margin
    cost = cost.resize((round(cost.width * height / cost.height), height), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (3 * margin + full.width + cost.width, height + 2 * margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=26)
    for i, (tile, text) in enumerate(
        ((full, "Every step in full"), (cached, f"Cached: every {ORDINAL[interval]} step computed"))
    ):
        top = margin + i * (full.height + line + margin)
        draw.text((margin, top), text, fill="black", font=font)
        sheet.paste(tile, (margin, top + line))
    sheet.paste(cost, (2 * margin + full.width, margin))
    return sheet


def table(report: dict) -> str:
    lines = [
        f"{'':24} {'steps':>6} {'computed':>9} {'FLOPs':>7} {'wall':>9} {'faster':>8} {'wall/FLOPs':>11} {'error':>7}"
    ]
    full = statistics.median(second for run in report["runs"] for second in run["full_seconds"])
    lines.append(
        f"{'uncached':24} {report['steps']:6} {'100%':>9} {'1.00x':>7} {full:7.2f} s {'1.00x':>8} {'':>11} {'0':>7}"
    )
    for run in report["runs"]:
        lines.append(
            f"{run['policy']:24} {report['steps']:6} {run['computed_fraction']:9.0%} {run['flops_speedup']:6.2f}x "
            f"{statistics.median(run['seconds']):7.2f} s {run['wall_speedup']:7.2f}x {run['wall_over_flops']:11.2f} "
            f"{run['latent_relative_l2']:7.4f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many; times are medians, errors means over them")
    parser.add_argument("--gpu", action="store_true", help="on the device that ComfyUI prefers, in place of the CPU")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        ratios = pool.submit(flops_ratios)  # while the server starts
        # Without the host's own cache every cached picture has an uncached one of its own beside it in time.
        with started(Path(folder), "--cache-none", log=OUT / "server.log", cpu=not args.gpu) as server:
            report = measure(server, args.seeds, ratios.result())
    poster().save(OUT / "first_run.png")
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print("\nerror: relative L2 of the final latent, mean over seeds. Pictures and report.json are in demo/out/")


if __name__ == "__main__":
    main()
