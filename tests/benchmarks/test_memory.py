"""The ways of saving memory that are compared, and their table; the sampling itself takes minutes."""

import pytest
from priorcache.benchmarks.memory import DRAWS, SHARES, Row, averaged, table, ways
from priorcache.cache_core.policies import Budget
from priorcache.cache_core.sites import STACK, Schedule, Site

SITES = tuple(Site(f"blocks.{b}.{name}", b, 4) for b in range(4) for name in ("attn", "mlp"))
RUN = Schedule(
    20,
    sites=SITES,
    nbytes={site.name: 1000 for site in SITES} | {STACK.name: 1000},
    flops={site.name: 1 + site.name.endswith("mlp") for site in SITES} | {STACK.name: 12},
)


def test_every_budget_is_used_up_and_kept():
    found = list(ways(RUN, tuple((site.name, 0.1 + i) for i, site in enumerate(SITES))))
    budgets = [way.policy.prepared(RUN) for way in found if isinstance(way.policy, Budget)]
    assert len(budgets) == len(SHARES) * (4 + DRAWS)
    per_share = len(budgets) // len(SHARES)
    for policy, share in zip(budgets, [share for share in SHARES for _ in range(per_share)], strict=True):
        assert 1000 * len(policy.sites) == pytest.approx(share * 8000)
    chosen = {way.name: way.policy.prepared(RUN).sites for way in found if isinstance(way.policy, Budget)}
    assert set(chosen["50% first blocks first"]) == {site.name for site in SITES if site.block < 2}
    assert set(chosen["50% last blocks first"]) == {site.name for site in SITES if site.block >= 2}
    assert set(chosen["50% without a prior"]) == {site.name for site in SITES if site.branch == "mlp"}


def test_sizes_are_told_of_the_pictures_that_are_sampled(comfy):
    from judge import SAMPLERS, Drawer, weights
    from priorcache.benchmarks.frontier import Bench, pairs_of
    from priorcache.benchmarks.memory import told

    drawer = Drawer("flux", weights("flux"))
    schedule = told(Bench(drawer.model, 20, 3.0, *SAMPLERS["flux"], pairs_of(drawer, 2, 2, 100)))
    assert {site.name for site in schedule.sites} <= set(schedule.nbytes)
    tokens, words, width, rows = 8 * 8, 4, 256, 2 * 2
    assert schedule.nbytes["single_blocks.0.single"] == rows * (tokens + words) * width * 4


def test_draws_are_averaged_and_the_table_has_a_line_for_every_way():
    mean = averaged([Row("50% at random", 10, 0.2, 0.1, 0.01), Row("50% at random", 30, 0.4, 0.3, 0.03)])
    assert (mean.nbytes, mean.error, mean.reused) == (20, pytest.approx(0.2), pytest.approx(0.3))
    rows = [Row("no cache", 0, 0, 0, 0, 2.0, 1.0), Row("everything", 2**21, 0.5, 0.1, 0.01, 1.0, 2.1), mean]
    of = {"cfg": 1.5, "pictures": 8, "rounds": 3, "rows": [vars(row) for row in rows]}
    lines = table({"about": "here.", "networks": {"dit": of}}).splitlines()
    assert "| no cache | 0 KiB | 0% | 0.0000 ± 0.0000 | 0% | 2.00 s | 1.00x |" in lines
    assert "| everything | 2.0 MiB | 100% | 0.1000 ± 0.0100 | 50% | 1.00 s | 2.10x |" in lines
    assert lines[-1].startswith("| 50% at random | 0 KiB | 0% | 0.2000")
