"""Runs one of `benchmarks/` in a real ComfyUI: python tools/dev.py bench NAME [--gpu] [--fp32] [options].

--gpu: on whatever device the host prefers. --fp32: models stay in float32 there, as on a CPU, with products in TF32; without
it they take what the host prefers, which is 16 bits.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_server import ROOT
from pack import load_host, load_pack


def names() -> list[str]:
    """Modules of `benchmarks/` that have a `main`."""
    return sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "def main(" in p.read_text())


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return print(f"{__doc__}\nNAME: {', '.join(names())}")
    if name not in names():
        raise SystemExit(f"no benchmark {name!r}; there are: {', '.join(names())}")
    load_host(cpu="--gpu" not in rest, fp32="--fp32" in rest)
    load_pack()
    options = [option for option in rest if option not in ("--gpu", "--fp32")]
    importlib.import_module(f"priorcache.benchmarks.{name}").main(options)


if __name__ == "__main__":
    main()
