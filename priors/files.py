"""Files that are written in one step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file in the same folder and put it in its place: an interrupt leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:  # a name that nobody can foresee
        part = Path(scratch) / "part"
        write(part)
        part.replace(path)


def write(path: Path, content: str | bytes) -> None:
    """Put a whole file in its place in the same way."""
    replace(path, lambda part: part.write_bytes(content.encode() if isinstance(content, str) else content))
