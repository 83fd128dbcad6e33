"""Counts the floating point operations of a cached sampling run, on meta tensors: nothing is computed, every size fits.

The count goes through the engine itself (CacheRun, adapter, policy), so it is what a policy really executes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..cache_core.adapters import adapter_for, installed
from ..cache_core.policies import CachePolicy
from ..cache_core.run import CacheRun
from ..models.dit import DiT, DiTConfig


def sampling(
    policy: CachePolicy, config: DiTConfig, steps: int, size: int, rows: int = 2, sigmas: Sequence[float] = ()
) -> int:
    """FLOPs (2 per multiply-add, matrix products only) of `steps` evaluations of `rows` latents of `size` x `size`.

    sigmas: of each evaluation, for policies with a prior that was measured at them. Raises RuntimeError when the policy
    declines.
    """
    network = DiT(config, device="meta")
    adapter = adapter_for(network)
    x = torch.empty(rows, config.in_channels, size, size, device="meta")
    t, y = torch.empty(rows, device="meta"), torch.zeros(rows, dtype=torch.long, device="meta")
    run = CacheRun(policy, steps)
    run.checked = {(network, block.kind) for block in adapter.blocks(network)}  # meta tensors have no values to compare
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            sigma = sigmas[step] if sigmas else float(steps - step)
            with run.evaluation(sigma=sigma, progress=step / steps):
                cache = run.next_forward([(0, "row")])
                with installed(adapter, network, cache):
                    network(x, t, y=y)
    if run.declined:
        raise RuntimeError(f"{policy.describe()} computed everything: {run.declined}")
    return counter.get_total_flops()


def expected(config: DiTConfig, size: int, rows: int = 2) -> tuple[int, int]:
    """By hand, from the geometry: (FLOPs of the cacheable branches, FLOPs of everything else) of one evaluation."""
    n, c, p = (size // config.patch_size) ** 2, config.hidden_size, config.patch_size
    attention = 2 * n * c * 3 * c + 2 * n * c * c + 4 * n * n * c
    mlp = 2 * 2 * n * c * 4 * c
    modulation = 2 * c * 6 * c
    embed = 2 * n * config.in_channels * p * p * c + 2 * 256 * c + 2 * c * c
    final = 2 * c * 2 * c + 2 * n * c * p * p * config.out_channels
    return rows * config.depth * (attention + mlp), rows * (config.depth * modulation + embed + final)
