"""Keep priors as files in models/priorcache."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from safetensors import SafetensorError

from ..errors import excerpt, shown
from ..priors.prior import Prior, PriorError
from .files import located, written
from .types import PRIORS, PriorTable

RESERVED = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[\d¹²³])(\..*)?")
"""Names that are devices in Windows, whatever their ending."""

LONGEST = 200

FOLDER = "priorcache"
ROUTERS = "priorcache_routers"


def register_folder() -> None:
    """Make models/priorcache a model folder of the host; extra_model_paths may add others.

    Priors are .safetensors only. Published routers lie beside them, listed apart.
    """
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})
    folder_paths.folder_names_and_paths[ROUTERS] = (paths, {".pt", ".pth"})


class PriorCacheSavePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheSavePrior",
            display_name="Save Prior",
            category=PRIORS,
            description="Saves a prior to models/priorcache, for later runs and for sharing.",
            search_aliases=["save calibration"],
            is_output_node=True,
            inputs=[
                PriorTable.Input(
                    "prior", tooltip="From Calibrate, Search Plans, Train Router, Load Router or Merge Priors."
                ),
                io.String.Input(
                    "name",
                    default="my-model",
                    tooltip="File name: letters, digits, dots, dashes, underscores, plus signs, spaces.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replace a file of this name. Off: keep it and add a number to the new one.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name of the file, as Load Prior lists it.")],
        )

    @classmethod
    def execute(cls, prior: Prior, name: str, overwrite: bool) -> io.NodeOutput:
        path = saved(prior, name, overwrite)
        return io.NodeOutput(path.name, ui={"text": (f"Saved as {path.name} in {path.parent}.",)})


def saved(prior: Prior, name: str, overwrite: bool = False) -> Path:
    """The file of a prior in models/priorcache. Raises PriorError on a name that could leave it, and where it cannot be written."""
    folder, stem = Path(folder_paths.get_folder_paths(FOLDER)[0]), stem_of(name)
    try:
        if overwrite:
            return prior.save(folder / f"{stem}.safetensors")
        path = claimed(folder, stem)
        try:
            return prior.save(path)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
    except (OSError, SafetensorError) as error:
        raise PriorError(
            f"{folder} cannot be written to ({excerpt(error)}); make room or give ComfyUI the right to write there, and run the "
            "prompt again"
        ) from error


def claimed(folder: Path, stem: str) -> Path:
    """The first name that is free, and now taken by an empty file: two that save at the same moment get one each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.safetensors"
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path


def stem_of(name: str) -> str:
    """The name of a file without its ending."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .+-]{0,99}", stem) or stem.endswith((".", " ")) or RESERVED.fullmatch(stem):
        raise PriorError(
            f"{shown(name)} cannot be a file name here: use letters, digits, dots, dashes, underscores, plus signs and spaces"
        )
    if len(stem.encode()) > LONGEST:  # of what file systems allow, an ending and a number
        raise PriorError(f"{shown(name)} is too long for a file name: {LONGEST} bytes at most")
    return stem


class PriorCacheLoadPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheLoadPrior",
            display_name="Load Prior",
            category=PRIORS,
            description="Loads a prior from models/priorcache. Connect the model to be told at once when the prior was not made for it.",
            search_aliases=["load calibration"],
            inputs=[
                io.Combo.Input(
                    "prior_name", options=folder_paths.get_filename_list(FOLDER), tooltip="A file in models/priorcache."
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Optional: refuse a prior that belongs to another model."
                ),
            ],
            outputs=[PriorTable.Output(display_name="prior", tooltip="The prior.")],
        )

    @classmethod
    def execute(cls, prior_name: str, model=None) -> io.NodeOutput:
        from .calibrate import subject

        prior = Prior.load(located(FOLDER, prior_name))
        if model is not None:
            prior.matches(subject(model))
        return io.NodeOutput(prior)

    @classmethod
    def fingerprint_inputs(cls, prior_name: str, model=None):
        """A file that was written anew is loaded anew."""
        return written(FOLDER, prior_name)


class PriorCacheMergePriors(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheMergePriors",
            display_name="Merge Priors",
            category=PRIORS,
            description="Makes one prior of two that were calibrated alike, with other prompts or seeds: the mean over the pictures of both, and the plans of both.",
            search_aliases=["merge calibration", "combine priors"],
            inputs=[
                PriorTable.Input("prior", tooltip="From Calibrate or Load Prior."),
                PriorTable.Input(
                    "other",
                    tooltip="Another one of the same model, calibrated at the same size with the same sampler settings, longest_gap and mean_features, with other prompts or seeds.",
                ),
            ],
            outputs=[
                PriorTable.Output(display_name="prior", tooltip="Of all pictures together."),
                io.String.Output(display_name="summary", tooltip="How many pictures and plans it holds."),
            ],
        )

    @classmethod
    def execute(cls, prior: Prior, other: Prior) -> io.NodeOutput:
        whole, counted = Prior.merge([prior, other]), f"{prior.samples} and {other.samples} pictures"
        if prior.repeats(other):
            whole, counted = prior.planned(whole.plans), "twice the same pictures, which count once"
        text = f"{counted}: {whole.samples}; {len(prior.plans)} and {len(other.plans)} plans: {len(whole.plans)}."
        return io.NodeOutput(whole, text, ui={"text": (text,)})
