"""Writes the scenario tables of docs/ and README.md from what the tests have shown: python tools/dev.py scenarios."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE, README = ROOT / "docs" / "scenarios.json", ROOT / "docs" / "scenarios.md", ROOT / "README.md"
BEGIN, END = "<!-- scenarios: written by tools/dev.py scenarios -->\n", "<!-- /scenarios -->\n"

Cells = dict[tuple[str, str, str], str]
"""(scenario, architecture, policy) -> what was shown there."""


def written(cells: Cells) -> str:
    """The record as JSON, a line for every scenario."""
    tree: dict[str, dict[str, dict[str, str]]] = {}
    for (scenario, architecture, policy), shown in sorted(cells.items()):
        tree.setdefault(scenario, {}).setdefault(architecture, {})[policy] = shown
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in tree.items()) + "\n}\n"


def read(path: Path = RECORD) -> Cells:
    tree = json.loads(path.read_text())
    return {(s, a, p): shown for s, of in tree.items() for a, row in of.items() for p, shown in row.items()}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def declines(shown: str) -> bool:
    return not shown.endswith("computed")


def policies_table(cells: Cells) -> str:
    """policies x architectures, and how many samplers each policy speeds up."""
    from matrix import ARCHITECTURES, EVERY_POLICY, POLICIES

    def row(policy: str) -> list[str]:
        ticks = ["✓" if (EVERY_POLICY, a, policy) in cells else "missing" for a in ARCHITECTURES]
        of_samplers = {
            s: shown for (s, a, p), shown in cells.items() if (a, p) == ("dit", policy) and s[:8] == "sampler "
        }
        reasons: dict[str, int] = {}
        for shown in filter(declines, of_samplers.values()):
            reasons[shown] = reasons.get(shown, 0) + 1
        helped = len(of_samplers) - sum(reasons.values())
        why = "; ".join(f"{n}, because {reason.split(';')[0].rstrip('.')}" for reason, n in reasons.items())
        return [policy, *ticks, f"{helped} of {len(of_samplers)}", why or "none"]

    return table(["policy", *ARCHITECTURES.values(), "samplers sped up", "samplers declined"], map(row, POLICIES))


def samplers_tables(cells: Cells) -> str:
    """samplers x policies, for every architecture."""
    from matrix import ARCHITECTURES, POLICIES

    text, reasons = "", []

    def cell(sampler: str, architecture: str, policy: str) -> str:
        shown = cells.get((sampler, architecture, policy), "")
        if not shown or not declines(shown):
            return shown.removesuffix(" computed") or "·"
        if shown not in reasons:
            reasons.append(shown)
        return f"({reasons.index(shown) + 1})"

    for architecture, name in ARCHITECTURES.items():
        samplers = sorted({s for s, a, _ in cells if a == architecture and s.startswith("sampler ")})
        rows = [[s[8:], *(cell(s, architecture, p) for p in POLICIES)] for s in samplers]
        text += f"\n### {name}\n\n{table(['sampler', *POLICIES], rows)}"
    return text + "".join(f"\n({i}) {reason}\n" for i, reason in enumerate(reasons, 1))


def scenarios_table(cells: Cells) -> str:
    """scenarios x architectures, each for one policy of every level."""
    from matrix import ARCHITECTURES, SCENARIOS

    def row(name: str) -> list[str]:
        case = SCENARIOS[name]
        ticks = ["✓" if all((name, a, p) in cells for p in case.levels) else "-" for a in ARCHITECTURES]
        shown = {text for (s, _, _), text in cells.items() if s == name}
        return [name, *ticks, "; ".join(sorted(shown)), case.reason]

    return table(["scenario", *ARCHITECTURES.values(), "shown", "why not elsewhere"], map(row, SCENARIOS))


def page(cells: Cells) -> str:
    """docs/scenarios.md."""
    from matrix import LEVELS, STEPS

    return f"""# What was sampled, and what came of it

Written by `python tools/dev.py scenarios` from the tests that passed, on tiny random networks of the host's own classes
(`tests/subjects.py`). `tests/matrix.py` says which cells there must be; every test run holds this page against what it
has shown itself.

## Policies

✓: bit-equal to the model without a cache when everything is computed, and after the cache was used and removed; a
relative error below .6 when it reuses (weights are random: the bound finds mistakes, it says nothing about pictures).

{policies_table(cells)}
## Samplers

The share of the branches that was computed, at 5 steps (Forecast: {STEPS["Forecast"]}), with a relative error below 1: samplers that extrapolate
over their last steps amplify it there. In brackets: everything was computed, bit-equal, and one sentence said why.
"·" was not run, since what a sampler asks for does not depend on the network: DiT, whose noise schedule is that of Stable
Diffusion, has all policies with all samplers; Flux, a rectified flow, has one policy of every level with all of them.
{samplers_tables(cells)}
## Scenarios

Each for {", ".join(LEVELS)}: what a scenario changes concerns the level, not the paper.

{scenarios_table(cells)}"""


def inserted(readme: str, cells: Cells) -> str:
    """README.md with its table anew."""
    return between(readme, BEGIN, END, policies_table(cells))


def between(readme: str, begin: str, end: str, text: str) -> str:
    """README.md with other text between two lines of its own."""
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise SystemExit(f"README.md has no place for the table: put the lines {begin!r} and {end!r} there")
    return f"{before}{begin}\n{text}\n{end}{after}"


def put(path: Path, text: str) -> None:
    """Write a file in one step: who stops this command finds the old one or the new one."""
    from pack import load_pack

    load_pack()
    from priorcache.priors.files import write

    write(path, text)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / RECORD.name
        tests = [sys.executable, "-m", "pytest", "-m", "scenario", f"--scenarios={fresh}", *sys.argv[1:]]
        if subprocess.run(tests, cwd=ROOT).returncode:
            raise SystemExit("not written: a table is made of passed tests only")
        put(RECORD, fresh.read_text())
    write()


def write() -> None:
    from pack import load_pack

    load_pack()
    sys.path.append(str(ROOT / "tests"))
    cells = read()
    put(PAGE, page(cells))
    put(README, inserted(README.read_text(), cells))


if __name__ == "__main__":
    main()
