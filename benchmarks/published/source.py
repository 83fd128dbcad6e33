"""Repositories of authors on this disk, and what of theirs is run beside ours."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.machinery import SourcelessFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from torch import Tensor

from ...cache_core.policies import CachePolicy


@dataclass(frozen=True)
class Source:
    """Where a method was published. folder: within the repository; network: the module that has it, or its .pyc."""

    repository: str
    folder: str
    network: str = "models"

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    def commit(self, code: Path) -> str:
        return subprocess.check_output(["git", "-C", code / self.name, "rev-parse", "HEAD"], text=True).strip()

    @contextmanager
    def opened(self, code: Path) -> Iterator[ModuleType]:
        """The module with the network; others of its folder can be imported, and are gone and silent afterwards.

        Those of other folders have the same names, and most of them print.
        """
        folder = code / self.name / self.folder
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: clone https://github.com/{self.repository} into {code}")
        before = set(sys.modules)
        sys.path.insert(0, str(folder))
        try:
            with redirect_stdout(io.StringIO()):
                yield self._compiled(folder) if self.network.endswith(".pyc") else importlib.import_module(self.network)
        finally:
            sys.path.remove(str(folder))
            own = {path.stem for path in folder.iterdir()}
            for name in [name for name in set(sys.modules) - before if name.partition(".")[0] in own]:
                del sys.modules[name]

    def _compiled(self, folder: Path) -> ModuleType:
        loader = SourcelessFileLoader("compiled", str(folder / self.network))
        module = module_from_spec(spec_from_loader("compiled", loader))
        try:
            loader.exec_module(module)
        except ImportError as error:
            raise SystemExit(f"{self.network}: {error}; run this as python3.10 tools/dev.py") from None
        return module


@dataclass(frozen=True)
class Case:
    """A method in one setting. options: what their code is told; prepared: what has to be done to it before."""

    source: Source
    steps: int
    policy: Callable[[], CachePolicy]
    options: dict = field(default_factory=dict)
    prepared: Callable | None = None

    def theirs(self, code: Path) -> Tensor:
        """What their code draws: (B, C, H, W)."""
        raise NotImplementedError

    def drawn(self, policy: CachePolicy) -> Tensor:
        """What ComfyUI draws with a policy: (B, C, H, W)."""
        raise NotImplementedError

    def ours(self) -> Tensor:
        return self.drawn(self.policy())
