"""The DiT inside ComfyUI: its BaseModel, its noise schedule, and a loader that the host can repeat."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from .. import archives
from ..errors import PriorCacheError, SettingError, excerpt
from . import dit
from .checkpoint import CheckpointError, plain, read
from .dit import DiTConfig

LATENTS = {3: comfy.latent_formats.ChromaRadiance, 4: comfy.latent_formats.SD15}
"""Channels -> latent format: pixels as they are, or the SD VAE's latents (scale 0.18215), as the paper uses."""


class _Settings(comfy.supported_models_base.BASE):
    unet_config: ClassVar = {"image_model": "dit"}
    unet_extra_config: ClassVar = {}
    # What the host calls "sqrt_linear" is linear in beta; its "linear" is Stable Diffusion's.
    sampling_settings: ClassVar = {
        "beta_schedule": "sqrt_linear",
        "linear_start": 1e-4,
        "linear_end": 2e-2,
        "timesteps": 1000,
    }
    memory_usage_factor = 0.5

    def inpaint_model(self):
        return False

    def get_model(self, state_dict, prefix="", device=None):
        return DiTModel(self, device=device)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """The host's preferred attention; while something is trained, the one that has a backward pass everywhere."""
    function = attention_pytorch if comfy.model_management.in_training else optimized_attention
    return function(q, k, v, heads)


class DiT(dit.DiT):
    """A DiT that asks the host's wrappers of a forward, as the host's own networks do: EasyCache is one."""

    def forward(self, x, t, context=None, y=None, transformer_options=None, **rest) -> torch.Tensor:
        options, kind = transformer_options or {}, comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        return executor.execute(x, t, context, y, transformer_options=options, **rest)


def network(config: DiTConfig, operations, dtype=None, device=None, **_) -> DiT:
    """A DiT built from the host's layers and its preferred attention."""
    return DiT(config, operations=operations, attention=attention, dtype=dtype, device=device)


PREDICTIONS = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}


class DiTModel(comfy.model_base.BaseModel):
    """Noise or velocity prediction over 1000 linear betas; labels travel as integers, which the host does not cast."""

    def __init__(self, model_config, device=None):
        prediction = PREDICTIONS[model_config.unet_config["config"].prediction]
        super().__init__(model_config, prediction, device=device, unet_model=network)

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        out.pop("y", None)
        labels = kwargs.get("class_labels")
        if labels is None:
            raise SettingError(
                "This model is conditioned on class labels: connect a 'DiT Class Label' node to the sampler's "
                "positive and negative inputs (text prompts do not work with it)."
            )
        classes = self.diffusion_model.config.num_classes
        if int(labels.max()) >= classes:
            raise SettingError(f"Class label {int(labels.max())} is out of range: this model knows 0 to {classes - 1}.")
        # The null class travels as -1, so that one label node serves models of any number of classes.
        out["y"] = comfy.conds.CONDRegular(torch.where(labels < 0, classes, labels))
        return out


def opened(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a .safetensors or .pt file; nothing in it is executed. Raises CheckpointError."""
    known = Path(path).suffix.lower() in (".safetensors", ".sft")  # by which the host chooses its reader, too
    try:
        (archives.check_safetensors if known else archives.check_pickled)(Path(path))
        weights, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
        plain(weights)
        total = sum(weight.nbytes for weight in weights.values())
    except PriorCacheError as error:
        raise CheckpointError(f"it cannot be read as a checkpoint: {error}") from None
    except Exception as error:  # whatever a broken file makes safetensors, zipfile or torch raise
        raise CheckpointError(f"it cannot be read as a checkpoint: {type(error).__name__}: {excerpt(error)}") from error
    if total > 2 * Path(path).stat().st_size:  # tensors that share memory, more than tied weights do
        raise CheckpointError(f"its tensors claim {total / 2**20:.0f} MiB, more than the file holds: save them anew")
    return weights, metadata or {}


def load(
    path: str,
    heads: int = 0,
    embedding: str = "auto",
    dtype: torch.dtype | None = None,
    prediction: str = "auto",
    disable_dynamic=False,
):
    """A ModelPatcher from a .safetensors or .pt file. Raises CheckpointError, naming the file."""
    try:
        weights, metadata = opened(path)
        config, weights = read(weights, heads, embedding, metadata, prediction)
        if config.in_channels not in LATENTS:
            raise CheckpointError(f"it works on {config.in_channels} channels; 3 (pixels) and 4 (SD latents) are known")
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from None
    patcher = from_weights(config, weights, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load, (path, heads, embedding, dtype, prediction))
    return patcher


def from_weights(config: DiTConfig, weights: dict[str, torch.Tensor], dtype=None, disable_dynamic=False):
    """A ModelPatcher around weights in the original layout."""
    settings = _Settings({"image_model": "dit", "config": config})
    settings.latent_format = LATENTS[config.in_channels]()
    return placed(settings, weights, dtype, disable_dynamic)


def placed(settings, weights: dict[str, torch.Tensor], dtype=None, disable_dynamic=False):
    """A ModelPatcher around weights under the network's own names, placed and cast as the host does with its models."""
    manage = comfy.model_management
    load_device, offload_device = manage.get_torch_device(), manage.unet_offload_device()
    dtype = dtype or manage.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=settings.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    cast = manage.unet_manual_cast(dtype, load_device, settings.supported_inference_dtypes)
    settings.set_inference_dtype(dtype, cast)
    model = settings.get_model(weights)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not manage.is_device_cpu(offload_device):
        model.to(offload_device)
    dynamic = getattr(patcher, "is_dynamic", bool)()
    model.load_model_weights(dict(weights), "", **({"assign": True} if dynamic else {}))
    return patcher
