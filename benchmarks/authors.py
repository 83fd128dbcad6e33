"""Every policy beside its authors' own code: python tools/dev.py bench authors FOLDER [--write].

FOLDER holds the public repositories named below, each cloned under its own name; their networks need `timm` (pip install
timm). EOC's is there as compiled for Python 3.10 only, so run this with Python 3.10. One small DiT of 28 blocks, as many as that code counts on, is sampled by their sampler with their caching and in
ComfyUI with ours: the same weights, labels and noise. What theirs draws is kept (--write) in
tests/benchmarks/authors.safetensors, which the tests hold our policies to, and docs/authors.md says how near they are.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import cache, partial
from importlib.machinery import SourcelessFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..cache_core.policies import EOC, FORA, GOC, L2C, CachePolicy, DuCa, Full, Taylor, ToCa
from ..cache_core.policies.fora import PRESETS
from ..cache_core.policies.goc import PUBLISHED_INFLECTIONS, PUBLISHED_STEPS
from ..cache_core.policies.toca import drawn
from ..cache_core.sites import Site, Step
from ..models.dit import DiT, DiTConfig
from ..plots.metrics import relative_l2
from ..priors.files import replace
from ..priors.published import dit_sigmas
from .pages import remarked

ROOT = Path(__file__).resolve().parent.parent
DRAWN, PAGE, MASKS = (
    ROOT / name
    for name in ("tests/benchmarks/authors.safetensors", "docs/authors.md", "tests/priors/l2c_router_masks.json")
)
CONFIG = DiTConfig(32, 28, 2, 2, 3, 12, learn_sigma=True, grid_size=8)
"""Three channels, as their guidance is of three."""
BRANCHES = ("attn", "mlp")
LABELS, CFG = (3, 8), 1.5


@cache
def weights() -> dict[str, Tensor]:
    """Of a network whose features move from step to step, and that keeps the size of what passes through."""
    rng, found = torch.Generator().manual_seed(0), {}
    for name, like in DiT(CONFIG).state_dict().items():
        width = math.sqrt(3 / like[0].numel()) if like.ndim > 1 else 0.1
        found[name] = (torch.rand(like.shape, generator=rng) * 2 - 1) * width
    return found


@cache
def noise() -> Tensor:
    """(B, C, H, W)"""
    side = CONFIG.grid_size * CONFIG.patch_size
    rng = torch.Generator().manual_seed(1)
    return sum(torch.rand(len(LABELS), CONFIG.in_channels, side, side, generator=rng) for _ in range(12)) - 6


# Theirs.


@contextmanager
def within(folder: Path) -> Iterator[None]:
    """Modules of this folder can be imported, and are gone afterwards, as those of the other folders have the same names."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        own = {path.stem for path in folder.iterdir()}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]


@dataclass(frozen=True)
class Source:
    """Where a method was published. folder: within the repository; network: the module that has the DiT, or its .pyc."""

    repository: str
    folder: str
    network: str = "models"

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    def loaded(self, folder: Path) -> ModuleType:
        """The module that has the network."""
        if not self.network.endswith(".pyc"):
            return importlib.import_module(self.network)
        loader = SourcelessFileLoader("compiled", str(folder / self.network))
        try:
            module = module_from_spec(spec_from_loader("compiled", loader))
            loader.exec_module(module)
        except ImportError as error:
            raise SystemExit(
                f"{self.network} is of another Python: run this as python3.10 tools/dev.py ({error})"
            ) from None
        return module

    def commit(self, code: Path) -> str:
        return subprocess.check_output(["git", "-C", code / self.name, "rev-parse", "HEAD"], text=True).strip()


