"""ComfyUI's own frontend in a headless Chromium: workflows are dropped on the canvas and run as a person would.

python tools/dev.py canvas             # a screenshot of every shipped workflow, run, -> demo/out/canvas/
python tools/dev.py canvas --readme    # the first one alone, without the window around it, -> docs/canvas.png
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_server import ROOT, Server, started

from workflows import YOURS

NAMES = ("chromium", "chromium-browser", "google-chrome")
OUT = ROOT / "demo" / "out" / "canvas"
PICTURE = ROOT / "docs" / "canvas.png"
WITHOUT_CLASS = ("MarkdownNote", "Note")
"""Nodes that the frontend has itself."""

READY = """() => {
  try { return Boolean(window.app.graph) && "PriorCacheApply" in window.LiteGraph.registered_node_types; }
  catch { return false; }
}"""

DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, { type: "application/json" }));
  const canvas = document.getElementById("graph-canvas");
  const { x, y } = canvas.getBoundingClientRect();
  for (const kind of ["dragenter", "dragover", "drop"])
    canvas.dispatchEvent(new DragEvent(kind, {
      bubbles: true, cancelable: true, dataTransfer: dropped, clientX: x + 300, clientY: y + 300 }));
}"""


BOXES = """() => {
  const { scale } = window.app.canvas.ds, nodes = window.app.graph._nodes;
  const drawn = [...document.querySelectorAll("[data-node-id]")].map(box => [
    nodes.find(node => String(node.id) === box.dataset.nodeId), box.getBoundingClientRect()]);
  return drawn.length === nodes.length && drawn.map(([node, { width, height }]) =>
    [node.title, node.pos[0], node.pos[1], width / scale, height / scale]);
}"""

FILL = """([width, margin]) => {
  const { graph, canvas } = window.app, { ds } = canvas;
  const boxes = [...graph._nodes.map(node => node.getBounding()), ...graph._groups.map(group => group._bounding)];
  const [left, top] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])));
  const [right, bottom] = [0, 1].map(i => Math.max(...boxes.map(box => box[i] + box[i + 2])));
  ds.scale = (width - 2 * margin) / (right - left);
  ds.offset = [margin / ds.scale - left, margin / ds.scale - top];
  canvas.setDirty(true, true);
  return Math.ceil((bottom - top) * ds.scale + 2 * margin);
}"""
AROUND = ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasInfo", "Comfy.Graph.CanvasMenu")
"""What the frontend shows over the graph, as its settings call it."""


