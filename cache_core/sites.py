"""The vocabulary of the engine: where (Site), when (Step), for whom (Lane, Streams), what to do (Action)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from torch import Tensor


class Site(NamedTuple):
    """A place whose output can be cached: a residual branch such as "blocks.3.mlp", STACK, or MODEL."""

    name: str
    block: int  # position in execution order, from 0
    depth: int  # number of blocks of the model

    @property
    def branch(self) -> str:
        return self.name.rpartition(".")[2]


STACK = Site("stack", 0, 1)
"""All blocks: what is kept is the picture's hidden state after the last one. The final layer still runs."""

MODEL = Site("model", 0, 1)
"""The whole network: what is kept is the k-diffusion derivative (x - denoised) / sigma of each cond."""


class Step(NamedTuple):
    """One call of the denoiser. Samplers with several calls per step count on: index may exceed total."""

    index: int  # counts up from 0 = noisiest
    total: int  # steps of the sampler
    progress: float  # in [0, 1]: position of sigma in the sampler's schedule
    sigma: float

    @property
    def position(self) -> int:
        """The sampler's step that this call belongs to, 0 to total - 1. Equals index where each step calls once."""
        return min(round(self.progress * self.total), max(self.total - 1, 0))


FLOW = ("FLOW", "FLUX", "IMG_TO_IMG_FLOW")
"""The host's names of predictions on a straight path, x = (1 - sigma) picture + sigma noise."""

OF = " of "
"""What stands between the name of a sampler that works around another, and that other's."""


@dataclass(frozen=True)
class Schedule:
    """What is known of a sampling call before it begins; what is empty is unknown."""

    total: int  # steps of the sampler
    sigmas: tuple[
        float, ...
    ] = ()  # (total + 1,): the noise level at the beginning of every step, and the last one's end
    sampler: str = ""  # as the host names it: "euler"; one around another: "detail_daemon_sampler of euler"
    prediction: str = ""  # the host's name of what the model predicts: "EPS", "V_PREDICTION", "FLOW", "FLUX", ...
    sites: tuple[Site, ...] = ()  # every branch of the network, in execution order
    cfg: float = 0.0  # the scale of guidance: 1 where there is none, 0 where it is not known
    shape: tuple[int, ...] = ()  # (C, *space) of one latent as it is sampled; of several parts (1, numbers)
    frames: int = 0  # of the latent of a video: 1 of a picture, 0 where it is not known
    # of every branch and STACK by name, for all conds together, where a policy must know:
    nbytes: dict[str, int] = field(default_factory=dict, hash=False)  # what keeping one output takes
    flops: dict[str, int] = field(default_factory=dict, hash=False)  # operations that computing one takes
    limit: int | None = None  # bytes that may be kept at most, where a policy around this one says so
    room: int | None = None  # bytes that there are beside the model, on the device or wherever features are kept

    @property
    def flow(self) -> bool:
        """Whether the model is known to predict a straight path."""
        return self.prediction in FLOW

    @property
    def samplers(self) -> list[str]:
        """The names of its sampler and of those that it works around."""
        return self.sampler.split(OF)

    @property
    def evaluations(self) -> list[Step]:
        """What a policy will be asked about where every step calls the model once; their noise is left out."""
        return [Step(i, self.total, i / self.total, 0.0) for i in range(self.total)]


class Action(Enum):
    COMPUTE = "compute"
    REUSE = "reuse"
    PARTIAL = "partial"  # compute some tokens, reuse the others


class Feature(NamedTuple):
    """A past output as the store hands it out; newest first in every list."""

    value: Tensor
    step: Step
    computed: bool  # False: the output of a reuse
    age: Tensor | None = None  # (B, N) how often PARTIAL passed each token by since it was computed; None: never
    marks: Tensor | None = None  # (B, N) what the policy asked to note of its tokens, when all were last computed


class Lane(NamedTuple):
    """Whose rows these are. A uuid alone is not unique, and a position in a batch is no identity at all."""

    visit: int  # nth time this key is met within one evaluation: second passes are other lanes
    cond: int  # 0 positive, 1 negative, further ones as the guider counts them
    key: Hashable  # uuid, rows, shape, context window, replaced blocks, device

    @property
    def whose(self) -> tuple[int, int, Hashable]:
        """The cond alone; what else is in its key says which function of it a pass is."""
        return self.visit, self.cond, self.key[0] if isinstance(self.key, tuple) else self.key


Streams = tuple[Lane, ...]
"""The lanes of one forward, in batch order; every lane owns an equal share of the rows."""