@dataclass(frozen=True)
class Case:
    """A method in one setting. options: what their sampler is told; opened: what has to be done before."""

    source: Source
    steps: int
    policy: Callable[[], CachePolicy]
    options: dict = field(default_factory=dict)
    opened: Callable[[torch.nn.Module, object], Callable] | None = None  # (network, diffusion) -> what is sampled

    def theirs(self, code: Path) -> Tensor:
        """What their code draws."""
        folder = code / self.source.name / self.source.folder
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: clone https://github.com/{self.source.repository} into {code}")
        with within(folder), torch.no_grad(), redirect_stdout(io.StringIO()):
            models = self.source.loaded(folder)
            diffusion = importlib.import_module("diffusion").create_diffusion(str(self.steps))
            models.device = "cpu"  # a name that one of them uses and does not define
            network = models.DiT(
                CONFIG.grid_size * CONFIG.patch_size, CONFIG.patch_size, CONFIG.in_channels, CONFIG.hidden_size,
                CONFIG.depth, CONFIG.num_heads, num_classes=CONFIG.num_classes,
            ).eval()  # fmt: skip
            network.load_state_dict(weights())
            labels = torch.tensor([*LABELS, *[CONFIG.num_classes] * len(LABELS)])
            both = noise().repeat(2, 1, 1, 1)
            out = diffusion.ddim_sample_loop(
                self.opened(network, diffusion) if self.opened else network.forward_with_cfg, both.shape, both,
                clip_denoised=False, device="cpu", model_kwargs={"y": labels, "cfg_scale": CFG, **self.options},
            )  # fmt: skip
        return out[: len(LABELS)]


def stepped(network, diffusion) -> Callable:
    """FORA's code knows the step and has a cache only where its sampler draws noise; with DDIM they are told here."""
    network.cache_attn, network.cache_mlp = [], []
    network.num_steps, network.cache_threshold = diffusion.num_timesteps, "3"
    kept = {-1: {block: {} for block in range(CONFIG.depth)}, "save_cache": "boost_infer_static", "cache_subtype": ""}
    steps = iter(reversed(range(diffusion.num_timesteps)))

    def forward(x, t, current_step, cache, **kwargs):
        return network.forward_with_cfg(x, t, next(steps), kept, **kwargs)

    return forward


def routed(network, diffusion) -> Callable:
    """L2C and what is built on it read the published router, which holds more than tensors."""
    steps = diffusion.num_timesteps
    file = Path(sys.modules[type(network).__module__].__file__).parent.parent / "ckpt" / f"DDIM{steps}_router.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        network.load_ranking(str(file), steps, diffusion.timestep_map, 0.1)
    network.reset(steps)
    return network.forward_with_cfg


def dealt(network, diffusion) -> Callable:
    """ToCa's and DuCa's random scores are ours, as no two generators agree."""
    total, module = diffusion.num_timesteps, sys.modules["cache_functions.cache_cutfresh"]
    evaluate = module.score_evaluate

    def evaluated(cache, tokens, current):
        step, site = Step(total - 1 - current["step"], total, 0.0, 0.0), Site(f"blocks.{current['layer']}.mlp", 0, 0)
        scores = drawn(step, site, tokens.shape[1])
        with patch.object(torch, "rand", lambda rows, *_, **__: scores.expand(rows, -1)):
            return evaluate(cache, tokens, current)

    module.score_evaluate = evaluated
    return network.forward_with_cfg


def knowing(network, diffusion) -> Callable:
    """EOC reads the mean features of every block and step."""
    blocks = [
        {
            branch: [[mean] for mean in Means(diffusion.num_timesteps).of(f"blocks.{block}.{branch}")]
            for branch in BRANCHES
        }
        for block in range(CONFIG.depth)
    ]
    return lambda x, t, block_outputs, **kwargs: network.forward_with_cfg(x, t, block_outputs=blocks, **kwargs)


# Ours.


@dataclass(frozen=True)
class Means:
    """Mean features for EOC, drawn at random and large enough for its theta to be seen."""

    steps: int

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(dit_sigmas(self.steps).tolist())

    def of(self, site: str) -> Tensor:
        """(T, N, C)"""
        rng = torch.Generator().manual_seed(zlib.crc32(site.encode()))
        return 40 * torch.rand(self.steps, CONFIG.grid_size**2, CONFIG.hidden_size, generator=rng) - 20

    def knows(self, site: str) -> bool:
        return True

    def at(self, step: int, site: str) -> Tensor:
        mean = self.of(site)
        return mean[step] - mean[step - 1]


