"""What an adapter says of the work of branches, against what is counted while they run."""

import architectures
import pytest
import torch
from priorcache.cache_core.adapters import adapter_for, overridden
from priorcache.cache_core.sites import STACK
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

CASES = architectures.cases()
NAMES = [
    "auraflow", "dit learned sigma", "flux kontext", "flux.2 with yak mlp", "chroma", "hunyuan video", "ltxv modulated text",
    "lumina", "z-image", "pixart sigma", "qwen image one word, two references", "sd3 second attention",
    "sd3 register tokens, rms norm", "wan image to video", "krea 2", "krea 2 references", "ernie image", "ideogram 4", "lens",
    "hidream", "hidream three of five experts", "omnigen2 two references", "boogu two references",
    "joyimage one word, two references", "cosmos predict2", "kandinsky 5", "mochi", "minimax h3 references",
    "ltx-2", "ltx-2 reference sound", "ltx-2 without sound", "ltx-2.3", "ltx-2.3 noise level per frame", "hunyuan dit",
    "ace-step", "ace-step 1.5",
]  # fmt: skip
"""One of every kind of block, and of every architecture; others are told roughly, such as keys that are thinned or come from sounds."""
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention(q, k, v, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(q, k, v)


def counted(network, adapter, inputs) -> dict:
    """Operations of every branch in one forward, for one row."""
    found = {}

    def equation(block):
        def branch(name, fn, x, tokenwise=False):
            with FlopCounterMode(display=False, custom_mapping={FLASH: attention}) as counter:
                out = fn(x)
            found[block.sites[name]] = counter.get_total_flops() / len(x)
            return out

        return lambda *args, **kwargs: block.equation(block.module, branch, *args, **kwargs)

    with overridden([(block.module, equation(block)) for block in adapter.blocks(network)]):
        network(**inputs)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_told_beforehand(request, name):
    architecture, make = CASES[name]
    if architecture not in architectures.WITHOUT_HOST:
        request.getfixturevalue("comfy")
    with torch.inference_mode():
        network, inputs = make()
        given, adapter = inputs(0), adapter_for(network)
        found = counted(network, adapter, given)
    told = adapter.flops(network, architectures.latents(given), architectures.text(given))
    assert told.pop(STACK) == sum(told.values())
    assert {site: told[site] for site in found} == {site: pytest.approx(n, rel=0.1) for site, n in found.items()}


def test_every_architecture_is_counted():
    assert {CASES[name][0] for name in NAMES} == {architecture for architecture, _ in CASES.values()}
