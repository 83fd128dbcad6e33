"""A budget of memory in sampling runs of every architecture."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch
from matrix import ALL
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.policies import FORA, Budget, Taylor, ToCa
from priorcache.cache_core.policies.budget import MIB
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import RunTrace, Trace

BASE = FORA(2, "aligned")


@dataclass(frozen=True)
class Only(FORA):
    """FORA for some branches."""

    names: frozenset[str] = frozenset()

    def decide(self, step, site):
        return super().decide(step, site) if site.name in self.names else Action.COMPUTE


def sampled(host, subject, policy, store: str = "device", **settings) -> tuple[torch.Tensor, RunTrace]:
    trace = Trace()
    out = subject.sample(host.attach(subject.model, policy, trace, store=store), **settings)
    return out, trace.runs[0]


@pytest.fixture(params=[*ALL, "flux2"])
def anyone(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("base", "cfg"),
    [(BASE, 1.0), (BASE, 2.0), (Taylor(BASE), 2.0), (ToCa("dit", ratio=0.3, selection="small values"), 2.0)],
    ids=["FORA, cfg 1", "FORA", "Taylor", "ToCa"],
)
def test_is_kept_in_every_store_and_used_up(host, anyone, base, cfg):
    _, full = sampled(host, anyone, base, cfg=cfg)
    kept = {}
    for store in CODECS:
        policy = Budget(base, 0.6 * full.peak_bytes / MIB)
        _, run = sampled(host, anyone, policy, store, cfg=cfg)
        assert 0 < run.peak_bytes <= policy.limit
        assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)
        assert run.notes[0].startswith(policy.describe())
        kept[store] = len({row.site for row in run.rows if row.action is not Action.COMPUTE})
    assert kept["device"] == kept["cpu"] < kept["8 bit"]


def test_what_is_not_kept_is_computed_and_the_rest_reused_as_ever(host, subject):
    _, full = sampled(host, subject, BASE)
    out, run = sampled(host, subject, Budget(BASE, 0.6 * full.peak_bytes / MIB))
    reused = frozenset(row.site.name for row in run.rows if row.action is Action.REUSE)
    assert torch.equal(out, sampled(host, subject, Only(2, "aligned", names=reused))[0])
    share = len(reused) / len(full.sites)
    assert 0 < share < 1
    assert run.sites == full.sites
    assert run.computed_fraction == pytest.approx(1 - 0.5 * share)


def test_that_holds_everything_changes_nothing(host, subject):
    assert torch.equal(sampled(host, subject, Budget(BASE, 64))[0], sampled(host, subject, BASE)[0])


def test_that_holds_nothing_is_sampling_without_a_cache(host, subject):
    out, run = sampled(host, subject, Budget(BASE, 0.001))
    assert torch.equal(out, subject.sample())
    assert run.peak_bytes == 0
    assert "not one branch fits into 1 KiB" in run.notes[0]


def test_holds_where_less_was_told_than_is_there(host, flux2, monkeypatch):
    """The host fills up the text of this model; without knowing that, all branches seem to fit."""
    from priorcache.nodes import memory

    monkeypatch.setattr(memory, "PADDED", {})
    _, full = sampled(host, flux2, BASE)
    policy = Budget(BASE, full.peak_bytes / 2 / MIB)
    assert full.expected_bytes < policy.limit
    out, run = sampled(host, flux2, policy)
    assert torch.isfinite(out).all()
    assert 0 < run.peak_bytes <= policy.limit
    assert 0.5 < run.computed_fraction < 1


def test_holds_over_context_windows(host, flux):
    """Every window is a lane of its own, of which nothing is told beforehand."""
    windows = importlib.import_module("comfy.context_windows")
    model = flux.model.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=8,
        context_overlap=4,
        dim=2,
    )
    full, trace = sampled(host, flux, BASE)[1], Trace()
    policy = Budget(BASE, 0.9 * full.peak_bytes / MIB)
    flux.sample(host.attach(model, policy, trace))
    assert 0 < trace.runs[0].peak_bytes <= policy.limit
