"""Measurements that take hours, kept so that they can be interrupted anywhere: one file per batch, written in one step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, cat

from ..priors.files import write


class CellError(ValueError):
    """What is kept belongs to other settings; says which, and how to mend it."""


@dataclass(frozen=True)
class Cell:
    """One row of a table in one setting: `batch-00000.safetensors` and on, and `cell.json` with what is said once."""

    folder: Path

    def claim(self, **identity) -> None:
        """Say what the results here belong to. Raises CellError when they already belong to something else."""
        kept = self.notes.get("identity")
        identity = json.loads(json.dumps(identity))
        if kept is None:
            self.note(identity=identity)
        elif kept != identity:
            differences = [
                f"{k}: {kept.get(k)} there, {identity.get(k)} now"
                for k in kept | identity
                if kept.get(k) != identity.get(k)
            ]
            raise CellError(
                f"{self.folder.name} holds results of other settings ({'; '.join(differences)}); "
                "delete this folder, or choose another with --out"
            )

    @property
    def notes(self) -> dict:
        file = self.folder / "cell.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def note(self, **changes) -> None:
        write(self.folder / "cell.json", json.dumps(self.notes | changes, indent=1) + "\n")

    def path(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:05d}.safetensors"

    def has(self, batch: int, *tables: str) -> bool:
        """Whether a batch is there, with these tables."""
        if not self.path(batch).exists():
            return False
        with safe_open(self.path(batch), "pt") as file:
            return set(tables) <= set(file.keys())

    def put(self, batch: int, tables: dict[str, Tensor], made: str) -> None:
        """Keep the results of a batch, every table with a row per picture; `made` says on what machine."""
        self.keep(batch, packed(tables, made))

    def keep(self, batch: int, data: bytes) -> None:
        """Keep a batch that is a file already."""
        write(self.path(batch), data)

    def get(self, batch: int) -> dict[str, Tensor]:
        return load_file(self.path(batch))

    def batches(self) -> Iterator[Path]:
        """The files from the first one to the first gap."""
        batch = 0
        while self.path(batch).exists():
            yield self.path(batch)
            batch += 1

    def parts(self, name: str, images: int) -> Iterator[Tensor]:
        """A table of the first pictures, batch by batch. Raises KeyError where a batch has no such table."""
        for path in self.batches():
            if not images:
                return
            with safe_open(path, "pt") as file:
                if name not in file.keys():  # noqa: SIM118 - not a dict
                    raise KeyError(f"{path.name} of {self.folder.name} has no {name}")
                part = file.get_tensor(name)[:images]
            images -= len(part)
            yield part

    def table(self, name: str, images: int) -> Tensor | None:
        """The same as one tensor; None where there is nothing, or a batch has no such table."""
        try:
            parts = list(self.parts(name, images))
        except KeyError:
            return None
        return cat(parts) if parts else None

    def made(self) -> set[str]:
        """The machines that made the batches."""
        found = set()
        for path in self.batches():
            with safe_open(path, "pt") as file:
                found.add(file.metadata()["made"])
        return found


def packed(tables: dict[str, Tensor], made: str) -> bytes:
    """The file of a batch."""
    return save({name: table.contiguous() for name, table in tables.items()}, metadata={"made": made})
