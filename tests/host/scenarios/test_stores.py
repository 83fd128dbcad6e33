"""Where features are kept changes no picture, on every architecture."""

from __future__ import annotations

import pytest
import torch
from matrix import ALL, BASE, LEVELS
from priorcache.cache_core.policies import GOC, DuCa, Taylor, ToCa
from streams import copying_late

POLICIES = [
    *LEVELS.values(),
    Taylor(BASE, 2),
    ToCa("dit", ratio=0.3),
    GOC(DuCa("dit", ratio=0.3, selection="small values")),
]


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("name", [*ALL, "flux2"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.describe())
def test_not_even_where_they_leave_a_device_as_late_as_they_may(host, request, monkeypatch, name, policy, cfg):
    subject = request.getfixturevalue(name)
    expected = subject.sample(host.attach(subject.model, policy), cfg=cfg)
    late = copying_late(monkeypatch)
    assert torch.equal(subject.sample(host.attach(subject.model, policy, store="cpu"), cfg=cfg), expected)
    assert [stream.begun > 0 for stream in late] == [True]
