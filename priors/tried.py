"""What a search has sampled, on disk: one that was stopped, or went down with ComfyUI, goes on from there."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .files import write

log = logging.getLogger("PriorCache")

FORMAT = 1
MOST = 8
"""Files that are kept: of searches that were never finished."""
LARGEST = 64 * 2**20


@dataclass
class Tried:
    """The `tried` and `fitted` of a Search, and the file that holds them until it is finished."""

    path: Path
    tried: dict[tuple[str, int], tuple[Tensor, float]] = field(default_factory=dict)
    fitted: dict[str, tuple[list[list[float]], float]] = field(default_factory=dict)
    _saved: int = 0

    @staticmethod
    def opened(path: Path) -> Tried:
        """What is there; nothing where nothing is, or where it cannot be read, which is said."""
        found = Tried(path)
        try:
            if path.is_file():
                if path.stat().st_size > LARGEST:
                    raise ValueError("it is too large")
                found._read(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("PriorCache: %s cannot be read (%s); this search begins anew.", path.name, error)
            return Tried(path)
        found._saved = len(found)
        return found

    def __len__(self) -> int:
        return len(self.tried) + len(self.fitted)

    def _read(self, told: dict) -> None:
        if told["format"] != FORMAT:
            raise ValueError(f"its format is {told['format']}")
        for policy, pictures, errors, cost in told["tried"]:
            known = torch.tensor(errors, dtype=torch.float64)
            if known.shape != (pictures,) or not isinstance(policy, str) or not _finite(known.tolist(), cost):
                raise ValueError("it holds what no search tries")
            self.tried[policy, pictures] = (known, cost)
        for policy, solutions, cost in told["fitted"]:
            if not isinstance(policy, str) or not all(map(_finite, solutions)) or not _finite(cost):
                raise ValueError("it holds what no search fits")
            self.fitted[policy] = (solutions, cost)

    def save(self) -> None:
        """Keep what came since it was last called; a folder that cannot be written to is told of once."""
        if self._saved == len(self):
            return
        told = {
            "format": FORMAT,
            "tried": [[policy, n, errors.tolist(), cost] for (policy, n), (errors, cost) in self.tried.items()],
            "fitted": [[policy, solutions, cost] for policy, (solutions, cost) in self.fitted.items()],
        }
        try:
            write(self.path, json.dumps(told))
        except OSError as error:
            if self._saved >= 0:
                log.warning(
                    "PriorCache: %s cannot be written (%s); a search that is stopped begins anew.", self.path, error
                )
            self._saved = -1
            return
        self._saved = len(self)
        with suppress(OSError):  # another ComfyUI does the same
            for old in sorted(self.path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-MOST]:
                old.unlink()

    def finished(self) -> None:
        """Nothing has to go on from here."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("PriorCache: %s cannot be removed (%s).", self.path, error)
        with suppress(OSError):  # others are not finished
            self.path.parent.rmdir()
        self._saved = 0


def _finite(*values) -> bool:
    """Of numbers, and lists of them."""
    flat = [n for value in values for n in (value if isinstance(value, list) else [value])]
    return all(type(n) in (int, float) and math.isfinite(n) for n in flat)
