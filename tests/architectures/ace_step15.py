"""ACE-Step 1.5."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from . import generator, opened


def sizes() -> dict:
    """Those that the host knows: older ones have one width for encoders and blocks."""
    from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel

    found = {
        "in_channels": 24, "hidden_size": 64, "text_hidden_dim": 24, "timbre_hidden_dim": 8, "audio_acoustic_hidden_dim": 8,
        "num_dit_layers": 3, "num_lyric_layers": 1, "num_timbre_layers": 1, "num_tokenizer_layers": 1, "num_heads": 4,
        "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96, "sliding_window": 2, "fsq_dim": 64, "fsq_levels": [3, 2, 2],
        "encoder_hidden_size": 64, "encoder_intermediate_size": 96, "encoder_num_heads": 4,
    }  # fmt: skip
    known = inspect.signature(AceStepConditionGenerationModel).parameters
    return {name: value for name, value in found.items() if name in known}


def ace_step15(
    rows: int = 2,
    length: int = 21,
    codes: int = 0,
    dtype: torch.dtype = torch.float32,
    covers: bool | None = False,
    prompt: bool = True,
    **changes,
) -> tuple[nn.Module, Callable]:
    """Four heads of 16 on two of keys; windows of two tokens to either side in the first and the third block.

    The host gives the timbres of all rows to the first and none to the others. Of two rows each has its own here, so that
    they may be split.
    """
    import comfy.ops
    from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel

    settings = sizes() | changes
    network = AceStepConditionGenerationModel(**settings, dtype=dtype, operations=comfy.ops.disable_weight_init)
    network = opened(network)
    if rows > 1:
        network.encoder.timbre_encoder.unpack_timbre_embeddings = lambda timbres, _: (timbres[:, None], None)

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator(seed))[:rows].to(dtype)

    def inputs(step: int) -> dict:
        found = {
            "x": noise(step, 8, length),
            "timestep": torch.tensor([0.9, 0.7])[:rows] - 0.1 * step,
            "context": noise(99, 5, 24),
            "lyric_embed": noise(98, 7, 24),
            "refer_audio": noise(97, 8, length),
        }
        if codes:
            found["audio_codes"] = torch.randint(12, (2, codes), generator=generator(96))[:rows]
        return found | {"is_covers": covers, "replace_with_null_embeds": not prompt}

    return network, inputs


CASES = {
    "ace-step 1.5": ace_step15,
    "ace-step 1.5 bfloat16": lambda: ace_step15(dtype=torch.bfloat16),
    "ace-step 1.5 codes": lambda: ace_step15(codes=5, covers=None),
    "ace-step 1.5 cover": lambda: ace_step15(covers=True),
    "ace-step 1.5 no prompt": lambda: ace_step15(prompt=False),
    "ace-step 1.5 even length, a key for every head": lambda: ace_step15(length=20, num_kv_heads=4),
    "ace-step 1.5 one row": lambda: ace_step15(rows=1, layer_types=["full_attention"]),
}