def router(steps: int) -> L2C:
    """The published router's decisions as a policy."""
    masks = json.loads(MASKS.read_text())[f"dit_xl2_256_ddim{steps}"]["masks"]
    sites = tuple(f"blocks.{block}.{branch}" for block in range(CONFIG.depth) for branch in BRANCHES)
    rows = [(math.inf,) * len(sites) for _ in range(steps)]
    for entry, (attention, mlp) in masks.items():
        gates = tuple(float(bit) for pair in zip(attention, mlp, strict=True) for bit in pair)
        rows[steps - 1 - int(entry)] = gates
    return L2C(tuple(rows), sites, steps)


def ours(policy: CachePolicy, steps: int) -> Tensor:
    """What ComfyUI draws with this policy attached."""
    import comfy.sample
    import comfy.samplers

    from ..models import host
    from ..nodes.attach import attach
    from ..nodes.dit import conditioning

    model = attach(host.from_weights(CONFIG, dict(weights()), torch.float32), policy)
    sigmas = torch.cat((dit_sigmas(steps), torch.zeros(1))).float()
    labels = torch.tensor(LABELS)
    return comfy.sample.sample_custom(
        model, noise(), CFG, comfy.samplers.sampler_object("ddim"), sigmas, conditioning(labels),
        conditioning(torch.full_like(labels, -1)), torch.zeros_like(noise()), disable_pbar=True, seed=0,
    )  # fmt: skip


# The cases.

FORA_CODE = Source("prathebaselva/FORA", "src")
L2C_CODE = Source("horseee/learning-to-cache", "DiT", "models.dynamic_models")
GOC_CODE = Source("qiujx0520/GOC_ICCV2025", "DiT", "models.models")
EOC_CODE = Source("qiujx0520/GOC_ICCV2025", "DiT", "models/__pycache__/models.cpython-310.pyc")
TOCA_CODE = Source("Shenyi-Z/ToCa", "DiT-ToCa")
DUCA_CODE = Source("Shenyi-Z/DuCa", "DuCa-DiT")
TAYLOR_CODE = Source("Shenyi-Z/TaylorSeer", "TaylorSeer-DiT")
KINDS = {"random": "random", "small values": "kv-norm", "attention": "attention"}
"""Our selections -> theirs."""


def tokens(cls: type[ToCa], selection: str, interval: int) -> Case:
    """ToCa and DuCa at the ratios of their commands."""
    source, schedule, ratio = (TOCA_CODE, "ToCa-ddim50", 0.07) if cls is ToCa else (DUCA_CODE, "ToCa", 0.05)
    told = {
        "cache_type": KINDS[selection], "fresh_ratio": ratio, "fresh_threshold": interval, "ratio_scheduler": schedule,
        "force_fresh": "global", "soft_fresh_weight": 0.25, "test_FLOPs": False,
    }  # fmt: skip
    policy = partial(cls, interval=interval, selection=selection, faithful=True)
    return Case(source, 50, policy, told, dealt if selection == "random" else None)


def taylor(order: int, interval: int) -> Case:
    """Two full steps, then every `interval`-th."""
    base = FORA(computed=(0, *range(1, 50, interval)), steps=50)
    return Case(
        TAYLOR_CODE, 50, partial(Taylor, base, order), {"interval": interval, "max_order": order, "test_FLOPs": False}
    )


