"""Saved images say how their sampling was cached, and can be made again from that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..cache_core.trace import RunTrace, Trace
from ..errors import PriorCacheError, excerpt, shown
from ..priors.record import restored
from .graph import sampled
from .types import CATEGORY, POLICIES, Policy, TraceHandle

KEY = "priorcache"
"""Of the text in a PNG, and in the host's `extra_pnginfo`."""


class StampError(PriorCacheError):
    """An image that does not say how it was cached. Says why, and what to do."""


CHANGED = (
    "These are not the pixels that Stamp Images saw: they were changed on their way to Save Image, or another branch of "
    "that workflow saved them."
)


def stamp(runs: Iterable[RunTrace], images: torch.Tensor, before: object = None) -> dict:
    """What an image says: of every whole sampling run its policy, in words and as a record where it can be made again.

    The host writes the same into every image that a prompt saves, so each stamp names the images (B, H, W, C) that it is
    about. before: what earlier stamps of the prompt said. `runs` repeats the latest one, for readers that know only it.
    """
    told = [{"about": r.about, "policy": r.policy, "record": r.record} for r in runs if r.complete]
    earlier = before.get("stamps", []) if isinstance(before, dict) else []
    return {"format": 1, "runs": told, "stamps": [*earlier, {"images": named(images), "runs": told}]}


def named(images: torch.Tensor) -> list[str]:
    """Images (B, H, W, C) by what they are when the host saves them."""
    return [_named(picture.cpu().numpy()) for picture in images]  # one by one, as a video may fill the memory


def _named(picture: np.ndarray) -> str:
    pixels = np.clip(255.0 * picture, 0, 255).astype(np.uint8)
    return _name(pixels.shape[1], pixels.shape[0], pixels.tobytes())


def _name(width: int, height: int, pixels: bytes) -> str:
    return hashlib.sha256(f"{width} x {height}".encode() + pixels).hexdigest()[:32]


class PriorCacheStamp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheStamp",
            display_name="Stamp Images",
            category=CATEGORY,
            description="Between VAE Decode and Save Image: the saved files say how their sampling was cached, step by step, so that Replay Policy can repeat it. The images pass as they are.",
            search_aliases=["metadata", "pnginfo", "reproduce", "provenance"],
            inputs=[
                io.Image.Input("images", tooltip="From VAE Decode; on to Save Image."),
                TraceHandle.Input(
                    "trace",
                    optional=True,  # a bypassed Apply Cache has none, and the images are saved all the same
                    tooltip="From Apply Cache or PriorCache (auto): of the model that these images were sampled with. Without one the images pass unstamped.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The same images, for Save Image.")],
            hidden=[io.Hidden.extra_pnginfo, io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, trace: Trace | None = None) -> io.NodeOutput:
        said = cls.hidden.extra_pnginfo
        if trace is not None and said is not None:  # a prompt may be queued without anything to save in images
            said[KEY] = stamp(sampled(trace, cls.hidden, "images"), images, said.get(KEY))
        return io.NodeOutput(images)

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")  # never the same: every prompt has its own metadata


