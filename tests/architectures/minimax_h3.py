"""MiniMax H3."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from . import generator, opened


def minimax_h3(
    words: int = 5,
    keyframes: int = 0,
    references: tuple[str, ...] = (),
    pads: int = 0,
    curves: bool = False,
    raw: bool = False,
    size: tuple[int, int, int] = (3, 4, 6),
    audio: int = 4,
    replaced: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, Callable]:
    """Two heads of 56, together wider than the network; a video of `size` and stereo `audio` of so many frames.

    keyframes: the first picture, then the last. references: "image", "audio", "video" or "video_audio" each. pads: so many
    words stand for what the text encoder saw. curves: checkpoints with a table in place of the time embedder. raw: words
    that the text refiner did not see yet. replaced: a node puts every block in its own place.
    """
    model = pytest.importorskip("comfy.ldm.minimax.model", reason="newer than this host")
    import comfy.ops

    class Packed(model.MiniMaxH3Model):
        """Puts out one latent, as the host's own caller makes of the two."""

        def forward(self, *args, **kwargs):
            return torch.cat([part.flatten(1) for part in super().forward(*args, **kwargs)], dim=1)

    settings = {
        "hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 56,
        "ffn_hidden_size": 96, "latents_dim": 4, "audio_latents_dim": 6, "text_dim": 24, "timestep_input_dim": 32,
        "time_embed_hidden_size": 48, "time_embed_dim": 8 if curves else 40, "rope_inv_freq_len": 8,
        "adaln_curve_grid": 9 if curves else None,
    }  # fmt: skip
    network = opened(Packed(**settings, dtype=dtype, operations=comfy.ops.disable_weight_init))
    network.requires_grad_(False)  # as in a file: the host's rotation refuses norms that could learn
    _, height, width = size

    def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator(seed)).to(dtype)

    def reference(kind: str, seed: int) -> dict:
        block = {"kind": kind, "ref_audio_t": 3 if "audio" in kind else 0, "latent_h": 4, "latent_w": 2}
        if kind != "audio":
            block |= {"latent_t": (2, 1)[kind == "image"]}
            block["latent"] = noise(seed, 4, block["latent_t"], 4, 2)
        return block | {"audio_latent": noise(seed + 9, 6, 2, 3) if block["ref_audio_t"] else None}

    def inputs(step: int) -> dict:
        anchors = [{"resolved_frame_index": i, "latent": noise(90 + i, 4, 1, height, width)} for i in (0, 8)]
        refs = [reference(kind, 70 + i) for i, kind in enumerate(references)]
        payload = {
            "keyframes": anchors[:keyframes],
            "frame_count": 9,
            "refs": refs,
            "cond_video_latents": [part["latent"] for part in (*anchors[:keyframes], *refs) if "latent" in part],
            "cond_audio_latents": [part["audio_latent"] for part in refs if part["audio_latent"] is not None],
        }
        if pads:
            payload["text_token_tags"] = torch.tensor([1] + [0] * pads + [1] * (words - pads - 1))
        itself = {("double_block", i): lambda args, original: original["original_block"](args) for i in range(3)}
        return {
            "x": [noise(step, 4, *size, dtype=dtype), noise(step + 50, 6, 2, audio, dtype=dtype)],
            "timestep": torch.tensor([900.0 - 100 * (step % 9)]),
            "context": noise(99, words, 24 if raw else 64, dtype=dtype),
            "minimax_payload": payload,
            "transformer_options": {"patches_replace": {"dit": itself}} if replaced else {},
        }

    return network, inputs


CASES = {
    "minimax h3": minimax_h3,
    "minimax h3 bfloat16": lambda: minimax_h3(dtype=torch.bfloat16, keyframes=1),
    "minimax h3 picture, one word": lambda: minimax_h3(size=(1, 6, 4), words=1, audio=1),
    "minimax h3 image to video": lambda: minimax_h3(keyframes=1, pads=3, words=6),
    "minimax h3 first and last frame": lambda: minimax_h3(keyframes=2, size=(5, 4, 4)),
    "minimax h3 odd size": lambda: minimax_h3(size=(2, 5, 3)),
    "minimax h3 references": lambda: minimax_h3(references=("image", "video_audio", "video", "audio"), words=9, pads=4),
    "minimax h3 table of curves": lambda: minimax_h3(curves=True, references=("image",)),
    "minimax h3 raw text": lambda: minimax_h3(raw=True),
    "minimax h3 blocks replaced by themselves": lambda: minimax_h3(replaced=True),
}
