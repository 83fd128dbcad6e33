"""Tiny random models of the host's own classes, and one way to sample each.

Host code is imported inside the functions: `comfy` is importable only once the fixture of that name has run.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from architectures import generator, opened
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import RunTrace, Trace
from safetensors.torch import save_file

WORDS, POOLED = 64, 64
"""Widths of a prompt's embedding and of its pooled one."""

CPU = torch.device("cpu")


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance of a to b."""
    return ((a - b).norm() / b.norm()).item()


def reused(sample, model, attach, policy) -> RunTrace:
    """The trace of a run that reuses some of it, whose memory was told beforehand and which leaves nothing behind."""
    trace, stock = Trace(), sample(model)
    out = sample(attach(model, policy, trace))
    (run,) = trace.runs
    assert run.notes == []
    assert 0 < close(out, stock) < 1
    assert {row.action for row in run.rows} >= {Action.COMPUTE, Action.REUSE}
    assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.02)
    assert torch.equal(sample(model), stock)
    assert left_over(model.model) == []
    return run


def left_over(network: torch.nn.Module) -> list[str]:
    """Modules whose forward something replaced and did not put back."""
    return [name for name, module in network.named_modules() if "forward" in module.__dict__]


def compilable(network: torch.nn.Module) -> None:
    """Give a DiT an attention that torch.compile takes whole: the host's, of a CPU, asks how much memory is free."""
    from priorcache.models.dit import sdpa

    for block in network.blocks:
        block.attn.attention = sdpa


def loaded(path: str, **options):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(path, model_options=options)


