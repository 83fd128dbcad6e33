"""ToCa and DuCa in sampling runs of the real host."""

import dataclasses
import logging

import pytest
import subjects
import torch
from priorcache.cache_core.adapters import sites_of
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.policies import FORA, Budget, DuCa, ToCa
from priorcache.cache_core.sites import STACK, Action, Schedule
from priorcache.cache_core.trace import Trace

EACH = pytest.mark.parametrize("policy", [ToCa("dit", ratio=0.3), DuCa("dit", 4, 0.3)], ids=["ToCa", "DuCa"])
SELECTIONS = pytest.mark.parametrize("selection", ["random", "small values", "large values", "attention", "entropy"])


@EACH
@pytest.mark.parametrize("store", CODECS)
def test_memory_is_told_within_five_percent(host, model, policy, store):
    trace = Trace()
    host.sample(host.attach(model, policy, trace, store=store), size=(32, 32))
    run = trace.runs[0]
    assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)
    assert run.peak_bytes > 0


@EACH
def test_measuring_changes_no_picture(host, model, policy):
    plain = host.sample(host.attach(model, policy, measure="off"))
    assert not torch.equal(plain, host.sample(model))
    for measure in ("errors", "truth"):
        trace = Trace()
        assert torch.equal(host.sample(host.attach(model, policy, trace, measure=measure)), plain)
    assert all(row.error is not None for row in trace.runs[0].rows if row.site == STACK and row.action is Action.REUSE)


def test_the_same_tokens_are_chosen_again(host, model):
    attached = host.attach(model, DuCa("dit", ratio=0.3))
    assert torch.equal(host.sample(attached), host.sample(attached))


@SELECTIONS
@pytest.mark.parametrize(("kind", "preset"), [("dit", "dit"), ("pixart", "pixart"), ("flux", "flux")])
def test_on_every_architecture_of_the_papers(host, tmp_path, kind, preset, selection):
    """Some tokens, all blocks and everything in turn; what a model does not tell of its tokens is said once."""
    subject = getattr(subjects, kind)(*([tmp_path] if kind == "flux" else []))
    policy = DuCa(preset, ratio=0.5, selection=selection, steps=("F", "c", "c", "a", "F", "a"))
    stock, trace = subject.sample(steps=6), Trace()
    ours = subject.sample(host.attach(subject.model, policy, trace), steps=6)
    run = trace.runs[0]
    known = {"dit": ("values", "received"), "pixart": ("values", "entropy"), "flux": ("values",)}[kind]
    assert bool(run.notes) == (policy.marks not in ("", *known))
    assert 0 < subjects.close(ours, stock) < 0.5
    by_step = [{r.action for r in run.rows if r.step == i and r.site != STACK} for i in range(6)]
    some = {Action.PARTIAL, Action.REUSE}
    assert by_step == [{Action.COMPUTE}, some, some, {Action.REUSE}, {Action.COMPUTE}, {Action.REUSE}]
    assert subjects.left_over(subject.model.model) == []


class TestAuto:
    """The preset of the model that is most alike."""

    @pytest.fixture(scope="class")
    def pixart(self, host):
        return subjects.pixart()

    @pytest.mark.parametrize("policy", [ToCa(), DuCa()], ids=["ToCa", "DuCa"])
    @pytest.mark.parametrize(
        ("kind", "preset"), [("dit", "dit"), ("pixart", "pixart"), ("flux", "flux"), ("wan", "pixart")]
    )
    def test_is_sampled_with_as_if_it_were_named_and_says_so(self, host, tmp_path, caplog, policy, kind, preset):
        subject, trace = getattr(subjects, kind)(*([tmp_path] if kind == "flux" else [])), Trace()
        with caplog.at_level(logging.INFO, "PriorCache"):
            ours = subject.sample(host.attach(subject.model, policy, trace), steps=8)
        named = type(policy)(preset)
        assert torch.equal(ours, subject.sample(host.attach(subject.model, named), steps=8))
        (run,) = trace.runs
        assert run.policy == named.describe()
        assert run.record["settings"]["preset"] == preset
        (note,) = run.notes
        assert note.startswith(f"{policy.describe()} chose {named.describe()}: ")
        assert caplog.text.count(note) == 1
        assert Action.PARTIAL in {row.action for row in run.rows}
        assert run.expected_bytes == pytest.approx(run.peak_bytes, rel=0.05)

    @pytest.mark.parametrize(("kind", "frames"), [("wan", 3), ("pixart", 1)])
    def test_a_policy_is_told_how_many_frames_there_are(self, host, kind, frames):
        from priorcache.nodes.memory import supposed, usual
        from priorcache.nodes.sampling import Sampling

        asked = []

        @dataclasses.dataclass(frozen=True)
        class Asking(FORA):
            def prepared(self, schedule):
                asked.append(schedule.frames)
                return self

        subject = getattr(subjects, kind)()
        subject.sample(host.attach(subject.model, Asking(2)))
        assert asked == [frames]
        latent = torch.zeros(1, subject.channels, *subject.size)
        sampling = Sampling(subject.prompt(1), subject.prompt(2), latent, 4, 2.0, "euler", "simple")
        assert sampling.schedule(subject.model).frames == frames
        for parts in usual(subject.model).values():
            beforehand = supposed(subject.model, FORA(2), parts, CODECS["device"])
            assert (beforehand.frames > 1) == (frames > 1)

    def test_a_budget_counts_what_is_noted_of_tokens_with_that_preset(self, pixart):
        from priorcache.nodes.memory import Part, informed

        latent, network = (pixart.channels, *pixart.size), pixart.model.model.diffusion_model
        schedule, parts = Schedule(20, sites=sites_of(network)), [Part(1, latent, [latent], 5)]
        auto, alike, other = (
            informed(schedule, pixart.model, Budget(policy, 64), parts, CODECS["device"]).nbytes
            for policy in (ToCa(), ToCa("pixart"), ToCa("dit"))
        )
        assert auto == alike != other

    def test_calibrate_keeps_what_is_reused_with_that_preset(self, pixart, undrawn):
        from priorcache.nodes.calibrate import PriorCacheCalibrate

        with torch.inference_mode():
            prior = PriorCacheCalibrate.execute(
                pixart.model, pixart.prompt(1), pixart.prompt(2),
                {"samples": torch.zeros(1, pixart.channels, *pixart.size)}, 5, 1, 8, 2.0, "euler", "simple", 1.0, 2, True,
                policy=ToCa(),
            ).args[0]  # fmt: skip
        ours, other = (ToCa(preset).prepared(Schedule(8)).steps for preset in ("pixart", "dit"))
        assert ours != other
        kept = [i for i, kind in enumerate(ours) if kind != "F"]
        assert prior.tables["trend_steps/blocks.0.attn"].tolist() == kept
