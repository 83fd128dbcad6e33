"""A tiny random DiT in the real host, and one way to sample it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from host_server import started


@pytest.fixture
def attach(comfy):
    from priorcache.nodes.attach import attach

    return attach


@pytest.fixture(scope="session")
def host(comfy):
    """What the tests in this folder use of the host and of the parts of the pack that need it."""
    import comfy.sample
    from priorcache.models import host as dit_host
    from priorcache.models.dit import DiT, DiTConfig
    from priorcache.nodes import attach, dit

    def weights(**changes):
        settings = {"hidden_size": 64, "depth": 3, "num_heads": 4, "patch_size": 2, "in_channels": 3, "num_classes": 10}
        config = DiTConfig(**settings | {"learn_sigma": False, "grid_size": 8} | changes)
        generator = torch.Generator().manual_seed(1)
        shapes = DiT(config, device="meta").state_dict()
        return config, {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in shapes.items()}

    def model(**changes):
        with torch.inference_mode():
            return dit_host.from_weights(*weights(**changes))

    def sample(
        model, *, steps=6, cfg=1.5, sampler="euler", scheduler="normal", seed=0, labels=(1, 2), size=(16, 16), batch=2,
        positive=None, negative=None, latent=None, denoise=1.0, callback=None,
    ):  # fmt: skip
        channels = model.model.latent_format.latent_channels
        wanted = torch.tensor(labels)
        with torch.inference_mode():
            latent = torch.zeros(batch, channels, *size) if latent is None else latent
            noise = comfy.sample.prepare_noise(latent, seed)
            return comfy.sample.sample(
                model, noise, steps, cfg, sampler, scheduler, positive or dit.conditioning(wanted),
                negative or dit.conditioning(torch.full_like(wanted, -1)), latent, denoise=denoise, disable_pbar=True,
                seed=seed, callback=callback,
            )  # fmt: skip

    return SimpleNamespace(
        comfy=comfy,
        weights=weights,
        model=model,
        sample=sample,
        attach=attach.attach,
        node=attach,
        dit=dit,
        loader=dit_host,
    )


@pytest.fixture
def model(host):
    return host.model()


@pytest.fixture(scope="session")
def conds(host):
    """With and without classes, for two pictures."""
    return host.dit.conditioning(torch.tensor([1, 2])), host.dit.conditioning(torch.tensor([-1, -1]))


@pytest.fixture
def undrawn(monkeypatch):
    """Priors, plans and routers are not drawn, for tests that do not look at the pictures."""
    from priorcache.plots import plan, prior, router, style

    for drawn in (plan, prior, router):
        monkeypatch.setattr(drawn, "draw", lambda *_, **__: style.new_figure(1, 1))


@pytest.fixture
def steady_memory(host, monkeypatch):
    """The host's attention without a GPU asks how much memory is free, and is compiled again whenever that changes."""
    asked = lambda _, both=False: (2**34, 2**34) if both else 2**34  # noqa: E731
    monkeypatch.setattr(host.comfy.model_management, "get_free_memory", asked)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The latest host with this pack in it, running."""
    with started(tmp_path_factory.mktemp("server")) as running:
        yield running


class Samplings(list):
    """Policies that were sampled; the one of the number `stop`, counted from 1, is interrupted."""

    stop = 0


@pytest.fixture
def samplings(comfy, monkeypatch) -> Samplings:
    """What searches have sampled."""
    from priorcache.nodes import searching

    found, sample = Samplings(), searching.Sampler.__call__

    def sampled(self, policy, *pictures):
        if len(found) + 1 == found.stop:
            found.stop = 0
            raise KeyboardInterrupt
        found.append(policy)
        return sample(self, policy, *pictures)

    monkeypatch.setattr(searching.Sampler, "__call__", sampled)
    return found


@pytest.fixture(autouse=True)
def searches(comfy, monkeypatch, tmp_path):
    """Unfinished searches are kept with the test, not with the host's models."""
    from priorcache.nodes import searching

    monkeypatch.setattr(searching, "searches", lambda: tmp_path / "searches")
