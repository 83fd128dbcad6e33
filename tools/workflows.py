"""Writes workflows/: every workflow is described once, here, and comes out in UI form and in API form.

What a node's inputs and outputs are is asked from a running ComfyUI, so that the files cannot drift from the nodes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_server import ROOT, started

FOLDER = ROOT / "workflows"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DEMO_MODEL, DEMO_PIXART, DEMO_FLUX = "shapes-dit", "shapes-pixart", "shapes-flux"


@dataclass
class Node:
    """One node: widget values and links by input name; a link is (key of another node, output index)."""

    key: str
    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    inputs: dict = field(default_factory=dict)
    title: str = ""
    colour: str = ""


@dataclass
class Workflow:
    name: str
    nodes: list[Node]
    groups: list[tuple[str, tuple[int, int, int, int]]]
    note: str
    note_at: tuple[int, int, int, int]

    def ids(self) -> dict[str, int]:
        return {node.key: i + 1 for i, node in enumerate(self.nodes)}

    def api(self) -> dict:
        """What the server's /prompt takes."""
        ids = self.ids()
        return {
            str(ids[n.key]): {
                "class_type": n.type,
                "inputs": {k: [str(ids[v[0]]), v[1]] if isinstance(v, tuple) else v for k, v in n.inputs.items()},
                "_meta": {"title": n.title or n.type},
            }
            for n in self.nodes
        }

    def ui(self, info: dict) -> dict:
        """What the canvas takes, in litegraph's format 0.4."""
        ids, links = self.ids(), []
        by_key = {n.key: n for n in self.nodes}
        nodes = []
        for order, node in enumerate(self.nodes):
            spec = info[node.type]
            entries, values = [], []
            for name, kind, options in _inputs(spec, node.inputs):
                given = node.inputs.get(name)
                if kind in WIDGETS and not isinstance(given, tuple):
                    values.append(options.get("default", "") if given is None else given)
                    if options.get("control_after_generate"):
                        values.append("fixed")
                    continue
                entry = {"name": name, "type": kind, "link": None}
                if "." in name:
                    entry["label"] = name.rpartition(".")[2]
                if isinstance(given, tuple):
                    source, slot = given
                    output = info[by_key[source].type]["output"][slot]
                    links.append([len(links) + 1, ids[source], slot, ids[node.key], len(entries), output])
                    entry["link"] = len(links)
                entries.append(entry)
            nodes.append(
                {
                    "id": ids[node.key], "type": node.type, "pos": list(node.at), "size": list(node.size), "flags": {},
                    "order": order, "mode": 0, "inputs": entries,
                    "outputs": [
                        {"name": n, "type": t, "links": None} for n, t in zip(spec["output_name"], spec["output"], strict=True)
                    ],
                    "properties": {"Node name for S&R": node.type}, "widgets_values": values,
                    **({"title": node.title} if node.title else {}),  # else the name in the language of whoever looks
                    **({"color": node.colour} if node.colour else {}),
                }
            )  # fmt: skip
        for link, source, slot, *_ in links:
            output = nodes[source - 1]["outputs"][slot]
            output["links"] = [*(output["links"] or []), link]
        note_id = len(nodes) + 1
        x, y, w, h = self.note_at
        nodes.append(
            {
                "id": note_id, "type": "MarkdownNote", "pos": [x, y], "size": [w, h], "flags": {}, "order": note_id - 1,
                "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {}, "widgets_values": [self.note],
            }
        )  # fmt: skip
        return {
            "last_node_id": note_id, "last_link_id": len(links), "nodes": nodes, "links": links,
            "groups": [
                {"id": i + 1, "title": t, "bounding": list(b), "color": "#3f789e", "font_size": 24, "flags": {}}
                for i, (t, b) in enumerate(self.groups)
            ],
            "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip


def _inputs(spec: dict, given: dict) -> list[tuple[str, str, dict]]:
    """(name, type, options) in the order in which the canvas lists them; of inputs that grow, one more than is given."""
    out = []
    for part in ("required", "optional"):
        for name in spec["input_order"].get(part, []):
            kind, *rest = spec["input"][part][name]
            options = rest[0] if rest else {}
            if kind == "COMFY_AUTOGROW_V3":
                template = options["template"]
                ((own, *_),) = (entry for group in template["input"].values() for entry in group.values())
                taken = sum(key.startswith(f"{name}.") for key in given)
                count = min(taken + 1, template["max"])
                out += [(f"{name}.{template['prefix']}{i}", own, {}) for i in range(count)]
            else:
                out.append((name, "COMBO" if isinstance(kind, list) else kind, options))
    return out


INSPECT = {"preview": "at a glance", "theme": "light", "export": "nothing", "filename_prefix": "PriorCache/inspect"}
DDIM = {"steps": 50, "cfg": 1.5, "sampler_name": "ddim", "scheduler": "ddim_uniform"}


def _sampler(key: str, model: tuple[str, int], at: tuple[int, int], title: str, **settings) -> Node:
    links = {"model": model, "positive": ("label", 0), "negative": ("label", 1), "latent_image": ("latent", 0)}
    return Node(key, "KSampler", at, (280, 270), {**links, "seed": 7, **DDIM, "denoise": 1.0, **settings}, title)


def _decoded(key: str, sampler: str, at: tuple[int, int], title: str) -> list[Node]:
    x, y = at
    return [
        Node(f"{key}_decode", "VAEDecode", at, (220, 50), {"samples": (sampler, 0), "vae": ("vae", 0)}),
        Node(
            f"{key}_scale", "ImageScaleBy", (x, y + 100), (220, 90),
            {"image": (f"{key}_decode", 0), "upscale_method": "nearest-exact", "scale_by": 4.0},
        ),
        Node(f"{key}_show", "PreviewImage", (x + 250, y), (420, 340), {"images": (f"{key}_scale", 0)}, title),
    ]  # fmt: skip


def _source(batch: int) -> list[Node]:
    return [
        Node("model", "PriorCacheDemoModel", (0, 0), (320, 60), {"model": DEMO_MODEL}),
        Node("label", "PriorCacheDiTLabel", (0, 250), (320, 80), {"labels": "0-11"}),
        Node("latent", "EmptyLatentImage", (0, 410), (320, 110), {"width": 32, "height": 32, "batch_size": batch}),
        Node("vae", "VAELoader", (0, 570), (320, 60), {"vae_name": "pixel_space"}),
    ]  # fmt: skip


def _fora(key: str = "policy", at: tuple[int, int] = (380, 390), **changes) -> Node:
    settings = {
        "interval": 2,
        "phase": "published",
        "start": 0.0,
        "end": 1.0,
        "scope": "branches",
        "preset": "custom",
    } | changes
    return Node(key, "PriorCacheFORA", at, (320, 185), settings, colour="#233")


def _corrected(name: str, correction: Node, note: str, *others: Node) -> Workflow:
    """FORA as later papers mean it, and what corrects it, 20 steps, beside the uncached pictures."""
    base = _fora("base", (0, 920), phase="aligned")
    workflow = _side_by_side(name, _source(12), [base, *others, correction], note, steps=20)
    workflow.groups.append(("What is corrected", (-20, 840, 360, 330)))
    return workflow


def _kept(prefix: str) -> list[Node]:
    """The cached pictures beside the uncached ones in figures; and saved, with what they were made by in their metadata."""
    judged = {
        "images_a": ("cached_decode", 0),
        "images_b": ("full_decode", 0),
        "latent_a": ("cached", 0),
        "latent_b": ("full", 0),
    }
    return [
        Node("compare", "PriorCacheCompare", (2640, -60), (520, 420), judged, "Compare: what it cost"),
        Node("figures", "PreviewAny", (2640, 420), (520, 300), {"source": ("compare", 1)}, "In figures"),
        Node("stamp", "PriorCacheStamp", (2640, 780), (240, 60), {"images": ("cached_decode", 0), "trace": ("apply", 1)}),
        Node("save", "SaveImage", (2910, 780), (250, 340), {"images": ("stamp", 0), "filename_prefix": prefix}, "Save, to replay"),
    ]  # fmt: skip


def _side_by_side(
    name: str, source: list[Node], policy: list[Node], note: str, saved: str | None = None, **settings
) -> Workflow:
    """The same pictures in full and cached, and what that cost. `source` has the keys model, label, latent and vae,
    `policy` the key policy, at (380, 390). saved: also in figures, and the cached ones saved under this name."""
    groups = [] if saved is None else [("Measured, and kept", (2620, -140, 560, 1280))]
    return Workflow(
        name,
        [
            *source,
            _sampler("full", ("model", 0), (760, -60), "KSampler: every step in full", **settings),
            *_decoded("full", "full", (1080, -60), "In full"),
            *policy,
            Node("apply", "PriorCacheApply", (380, 660), (320, 120), {"model": ("model", 0), "policy": ("policy", 0), "measure": "errors", "store": "device"}, colour="#233"),
            _sampler("cached", ("apply", 0), (760, 390), "KSampler: cached", **settings),
            *_decoded("cached", "cached", (1080, 390), "Cached"),
            *([] if saved is None else _kept(saved)),
            Node("inspect", "PriorCacheInspect", (1800, -60), (760, 800), {"trace": ("apply", 1), "latent": ("cached", 0), **INSPECT}, colour="#233"),
            Node("text", "PreviewAny", (1800, 790), (760, 170), {"source": ("inspect", 1)}, "What happened"),
        ],
        [
            ("Model and what to draw", (-20, -80, 360, 870)),
            ("Uncached", (740, -140, 1030, 450)),
            ("Cached", (360, 310, 1410, 510)),
            ("What it cost", (1780, -140, 800, 1120)),
            *groups,
        ],
        note,
        (360, -140, 360, 420),
    )  # fmt: skip


FIRST_NOTE = """## PriorCache in one run

Press **Run**. The same twelve pictures are drawn twice: in full, and with every second step reused (FORA, N = 2).
**Inspect** shows what that cost, step by step.

Then try: *interval* 3 in **FORA Policy**; *measure* = truth in **Apply Cache** for the true error of reused steps;
bypass **Apply Cache** (Ctrl+B) to see that the picture is then exactly the uncached one.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

PIXART_NOTE = """## PriorCache on PixArt

Press **Run**. The same twelve pictures are drawn twice by a small PixArt: in full, and with every second step reused.
Attention, cross-attention and MLP of every block are cached apart, before their gates.

Then try: *interval* 3 in **FORA Policy**; **Forecast Policy** in its place; other words in **Demo Prompt**. The small model
`shapes-pixart` comes with the pack. For a published PixArt put ComfyUI's own loader, text encoder and VAE in place of the demo's,
set *cfg* and the size and *batch_size* of **Empty Latent Image** as it wants them, and bypass the two **Upscale Image By**.
"""

FLUX_NOTE = """## PriorCache on Flux

Press **Run**. The same twelve pictures are drawn twice by a small Flux: in full, and with every second step reused.
Attention of both streams, both MLPs and the fused branch of single-stream blocks are cached apart, before their gates.

Then try: *interval* 3 in **FORA Policy**; **Forecast Policy** in its place; other words in **Demo Prompt**. The small model
`shapes-flux` comes with the pack. For your own: its loader, text encoder and VAE in place of the demo's, *cfg* as it wants (1 for
Flux.1 dev), size and *batch_size* of **Empty Latent Image**; and bypass the two **Upscale Image By**.
"""

PROMPTS = """red circle on blue
yellow ring on purple
green half-disc on pink
cyan crescent on red
orange triangle on blue
blue square on yellow
pink diamond on green
yellow star on blue
red plus on cyan
purple cross on green
pink heart on blue
green arrow on purple"""

L2C_NOTE = """## Learning-to-Cache

