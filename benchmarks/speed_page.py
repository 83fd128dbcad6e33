"""docs/benchmarks.md: which tables belong to it, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from ..cache_core.trace import human_bytes
from .geometries import NETWORKS

STOCK = "none"
EVERYTHING = "attached, all computed"
STEPS = 10
ALL = ("*",)
WHOLE = "DiT-XL/2 256"  # at its published size on a CPU, too


class Case(NamedTuple):
    """One table. policies: patterns of names; others are not measured."""

    network: str
    cfg: float
    batch: int = 1
    compiled: bool = False
    policies: tuple[str, ...] = ALL

    def title(self, tokens: int | None = None) -> str:
        length = "" if tokens is None else f", {tokens} tokens"
        return self.network + length + self.rest

    @property
    def rest(self) -> str:
        return f", {self.batch} picture{'s' * (self.batch > 1)}, cfg {self.cfg:g}" + ", compiled" * self.compiled


def cases(accelerated: bool) -> list[Case]:
    """All tables of a device, one network after the other; the target for branches is one of eight pictures."""
    first = [Case(WHOLE, 4.0, 8), Case(WHOLE, 4.0, 8, compiled=True)]
    if not accelerated:  # where a step of sixteen rows takes half a minute
        some = (EVERYTHING, "FORA*", "L2C*", "Taylor")
        first = [Case(WHOLE, 1.0, 8, policies=("FORA",)), Case(WHOLE, 4.0, compiled=True, policies=some)]
    return first + [Case(network, cfg) for network in NETWORKS for cfg in (4.0, 1.0)]


def missing(found: Iterable[str], accelerated: bool) -> list[str]:
    """Tables that a device of this kind has not among these titles."""

    def known(case: Case) -> bool:
        return any(title.startswith(f"{case.network}, ") and title.endswith(case.rest) for title in found)

    return [case.title() for case in cases(accelerated) if not known(case)]


def table(results: dict) -> str:
    """docs/benchmarks.md."""
    text = (
        "# What caching saves on the clock\n\nWritten by `python tools/dev.py bench speed` (on an accelerator with `--gpu`): "
        f"{STEPS} euler steps, random weights in bfloat16, every second step reused wherever a policy leaves the choice. "
        "*faster* and *fewer FLOPs* are those of a whole run without its first step, against the run without a cache "
        "beside it; *wall / FLOPs* is one over the other. Bytes are what was held, and what Apply Cache said before. "
        "*calibrating* is what Calibrate does on top of the sampling that it watches. An accelerator may run ahead from step to "
        "step as it does in use, and *ms a step* is of one further run in which it may not.\n"
    )
    for where, of_device in results.items():
        text += f"\n## {where}\n\n{of_device['about']}\n"
        for name, of in of_device["networks"].items():
            remark = f" {of['remark']}" if of.get("remark") else ""
            remark += f" {of['made']}" if of.get("made", of_device["about"]) != of_device["about"] else ""
            text += f"\n### {name}\n\n{of['size'].capitalize()}; {of['rounds']} rounds.{remark}\n\n"
            text += (
                "| policy | ms a step | faster | from to | fewer FLOPs | wall / FLOPs | held | said before | peak |\n"
            )
            text += "|---|---|---|---|---|---|---|---|---|\n"
            for policy, row in of["policies"].items():
                times = ", ".join(f"{kind} {_ms(ms)}" for kind, ms in row["milliseconds"].items())
                low, high = row["spread"]
                bytes_ = (row["bytes"], row["expected_bytes"] or 0, row["peak_device_bytes"])
                held, said, peak = ("" if n is None else human_bytes(n) for n in bytes_)
                text += (
                    f"| {policy} | {times} | {row['faster']:.2f}x | {low:.2f} to {high:.2f} | {row['fewer_flops']:.2f}x "
                    f"| {row['wall_over_flops']:.2f} | {held} | {said} | {peak} |\n"
                )
            if (everything := of["policies"].get(EVERYTHING, {}).get("equal")) is not None:
                text += f"\nWith everything computed the picture is {'' if everything else 'not '}bit-equal to stock.\n"
        if off := unforeseen(of_device["networks"]):
            text += (
                f"\nPeaks of the {len(off)} cached rows are stock's and what was said before, to {max(off):.1%} at most, "
                f"{statistics.median(off):.2%} in the median.\n"
            )
        if left := missing(of_device["networks"], not where.startswith("CPU")):
            text += f"\nNot measured: {'; '.join(left)}.\n"
    if all(where.startswith("CPU") for where in results):
        text += "\n## Accelerator\n\nNot measured yet: `python tools/dev.py bench speed --gpu`.\n"
    return text


def unforeseen(networks: dict) -> list[float]:
    """By how much each peak differs from stock's and what was said before, as a share of these."""
    pairs = [
        (row["peak_device_bytes"], of["policies"][STOCK]["peak_device_bytes"] + (row["expected_bytes"] or 0))
        for of in networks.values()
        for policy, row in of["policies"].items()
        if policy != STOCK and row["peak_device_bytes"] and STOCK in of["policies"]
    ]
    return [abs(peak / said - 1) for peak, said in pairs]


def _ms(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"
