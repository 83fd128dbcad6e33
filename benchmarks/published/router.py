"""A full step and the one that reuses it are learned from, again and again, by Learning-to-Cache's network and loss and by Train Router."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...models.dit import DiT
from ...priors.router import Call, RouterTraining
from .dit import CONFIG, L2C_CODE, LABELS, SITES, made, noise, weights
from .source import seeded

TIMES, ITERATIONS, RATE, PENALTY = (700, 600), 40, 0.05, 2e-3
"""Of a full step and the one that reuses it; the last two are large enough for so few iterations to be seen."""


@cache
def gates() -> Tensor:
    """(1, S): where training begins."""
    return torch.rand(1, 2 * CONFIG.depth, generator=seeded(2)) * 0.8 + 0.1


def theirs(code: Path) -> Tensor:
    """Gates (S,) that their network and their loss give; of its output, what is sampled with."""
    with replace(L2C_CODE, network="models.router_models").opened(code) as models:
        network = made(models)
        network.add_router(len(TIMES), TIMES)
        (router,) = network.routers[1:]
        router.prob.data = gates()[0].logit()
        optimizer = torch.optim.AdamW(router.parameters(), lr=RATE, weight_decay=0)
        labels, (full, now) = torch.tensor(LABELS), (torch.full((len(LABELS),), t) for t in TIMES)
        for _ in range(ITERATIONS):
            network.reset()
            with torch.no_grad():
                network(noise(), full, labels)
                expected = network(noise(), now, labels, fix_reuse_feature=True)
            found, opened = network(noise(), now, labels, activate_router=True, fix_reuse_feature=True)
            channels = slice(CONFIG.in_channels)
            loss = (expected - found)[:, channels].square().mean() + PENALTY * opened
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            router.prob.data.clamp_(-5, 5)
        return router().detach()


def ours() -> Tensor:
    """Gates (S,) that Train Router learns from the same two calls of the network."""
    network = DiT(CONFIG)
    network.load_state_dict(weights())
    shape, labels = (len(LABELS),), torch.tensor(LABELS)
    with torch.no_grad():
        given = [(noise(), torch.full(shape, t)) for t in TIMES]
        calls = [Call(((), shape), args, {"y": labels}, network(*args, y=labels)) for args in given]
    start = torch.cat((torch.full_like(gates(), math.nan), gates()))
    trajectory = {step: [call] for step, call in enumerate(calls)}
    training = RouterTraining(network, SITES, [trajectory], PENALTY, RATE, scores=start)
    training.run(ITERATIONS)
    return training.scores()[1].float()
