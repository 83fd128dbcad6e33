"""Small random networks of every architecture that has an adapter, for the contract tests.

One file per architecture. Its CASES map a name to a function without arguments that returns (network, inputs), where
`inputs(step)` gives the keyword arguments of the network's call at that step, always for two rows that may be split or
reordered along dim 0. Host code is imported inside the functions: `comfy` is importable only once the fixture has run.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

WITHOUT_HOST = {"dit"}


def cases() -> dict[str, tuple[str, Callable]]:
    """Name of the case -> (architecture, function)."""
    files = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
    return {name: (file, make) for file in files for name, make in import_module(f"{__name__}.{file}").CASES.items()}
