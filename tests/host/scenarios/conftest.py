"""The models of the scenarios, and the comparison that most of them make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import subjects
import torch
from matrix import ALL, everything
from priorcache.cache_core.trace import Trace
from subjects import close


@pytest.fixture(scope="session")
def dit(host):
    return subjects.dit()


@pytest.fixture(scope="session")
def flux(host, tmp_path_factory):
    return subjects.flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def sd3(host, tmp_path_factory):
    return subjects.sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="session")
def pixart(host):
    return subjects.pixart()


@pytest.fixture(scope="session")
def flux2(host):
    return subjects.flux2()


@pytest.fixture(scope="session", params=ALL)
def subject(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def held(host):
    """Samples with a cache and holds it against sampling without: equal where all is computed, close where it reuses.

    sample: takes a model. computed: the share of decisions that computed, None for any below 1. stock: what sampling
    without a cache gives, where that is known.
    """

    def call(model, policy, sample, computed: float | None = 0.5, bound: float = 0.5, stock=None) -> SimpleNamespace:
        stock = sample(model) if stock is None else stock
        assert torch.equal(sample(host.attach(model, everything(policy))), stock)
        trace = Trace()
        cached = sample(host.attach(model, policy, trace))
        run = trace.runs[-1]
        assert run.notes == []
        assert run.complete
        assert run.computed_fraction == (computed or pytest.approx(0.5, abs=0.49))
        assert 0 < close(cached, stock) < bound
        return SimpleNamespace(stock=stock, cached=cached, run=run)

    return call


@pytest.fixture
def apart(monkeypatch):
    """Lets the host find too little memory for two conds in one call."""

    def call(model) -> None:
        monkeypatch.setattr(model.model, "memory_required", lambda *a, **k: 1e30)

    return call
