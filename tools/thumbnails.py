"""Runs the shipped workflows in a real ComfyUI and draws what they gave -> workflows/<name>.jpg, for the template browser.

python tools/dev.py thumbnails            # all of them, some minutes; or some by name: 01_first_run 09_forecast

A thumbnail shows a few pictures in full, the same pictures cached, and a bar per step: what was computed in it, and what
was reused, corrected or forecast instead.
"""

from __future__ import annotations

import argparse
import tempfile
from io import BytesIO
from pathlib import Path

from host_server import ROOT, Result, Server, started
from PIL import Image, ImageColor, ImageDraw, ImageFont

from demo import workflow
from workflows import at_hand

SIDE, MARGIN, GAP, PICTURES = 480, 24, 8, 5
PAPER, SOFT = "#15181E", "#C3CBD4"
KINDS = {
    "computed": "#2E86C8",
    "partial": "#12A47C",
    "reused": "#F0AC1E",
    "corrected": "#DD8FBC",
    "forecast": "#7FCDF5",
}
"""As in plots/style.py on dark paper; the first is drawn full, the others as outlines where bars are wide enough."""
NARROW = 14


def tiles(server: Server, result: Result, node: str, side: int) -> list[Image.Image]:
    """The first pictures that a node showed, each `side` wide and high."""
    shown = [Image.open(BytesIO(server.image(entry))) for entry in result.outputs[node]["images"][:PICTURES]]
    return [picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for picture in shown]


def bars(draw: ImageDraw.ImageDraw, steps: list[dict], place: tuple[int, int, int, int]) -> None:
    """A bar per step, divided as its kinds divide the decisions of that step."""
    left, top, right, bottom = place
    pitch = (right - left) / len(steps)
    for i, step in enumerate(steps):
        x, below = left + i * pitch, bottom
        for kind, colour in KINDS.items():
            high = round(step["kinds"].get(kind, 0.0) * (bottom - top))
            if high > 1:
                box = (round(x), below - high, round(x + 0.74 * pitch), below - 1)
                if kind == "computed" or pitch < NARROW:
                    draw.rectangle(box, fill=colour if kind == "computed" else faded(colour, 0.75))
                else:
                    draw.rounded_rectangle(box, radius=2, fill=faded(colour, 0.3), outline=colour, width=2)
            below -= high


def faded(colour: str, share: float) -> tuple[int, ...]:
    ink, paper = map(ImageColor.getrgb, (colour, PAPER))
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(ink, paper, strict=True))


def legend(draw: ImageDraw.ImageDraw, steps: list[dict], at: tuple[int, int], font) -> None:
    x, y = at
    for kind, colour in KINDS.items():
        if any(step["kinds"].get(kind) for step in steps):
            draw.rectangle((x, y + 5, x + 13, y + 18), fill=colour)
            draw.text((x + 20, y), kind, fill=SOFT, font=font)
            x += 38 + round(font.getlength(kind))


def compared(server: Server, result: Result, ids: dict[str, str]) -> Image.Image:
    """Pictures in full above the same ones cached, and a bar per step."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    side = (SIDE - 2 * MARGIN - (PICTURES - 1) * GAP) // PICTURES
    y = MARGIN - 4
    for title in ("In full", "Cached"):
        draw.text((MARGIN, y), title.lower(), fill=SOFT, font=font)
        for i, tile in enumerate(tiles(server, result, ids[title], side)):
            sheet.paste(tile, (MARGIN + i * (side + GAP), y + 28))
        y += 28 + side + 16
    (inspect,) = (ids[title] for title in ids if title == "PriorCacheInspect")
    steps = result.outputs[inspect]["priorcache"][0]["steps"]
    legend(draw, steps, (MARGIN, y), font)
    bars(draw, steps, (MARGIN, y + 34, SIDE - MARGIN, SIDE - MARGIN))
    return sheet


def measured(server: Server, result: Result, node: str) -> Image.Image:
    """The picture that a node drew, as large as it goes."""
    shown = Image.open(BytesIO(server.image(result.outputs[node]["images"][0]))).convert("RGB")
    shown.thumbnail((SIDE - MARGIN, SIDE - MARGIN), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    sheet.paste(shown, ((SIDE - shown.width) // 2, (SIDE - shown.height) // 2))
    return sheet


def main() -> None:
    names = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=", ".join(names))
    chosen = parser.parse_args().name or names
    if unknown := set(chosen) - set(names):
        raise SystemExit(f"no such workflow: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as server:
        for name in chosen:
            prompt, ids = workflow(name)
            prompt = at_hand(prompt)
            for node in prompt.values():  # as shipped, but for pictures that a thumbnail does not show
                node["inputs"] |= {"batch_size": PICTURES} if "batch_size" in node["inputs"] else {}
            result = server.run(prompt)
            if "Cached" in ids:
                picture = compared(server, result, ids)
            else:
                drawn = next(
                    ids[title]
                    for title in ("PriorCacheCalibrate", "PriorCacheSweep", "PriorCacheInspect")
                    if title in ids
                )
                picture = measured(server, result, drawn)
            path = ROOT / "workflows" / f"{name}.jpg"
            picture.save(path, quality=88, optimize=True)
            print(f"workflows/{name}.jpg: {path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
