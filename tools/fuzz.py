"""Many generated cases of bad input for every loader and widget: python tools/dev.py fuzz [--cases 10000] [--seed 0].

Prints a line for every loader: how many cases, how many of them it took, the slowest one, the most memory. Other options
go to pytest: `-k routers`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many to try, at least (default: 10000)")
    parser.add_argument("--seed", type=int, help="repeats a run; random where none is given")
    args, rest = parser.parse_known_args()
    seed = random.randrange(2**32) if args.seed is None else args.seed
    os.environ["PRIORCACHE_FUZZ"] = str(args.cases)
    import pytest

    failed = pytest.main([str(ROOT / "tests" / "fuzz"), f"--hypothesis-seed={seed}", "--durations=0", *rest])
    fuzzing = sys.modules["fuzzing"]
    count = sum(tally.cases for tally in fuzzing.TALLIES.values())
    print(f"\n{fuzzing.summary()}\nseed {seed}")
    if count < args.cases and not rest:
        raise SystemExit(f"{count} cases are fewer than the {args.cases} that were asked for")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
