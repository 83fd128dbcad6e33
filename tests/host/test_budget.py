"""The Memory Budget node."""

import pytest
import torch
from priorcache.cache_core.adapters import sites_of
from priorcache.cache_core.policies import FORA, GOC, L2C, Budget, Forecast, Full
from priorcache.cache_core.trace import Trace
from priorcache.priors.prior import PriorError


@pytest.fixture
def execute(host):
    from priorcache.nodes.budget import PriorCacheMemoryBudget

    return lambda *args, **kwargs: PriorCacheMemoryBudget.execute(*args, **kwargs).args


@pytest.fixture(scope="module")
def prior(host):
    from priorcache.nodes.calibrate import calibrated
    from priorcache.nodes.sampling import Sampling
    from priorcache.priors.statistics import Statistics

    both = (host.dit.conditioning(torch.tensor([1, n])) for n in (2, -1))
    settings = (torch.zeros(2, 3, 16, 16), 5, 2.0, "euler", "normal", 1.0, None)
    with torch.inference_mode():
        return calibrated(host.model(), Sampling(*both, *settings), (5,), Statistics(2))


def test_says_what_fits_at_usual_sizes(model, execute):
    policy, about = execute(FORA(2, "aligned"), model, 1000)
    assert policy == Budget(FORA(2, "aligned"), 1000.0)
    small, large = about.splitlines()
    assert small == (  # the tiny model has pixels of its own size: 256 x 256 tokens of 64 channels
        "512 x 512, a positive and a negative prompt: Budget 1000 MiB on FORA N=2 (aligned) keeps 6 of 6 branches, "
        "192.0 MiB of 192.0 MiB; 50% of the blocks' arithmetic is reused instead of 50%."
    )
    assert "keeps 6 of 6 branches, 768.0 MiB" in large
    assert "not one branch fits into 10.0 MiB, the smallest takes 32.0 MiB" in execute(FORA(2), model, 10)[1]


def test_a_policy_made_for_some_steps_is_told_by_these(model, execute):
    names = tuple(site.name for site in sites_of(model.model.diffusion_model))
    router = L2C(((1.0,) * len(names), (0.0,) * len(names)) * 10, names, 20, 0.5)
    assert "reused instead of 50%" in execute(router, model, 1000)[1]


def test_prefers_what_a_prior_finds_cheap(host, model, execute, prior):
    policy, _ = execute(GOC(FORA(2, "aligned")), model, 1, prior)
    errors = dict(policy.errors)
    assert set(errors) == set(prior.sites)
    trace = Trace()
    host.sample(host.attach(model, Budget(policy.base, 0.25, policy.errors), trace))
    run = trace.runs[0]
    reused = {row.site.name for row in run.rows if row.action.value == "reuse"}
    assert run.peak_bytes <= 2**18
    kinds = [{name for name in errors if name.endswith(kind)} for kind in ("attn", "mlp")]
    for kind in kinds:  # of branches of one size, those of least error
        assert max((errors[n] for n in kind & reused), default=0) <= min((errors[n] for n in kind - reused), default=9)


def test_a_prior_of_another_model_is_refused(host, execute, prior):
    with pytest.raises(PriorError, match="does not fit this model"):
        execute(FORA(2), host.model(depth=2), 10, prior)


@pytest.mark.parametrize("policy", [Forecast(), FORA(2, level="model"), Full()], ids=lambda p: p.describe())
def test_a_policy_without_branches_is_handed_on(model, execute, policy):
    given, about = execute(policy, model, 10)
    assert given is policy
    assert "keeps no branches: it is handed on as it is" in about


def test_a_run_is_repeated_from_its_record(host, model):
    from priorcache.priors.record import restored

    trace = Trace()
    out = host.sample(host.attach(model, Budget(FORA(2, "aligned"), 0.2), trace))
    told = trace.runs[0].record
    again = restored(told["policy"], told["settings"])
    assert 0 < len(again.sites) < 6
    assert torch.equal(host.sample(host.attach(model, again, Trace())), out)


def test_apply_tells_what_it_takes(model):
    from priorcache.nodes.memory import memory

    text = memory(model, Budget(FORA(2), 100), "errors", "device")
    assert "takes about 96.0 MiB for 512 x 512 and 0 KiB for 1024 x 1024" in text
    assert "takes about 51.0 MiB for 512 x 512" in memory(model, Budget(FORA(2), 100), "errors", "8 bit")
