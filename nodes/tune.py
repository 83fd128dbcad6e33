"""Set a policy's own constants for one model, by sampling."""

from __future__ import annotations

from comfy_api.latest import io

from ..cache_core.codecs import CODECS
from ..cache_core.policies import CachePolicy
from ..errors import SettingError, finite
from ..priors.tune import told, tuned
from .memory import informed
from .sampling import Sampling, given, seeded, settings
from .searching import Sampler
from .types import POLICIES, Policy


class PriorCacheTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorCacheTune",
            display_name="Tune Policy",
            category=POLICIES,
            description="Searches, by sampling, which settings of a policy suit a model best, from those that it has on: eta and steps of GOC, theta and steps of EOC, ratio and interval of DuCa. It gets no slower unless ceiling allows it, and never worse on the judged pictures.",
            search_aliases=[
                "optimise policy",
                "calibrate policy",
                "hyperparameters",
                "goc eta",
                "eoc theta",
                "duca ratio",
            ],
            is_output_node=True,
            inputs=[
                Policy.Input(
                    "policy", tooltip="Where to begin, such as GOC Policy over FORA Policy with the paper's constants."
                ),
                io.Model.Input("model", tooltip="The model as you sample it, without Apply Cache."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Typical prompts or class labels. The more they vary, the better the settings carry over.",
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt or null class."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The empty latent: its batch is how many pictures are judged at once. 4 to 8 are enough.",
                ),
                seeded(
                    "Seed of the pictures that are tuned on; the next one judges what was found. Not one you generate with.",
                    default=1000,
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampler steps, as you generate."),
                *settings(),
                io.Float.Input(
                    "samplings",
                    default=24.0,
                    min=1.0,
                    max=10000.0,
                    step=1.0,
                    tooltip="What the search may cost, in samplings of these pictures in full, beside the two uncached ones that it compares with. A search that was stopped goes on where it was.",
                ),
                io.Float.Input(
                    "ceiling",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="How much of the arithmetic of a full sampling the tuned policy may take. 0: as much as the given one takes.",
                ),
                given(),
            ],
            outputs=[
                Policy.Output(display_name="policy", tooltip="The tuned policy, for Apply Cache."),
                io.String.Output(
                    display_name="summary", tooltip="What each setting was and became, error and cost before and after."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, policy: CachePolicy, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, denoise,
        samplings, ceiling=0.0, sigmas=None,
    ) -> io.NodeOutput:  # fmt: skip
        finite("Tune Policy", samplings=samplings, ceiling=ceiling)
        sampling = Sampling.of(
            model, positive, negative, latent_image, steps, cfg, sampler_name, scheduler, denoise, sigmas=sigmas
        )
        sample = Sampler(sampling, model, seed)
        known = informed(sample.schedule, model, policy, sample.parts, CODECS["device"])
        if objection := policy.prepared(known).objection(known):
            raise SettingError(f"Tune Policy: {policy.describe()} would compute everything here: {objection}")
        judging = Sampler(sampling, model, seed + 1)
        search, judge = sample.search(policy, samplings), lambda: judging.search(policy)
        tuning = tuned(search, policy, samplings, ceiling or None, judge)
        sample.finished()
        judging.finished()
        text = told(tuning)
        return io.NodeOutput(tuning.after, text, ui={"text": (text,)})
