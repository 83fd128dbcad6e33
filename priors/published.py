"""Reads the router files that the authors of Learning-to-Cache (arXiv 2406.01733) published, as they are.

DiT: a dict whose "routers" holds `0.prob`, `1.prob`, ...; U-ViT: those entries alone. Entry i is one float32 vector,
[attention 0, MLP 0, attention 1, MLP 1, ...] before the sigmoid. Only some entries were trained, the others are noise.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .. import archives
from ..errors import PriorCacheError, excerpt, shown
from .prior import Prior, Subject
from .router import TABLE, RouterError

MAX_BYTES = 4 * 2**20
MOST = 4096  # entries of a file, and gates of an entry
RULES = ("auto", "DiT", "U-ViT")


class Settings:
    """Stands for `argparse.Namespace`, which the DiT files hold beside the routers; takes attributes, does nothing."""


def read(path: str | Path, rule: str = "auto", subject: Subject | None = None, sites: tuple[str, ...] = ()) -> Prior:
    """A published router as a prior whose table "router" (T, S) is in sampling order.

    rule: which entries were trained and for which evaluation, "auto" meaning by the file's layout. subject, sites: the
    model that it is meant for, where one is at hand. Raises RouterError whatever is wrong with the file; nothing in it
    is executed.
    """
    path = Path(path)
    try:
        return _prior(_entries(path), rule, subject, sites)
    except PriorCacheError as error:
        raise RouterError(f"{path.name}: {error}") from None
    except (
        zipfile.BadZipFile, pickle.UnpicklingError, OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError,
        AttributeError, EOFError, OverflowError, MemoryError, RecursionError, NotImplementedError,
    ) as error:  # fmt: skip
        raise RouterError(
            f"{path.name} is damaged or not a router ({type(error).__name__}: {excerpt(error)})"
        ) from error


def _entries(path: Path) -> tuple[list[Tensor], bool]:
    """The vectors of a file in order, and whether it has the layout of the DiT files."""
    if path.stat().st_size > MAX_BYTES:
        raise RouterError(f"larger than any router ({MAX_BYTES >> 20} MiB)")
    archives.check_pickled(path)
    try:
        with torch.serialization.safe_globals([(Settings, "argparse.Namespace")]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes torch raise, assertions too
        raise RouterError(f"damaged or not a router ({type(error).__name__}: {excerpt(error)})") from error
    nested = isinstance(found, Mapping) and "routers" in found
    table = found["routers"] if nested else found
    if not isinstance(table, Mapping) or not table or len(table) > MOST:
        raise RouterError("it holds no table of routers")
    if strange := [str(k) for k in table if not re.fullmatch(r"\d{1,4}\.prob", str(k))]:
        raise RouterError(f"{shown(strange[0])} does not belong in a router file, which has 0.prob, 1.prob, ... alone")
    if missing := [i for i in range(len(table)) if f"{i}.prob" not in table]:
        raise RouterError(f"{missing[0]}.prob is missing")
    entries = [table[f"{i}.prob"] for i in range(len(table))]
    for i, entry in enumerate(entries):
        if not isinstance(entry, Tensor) or entry.dtype != torch.float32 or entry.shape != entries[0].shape:
            raise RouterError(f"{i}.prob must be a float32 vector as long as the others")
    if entries[0].ndim != 1 or not 0 < len(entries[0]) <= MOST or len(entries[0]) % 2:
        raise RouterError(
            f"0.prob has shape {tuple(entries[0].shape)}; one gate for every attention and MLP is expected"
        )
    return entries, nested


def _prior(found: tuple[list[Tensor], bool], rule: str, subject: Subject | None, sites: tuple[str, ...]) -> Prior:
    entries, nested = found
    if rule not in RULES:
        raise RouterError(f"rule {shown(rule)} is unknown; choose one of {', '.join(RULES)}")
    uvit = rule == "U-ViT" or (rule == "auto" and not nested)
    total, depth = len(entries), len(entries[0]) // 2
    if total % 2 or (uvit and total < 4):
        raise RouterError(f"it has {total} entries; an even number was expected, one for each evaluation")
    place = uvit_rows(total) if uvit else dit_rows(total)
    table = torch.full((total, 2 * depth), float("nan"), dtype=torch.float64)
    for row, i in place.items():
        if not entries[i].isfinite().all():
            raise RouterError(f"{i}.prob holds numbers that are not finite")
        table[row] = entries[i].sigmoid().double()
    names = uvit_sites(depth) if uvit else tuple(f"blocks.{i}.{b}" for i in range(depth) for b in ("attn", "mlp"))
    if sites and sites != names:
        raise RouterError(
            f"a router for {len(names)} branches, {names[0]} to {names[-1]}, but this model has {len(sites)}; "
            "connect the model that it was trained for"
        )
    known = (
        (subject.architecture, subject.geometry, subject.prediction)
        if subject
        else ("U-ViT" if uvit else "DiT", "", "EPS")
    )
    sampler, scheduler, steps = ("dpm_2", "", total // 2) if uvit else ("ddim", "normal", total)
    unknown = torch.full((1, total, 2 * depth), float("nan"), dtype=torch.float64)
    tables = {
        "sigmas": uvit_sigmas(total) if uvit else dit_sigmas(total),
        "power": unknown[0],
        "difference": unknown,
        TABLE: table,
    }
    return Prior(Subject(*known, sampler, scheduler, steps, cfg=1.0), names, 1, tables)


def dit_rows(total: int) -> dict[int, int]:
    """Row, counted from the noisiest -> entry: entries count from the least noise, and the even ones were trained."""
    return {total - 1 - i: i for i in range(0, total, 2)}


def uvit_rows(total: int) -> dict[int, int]:
    """Row -> entry: entry i is the first of the two evaluations of solver step i; that of step 0 computes everything."""
    return {2 * i: i for i in range(1, total // 2)}


def uvit_sites(depth: int) -> tuple[str, ...]:
    """Blocks in order of execution: half going in, one in the middle, half going out."""
    half = depth // 2
    going_in, going_out = ([f"{way}_blocks.{i}" for i in range(half)] for way in ("in", "out"))
    blocks = [*going_in, *["mid_block"] * (depth % 2), *going_out]
    return tuple(f"{block}.{branch}" for block in blocks for branch in ("attn", "mlp"))


def dit_sigmas(total: int) -> Tensor:
    """Noise levels (T,) of DDIM at evenly spaced timesteps 999 to 0, over 1000 linear betas of 1e-4 to 0.02."""
    levels = _levels(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    return levels[torch.linspace(999, 0, total, dtype=torch.float64).round().long()]


def uvit_sigmas(total: int) -> Tensor:
    """Noise levels (T,) of the second-order solver over times 1 to 1/1000, at each step and halfway in log-SNR."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64).square()
    times = torch.linspace(999, 0, total // 2 + 1, dtype=torch.float64)
    first = _levels(betas)[times.round().long()]
    return torch.stack((first[:-1], (first[:-1] * first[1:]).sqrt()), dim=1).flatten()


def _levels(betas: Tensor) -> Tensor:
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt()