Press **Run**. **Train Router** samples once in full and learns, in a minute or two, which branches can be reused at
every second step. Then the same twelve pictures are drawn in full and with what was learned.

Then try: *penalty* 1e-5, 1e-4, 1e-3 in **Train Router**, with more *iterations*: *What was learned* then ends in the curve of
what each removes and what it costs. *threshold* in **L2C Policy**.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

EOC_NOTE = """## EOC: corrected by the mean

Press **Run**. **Calibrate** samples once in full and keeps how the mean of every branch moves at the steps that **FORA
Policy** reuses; **EOC Policy** adds a hundredth of that, multiplied by the feature, wherever it is reused.

Then try: *theta* 0.1; *theta* 0 for FORA alone; another *interval* in **FORA Policy** (Calibrate follows). Keep the prior
with **Save Prior** to calibrate only once.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

GOC_NOTE = """## GOC: corrected by the last movement

Press **Run**. Every second step is reused (**FORA Policy**), and **GOC Policy** moves each reused feature on in the
direction in which it last moved.

Then try: *eta* 0 for FORA alone, 0.5 and 1; *queue* = recomputed with *eta* 0.5; *measure* = truth in **Apply Cache** for the true
error of reused steps.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

DUCA_NOTE = """## DuCa: skip all blocks, then mend some tokens

Press **Run**. 20 of 50 steps are computed in full. Between two of them, steps that compute the MLP of a few random tokens anew
take turns with steps that skip all blocks (8 of them, none in the last third). In **Inspect**, the map *All blocks* shows
where all were skipped.

Then try: **ToCa Policy** in its place, which never skips all blocks; *ratio* 0.2; *selection* = small values or attention;
*interval* 4.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

TAYLOR_NOTE = """## Taylor: continued along a line

