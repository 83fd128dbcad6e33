"""What Apply tells of memory beforehand, on every architecture."""

from __future__ import annotations

import pytest
from matrix import ALL, BASE, LEVELS, levels
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.policies import GOC, DuCa, Forecast, Taylor, ToCa
from priorcache.cache_core.trace import Trace


@levels()
@pytest.mark.parametrize(
    "store",
    [
        pytest.param("device", marks=pytest.mark.scenario("memory told beforehand", "within 5 % of what is measured")),
        pytest.param("8 bit", marks=pytest.mark.scenario("memory in 8 bits", "within 5 % of what is measured")),
    ],
)
def test_is_within_five_percent(host, subject, policy, store):
    for settings in ({}, {"cfg": 1.0}, {"positive": subject.prompt(1, 40), "batch": 2}):
        trace = Trace()
        subject.sample(host.attach(subject.model, policy, trace, store=store), **settings)
        assert trace.runs[0].expected_bytes == pytest.approx(trace.runs[0].peak_bytes, rel=0.05)


def test_counts_reference_latents(host, flux):
    trace = Trace()
    positive = flux.prompt(1, reference_latents=[flux.noise(7, 1, (16, 12))])
    flux.sample(host.attach(flux.model, LEVELS["FORA"], trace), positive=positive)
    assert trace.runs[0].expected_bytes == trace.runs[0].peak_bytes


@pytest.mark.parametrize("name", [*ALL, "flux2"])
@pytest.mark.parametrize(
    "policy",
    [BASE, Taylor(BASE, 2), GOC(ToCa("dit", ratio=0.3, selection="small values")), DuCa("dit", ratio=0.3), Forecast()],
    ids=lambda policy: policy.describe(),
)
def test_is_within_five_percent_whatever_is_kept_and_noted(host, request, name, policy):
    """Several outputs, what is noted of tokens, text that the host fills up."""
    subject = request.getfixturevalue(name)
    for store in CODECS:
        trace = Trace()
        subject.sample(
            host.attach(subject.model, policy, trace, store=store), steps=9 if policy.level == "model" else 5
        )
        assert trace.runs[0].expected_bytes == pytest.approx(trace.runs[0].peak_bytes, rel=0.05)


def test_forecast_holds_three_latents_of_each_cond_at_most(host, subject):
    trace = Trace()
    subject.sample(host.attach(subject.model, Forecast(), trace, "errors"), steps=12)
    latent = subject.noise(0, 1, subject.size)
    assert 0 < trace.runs[0].peak_bytes <= 3 * 2 * latent.nbytes
