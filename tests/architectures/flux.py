"""Flux, and the other networks made of its blocks: Flux.2, Chroma, HunyuanVideo, Hunyuan3D 2."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn

from . import generator, opened

WIDTH, HEADS, CHANNELS, TEXT, POOLED = 64, 4, 4, 24, 8


def built(path: str, name: str, dtype: torch.dtype | None = None, **settings) -> nn.Module:
    import comfy.ops

    shape = {"hidden_size": WIDTH, "num_heads": HEADS, "mlp_ratio": 2.0, "context_in_dim": TEXT, "qkv_bias": True}
    settings = shape | {"depth": 2, "depth_single_blocks": 2} | settings
    kind = getattr(import_module(f"comfy.ldm.{path}.model"), name)
    return opened(kind(**settings, dtype=dtype, operations=comfy.ops.disable_weight_init))


def conditions(step: int, dtype: torch.dtype | None, words: int, *shape: int) -> dict:
    """Noise that changes with the step, text that does not."""
    return {
        "x": torch.randn(2, *shape, generator=generator(step)).to(dtype),
        "timestep": torch.tensor([0.9, 0.7]) - 0.1 * step,
        "context": torch.randn(2, words, TEXT, generator=generator(99)).to(dtype),
    }


def flux(words: int = 5, references: str | None = None, mask: bool = False, control: bool = False, **settings):
    """`references`: how the tokens of two further images are placed and modulated."""
    dtype = settings.get("dtype") or torch.float32
    shape = {"in_channels": CHANNELS, "out_channels": CHANNELS, "vec_in_dim": POOLED, "patch_size": 2}
    places = {"axes_dim": [4, 6, 6], "theta": 10000, "txt_ids_dims": [], "guidance_embed": False}
    network = built("flux", "Flux", **shape | places | settings)
    channels, pooled = network.params.in_channels, network.params.vec_in_dim
    tokens = 48 // network.patch_size**2

    def inputs(step: int) -> dict:
        rng = generator(98)
        given = conditions(step, dtype, words, channels, 8, 6)
        if pooled:
            given["y"] = torch.randn(2, pooled, generator=rng).to(dtype)
        if network.params.guidance_embed:
            given["guidance"] = torch.tensor([3.5, 1.0])
        if references:
            given["ref_latents"] = [torch.randn(2, channels, 4, w, generator=rng).to(dtype) for w in (6, 4)]
            given["ref_latents_method"] = references
        if mask:
            given["attention_mask"] = torch.randn(2, 1, words + tokens, generator=rng).to(dtype)
        if control:
            hints = [torch.randn(1, n, WIDTH, generator=rng).to(dtype) for n in (tokens, tokens - 2)]
            given["control"] = {"input": hints[:1], "output": [None, hints[1]]}
        return given

    return network, inputs


FLUX2 = {
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "qkv_bias": False, "vec_in_dim": None,
    "patch_size": 1, "axes_dim": [4] * 4, "theta": 2000, "txt_ids_dims": [3], "default_ref_method": "index",
    "ref_index_scale": 10.0,
}  # fmt: skip


def overflowing() -> tuple[nn.Module, Callable]:
    """One channel of the text leaves the range of half precision in every block."""
    network, inputs = flux(dtype=torch.float16)
    for block in network.double_blocks:
        block.txt_mod.lin.bias.data[5 * WIDTH] = 2  # the gate of the MLP
        block.txt_mlp[-1].bias.data[0] = 6e4
    for block in network.single_blocks:
        block.modulation.lin.bias.data[2 * WIDTH] = 2
        block.linear2.bias.data[0] = 40
    return network, inputs


def chroma(words: int = 4, path: str = "chroma", name: str = "Chroma", **settings):
    dtype = settings.get("dtype") or torch.float32
    shape = {"in_channels": CHANNELS * 4, "out_channels": CHANNELS * 4, "patch_size": 2}
    places = {"axes_dim": [4, 6, 6], "theta": 10000, "txt_ids_dims": [], "vec_in_dim": None}
    guidance = {"in_dim": 64, "out_dim": WIDTH, "hidden_dim": 32, "n_layers": 2}
    network = built(path, name, **shape | places | guidance | settings)

    def inputs(step: int) -> dict:
        channels = CHANNELS if path == "chroma" else network.in_channels
        return conditions(step, dtype, words, channels, 8, 6) | {"guidance": torch.zeros(2)}

    return network, inputs


def radiance(**settings) -> tuple[nn.Module, Callable]:
    from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

    nerf = {
        "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0,
        "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": True,
        "use_sequential_txt_ids": True,
    }  # fmt: skip
    known = {k: v for k, v in nerf.items() if k in ChromaRadianceParams.__dataclass_fields__}  # hosts differ
    pixels = {"in_channels": 3, "out_channels": 3}
    return chroma(path="chroma_radiance", name="ChromaRadiance", **known | pixels | settings)


def hunyuan_video(words: int = 5, masked: bool = False, frame: bool = False, vision: int | None = None, **settings):
    """masked: padded text, one mask for both rows; frame: the first frame is given and has its own modulation."""
    dtype = settings.get("dtype") or torch.float32
    shape = {"in_channels": CHANNELS, "out_channels": CHANNELS, "vec_in_dim": POOLED, "patch_size": [1, 2, 2]}
    places = {"axes_dim": [4, 6, 6], "theta": 256, "guidance_embed": False}
    further = {"byt5": False, "meanflow": False, "meanflow_sum": False, "use_cond_type_embedding": bool(vision)}
    settings = shape | places | further | {"vision_in_dim": vision} | settings
    network = built("hunyuan_video", "HunyuanVideo", **settings)
    size = (CHANNELS, 3, 4, 6)[-len(network.patch_size) :]

    def inputs(step: int) -> dict:
        rng = generator(98)
        given = conditions(step, dtype, words, CHANNELS, *size[-len(network.patch_size) :])
        if settings["vec_in_dim"]:
            given["y"] = torch.randn(2, POOLED, generator=rng).to(dtype)
        if settings["guidance_embed"]:
            given["guidance"] = torch.tensor([6.0, 1.0])
        if masked:
            given["attention_mask"] = torch.tensor([[1] * (words - 2) + [0] * 2])
        if frame:
            given["guiding_frame_index"] = torch.zeros(2)
        if vision:
            given["clip_fea"] = torch.randn(2, 3, vision, generator=rng).to(dtype)
        return given

    return network, inputs


def hunyuan_3d(**settings) -> tuple[nn.Module, Callable]:
    network = built("hunyuan3d", "Hunyuan3Dv2", in_channels=CHANNELS, **settings)

    def inputs(step: int) -> dict:
        guidance = {"guidance": torch.tensor([5.0, 1.0])} if network.guidance_in is not None else {}
        return conditions(step, torch.float32, 3, CHANNELS, 10) | guidance

    return network, inputs


CASES = {
    "flux dev": lambda: flux(guidance_embed=True),
    "flux schnell, one word": lambda: flux(words=1),
    "flux kontext": lambda: flux(references="offset", words=7),
    "flux fill, no bias of q, k, v": lambda: flux(in_channels=CHANNELS + 2, qkv_bias=False),
    "flux attention mask": lambda: flux(mask=True),
    "flux controlnet": lambda: flux(control=True),
    "flux yak mlp, normed text": lambda: flux(yak_mlp=True, txt_norm=True, txt_ids_dims=[1, 2], vec_in_dim=None),
    "flux silu mlp": lambda: flux(mlp_silu_act=True, ops_bias=False),
    "flux bfloat16": lambda: flux(dtype=torch.bfloat16),
    "flux float16": lambda: flux(dtype=torch.float16, guidance_embed=True),
    "flux float16 overflowing": overflowing,
    "flux.2": lambda: flux(**FLUX2),
    "flux.2 with gelu mlp": lambda: flux(**FLUX2 | {"mlp_silu_act": False}),
    "flux.2 with yak mlp": lambda: flux(**FLUX2 | {"mlp_silu_act": False, "yak_mlp": True}),
    "flux.2 references": lambda: flux(**FLUX2, references="index"),
    "flux.2 references at timestep zero": lambda: flux(**FLUX2, references="index_timestep_zero"),
    "flux.2 references at timestep zero, float16": lambda: flux(
        **FLUX2, references="index_timestep_zero", dtype=torch.float16
    ),
    "chroma": chroma,
    "chroma bfloat16": lambda: chroma(dtype=torch.bfloat16, words=9),
    "chroma float16": lambda: chroma(dtype=torch.float16),
    "chroma radiance": radiance,
    "hunyuan video": lambda: hunyuan_video(guidance_embed=True),
    "hunyuan video padded text": lambda: hunyuan_video(masked=True),
    "hunyuan video first frame": lambda: hunyuan_video(frame=True),
    "hunyuan video first frame, padded text": lambda: hunyuan_video(frame=True, masked=True, vec_in_dim=None),
    "hunyuan video 1.5": lambda: hunyuan_video(vision=12, vec_in_dim=None, depth_single_blocks=0),
    "hunyuan image": lambda: hunyuan_video(patch_size=[2, 2], axes_dim=[8, 8], words=3),
    "hunyuan 3d": hunyuan_3d,
    "hunyuan 3d guidance": lambda: hunyuan_3d(guidance_embed=True),
}
