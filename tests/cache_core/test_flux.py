"""What only the Flux adapter has to know: two lists of blocks, and patches inside the attention."""

from types import SimpleNamespace

import architectures
import pytest
import torch
from priorcache.cache_core.adapters import adapter_for, installed
from priorcache.cache_core.policies import FORA, Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import Action
from torch import nn

CASES = architectures.cases()


@pytest.fixture
def flux(comfy):
    with torch.inference_mode():
        yield CASES["flux dev"][1]()


def doubled(q, k, v, pe, attn_mask, extra_options):
    return {"q": q * 2, "v": v + extra_options["block_index"]}


def shifted(attn, extra_options):
    first, end = extra_options["img_slice"]
    attn[:, first:end] += 1
    return attn


def test_blocks_are_numbered_through_both_lists(flux):
    network, _ = flux
    sites = [site for block in adapter_for(network).blocks(network) for site in block.sites.values()]
    assert [site.name for site in sites[:4]] == [f"double_blocks.0.{b}" for b in ("attn", "img_mlp", "txt_mlp")] + [
        "double_blocks.1.attn"
    ]
    assert sites[-1] == ("single_blocks.1.single", 3, 4)
    assert [site.block for site in sites] == [0, 0, 0, 1, 1, 1, 2, 3]


def test_attention_is_one_tensor_of_text_then_image(flux):
    network, inputs = flux
    block = network.double_blocks[0]
    seen = {}
    for name in ("txt_attn", "img_attn"):
        getattr(block, name).proj.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, out))
    adapter, run = adapter_for(network), CacheRun(FORA(2, "aligned"), 4)
    site = adapter.blocks(network)[0].sites["attn"]
    with run.evaluation(4.0, 0.0), installed(adapter, network, cache := run.next_forward([(0, "a"), (1, "b")])):
        network(**inputs(0))
    kept = run.store.get(site, cache.streams)[0].value
    assert torch.equal(kept, torch.cat((seen["txt_attn"], seen["img_attn"]), dim=1))


def test_a_picture_that_a_video_is_made_of_counts_among_the_references(flux):
    picture = torch.zeros(1, 16, 1, 4, 6)
    assert adapter_for(flux[0]).references(flux[0], {"ref_latent": picture}) == [picture]


@pytest.mark.parametrize(("name", "patch"), [("attn1_patch", doubled), ("attn1_output_patch", shifted)])
@pytest.mark.parametrize("since", [0, 1])
def test_a_patched_attention_is_computed_by_the_host(flux, name, patch, since):
    """Also where the patch comes in the middle of a run, as hooks bring it."""
    network, inputs = flux

    def patched(step):
        return inputs(step) | {"transformer_options": {"patches": {name: [patch]} if step >= since else {}}}

    adapter, run = adapter_for(network), CacheRun(FORA(2, "aligned"), 4)
    for step in range(4):
        expected = network(**patched(step))
        with run.evaluation(4.0 - step, step / 4), installed(adapter, network, run.next_forward([(0, "a"), (1, "b")])):
            assert torch.equal(network(**patched(step)), expected)
    assert len(run.trace.notes) == 1
    assert name in run.trace.notes[0]
    assert {r.action for r in run.trace.rows} <= {Action.COMPUTE}


class Model:
    """What the host's nodes ask of a model."""

    def __init__(self, network):
        self.network, self.patches, self.model = network, {}, SimpleNamespace(diffusion_model=network)

    def clone(self):
        return self

    def set_model_attn1_patch(self, patch):
        self.patches["attn1_patch"] = [patch]

    def set_model_post_input_patch(self, patch):
        self.patches["post_input"] = [patch]

    def add_object_patch(self, name, value):
        owner, _, last = name.removeprefix("diffusion_model.").rpartition(".")
        setattr(getattr(self.network, owner) if owner else self.network, last, value)


@pytest.mark.parametrize("measure", ["off", "errors", "truth"])
@pytest.mark.parametrize(
    "policy", [Full(), FORA(2, "aligned"), FORA(2, "aligned", level="stack")], ids=lambda p: p.describe()
)
@pytest.mark.parametrize("name", ["flux.2 references", "qwen image clean references", "krea 2 clean references"])
def test_with_the_hosts_kv_cache_all_is_computed_and_fewer_tokens_have_no_past(comfy, name, policy, measure):
    """Behind the first step, its node takes the tokens of references out of the sequence."""
    host = pytest.importorskip("comfy_extras.nodes_flux")
    if not hasattr(host, "FluxKVCache"):
        pytest.skip("newer than this host")

    def sampled(run: CacheRun | None) -> list[torch.Tensor]:
        model, out = Model(network), []
        host.FluxKVCache.execute(model)
        for step in range(4):
            given = inputs(step) | {"transformer_options": {"patches": model.patches}}
            given.pop("ref_latents_method", None)
            if run is None:
                out.append(network(**given))
                continue
            with run.evaluation(4.0 - step, step / 4), installed(adapter, network, run.next_forward(conds, 2)):
                out.append(network(**given))
        return out

    with torch.inference_mode():
        network, inputs = CASES[name][1]()
        adapter, conds, run = adapter_for(network), [(0, "a"), (1, "b")], CacheRun(policy, 4, measure=measure)
        assert all(map(torch.equal, sampled(run), sampled(None)))
    assert {r.action for r in run.trace.rows} <= {Action.COMPUTE}
    assert len(run.trace.notes) == (policy.history > 0)


def test_lists_of_other_blocks_are_no_flux():
    network = nn.Module()
    network.double_blocks = nn.ModuleList([nn.Linear(1, 1)])
    network.single_blocks = nn.ModuleList([nn.Linear(1, 1)])
    assert adapter_for(network) is None