class Subject:
    """A tiny model, and one way to sample it."""

    def __init__(self, model, size: tuple[int, int], path: str = ""):
        self.model, self.size, self.path = model, size, path
        self.channels = model.model.latent_format.latent_channels

    def prompt(self, seed: int, words: int = 5, **extra) -> list:
        """Conditioning as a text encoder would make it."""
        rng = generator(seed)
        context = torch.randn(1, words, WORDS, generator=rng)
        return [[context, {"pooled_output": torch.randn(1, POOLED, generator=rng)} | extra]]

    def noise(self, seed: int, batch: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randn(batch, self.channels, *size, generator=generator(seed))

    def sample(
        self, model=None, *, steps=4, cfg=2.0, sampler="euler", seed=0, batch=1, size=None, positive=None, negative=None,
        latent=None, **settings,
    ) -> torch.Tensor:  # fmt: skip
        import comfy.sample

        if latent is None:
            latent = torch.zeros(batch, self.channels, *(size or self.size))
        with torch.inference_mode():
            return comfy.sample.sample(
                model or self.model, self.noise(seed, len(latent), latent.shape[2:]), steps, cfg, sampler, "simple",
                positive or self.prompt(1), negative or self.prompt(2), latent, disable_pbar=True, seed=seed, **settings,
            )  # fmt: skip

    def guided(self, guider, steps: int = 4) -> torch.Tensor:
        """As above, by a guider of the host's."""
        import comfy.samplers

        model = guider.model_patcher
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            latent = torch.zeros(1, self.channels, *self.size)
            return guider.sample(self.noise(0, 1, self.size), latent, sampler, sigmas, disable_pbar=True, seed=0)

    def calls(self, model) -> tuple:
        """A clone, and the list of batch sizes that its network will have been called with."""
        seen = []

        def counted(apply_model, args):
            seen.append(len(args["input"]))
            return apply_model(args["input"], args["timestep"], **args["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(counted)
        return model, seen


class Labelled(Subject):
    """A model that takes class numbers in place of a prompt."""

    def prompt(self, seed: int, words: int = 5, **extra) -> list:
        return [[torch.zeros(1, 1, 1), {"class_labels": torch.tensor([seed % 10])} | extra]]


def dit(depth: int = 3) -> Subject:
    from priorcache.models import host
    from priorcache.models.dit import DiT, DiTConfig

    config = DiTConfig(64, depth, 4, 2, 3, 10, learn_sigma=False, grid_size=8)
    with torch.inference_mode():
        return Labelled(host.from_weights(config, opened(DiT(config)).state_dict()), (16, 16))


def saved_dit(folder: Path, name: str, **changes) -> Path:
    """A DiT as a file, by default of the kind of the demo's."""
    from priorcache.models.dit import DiT, DiTConfig

    settings = {
        "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "in_channels": 3, "num_classes": 12,
        "learn_sigma": False, "grid_size": 8, "prediction": "v_prediction",
    }  # fmt: skip
    config = DiTConfig(**settings | changes)
    rng = torch.Generator().manual_seed(1)
    shapes = DiT(config, device="meta").state_dict()
    weights = {k: torch.randn(v.shape, generator=rng) * 0.1 for k, v in shapes.items()}
    save_file(
        weights,
        folder / f"{name}.safetensors",
        metadata={"num_heads": str(config.num_heads), "prediction_type": config.prediction},
    )
    return folder / f"{name}.safetensors"


def flux(folder, depth: int = 2) -> Subject:
    """One head of 128, this many blocks of either kind, under the names of the original checkpoints."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    network = opened(
        Flux(
            in_channels=16,
            out_channels=16,
            vec_in_dim=POOLED,
            context_in_dim=WORDS,
            hidden_size=128,
            mlp_ratio=4.0,
            num_heads=1,
            depth=depth,
            depth_single_blocks=depth,
            axes_dim=[16, 56, 56],
            theta=10000,
            patch_size=2,
            qkv_bias=True,
            guidance_embed=True,
            txt_ids_dims=[],
            operations=comfy.ops.disable_weight_init,
        )
    )
    path = folder / "flux.safetensors"
    save_file({k.replace("_norm.weight", "_norm.scale"): v for k, v in network.state_dict().items()}, path)
    return Subject(loaded(str(path)), (12, 12), str(path))


def sd3(folder) -> Subject:
    """Two heads of 64 in two blocks, the least that the host's loader knows."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    context = {"target": "torch.nn.Linear", "params": {"in_features": WORDS, "out_features": 128}}
    network = opened(
        OpenAISignatureMMDITWrapper(
            depth=2,
            input_size=None,
            in_channels=16,
            adm_in_channels=POOLED,
            pos_embed_max_size=16,
            num_patches=256,
            qk_norm="rms",
            context_embedder_config=context,
            operations=comfy.ops.disable_weight_init,
        )
    )
    path = folder / "sd3.safetensors"
    save_file(network.state_dict(), path)
    return Subject(loaded(str(path)), (12, 12), str(path))


def pixart() -> Subject:
    """Built by code, since the loader knows one size only; large patches, since latents must be larger than 32."""
    settings = {
        "hidden_size": 64, "num_heads": 4, "depth": 3, "patch_size": 8, "caption_channels": WORDS, "input_size": 40,
        "pe_interpolation": 1, "micro_condition": False,
    }  # fmt: skip
    return Subject(built("PixArtSigma", image_model="pixart_sigma", **settings), (48, 40))


def unet() -> Subject:
    """Of the kind of Stable Diffusion 1.5, which no adapter knows."""
    settings = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
        "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1] * 4,
        "context_dim": WORDS, "num_heads": 4, "num_head_channels": -1, "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
    }  # fmt: skip
    return Subject(built("SD15", **settings), (16, 16))


WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 96, "ffn_dim": 128, "num_heads": 4, "num_layers": 2, "in_dim": 16,
    "out_dim": 16, "freq_dim": 32, "text_dim": WORDS, "patch_size": (1, 2, 2), "qk_norm": True, "cross_attn_norm": True,
    "eps": 1e-6,
}  # fmt: skip


def wan() -> Subject:
    """Three latent frames of a video."""
    return Subject(built("WAN21_T2V", **WAN), (3, 8, 8))


def scail() -> Subject:
    """The same with poses behind the video."""
    return Subject(built("WAN21_SCAIL", **WAN | {"model_type": "scail", "in_dim": 20}), (3, 8, 8))


def flux2() -> Subject:
    """Shared modulation, latents of 128 channels: what can modulate reference latents as if they were free of noise."""
    settings = {
        "in_channels": 128, "out_channels": 128, "context_in_dim": WORDS, "hidden_size": 64, "num_heads": 4,
        "mlp_ratio": 2.0, "depth": 1, "depth_single_blocks": 2, "axes_dim": [4] * 4, "theta": 2000, "patch_size": 1,
        "qkv_bias": False, "guidance_embed": False, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
        "ops_bias": False, "vec_in_dim": None, "default_ref_method": "index", "ref_index_scale": 10.0,
    }  # fmt: skip
    return Subject(built("Flux2", image_model="flux2", **settings), (6, 6))


def ideogram4() -> Subject:
    """With words or, where a cond has none, without: what the host samples by two models."""
    settings = {
        "in_channels": 128, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96,
        "adaln_dim": 16, "llm_features_dim": WORDS, "mrope_section": (6, 5, 5),
    }  # fmt: skip
    return Subject(built("Ideogram4", image_model="ideogram4", **settings), (6, 6))


def hidream() -> Subject:
    """Two heads of 32, a block of either kind; its prompts need `conditioning_llama3`, (B, 2, words, WORDS)."""
    settings = {
        "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32,
        "num_attention_heads": 2, "caption_channels": [WORDS, WORDS], "text_emb_dim": POOLED, "axes_dims_rope": (16, 8, 8),
        "max_resolution": (16, 16), "llama_layers": [0, 1],
    }  # fmt: skip
    return Subject(built("HiDream", image_model="hidream", **settings), (12, 12))


def omnigen2() -> Subject:
    """Its prompts need `attention_mask`."""
    return Subject(built("Omnigen2", image_model="omnigen2", text_feat_dim=WORDS, **OMNIGEN2), (12, 12))


def boogu() -> Subject:
    """The same with blocks of two streams."""
    pytest.importorskip("comfy.ldm.boogu.model", reason="newer than this host")
    settings = OMNIGEN2 | {"num_double_stream_layers": 1, "instruction_feat_dim": WORDS}
    return Subject(built("Boogu", image_model="boogu", **settings), (12, 12))


OMNIGEN2 = {
    "in_channels": 16, "hidden_size": 60, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
    "num_kv_heads": 1, "multiple_of": 32, "axes_dim_rope": (10, 10, 10),
}  # fmt: skip
"""Two heads of 30, one of keys and values."""


def joyimage() -> Subject:
    """One head of 128, as the host's settings have it."""
    pytest.importorskip("comfy.ldm.joyimage.model", reason="newer than this host")
    settings = {"in_channels": 16, "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2, "text_dim": WORDS}
    return Subject(built("JoyImage", image_model="joyimage", **settings), (1, 12, 12))


def krea2() -> Subject:
    """Its prompts have two layers of half that width."""
    pytest.importorskip("comfy.ldm.krea2.model", reason="newer than this host")
    settings = {
        "features": 64,
        "tdim": 32,
        "txtdim": WORDS // 2,
        "heads": 2,
        "kvheads": 1,
        "multiplier": 2,
        "layers": 2,
    }
    text = {"txtlayers": 2, "txtheads": 2, "txtkvheads": 2}
    return Subject(built("Krea2", image_model="krea2", **settings, **text), (1, 12, 12))


def ltxav(**changes):
    """A ModelPatcher of LTX-2: a video and its sound, or a video alone."""
    settings = {
        "image_model": "ltxav", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2,
        "audio_cross_attention_dim": 48, "audio_attention_head_dim": 24, "audio_num_attention_heads": 2, "num_layers": 3,
        "caption_channels": 24, "connector_attention_head_dim": 24, "connector_num_attention_heads": 1, "connector_num_layers": 1,
    }  # fmt: skip
    return _frozen(built("LTXAV", **settings | changes))


def minimax_h3():
    """A ModelPatcher of MiniMax H3: a video and its sound."""
    settings = {
        "image_model": "minimax_h3", "hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1,
        "num_attention_heads": 2, "attention_head_dim": 56, "ffn_hidden_size": 96, "text_dim": 24, "timestep_input_dim": 32,
        "time_embed_hidden_size": 48, "time_embed_dim": 40, "rope_inv_freq_len": 8,
    }  # fmt: skip
    return _frozen(built("MiniMaxH3", **settings))


def _frozen(model):
    model.model.requires_grad_(False)
    return model


def built(name: str, **settings):
    """A ModelPatcher of an architecture that the host's loader would not recognise in this size."""
    import comfy.model_patcher

    config = getattr(import_module("comfy.supported_models"), name)(settings)
    config.unet_config |= settings  # over what the host fixes for the published size
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        base = config.get_model({}, "")
        opened(base.diffusion_model)
    return comfy.model_patcher.CoreModelPatcher(base, load_device=CPU, offload_device=CPU)
