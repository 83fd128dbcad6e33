"""Golden figures: published operation counts, on meta tensors, through the engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from priorcache.benchmarks import flops
from priorcache.cache_core.policies import FORA, DuCa, Full, ToCa
from priorcache.cache_core.sites import Action, Schedule, Site, Step
from priorcache.models.dit import DiTConfig

XL = DiTConfig(1152, 28, 16, 2, 4, 1000, True, 16)
SHALLOW = replace(XL, depth=4)  # counting through the engine takes its time
LEVELS = [(FORA(2, "aligned", end=0.5), 0.25), (FORA(2, "aligned"), 0.5), (FORA(4, "aligned"), 0.75)]


def by_schedule(policy, steps: int, config: DiTConfig = XL) -> int:
    """FLOPs at 256 x 256 with guidance: every step's rest, and the branches of the computed ones."""
    branches, rest = flops.expected(config, 32)
    site = Site("blocks.0.attn", 0, 28)
    asked = [policy.decide(Step(i, steps, i / steps, float(steps - i)), site) for i in range(steps)]
    return steps * rest + asked.count(Action.COMPUTE) * branches


@pytest.mark.parametrize("policy", [Full(), FORA(2), FORA(3)], ids=lambda p: p.describe())
def test_the_engine_executes_what_the_schedule_says(policy):
    assert flops.sampling(policy, SHALLOW, 4, 32) == by_schedule(policy, 4, SHALLOW)


def test_dit_xl_2_ddim_50_costs_what_is_published():
    """23.74 TFLOPs in the literature, which counts softmax and GELU too but not the final layer."""
    assert by_schedule(Full(), 50) / 1e12 == pytest.approx(23.74, rel=2e-3)


@pytest.mark.parametrize(("interval", "published"), [(2, 12.354), (3, 8.560), (5, 5.240)])
def test_fora_on_dit_xl_2_costs_what_is_published(interval, published):
    assert by_schedule(FORA(interval), 50) / 1e12 == pytest.approx(published, rel=4e-3)


@pytest.mark.parametrize(("policy", "reused"), LEVELS)
def test_the_later_papers_levels_save_their_share_of_branches(policy, reused):
    branches, rest = flops.expected(XL, 32)
    assert by_schedule(policy, 20) == 20 * rest + round(20 * (1 - reused)) * branches


@pytest.mark.parametrize(
    ("policy", "published"), [(Full(), 2.372), *zip([p for p, _ in LEVELS], (1.781, 1.189, 0.597), strict=True)]
)
def test_the_later_papers_levels_take_the_published_multiply_adds(policy, published):
    """In 10^12, of one picture without guidance: half a multiply-add each, and half the rows."""
    assert by_schedule(policy, 20) / 4e12 == pytest.approx(published, rel=1e-3)


def test_the_published_router_takes_the_published_multiply_adds():
    """1.847 x 10^12: what 20 full steps take less the branches that the DDIM-20 router reuses."""
    file = Path(__file__).parents[1] / "priors" / "l2c_router_masks.json"
    masks = json.loads(file.read_text())["dit_xl2_256_ddim20"]["masks"].values()
    attention, mlp = (sum(mask[i].count("0") for mask in masks) for i in (0, 1))
    assert attention + mlp == 248
    n, c = 256, XL.hidden_size
    saved = attention * (4 * n * c**2 + 2 * n**2 * c) + mlp * 8 * n * c**2
    assert by_schedule(Full(), 20) / 4 - saved == pytest.approx(1.847e12, rel=1e-3)


def test_the_engine_executes_what_toca_and_duca_say():
    """Partial steps compute the MLP of some tokens; skipped ones what comes before and after the blocks."""
    branches, rest = flops.expected(XL, 32)
    width, tokens, rows = XL.hidden_size, 256, 2
    modulation, token = rows * XL.depth * 12 * width**2, rows * 16 * width**2
    policy = DuCa("dit", steps=("F", "c", "a", "F0+c"))
    layers = [Site(f"blocks.{i}.mlp", i, XL.depth) for i in range(XL.depth)]
    kept = [[int(policy.share(Step(s, 4, s / 4, 1.0), site) * tokens) for site in layers] for s in range(4)]
    by_hand = branches + sum(kept[1]) * token - modulation + branches // XL.depth + sum(kept[3][1:]) * token + 4 * rest
    assert flops.sampling(policy, XL, 4, 32) == by_hand


def test_what_declines_is_not_counted_as_if_it_served():
    with pytest.raises(RuntimeError, match=r"computed everything: its 3 step types"):
        flops.sampling(DuCa("dit", steps=("F", "c", "a")), SHALLOW, 4, 32)


def published(policy: ToCa, total: int) -> float:
    """TFLOPs by the authors' own count for DiT-XL/2 with guidance: softmax, norms and GELU too, adaLN at half."""
    b, n, c, heads, depth = 2, 256, XL.hidden_size, 16, XL.depth
    attention = 8 * b * n * c**2 + b * n * c + 4 * b * n**2 * c + 5 * b * heads * n**2
    every = 2 * b * n * c + b * c + 6 * b * c**2
    token = 16 * b * c**2 + 24 * b * c
    count = 0
    for i, kind in enumerate(policy.prepared(Schedule(total)).steps):
        for layer in range(depth):
            if kind == "F" or (kind.startswith("F0") and layer == 0):
                count += attention + every + n * token
            elif kind.endswith("c"):
                share = policy.share(Step(i, total, i / total, 1.0), Site(f"blocks.{layer}.mlp", layer, depth))
                count += every + int(share * n) * token
    return count / 1e12


LONG = "dit, 250 steps"


@pytest.mark.parametrize(
    ("policy", "total", "expected"),
    [
        (ToCa("dit", ratio=0, interval=1), 50, 23.735),
        (ToCa("dit", faithful=True), 50, 10.233),
        (ToCa("dit"), 50, 11.125),
        (ToCa(LONG, faithful=True), 250, 43.4206),
        (ToCa(LONG), 250, 44.260),
        (ToCa(LONG, 1, faithful=True), 250, 103.5496),
        (ToCa(LONG, 1), 250, 103.953),
        (DuCa("dit", faithful=True), 50, 9.575),
        (DuCa("dit"), 50, 10.490),
        (DuCa("dit", interval=4, faithful=True), 50, 7.66),
        (DuCa("dit", interval=5, faithful=True), 50, 6.32),
        (DuCa("dit", interval=6, faithful=True), 50, 5.86),
        (DuCa("dit", interval=6, ratio=0.07, faithful=True), 50, 6.29),
        (ToCa("dit", interval=2, ratio=0), 50, 12.354),
        (ToCa("dit", interval=3, ratio=0), 50, 8.560),
        (ToCa("dit", interval=5, ratio=0), 50, 5.240),
    ],
    ids=lambda value: value.describe() if isinstance(value, ToCa) else "",
)
def test_toca_and_duca_on_dit_xl_2_cost_what_is_published_as_executed_and_what_one_decision_per_step_costs(
    policy, total, expected
):
    assert published(policy, total) == pytest.approx(expected, rel=1e-3)
