"""Every policy beside its authors' own code: python tools/dev.py bench authors FOLDER [--write].

FOLDER holds the public repositories that docs/authors.md names, each cloned under its own name; what they import comes
from PyPI (timm). EOC's code is there as compiled for Python 3.10 only, so run this with Python 3.10. Small networks with random weights are
sampled by their code with their caching and in ComfyUI with ours: the same weights, prompts and noise. What theirs draw
is kept (--write) in tests/benchmarks/authors.safetensors, which the tests hold our policies to, and docs/authors.md says how near they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..plots.metrics import relative_l2
from ..priors.files import replace, write
from .pages import remarked
from .published import dit, flux, pixart, router
from .published.source import Case

ROOT = Path(__file__).resolve().parent.parent
DRAWN, PAGE = ROOT / "tests" / "benchmarks" / "authors.safetensors", ROOT / "docs" / "authors.md"
NETWORKS = {"DiT": dit, "PixArt": pixart, "Flux": flux}
CASES: dict[str, Case] = {
    f"{network}: {name}": case for network, module in NETWORKS.items() for name, case in module.CASES.items()
}
ROUTER = "router"


def uncached(name: str) -> str:
    """The case of the same network and steps without a cache."""
    return f"{name.partition(':')[0]}: none, {CASES[name].steps} steps"


def known() -> tuple[dict[str, Tensor], dict[str, str]]:
    """What their code drew, by the name of the case, and the commits that it was of."""
    with safe_open(DRAWN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def apart(one: Tensor, other: Tensor) -> float:
    """Relative L2 of the pictures that differ most."""
    return relative_l2(one, other).max().item()


def markdown(drawn: dict[str, Tensor], ours: dict[str, Tensor], commits: dict[str, str]) -> str:
    """docs/authors.md."""
    lines = [
        "# Beside the authors' own code",
        "",
        "Written by `python tools/dev.py bench authors FOLDER --write`. Small networks with random weights are sampled by each method's "
        "published code and in ComfyUI with ours: the same weights, prompts and noise, in float32. Differences are relative (L2), of the "
        "picture that differs most. `tests/benchmarks/test_authors.py` holds every policy to what their code drew.",
    ]
    for network, module in NETWORKS.items():
        lines += ["", f"## {network}", "", module.__doc__, ""]
        lines += ["| method | their code | theirs from uncached | ours from theirs |", "|---|---|---|---|"]
        for name in (name for name in CASES if name.startswith(f"{network}:")):
            source = CASES[name].source
            lines.append(
                f"| {name.partition(': ')[2]} | {source.repository} @ {commits[source.repository][:7]}, `{source.folder}` "
                f"| {apart(drawn[name], drawn[uncached(name)]):.3f} | {apart(ours[name], drawn[name]):.1e} |"
            )
    moved = (drawn[ROUTER] - router.gates()).abs().max()
    lines += [
        "",
        "## L2C's router",
        "",
        f"{router.__doc__} In {router.ITERATIONS} iterations gates move by up to {moved:.2f}; ours differ from theirs by "
        f"{(ours[ROUTER] - drawn[ROUTER]).abs().max():.1e} at most.",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench authors", description=__doc__.splitlines()[0])
    parser.add_argument("code", type=Path, help="the folder of the repositories")
    parser.add_argument("--write", action="store_true", help="keep what theirs draw, and write docs/authors.md")
    args = parser.parse_args(argv)
    drawn = {name: case.theirs(args.code).contiguous() for name, case in CASES.items()}
    ours = {name: case.ours() for name, case in CASES.items()}
    drawn[ROUTER], ours[ROUTER] = router.theirs(args.code), router.ours()
    commits = {case.source.repository: case.source.commit(args.code) for case in CASES.values()}
    print(text := markdown(drawn, ours, commits))
    if args.write:
        replace(DRAWN, lambda part: save_file(drawn, part, commits))
        write(PAGE, remarked(PAGE, text))
