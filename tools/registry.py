"""A dry run of what ComfyUI Manager and the registry do with this pack, as it is committed.

python tools/dev.py registry         # in a fresh environment for the Python that this runs on: 3.10 to 3.13

The published files are packed by comfy-cli and unpacked as the registry does it, and cloned as Manager does it. Each
time `pip install -r requirements.txt` runs in an environment that has nothing but what ComfyUI requires, a real ComfyUI
starts, and the pack must be complete in it: nodes, help pages, templates with thumbnails, languages, no complaint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import dev

LEFT_OUT = ("tests", "tools", "benchmarks", "docs", ".ci", ".github")
OF_DEMO = ("demo/train.py", "demo/shapes-classifier.safetensors")
"""What makes and judges the demo models, which no node needs."""
CLI = next(tool for tool in dev.TOOLS if tool.startswith("comfy-cli"))


def bare() -> tuple[Path, Path]:
    """(Python of an environment with what ComfyUI requires and nothing else, the ComfyUI)."""
    folder = dev.HOME / f"env-{dev.tag()}-host"
    with dev.locked(folder.name):
        dev.made(folder)
        host = dev.fetch_host(dev.LATEST, folder / "bin" / "pip")
        dev.filled(folder, dev.TORCH, [host / "requirements.txt"])
    return folder / "bin" / "python", host


def cli() -> Path:
    """The `comfy` command, in an environment of its own."""
    folder = dev.HOME / f"env-{dev.tag()}-cli"
    command, stamp = folder / "bin" / "comfy", folder / "installed"
    with dev.locked(folder.name):
        dev.made(folder)
        if not stamp.exists() or stamp.read_text() != CLI:
            dev.run(folder / "bin" / "pip", "install", "-q", CLI)
            stamp.write_text(CLI)
    return command


def published(comfy: Path, clone: Path, target: Path) -> list[str]:
    """Validate and pack a clone as `comfy node publish` does, and unpack it; the names of the files."""
    env = os.environ | {"XDG_CONFIG_HOME": str(clone.parent / "config"), "NO_COLOR": "1"}

    def node(command: str) -> str:
        done = subprocess.run(
            [comfy, "--skip-prompt", "node", command], cwd=clone, env=env, text=True, stdout=subprocess.PIPE, stderr=2
        )
        if done.returncode:
            raise SystemExit(f"comfy node {command} failed:\n{done.stdout}")
        return done.stdout

    said = node("validate")
    if "warning" in said.lower() or "error" in said.lower():
        raise SystemExit(f"comfy node validate is not clean:\n{said}")
    node("pack")
    with zipfile.ZipFile(clone / "node.zip") as packed:
        packed.extractall(target)
        names = packed.namelist()
    size = (clone / "node.zip").stat().st_size
    dev.say(f"comfy node validate is clean; {len(names)} files are published, {size / 2**20:.1f} MiB packed")
    return names


def missing(names: list[str], clone: Path) -> list[str]:
    """What is wrong with a list of published files."""
    wanted = {
        p.relative_to(clone).as_posix()
        for pattern in (
            "*.py",
            "nodes/*.py",
            "web/docs/**/*.md",
            "workflows/*",
            "locales/*/*.json",
            "demo/shapes-[dfp]*.safetensors",
        )
        for p in clone.glob(pattern)
        if p.is_file()
    }
    return [f"{name} is not published" for name in sorted(wanted - set(names))] + [
        f"{name} should not be published" for name in names if name.split("/")[0] in LEFT_OUT or name in OF_DEMO
    ]


def check(python: Path, host: Path, base: Path, name: str) -> list[str]:
    """Install a pack that lies in `base`/custom_nodes as Manager does, and start ComfyUI; what is wrong."""
    pack, layer = base / "custom_nodes" / name, base / "env"
    dev.layered(layer, python)
    own = layer / "bin" / "python"
    dev.run(python, "-m", "pip", "--python", own, "install", "-q", "-r", pack / "requirements.txt")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    for file in (pack / "demo").glob("*.safetensors"):
        (models / file.name).symlink_to(file)
    done = subprocess.run(
        [own, __file__, "inside", host, base, name],
        env=os.environ | {"PYTHONWARNINGS": "default"},
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        return [f"the check itself ended with code {done.returncode}"]
    return json.loads(done.stdout)


def inside(host: Path, base: Path, name: str) -> list[str]:
    """Run by the Python of the layered environment: start ComfyUI with the pack and ask for everything it brings."""
    import urllib.error
    import urllib.request

    from host_server import Server, ServerError

    pack, wrong = base / "custom_nodes" / name, []
    before = sorted(p for p in pack.rglob("*") if p.is_file())

    def served(path: str) -> bool:
        try:
            with urllib.request.urlopen(server.url + path, timeout=60) as reply:
                return bool(reply.read())
        except urllib.error.HTTPError:
            return False

    with Server(host, base, base / "server.log", "--whitelist-custom-nodes", name) as server:
        nodes = {node for node in server.get("/object_info") if node.startswith("PriorCache")}
        pages = {page.stem for page in (pack / "web" / "docs").glob("*.md")}
        wrong += [f"{node} is not registered" for node in pages - nodes]
        wrong += [f"{node} has no help page" for node in nodes - pages]
        texts = [f"{page}{kind}" for page in pages for kind in (".md", "/zh.md")]
        wrong += [f"{text} is not served" for text in texts if not served(f"/extensions/{name}/docs/{text}")]
        listed = set(server.get("/workflow_templates").get(name, []))
        shipped = {file.stem for file in (pack / "workflows").glob("*.json")}
        wrong += [f"workflow {w} is not listed" for w in shipped ^ listed]
        for kind in ("json", "jpg"):
            wrong += [
                f"{w}.{kind} is not served" for w in shipped if not served(f"/api/workflow_templates/{name}/{w}.{kind}")
            ]
        languages = server.get("/i18n")
        for language in ("en", "zh"):
            wrong += [
                f"{n} has no {language} names" for n in nodes - set(languages.get(language, {}).get("nodeDefs", {}))
            ]
        try:
            server.run(small(json.loads((pack / "workflows" / "api" / "01_first_run.json").read_text())))
        except ServerError as error:
            wrong.append(f"01_first_run: {error}")
        log = server.output().splitlines()
    wrong += [line for line in log if complains(line, name)]
    wrong += [f"{p} was written" for p in sorted(p for p in pack.rglob("*") if p.is_file()) if p not in before]
    return wrong


def small(prompt: dict) -> dict:
    """The first workflow with few steps and pictures."""
    for node in prompt.values():
        few = {"steps": 4, "batch_size": 2}
        node["inputs"] |= {key: few[key] for key in node["inputs"] if key in few}
    return prompt


def complains(line: str, name: str) -> bool:
    """Whether a line of ComfyUI's log is a warning or an error that concerns the pack."""
    line = line.replace(str(dev.HOME), "").lower()  # whose name is that of the pack, too
    return (name.lower() in line or "priorcache" in line) and any(w in line for w in ("warn", "error", "fail"))


def main() -> None:
    python, host = bare()
    comfy = cli()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ways = {"registry": "priorcache", "clone": "ComfyUI-PriorCache"}
        clone = scratch / "clone" / "custom_nodes" / ways["clone"]
        dev.run("git", "clone", "-q", dev.ROOT, clone)
        names = published(comfy, clone, scratch / "registry" / "custom_nodes" / ways["registry"])
        (clone / "node.zip").unlink()
        wrong = missing(names, clone)
        for way, name in ways.items():
            found = check(python, host, scratch / way, name)
            dev.say(f"{way}, Python {sys.version.split()[0]}: {'complete' if not found else f'{len(found)} wrong'}")
            wrong += [f"{way}: {one}" for one in found]
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"Python {sys.version.split()[0]}, ComfyUI {dev.LATEST}: nothing is wrong")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        print(json.dumps(inside(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