def browser() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Canvas:
    """The frontend of a running server; use as a context manager."""

    def __init__(self, server: Server, width: int = 1900, height: int = 1000):
        self.server, self.size = server, {"width": width, "height": height}
        self.errors: list[str] = []

    def __enter__(self) -> Canvas:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        self.page = self._browser.new_page(viewport=self.size)
        self.page.set_default_timeout(300_000)
        self.page.on("console", lambda m: self._heard(f"{m.text} {m.location}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self._heard(str(error)))
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(2000)
        self.page.keyboard.press("Escape")  # the template browser that greets a new user
        return self

    def __exit__(self, *_) -> None:
        self._browser.close()
        self._playwright.stop()

    def _heard(self, text: str) -> None:
        self.errors.append(text)

    @property
    def our_errors(self) -> list[str]:
        return [e for e in self.errors if "priorcache" in e.lower()]

    def drop(self, name: str, content: bytes) -> list[str]:
        """Drop a workflow file on the canvas; the types of its nodes, in order."""
        self.page.evaluate("window.app.graph.clear()")
        self.page.evaluate(DROP, [name, base64.b64encode(content).decode()])
        self.page.wait_for_function("window.app.graph._nodes.length > 0")
        return self.page.evaluate("window.app.graph._nodes.map(node => node.type)")

    def missing(self) -> list[str]:
        """Types on the canvas that the server does not have."""
        found = self.page.evaluate(
            "window.app.graph._nodes.map(n => n.type).filter(t => !window.LiteGraph.registered_node_types[t])"
        )
        return [name for name in found if name not in WITHOUT_CLASS]

    def prompt(self) -> dict:
        """What the frontend would send of the graph on the canvas, in API form."""
        return self.page.evaluate("window.app.graphToPrompt().then(made => made.output)")

    def run(self, limit: float = 900) -> None:
        """Queue what is on the canvas and wait until it is done. Raises TimeoutError, or RuntimeError when the server refuses it or it fails."""
        before = set(self.server.get("/history"))
        with self.page.expect_response(
            lambda reply: reply.url.endswith("/prompt") and reply.request.method == "POST"
        ) as sent:
            self.page.evaluate("window.app.queuePrompt(0, 1)")
        if not sent.value.ok:
            raise RuntimeError(f"the server refused the workflow: {sent.value.text()}")
        until = time.monotonic() + limit
        while not (new := {k: v for k, v in self.server.get("/history").items() if k not in before}):
            if time.monotonic() > until:
                raise TimeoutError(f"the workflow was not done after {limit:.0f} s")
            self.page.wait_for_timeout(300)
        for run in new.values():
            if run["status"]["status_str"] != "success":
                raise RuntimeError(f"the workflow failed: {run['status']['messages'][-1]}")

    def pictures(self, kind: str) -> int:
        """How many pictures the first node of a type shows; waits until there are some."""
        node = f"window.app.graph._nodes.find(node => node.type === '{kind}')"
        self.page.wait_for_function(f"{node}?.imgs?.length > 0")
        return self.page.evaluate(f"{node}.imgs.length")

    @contextmanager
    def drawn_as_elements(self) -> Iterator[None]:
        """Nodes are what the frontend calls Nodes 2.0, which are taller than those that it paints."""
        setting = "window.app.ui.settings.setSettingValue('Comfy.VueNodes.Enabled', {})"
        self.page.evaluate(setting.format("true"))
        try:
            yield
        finally:
            self.page.evaluate(setting.format("false"))

    def boxes(self) -> list[tuple[str, float, float, float, float]]:
        """(title, x, y, width, height) of every node that is drawn as an element."""
        self.page.keyboard.press(".")
        self.page.wait_for_function(BOXES)
        self.page.wait_for_timeout(500)  # they grow as they fill
        return list(map(tuple, self.page.evaluate(BOXES)))

    def screenshot(self, path: Path) -> None:
        """The whole graph, fitted to the window."""
        self.page.keyboard.press(".")
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=path)

    def portrait(self, path: Path, width: int = 1920, margin: int = 16) -> None:
        """The graph alone, this wide; the window is left without what stands around it."""
        self.page.evaluate("window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        for setting in AROUND:
            self.page.evaluate(f"window.app.ui.settings.setSettingValue('{setting}', false)")
        self.page.add_style_tag(content=".no-drag.fixed { visibility: hidden }")  # the button that leads back
        self.page.set_viewport_size({"width": width, "height": width})
        height = self.page.evaluate(FILL, [width, margin])
        self.page.wait_for_timeout(3000)
        self.page.screenshot(path=path, clip={"x": 0, "y": 0, "width": width, "height": height})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="the first workflow alone, for README.md")
    args = parser.parse_args()
    if browser() is None:
        raise SystemExit(f"no Chromium is installed (looked for {', '.join(NAMES)}); on Debian: apt install chromium")
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        started(Path(folder), log=OUT / "server.log") as server,
        Canvas(server) as canvas,
    ):
        for file in sorted((ROOT / "workflows").glob("01_first_run.json" if args.readme else "*.json")):
            canvas.drop(file.name, file.read_bytes())
            if file.stem != YOURS:  # whose files only its user has
                canvas.run()
            if args.readme:
                canvas.portrait(PICTURE)
            else:
                canvas.screenshot(OUT / f"{file.stem}.png")
            print(f"{file.stem}: missing {canvas.missing() or 'none'}")
        print("console errors of ours:", *canvas.our_errors or ["none"], sep="\n  ")


if __name__ == "__main__":
    main()