class PriorCacheReplay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = folder_paths.get_input_directory()
        files = [f for f in os.listdir(folder) if os.path.isfile(os.path.join(folder, f))]
        return io.Schema(
            node_id="PriorCacheReplay",
            display_name="Replay Policy",
            category=POLICIES,
            description="Takes the policy out of an image that Stamp Images marked: the same steps are computed, the others made by the same numbers. With the same workflow the image comes out bit by bit.",
            search_aliases=["metadata", "reproduce", "policy from image"],
            inputs=[
                io.Combo.Input(
                    "image",
                    options=sorted(folder_paths.filter_files_content_types(files, ["image"])),
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="A PNG as ComfyUI saved it; other programs may drop what it says.",
                ),
                io.Int.Input(
                    "run",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Which of the image's sampling runs, where there were several: 1 is the first.",
                ),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="For Apply Cache."),
                io.String.Output(display_name="summary", tooltip="What the image says of its sampling runs."),
            ],
        )

    @classmethod
    def execute(cls, image: str, run: int = 1) -> io.NodeOutput:
        runs, remark = read(image)
        listed = "\n".join(f"{i}. {excerpt(of['policy'])} ({excerpt(of['about'])})" for i, of in enumerate(runs, 1))
        if not 1 <= run <= len(runs):
            raise StampError(f"{image} holds {len(runs)} sampling run(s), and run is {run}. They are:\n{listed[:600]}")
        record = runs[run - 1]["record"]
        if record is None:
            raise StampError(
                f"{image} was made with {excerpt(runs[run - 1]['policy'])}, which needs more than an image holds (a router or mean "
                "features): load its prior with Load Prior instead"
            )
        return io.NodeOutput(restored(record["policy"], record["settings"]), f"{listed}\n{remark}".strip())

    @classmethod
    def fingerprint_inputs(cls, image: str, run: int = 1):
        return os.stat(path_of(image)).st_mtime_ns

    @classmethod
    def validate_inputs(cls, image: str | None):
        if image is None:  # another node will say which
            return True
        try:
            return True if os.path.isfile(path_of(image)) else f"{image} is not in ComfyUI's input folder; upload it"
        except StampError as error:
            return str(error)


def path_of(image: str) -> str:
    """Where an image of the host's input, output or temp folder lies. Raises StampError when it is in none of them."""
    try:
        path = os.path.realpath(folder_paths.get_annotated_filepath(image))
        folder = folder_paths.annotated_filepath(image)[1] or folder_paths.get_input_directory()
        inside = os.path.commonpath([path, os.path.realpath(folder)]) == os.path.realpath(folder)
    except (AttributeError, TypeError, ValueError):  # no name, or one on another drive
        inside = False
    if not inside:
        raise StampError(f"{shown(image)} is not in ComfyUI's input folder; upload it, or choose one from the list")
    return path


def read(image: str) -> tuple[list[dict], str]:
    """(runs, remark): the sampling runs that an image tells of, about, policy and record of each; and what is odd about it.

    Raises StampError when it tells of none, or of others' alone.
    """
    path = path_of(image)
    try:
        with Image.open(path) as opened:
            opened.load()  # text may stand behind the pixels
            text = getattr(opened, "text", {}).get(KEY)
            name = _name(*opened.size, opened.tobytes())
    except Exception as error:  # whatever a broken file makes its reader raise
        raise StampError(
            f"{image} cannot be read as an image ({excerpt(error)}); choose a PNG as ComfyUI saved it"
        ) from error
    if text is None:
        raise StampError(
            f"{image} does not say how it was cached: put Stamp Images before Save Image, and take the PNG as it was saved"
        )
    try:
        said = json.loads(text)
        stamps = [(tuple(map(str, stamp["images"])), stamp["runs"]) for stamp in said.get("stamps", [])]
        own = [runs for images, runs in stamps if name in images]
        runs = said["runs"]
        if own:
            runs, known = [], set()
            for told in own:  # one stamp behind another; what an earlier one told is not told again
                keys = [json.dumps(run, sort_keys=True) for run in told]
                runs += [run for run, key in zip(told, keys, strict=True) if key not in known]
                known.update(keys)
        for run in runs:
            record = run["record"]
            words = [run["about"], run["policy"], *([] if record is None else [record["policy"]])]
            if not all(isinstance(word, str) for word in words):
                raise TypeError("a name is no text")
            if record is not None and not isinstance(record["settings"], dict):
                raise TypeError("settings are no object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StampError(
            f"what {image} says of its caching is damaged ({excerpt(error)}); take another image"
        ) from error
    batches = len({images for images, _ in stamps})
    if batches > 1 and not own:
        raise StampError(
            f"{image} was saved beside {batches} stamped batches and is of none of them: put Stamp Images right before Save "
            "Image, in the branch whose pictures are to be replayed"
        )
    if not runs:
        raise StampError(
            f"{image} was not sampled by the model whose trace its Stamp Images has: wire it to the Apply Cache of its own branch. "
            "Where that is so already, ComfyUI had kept the latent, and what was sampled is no longer known: change the seed"
        )
    return runs, "" if own or not stamps else CHANGED