Press **Run**. Every second step is skipped (**FORA Policy**), and **Taylor Policy** continues each feature along the
line through its last two computed values: the baseline for every other correction.

Then try: *order* 2, with and without *exact*; *interval* 4 or *scope* = whole network in **FORA Policy**.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

FORECAST_NOTE = """## Forecast: skip whole steps

Press **Run**. Eight of twenty steps are computed; in between, **Forecast Policy** continues the model's output along a
curve between a line and a parabola. These two nodes, **Forecast Policy** and **Apply Cache**, serve every model that ComfyUI samples.

**Compare** measures how far the cached pictures are from the full ones. The saved ones carry what they were made by: **Replay
Policy** takes it out of them.

Then try: *speedup* 2 and 4; *measure* = truth in **Apply Cache** for the true error of every forecast.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

PLAN_NOTE = """## Plan: calibrate, search, choose

Press **Run**; it takes a few minutes. **Calibrate** measures the model, **Search Plans** tries which steps to compute for
four speed-ups at once, and **Plan Policy** takes the plan for the goal: twice as fast. It says what error to expect;
**Compare** measures it on the pictures above, and **Inspect** shows where it comes from. The saved pictures carry the plan:
**Replay Policy** takes it out of them.

Then try: another *value* in **Plan Policy**, which takes no time; *goal* = error with *value* 0.05; more *samplings* in
**Search Plans**, which goes on where it was. **Save Prior** keeps the plans: PriorCache (auto) finds them there. For plans that you
keep, judge 8 to 16 pictures: *batch_size* of the small **Empty Latent Image**. With the *prior* of **Search Plans**, **Inspect** also
says what was promised.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

