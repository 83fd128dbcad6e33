"""The models of the scenarios, and the comparison that most of them make."""

from __future__ import annotations

from itertools import count
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


@pytest.fixture(scope="session")
def stocks() -> dict:
    """What sampling without a cache gives, by test and parameters; the policy does not come into it."""
    return {}


@pytest.fixture
def held(host, request, stocks):
    """Samples with a cache and holds it against sampling without: equal where all is computed, close where it reuses.

    sample: takes a model. computed: the share of decisions that computed, None for any below 1.
    """
    given = {name: str(value) for name, value in request.node.callspec.params.items() if name != "policy"}
    calls = count()

    def call(model, policy, sample, computed: float | None = 0.5, bound: float = 0.5) -> SimpleNamespace:
        key = (request.node.originalname, *given.items(), next(calls))
        if key not in stocks:
            stocks[key] = sample(model)
        stock = stocks[key]
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