UNCACHED = {steps: Case(replaced(L2C_CODE, network="models.models"), steps, Full) for steps in (20, 50)}
CASES = {
    "FORA N=3": Case(FORA_CODE, 20, partial(FORA, 3), opened=stepped),
    "L2C, the published router": Case(L2C_CODE, 20, partial(router, 20), opened=routed),
    "L2C, the published router of 50 steps": Case(L2C_CODE, 50, partial(router, 50), opened=routed),
    "GOC 1.2 on FORA 25 %": Case(GOC_CODE, 20, lambda: GOC(FORA(**PRESETS["25 %"]), 1.2)),
    "GOC 0.8 on L2C": Case(
        replaced(GOC_CODE, network="models.dynamic_models"), 20,
        lambda: GOC(router(20), 0.8, inflections=PUBLISHED_INFLECTIONS, steps=PUBLISHED_STEPS), opened=routed,
    ),
    "EOC 0.01 on FORA 25 %": Case(EOC_CODE, 20, lambda: EOC(FORA(**PRESETS["25 %"]), Means(20)), opened=knowing),
    "ToCa N=3, random": tokens(ToCa, "random", 3),
    "ToCa N=3, attention": tokens(ToCa, "attention", 3),
    "ToCa N=5, small values": tokens(ToCa, "small values", 5),
    "DuCa N=3, random": tokens(DuCa, "random", 3),
    "DuCa N=3, small values": tokens(DuCa, "small values", 3),
    "DuCa N=5, small values": tokens(DuCa, "small values", 5),
    "Taylor 1, N=4": taylor(1, 4),
    "Taylor 2, N=4": taylor(2, 4),
    "Taylor 2, N=6": taylor(2, 6),
}  # fmt: skip
"""By name, as docs/authors.md shows them."""


def known() -> tuple[dict[str, Tensor], dict[str, str]]:
    """What their code drew, by the name of the case, and the commits that it was of."""
    with safe_open(DRAWN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def markdown(moved: dict[str, tuple[float, float]], commits: dict[str, str]) -> str:
    """docs/authors.md. moved: how far caching takes a picture, and how far ours is from theirs."""
    lines = [
        "# Beside the authors' own code", "",
        "Written by `python tools/dev.py bench authors FOLDER --write`. A DiT of 28 blocks of width 32, with random weights, "
        f"is sampled with DDIM and guidance {CFG:g} by each method's published code and in ComfyUI with ours: the same weights, labels and "
        "noise, in float32. Differences are relative (L2) and the larger one of two pictures. `tests/benchmarks/test_authors.py` "
        "holds every policy to what their code drew.", "",
        "| method | steps | their code | theirs from uncached | ours from theirs |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, case in {**{f"none, {n} steps": case for n, case in UNCACHED.items()}, **CASES}.items():
        cached, apart = moved[name]
        source = f"{case.source.repository} @ {commits[case.source.repository][:7]}, `{case.source.folder}`"
        lines.append(f"| {name} | {case.steps} | {source} | {cached:.3f} | {apart:.1e} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench authors", description=__doc__.splitlines()[0])
    parser.add_argument("code", type=Path, help="the folder of the repositories")
    parser.add_argument("--write", action="store_true", help="keep what theirs draw, and write docs/authors.md")
    args = parser.parse_args(argv)
    full = {steps: case.theirs(args.code) for steps, case in UNCACHED.items()}
    found = {f"none, {steps} steps": out for steps, out in full.items()}
    found |= {name: case.theirs(args.code) for name, case in CASES.items()}
    moved = {}
    for (name, theirs), case in zip(found.items(), (*UNCACHED.values(), *CASES.values()), strict=True):
        pairs = (theirs, full[case.steps]), (ours(case.policy(), case.steps), theirs)
        moved[name] = tuple(relative_l2(*pair).max().item() for pair in pairs)
    commits = {case.source.repository: case.source.commit(args.code) for case in (*UNCACHED.values(), *CASES.values())}
    print(text := markdown(moved, commits))
    if args.write:
        replace(DRAWN, lambda part: save_file({k: v.contiguous() for k, v in found.items()}, part, commits))
        page = remarked(PAGE, text)
        replace(PAGE, lambda part: part.write_text(page))