SWEEP_NOTE = """## Sweep: error against time

Press **Run**. **Sweep** samples the same pictures uncached, with each policy that is connected, and with each of *goals*:
`2x` is Forecast Policy with that speed-up, `10 steps` is no cache but fewer steps. Down and to the left is better.

Then try: more *runs* for steadier times; your own sampler, steps and cfg; any other policy. Each one you connect makes room
for another.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

AUTO_NOTE = """## One node

Press **Run**. The same twelve pictures are drawn twice: in full, and through **PriorCache (auto)**, whose one number says how
much faster. *What is chosen* tells what it does for which sampler, and **Inspect** what it did.

Then try: *speedup* 3; *sampler_name* = euler_ancestral in both samplers. The plan that workflow `10_plan` keeps
is found and used by itself.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""

CALIBRATE_NOTE = """## Calibrate a model

Press **Run**. **Calibrate** samples a few pictures in full and measures how far every branch moves from one step to the
next: that is the *prior*. **Save Prior** keeps it in `models/priorcache`, for later and for sharing.

Use the sampler, scheduler, steps and cfg that you generate with. Then try: *runs* 4 for a steadier curve; *longest_gap* 4
for what reuse over more steps would cost; **Load Prior** and **Inspect** to look at it again.

The small model `shapes-dit` comes with the pack; for your own put its loader in place of **Demo Model**.
"""


YOURS_NOTE = """## Your own model

**PriorCache (auto)** stands between what gives the MODEL and what samples it. Here that is Flux.1 dev: choose your files in the four
loaders' lists. Press **Run**, then bypass **PriorCache (auto)** (Ctrl+B) and press it again: the same picture in full.

For any other model open ComfyUI's own template and put **PriorCache (auto)** there: behind the loader and LoRA nodes, in front of
KSampler or, where the sampler is SamplerCustomAdvanced, the guider. Wan 2.2 has two models: one node for each.

Then try: *speedup* 3, and look at the picture. Models distilled to few steps (turbo, schnell, lightning) have none to spare:
leave them as they are.
"""


YOURS = "13_your_model"


def _yours() -> Workflow:
    """One node in a graph of Flux.1 dev as ComfyUI has it, with its own loaders."""
    return Workflow(
        YOURS,
        [
            Node("model", "UNETLoader", (0, 0), (340, 90), {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}),
            Node("clip", "DualCLIPLoader", (0, 170), (340, 150), {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux", "device": "default"}),
            Node("vae", "VAELoader", (0, 410), (340, 70), {"vae_name": "ae.safetensors"}),
            Node("text", "CLIPTextEncode", (420, 0), (360, 200), {"clip": ("clip", 0), "text": "a lighthouse on a cliff at dusk, its beam in the fog, photograph"}),
            Node("guidance", "FluxGuidance", (420, 280), (360, 70), {"conditioning": ("text", 0), "guidance": 3.5}),
            Node("latent", "EmptySD3LatentImage", (420, 430), (360, 130), {"width": 1024, "height": 1024, "batch_size": 1}),
            Node("apply", "PriorCacheAuto", (860, 0), (360, 110), {"model": ("model", 0), "speedup": 2.0}, colour="#233"),
            Node("choice", "PreviewAny", (860, 190), (360, 330), {"source": ("apply", 2)}, "What is chosen"),
            Node("guider", "BasicGuider", (1300, 0), (320, 70), {"model": ("apply", 0), "conditioning": ("guidance", 0)}),
            Node("noise", "RandomNoise", (1300, 150), (320, 110), {"noise_seed": 7}),
            Node("solver", "KSamplerSelect", (1300, 340), (320, 70), {"sampler_name": "euler"}),
            Node("sigmas", "BasicScheduler", (1300, 490), (320, 150), {"model": ("apply", 0), "scheduler": "simple", "steps": 20, "denoise": 1.0}),
            Node("sampled", "SamplerCustomAdvanced", (1700, 0), (320, 150), {"noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("solver", 0), "sigmas": ("sigmas", 0), "latent_image": ("latent", 0)}),
            Node("decode", "VAEDecode", (1700, 230), (320, 70), {"samples": ("sampled", 0), "vae": ("vae", 0)}),
            Node("save", "SaveImage", (1700, 380), (320, 360), {"images": ("decode", 0), "filename_prefix": "PriorCache/yours"}),
            Node("inspect", "PriorCacheInspect", (2100, 0), (620, 740), {"trace": ("apply", 1), "latent": ("sampled", 0), **INSPECT}, colour="#233"),
        ],
        [
            ("Your model", (-20, -80, 380, 600)),
            ("What to draw", (400, -80, 400, 680)),
            ("The one node", (840, -80, 400, 640)),
            ("Sampling", (1280, -80, 760, 860)),
            ("What it cost", (2080, -80, 660, 860)),
        ],
        YOURS_NOTE,
        (0, 660, 780, 300),
    )  # fmt: skip


STAND_INS = {
    "UNETLoader": ("PriorCacheDemoModel", {"model": DEMO_FLUX}),
    "CLIPTextEncode": ("PriorCacheDemoPrompt", {"prompt": "red star on blue"}),
    "VAELoader": ("PriorCacheDemoVAE", {}),
}


def at_hand(prompt: dict) -> dict:
    """A workflow in API form with the demo's model, words and VAE in place of files that only its user has."""
    if not any(node["class_type"] == "UNETLoader" for node in prompt.values()):
        return prompt
    found = {}
    for key, node in prompt.items():
        if node["class_type"] in STAND_INS:
            kind, inputs = STAND_INS[node["class_type"]]
            node = node | {"class_type": kind, "inputs": inputs}
        size = {"width": 128, "height": 128} if "width" in node["inputs"] else {}
        found[key] = node | {"inputs": node["inputs"] | size}
    return {key: node for key, node in found.items() if node["class_type"] != "DualCLIPLoader"}


def workflows() -> list[Workflow]:
    first = _side_by_side("01_first_run", _source(12), [_fora()], FIRST_NOTE)
    prompts = Node("label", "PriorCacheDemoPrompt", (0, 210), (320, 300), {"prompt": PROMPTS})
    pixart = _side_by_side(
        "02_pixart",
        [
            Node("model", "PriorCacheDemoModel", (0, 0), (320, 60), {"model": DEMO_PIXART}),
            prompts,
            Node("latent", "EmptyLatentImage", (0, 550), (320, 110), {"width": 40, "height": 40, "batch_size": 12}),
            Node("vae", "VAELoader", (0, 706), (320, 60), {"vae_name": "pixel_space"}),
        ],
        [_fora()],
        PIXART_NOTE,
        cfg=3.0,
        steps=20,
    )  # fmt: skip
    flux = _side_by_side(
        "03_flux",
        [
            Node("model", "PriorCacheDemoModel", (0, 0), (320, 60), {"model": DEMO_FLUX}),
            prompts,
            Node("latent", "EmptyLatentImage", (0, 550), (320, 110), {"width": 128, "height": 128, "batch_size": 12}),
            Node("vae", "PriorCacheDemoVAE", (0, 706), (320, 60)),
        ],
        [_fora()],
        FLUX_NOTE,
        steps=20, cfg=3.0, sampler_name="euler", scheduler="simple",
    )  # fmt: skip
    settings = {
        "seed": 100, "runs": 2, **DDIM,
        "denoise": 1.0, "longest_gap": 2, "mean_features": False, "scope": "branches",
    }  # fmt: skip
    source = [n for n in _source(12) if n.key != "vae"]
    links = {"model": ("model", 0), "positive": ("label", 0), "negative": ("label", 1), "latent_image": ("latent", 0)}
    calibrate = Workflow(
        "01_calibrate",
        [
            *source,
            Node("calibrate", "PriorCacheCalibrate", (400, 0), (620, 900), {**links, **settings}, colour="#233"),
            Node("save", "PriorCacheSavePrior", (1080, 0), (320, 110), {"prior": ("calibrate", 0), "name": "shapes-dit ddim 50", "overwrite": True}, colour="#233"),
            Node("text", "PreviewAny", (1080, 180), (420, 200), {"source": ("calibrate", 2)}, "What the prior says"),
        ],
        [("Model and labels", (-20, -80, 360, 630)), ("Measure and keep", (380, -80, 1140, 1000))],
        CALIBRATE_NOTE,
        (0, 610, 320, 280),
    )  # fmt: skip
    learned = _side_by_side(
        "04_l2c",
        _source(12),
        [
            Node("train", "PriorCacheTrainRouter", (0, 920), (680, 960), {**links, **DDIM, "seed": 100, "runs": 1, "steps": 20, "denoise": 1.0, "iterations": 200, "penalty": "1e-4", "learning_rate": 0.1, "threshold": 0.1, "save_memory": False}, colour="#233"),
            Node("learned", "PreviewImage", (740, 920), (620, 960), {"images": ("train", 1)}, "What was learned"),
            Node("policy", "PriorCacheL2C", (380, 390), (320, 90), {"prior": ("train", 0), "threshold": 0.1}, colour="#233"),
        ],
        L2C_NOTE,
        steps=20,
    )  # fmt: skip
    learned.groups.append(("Learn what to reuse", (-20, 840, 1400, 1080)))
    eoc = _corrected(
        "05_eoc",
        Node("policy", "PriorCacheEOC", (380, 390), (320, 130), {"policy": ("base", 0), "prior": ("calibrate", 0), "theta": 0.01, "least_error": 0.0}, colour="#233"),
        EOC_NOTE,
        Node("calibrate", "PriorCacheCalibrate", (380, 920), (620, 900), {**links, **settings, "policy": ("base", 0), "runs": 1, "steps": 20, "mean_features": True}, colour="#233"),
        Node("said", "PreviewAny", (1060, 920), (420, 200), {"source": ("calibrate", 2)}, "What the prior says"),
    )  # fmt: skip
    eoc.groups.append(("How the mean moves", (360, 840, 1140, 1000)))
    goc = _corrected(
        "06_goc",
        Node("policy", "PriorCacheGOC", (380, 390), (320, 180), {"policy": ("base", 0), "eta": 0.8, "queue": "used", "inflections": "none", "whole_blocks": True}, colour="#233"),
        GOC_NOTE,
    )  # fmt: skip
    duca = _side_by_side(
        "07_duca",
        _source(12),
        [Node("policy", "PriorCacheDuCa", (380, 390), (320, 180), {"preset": "dit", "interval": 0, "ratio": -1.0, "selection": "random", "mode": "corrected"}, colour="#233")],
        DUCA_NOTE,
    )  # fmt: skip
    taylor = _corrected(
        "08_taylor",
        Node("policy", "PriorCacheTaylor", (380, 390), (320, 110), {"policy": ("base", 0), "order": 1, "exact": False}, colour="#233"),
        TAYLOR_NOTE,
    )  # fmt: skip
    forecast = _side_by_side(
        "09_forecast",
        _source(12),
        [Node("policy", "PriorCacheForecast", (380, 390), (320, 130), {"speedup": 2.5, "coordinate": "auto", "order": "auto", "corrector": "auto"}, colour="#233")],
        FORECAST_NOTE,
        saved="PriorCache/forecast",
        steps=20,
    )  # fmt: skip
    few = [Node("few", "PriorCacheDiTLabel", (0, 920), (320, 80), {"labels": "0, 3, 5, 7, 9, 11"}), Node("small", "EmptyLatentImage", (0, 1080), (320, 110), {"width": 32, "height": 32, "batch_size": 6})]  # fmt: skip
    judged = {"model": ("model", 0), "positive": ("few", 0), "negative": ("few", 1), "latent_image": ("small", 0)}
    plan = _side_by_side(
        "10_plan",
        _source(12),
        [
            *few,
            Node("calibrate", "PriorCacheCalibrate", (380, 920), (420, 800), {**judged, **settings, "seed": 100, "runs": 1, "steps": 20}, colour="#233"),
            Node("search", "PriorCacheSearch", (860, 920), (420, 800), {"prior": ("calibrate", 0), **judged, "seed": 1000, "samplings": 40.0, "speedups": "2, 2.5, 3.3, 4", "runs": 1}, colour="#233"),
            Node("policy", "PriorCachePlan", (1340, 920), (420, 800), {"prior": ("search", 0), "model": ("model", 0), "goal": "speed-up", "value": 2.0}, colour="#233"),
            Node("said", "PreviewAny", (1800, 1040), (760, 170), {"source": ("policy", 2)}, "What is planned"),
            Node("keep", "PriorCacheSavePrior", (1800, 1340), (320, 110), {"prior": ("search", 0), "name": "shapes-dit plans", "overwrite": True}, colour="#233"),
        ],
        PLAN_NOTE,
        saved="PriorCache/plan",
        steps=20,
    )  # fmt: skip
    plan.groups.append(("Calibrate, search, choose", (-20, 840, 1800, 910)))
    plan.groups.append(("What is planned", (1780, 985, 800, 245)))
    plan.groups.append(("Keep it for later, and for PriorCache (auto)", (1780, 1285, 800, 185)))
    sweep = Workflow(
        "11_sweep",
        [
            *_source(12),
            _fora("fora", (380, 0), phase="aligned"),
            Node("taylor", "PriorCacheTaylor", (380, 270), (320, 110), {"policy": ("fora", 0), "order": 1, "exact": False}, colour="#233"),
            Node("sweep", "PriorCacheSweep", (760, 0), (420, 860), {**links, "vae": ("vae", 0), "policies.policy0": ("fora", 0), "policies.policy1": ("taylor", 0), **DDIM, "goals": "1.5x, 2x, 3x, 10 steps", "seed": 7, "runs": 3, "steps": 20, "denoise": 1.0}, colour="#233"),
            Node("grid", "PreviewImage", (1240, 0), (700, 560), {"images": ("sweep", 1)}, "The pictures"),
            Node("table", "PreviewAny", (1240, 620), (700, 240), {"source": ("sweep", 2)}, "The figures"),
        ],
        [
            ("Model and what to draw", (-20, -80, 360, 730)),
            ("Policies to try", (360, -80, 360, 480)),
            ("What each saves and costs", (740, -80, 1220, 960)),
        ],
        SWEEP_NOTE,
        (360, 440, 360, 420),
    )  # fmt: skip
    auto = _side_by_side("12_auto", _source(12), [], AUTO_NOTE, steps=20)
    auto.nodes[[node.key for node in auto.nodes].index("apply")] = Node(
        "apply", "PriorCacheAuto", (380, 390), (320, 110), {"model": ("model", 0), "speedup": 2.0}, colour="#233"
    )
    auto.nodes.append(Node("choice", "PreviewAny", (380, 910), (680, 230), {"source": ("apply", 2)}, "What is chosen"))
    auto.groups.append(("What is chosen", (360, 840, 720, 320)))
    return [first, calibrate, pixart, flux, learned, eoc, goc, duca, taylor, forecast, plan, sweep, auto, _yours()]


def text(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def files(info: dict) -> dict[str, str]:
    """File name -> content of everything in workflows/, for a server's /object_info."""
    out = {}
    for workflow in workflows():
        out[f"{workflow.name}.json"] = text(workflow.ui(info))
        out[f"api/{workflow.name}.json"] = text(workflow.api())
    return out


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as server:
        for name, content in files(server.get("/object_info")).items():
            path = FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            print(f"workflows/{name}")


if __name__ == "__main__":
    main()
