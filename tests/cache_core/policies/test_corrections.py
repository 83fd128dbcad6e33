"""GOC, EOC and Taylor on features that are known beforehand, and over policies that decide."""

import dataclasses
import re
from collections import Counter

import pytest
import torch
from priorcache.cache_core import courier
from priorcache.cache_core.policies import EOC, FORA, GOC, DuCa, Full, Taylor, ToCa, eoc
from priorcache.cache_core.policies.fora import PRESETS
from priorcache.cache_core.policies.goc import PUBLISHED_INFLECTIONS
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Action, Feature, Schedule, Site, Step

SITE = Site("blocks.0.attn", 0, 1)
DIT_XL = tuple(Site(f"blocks.{i}.{name}", i, 28) for i in range(28) for name in ("attn", "mlp"))
QUARTER, HALF, MOST = (FORA(**PRESETS[name]) for name in ("25 %", "50 %", "75 %"))


class Trends:
    """E at every step and site: one number, or a function of the step."""

    latent = (16, 104, 152)

    def __init__(self, trend, steps=20, shape=(1,)):
        self.trend, self.steps, self.shape = trend, steps, shape
        self.sigmas = tuple(float(steps - i) for i in range(steps))

    def knows(self, site):
        return True

    def at(self, step, site):
        return torch.full(self.shape, float(self.trend(step) if callable(self.trend) else self.trend))


@dataclasses.dataclass(frozen=True)
class Masked(FORA):
    """Reuses the branches of one name at odd steps, and both at some."""

    both: tuple[int, ...] = ()

    def decide(self, step, site):
        reused = step.index % 2 and (site.branch == "attn" or step.index in self.both)
        return Action.REUSE if reused else Action.COMPUTE


def schedule(total=20, sites=(SITE,)):
    return Schedule(total, tuple(float(total - i) for i in range(total + 1)), sites=sites)


def sample(policy, feature, total=20, sites=(SITE,), measure="off"):
    """out[step][site] of a run whose branches compute feature(step, site), float64."""
    run, outs = CacheRun(policy, schedule(total, sites), measure=measure), []
    for t in range(total):
        with run.evaluation(float(total - t), t / total):
            forward = run.next_forward([(0, "row")])
            x = torch.zeros(1, 1, dtype=torch.float64)
            outs.append([forward.branch(s, lambda x, t=t, s=s: x + feature(t, s), x) for s in sites])
    assert run.declined is None
    return outs


def corrections(policy, feature, at, **settings):
    """What comes out at these steps, less the feature of the step before: the increment that the policy believes in."""
    outs = sample(policy, feature, **settings)
    return [outs[t][0].item() - feature(t - 1, SITE) for t in at]


def random_feature(seed=0):
    values = torch.randn(20, 56, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda t, site: values[t, site.block * 2 + (site.branch == "mlp")]


def touched(policy, base, sites=DIT_XL, total=20):
    """How many outputs a correction changes: those that differ from what its queue's newest entry is."""
    feature, count = random_feature(), 0
    kept = {}
    for t, outs in enumerate(sample(policy, feature, total, sites)):
        for site, out in zip(sites, outs, strict=True):
            reused = base.decide(Step(t, total, t / total, 0.0), site) is Action.REUSE and t > 0
            count += bool(reused and not torch.equal(out, kept[site]))
            kept[site] = out
    return count


class TestGoldenNumbers:
    """DiT-XL/2, DDIM 20: 28 blocks of two branches."""

    def test_goc_at_25_percent_touches_224_outputs_at_3_5_7_9(self):
        assert touched(GOC(QUARTER, 1.2, inflections=PUBLISHED_INFLECTIONS, steps=20), QUARTER) == 224

    def test_goc_at_50_percent_touches_448_outputs(self):
        assert touched(GOC(HALF, 1.2, inflections=PUBLISHED_INFLECTIONS, steps=20), HALF) == 448

    def test_eoc_at_25_percent_touches_280_outputs(self):
        assert touched(EOC(QUARTER, Trends(1.0), 0.01), QUARTER) == 280

    def test_the_published_steps_are_3_to_15_and_19(self):
        policy = GOC(HALF, 0.8, inflections=PUBLISHED_INFLECTIONS).prepared(schedule(sites=DIT_XL))
        past = [
            Feature(torch.ones(1), Step(0, 20, 0.0, 1.0), True),
            Feature(torch.zeros(1), Step(0, 20, 0.0, 1.0), True),
        ]
        steps = [Step(t, 20, t / 20, 0.0) for t in range(1, 20, 2)]
        assert [s.index for s in steps[1:] if policy.reuse(s, SITE, past) != 1] == [3, 5, 7, 9, 11, 13, 15, 19]

    @pytest.mark.parametrize(("base", "reused"), [(QUARTER, 280), (HALF, 560), (MOST, 840)])
    def test_the_presets_reuse_25_50_and_75_percent_of_1120(self, base, reused):
        steps = [Step(t, 20, t / 20, 0.0) for t in range(20)]
        assert sum(base.decide(s, site) is Action.REUSE for s in steps for site in DIT_XL) == reused


class TestIdentities:
    @pytest.mark.parametrize("base", [FORA(2), QUARTER, HALF, MOST, Masked(2, both=(3, 7))], ids=FORA.describe)
    @pytest.mark.parametrize(
        "correct",
        [
            lambda base: GOC(base, 0.0),
            lambda base: GOC(base, 0.0, "recomputed"),
            lambda base: GOC(base, 1.2, inflections=tuple(range(20))),
            lambda base: EOC(base, Trends(3.0), 0.0),
            lambda base: EOC(base, Trends(3.0), 0.5, judged=()),
            lambda base: EOC(base, Trends(0.0), 0.5),
        ],
        ids=[
            "goc eta 0",
            "goc eta 0 recomputed",
            "goc at no step",
            "eoc theta 0",
            "eoc judges none",
            "eoc without trend",
        ],
    )
    def test_nothing_to_correct_is_the_base_bit_for_bit(self, base, correct):
        found, expected = (sample(p, random_feature(), sites=DIT_XL[:4]) for p in (correct(base), base))
        assert all(torch.equal(a, b) for line in zip(found, expected, strict=True) for a, b in zip(*line, strict=True))

    @pytest.mark.parametrize(
        "policy",
        [GOC(MOST, 1.2), GOC(MOST, 1.2, "recomputed"), Taylor(MOST, 1), Taylor(MOST, 2), Taylor(MOST, 2, True)],
        ids=lambda p: p.describe(),
    )
    def test_constant_features_are_not_corrected(self, policy):
        assert all(out[0].item() == 0.7 for out in sample(policy, lambda t, s: 0.7))

    @pytest.mark.parametrize(
        "correct", [GOC, Taylor, lambda base: EOC(base, Trends(2.0))], ids=["goc", "taylor", "eoc"]
    )
    def test_on_a_policy_that_computes_everything_keeps_nothing(self, correct):
        run = CacheRun(correct(Full()), schedule())
        assert (run.policy.history, run.keeps) == (0, False)
        assert [o[0].item() for o in sample(correct(Full()), lambda t, s: float(t))] == [float(t) for t in range(20)]

    @pytest.mark.parametrize("queue", ["used", "recomputed"])
    def test_two_runs_do_not_mix(self, queue):
        policy = GOC(HALF, 0.8, queue)
        first = sample(policy, random_feature(1), sites=DIT_XL[:2])
        sample(policy, random_feature(2), sites=DIT_XL[:2])
        again = sample(policy, random_feature(1), sites=DIT_XL[:2])
        assert all(torch.equal(a, b) for line in zip(first, again, strict=True) for a, b in zip(*line, strict=True))


def linear(t, site):
    return 3.0 * t + 1.0


class TestGOC:
    """On F = v s + 1 the increment that plain reuse lacks is v; c = what GOC adds, here for v = 3."""

    def test_the_first_reuse_is_plain(self):
        assert corrections(GOC(HALF, 1.2), linear, [1]) == [0.0]

    @pytest.mark.parametrize(
        ("eta", "expected"),
        [
            (0.8, [0.0, 1.6, 0.32, 1.344, 0.5248, 1.18016]),
            (0.5, [0.0, 1.0, 0.5, 0.75, 0.625]),
            (1.0, [0.0, 2.0, 0.0, 2.0, 0.0]),
            (1.2, [0.0, 2.4, -0.48, 2.976, -1.1712, 3.80544]),
        ],
    )
    def test_with_its_own_outputs_in_the_queue_linear_features_alternate(self, eta, expected):
        """c(s) = eta (2 v - c(s - 2)), c(1) = 0."""
        found = corrections(GOC(HALF, eta), linear, range(1, 2 * len(expected), 2))
        assert found == pytest.approx([3.0 * c for c in expected])

    def test_with_computed_outputs_only_eta_one_half_is_exact_from_3_on(self):
        outs = sample(GOC(HALF, 0.5, "recomputed"), linear)
        assert [outs[t][0].item() for t in range(3, 20)] == pytest.approx([linear(t, SITE) for t in range(3, 20)])

    def test_consecutive_reuses_continue_as_a_geometric_row(self):
        """N = 4: the jump at 4 is F4 - F^3; after it eta, eta eta, ... of it."""
        outs = [o[0].item() for o in sample(GOC(MOST, 0.5), linear)]
        jump = outs[4] - outs[3]
        assert [outs[t] - outs[t - 1] for t in (5, 6, 7)] == pytest.approx([jump * 0.5**i for i in (1, 2, 3)])

    def test_a_block_of_which_one_branch_is_computed_is_reused_plainly(self):
        base, sites = Masked(2, both=(5, 9)), DIT_XL[:2]
        feature = lambda t, site: 2.0 * t  # noqa: E731
        joint, single = (
            sample(GOC(base, 0.5), feature, sites=sites),
            sample(GOC(base, 0.5, joint=False), feature, sites=sites),
        )
        plain = sample(base, feature, sites=sites)
        assert [t for t in range(20) if not torch.equal(joint[t][0], plain[t][0])] == [5, 9]
        assert [t for t in range(20) if not torch.equal(single[t][0], plain[t][0])] == [*range(3, 20, 2)]

    def test_what_is_measured_where_it_computes_is_its_own_error(self):
        run = CacheRun(GOC(HALF, 0.5, "recomputed"), schedule(sites=DIT_XL[:2]), measure="errors")
        for t in range(8):
            with run.evaluation(20.0 - t, t / 20):
                forward = run.next_forward([(0, "row")])
                for site in DIT_XL[:2]:
                    forward.branch(site, lambda x, t=t: x + t + 1, torch.zeros(1, 1))
        at = {row.step: row.error for row in run.trace.rows if row.error is not None}
        assert at[4].item() == pytest.approx(1 / 5)  # 3 + .5 * 2 for 5: plain reuse would lack 2

    @pytest.mark.parametrize(
        ("policy", "row"),
        [
            (GOC(MOST), 3),
            (GOC(FORA(4)), 3),
            (GOC(FORA(5, "aligned"), 1.2), 4),
            (GOC(FORA(4, "aligned", level="model")), 3),
            (GOC(FORA(4, "aligned", level="stack")), 3),
            (GOC(ToCa("dit", steps=("F", "c", "c", "c") * 5)), 3),  # attention
        ],
        ids=lambda value: value.describe() if isinstance(value, GOC) else "",
    )
    def test_three_corrections_in_a_row_are_warned_of(self, policy, row):
        run = CacheRun(policy, schedule(sites=DIT_XL[:2]))
        assert run.declined is None
        (note,) = run.trace.notes
        assert note == run.trace.remark
        assert note.startswith(f"{policy.describe()} corrects {row} steps in a row, each by the corrected one before ")
        assert "set eta of GOC Policy to 0.25, or its queue to recomputed and eta to 0.5." in note

    @pytest.mark.parametrize(
        "policy",
        [
            GOC(HALF, 1.2),
            GOC(FORA(3, "aligned")),
            GOC(MOST, 0.5),
            GOC(MOST, 0.8, "recomputed"),
            GOC(MOST, inflections=tuple(range(20))),
            GOC(DuCa("dit", steps=("F", "c", "a", "c") * 5)),  # at "a" no branch is asked about
            GOC(MOST, inflections=(17,), steps=50),  # computes everything, and says why
        ],
        ids=lambda policy: policy.describe(),
    )
    def test_others_are_not(self, policy):
        run = CacheRun(policy, schedule(sites=DIT_XL[:2]))
        assert run.remark is None
        assert bool(run.trace.notes) == bool(run.declined)

    def test_the_first_steps_in_a_row_have_no_movement_to_go_on_with(self):
        assert GOC(MOST).remark(schedule(4)) is None
        assert "3 steps in a row" in GOC(MOST).remark(schedule(8))

    def test_what_it_warns_of_goes_astray_on_linear_features_and_what_it_advises_does_not(self):
        def error(policy) -> float:
            return abs(sample(policy, linear)[19][0].item() - linear(19, SITE))

        assert error(GOC(MOST)) > 10 * error(MOST)
        for advised in (GOC(MOST, 0.25), GOC(MOST, 0.5, "recomputed")):
            assert error(advised) < error(MOST)

    def test_inflections_are_declined_where_a_step_is_several_calls(self):
        run = dataclasses.replace(schedule(20), sampler="heun")
        assert "calls of the model, of which the sampler heun" in GOC(HALF, inflections=(17,)).objection(run)
        assert GOC(HALF).objection(run) is None

    def test_inflections_of_another_number_of_steps_are_declined(self):
        policy = GOC(HALF, inflections=PUBLISHED_INFLECTIONS, steps=20)
        assert "20 steps" in policy.objection(schedule(50))
        assert policy.objection(schedule(20)) is None


class TestEOC:
    def test_multiplies_by_one_and_theta_times_the_trend(self):
        found = sample(EOC(HALF, Trends(lambda step: step)), linear)
        assert found[5][0].item() == pytest.approx(linear(4, SITE) * (1 + 0.01 * 5))
        assert found[6][0].item() == linear(6, SITE)

    def test_three_reuses_in_a_row_compound(self):
        found = sample(EOC(MOST, Trends(2.0), 0.01), linear)
        assert found[7][0].item() == pytest.approx(linear(4, SITE) * 1.02**3)
        assert found[8][0].item() == linear(8, SITE)

    def test_corrects_where_it_judges_only(self):
        found, plain = (sample(p, linear) for p in (EOC(HALF, Trends(2.0), judged=(3, 9)), HALF))
        assert [t for t in range(20) if found[t] != plain[t]] == [3, 9]

    @pytest.mark.parametrize("measure", ["errors", "truth"])
    def test_measuring_needs_no_trend_of_computed_steps(self, measure):
        trends = Trends(1.0)
        trends.at = lambda step, site: torch.ones(1) if step % 2 else None
        found, expected = (sample(EOC(HALF, trends), linear, measure=m) for m in (measure, "off"))
        assert found == expected

    def test_works_in_the_precision_of_the_features(self):
        past = [Feature(torch.full((2, 3, 4), 2.0, dtype=torch.bfloat16), Step(2, 20, 0.1, 18.0), True)]
        policy = EOC(HALF, Trends(50.0, shape=(3, 4)))
        out = policy.reuse(Step(3, 20, 0.15, 17.0), SITE, past)
        assert out.dtype is torch.bfloat16
        assert torch.equal(out, torch.full_like(out, 3.0))
        assert torch.equal(past[0].value, torch.full_like(out, 2.0))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_a_trend_in_half_precision_is_rounded_once(self, dtype):
        trend, value = torch.randn(700, 4).half(), torch.randn(2, 700, 4).to(dtype)  # more tokens than go at once
        trends = Trends(1.0)
        trends.at = lambda step, site: trend
        out = EOC(HALF, trends, 0.5).reuse(
            Step(3, 20, 0.15, 17.0), SITE, [Feature(value, Step(2, 20, 0.1, 18.0), True)]
        )
        assert torch.equal(out, torch.addcmul(value, value, trend.to(dtype), value=0.5))

    @pytest.mark.parametrize(
        ("policy", "run", "said"),
        [
            (EOC(HALF, Trends(1.0)), schedule(50), r"20 steps.*this run has 50"),
            (EOC(HALF, Trends(1.0)), Schedule(20, tuple(range(30, 9, -1))), "calibrate with the settings"),
            (EOC(FORA(2, level="model"), Trends(1.0)), schedule(), "scope of the policy"),
            (EOC(FORA(2), Trends(1.0)), Schedule(2), "nothing to reuse"),
        ],
    )
    def test_declines_runs_that_the_prior_does_not_fit(self, policy, run, said):
        assert re.search(said, policy.objection(run))

    def test_a_prior_of_another_shape_of_as_many_tokens_is_declined(self):
        policy, run = EOC(HALF, Trends(1.0)), schedule()
        turned = policy.objection(dataclasses.replace(run, shape=(16, 152, 104)))
        assert "measured on latents of 16 x 104 x 152 and this run has 16 x 152 x 104; calibrate at the size" in turned
        assert policy.objection(dataclasses.replace(run, shape=(16, 104, 152))) is None
        policy.trends.latent = ()  # not known
        assert policy.objection(dataclasses.replace(run, shape=(16, 152, 104))) is None

    def test_a_prior_of_other_branches_is_declined(self):
        trends = Trends(1.0)
        trends.knows = lambda site: site == "blocks.3.mlp"
        assert EOC(HALF, trends).objection(schedule(sites=DIT_XL)) is None
        assert "none of the branches" in EOC(HALF, trends).objection(schedule(sites=DIT_XL[:4]))

    @pytest.mark.parametrize(
        ("trend", "said"), [(torch.ones(4, 1), r"4 x 1.*and this run has 1;"), (None, "no trend of")]
    )
    def test_features_of_another_size_or_step_are_computed_with_one_sentence(self, trend, said):
        trends = Trends(1.0)
        trends.at = lambda step, site: trend
        run = CacheRun(EOC(HALF, trends), schedule())
        for t in range(20):
            with run.evaluation(20.0 - t, t / 20):
                out = run.next_forward([(0, "row")]).branch(SITE, lambda x, t=t: x + t, torch.zeros(1, 1))
                assert out.item() == t
        assert len(run.trace.notes) == 1
        assert re.search(said, run.trace.notes[0])


class TestReady:
    """Trends that a run brings to a device of its own; here to the CPU, by giving it the room that only others have."""

    PAIR = DIT_XL[:2]

    class Counted(Trends):
        def at(self, step, site):
            self.asked = [*getattr(self, "asked", []), (step, site)]
            return super().at(step, site).half()

    @pytest.fixture
    def room(self, monkeypatch):
        def give(nbytes, ahead=False):
            monkeypatch.setattr(eoc, "_room", lambda device: nbytes)
            monkeypatch.setattr(eoc, "_ahead", lambda device: ahead)

        return give

    def run(self, policy, conds=((("row", 0), ("row", 1)),), total=8, limit=None):
        """(everything that came out, the run before it is closed): features (2, 3, 4) of two branches, in these forwards."""
        run, outs = CacheRun(policy, dataclasses.replace(schedule(20, self.PAIR), limit=limit)), []
        for t in range(total):
            with run.evaluation(20.0 - t, t / 20):
                for forward in [run.next_forward([(i, key) for key, i in rows]) for rows in conds]:
                    x = torch.full((len(forward.streams), 3, 4), 1.0 + t)
                    outs += [forward.branch(site, lambda x: x * 1.5, x) for site in self.PAIR]
        assert run.declined is None
        return outs, run

    @pytest.mark.parametrize("ahead", [False, True])
    def test_each_is_brought_once_whether_conds_come_together_or_apart(self, room, ahead):
        apart = ((("row", 0),), (("row", 1),))
        plain, _ = self.run(EOC(MOST, self.Counted(2.0, shape=(3, 4)), 0.5), apart)
        room(2**20, ahead)
        trends = self.Counted(2.0, shape=(3, 4))
        found, run = self.run(EOC(MOST, trends, 0.5), apart)
        aside, at_once = run.policy.aside, 2 if ahead else 1  # evaluations
        assert aside.nbytes == aside.expected(torch.device("cpu"), torch.float32) == at_once * len(self.PAIR) * 48
        assert run.nbytes == run.store.nbytes + aside.nbytes
        run.close(True)
        assert run.nbytes == 0
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
        asked = Counter(use for use in trends.asked if 1 < use[0] < 8)  # the first ones for their size, too
        assert asked == Counter((t, site.name) for t in (2, 3, 5, 6, 7) for site in self.PAIR)

    @pytest.mark.parametrize("ahead", [False, True])
    def test_what_exceeds_the_room_is_converted_where_it_is_used(self, room, ahead):
        plain, _ = self.run(EOC(HALF, self.Counted(2.0, shape=(3, 4)), 0.5))
        room((2 if ahead else 1) * (48 + 47), ahead)
        found, run = self.run(EOC(HALF, self.Counted(2.0, shape=(3, 4)), 0.5))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
        assert run.policy.aside.nbytes == (2 if ahead else 1) * 48

    def test_what_comes_next_is_on_its_way_while_a_step_computes(self, room):
        room(2**20, ahead=True)
        trends = self.Counted(2.0, shape=(3, 4))
        run = CacheRun(EOC(MOST, trends), schedule(20, self.PAIR))
        with run.evaluation(20.0, 0.0):
            run.next_forward([(0, "row")]).branch(self.PAIR[0], lambda x: x, torch.ones(1, 3, 4))
        assert run.aside.nbytes == 2 * 48
        run.close(False)
        assert {step for step, _ in trends.asked} == {1}

    def test_a_branch_that_comes_later_may_have_larger_trends_than_all_before(self, room, monkeypatch):
        monkeypatch.setattr(courier, "LOAD", 16)
        trends, tokens = self.Counted(2.0), {"attn": 3, "mlp": 300}
        trends.at = lambda step, site: torch.full((tokens[site.rpartition(".")[2]], 4), 2.0).half()
        found = []
        for ahead in (False, True):
            room(2**20, ahead)
            run = CacheRun(EOC(Masked(2, both=(3,)), trends, 0.5), schedule(20, self.PAIR))
            for t in range(4):
                with run.evaluation(20.0 - t, t / 20):
                    forward = run.next_forward([(0, "row")])
                    for site in self.PAIR:
                        found.append(forward.branch(site, lambda x: x + 1, torch.ones(1, tokens[site.branch], 4)))
            run.close(True)
            assert run.trace.notes == []
        assert all(torch.equal(a, b) for a, b in zip(found[:8], found[8:], strict=True))

    def test_no_trend_where_it_was_kept_of_others_is_said_as_elsewhere(self, room):
        room(2**20, ahead=True)
        trends = self.Counted(2.0, shape=(3, 4))
        trends.at = lambda step, site, at=trends.at: None if step == 3 else at(step, site)
        run = CacheRun(EOC(MOST, trends), schedule(20, self.PAIR))
        for t in range(5):
            with run.evaluation(20.0 - t, t / 20):
                run.next_forward([(0, "row")]).branch(self.PAIR[0], lambda x: x, torch.ones(1, 3, 4))
        assert "holds no trend of blocks.0.attn at evaluation 3" in run.trace.notes[0]

    def test_memory_that_runs_out_on_the_way_ends_the_cache_and_not_the_picture(self, room):
        room(2**20, ahead=True)
        trends = self.Counted(2.0, shape=(3, 4))

        def at(step, site, at=trends.at):
            if step == 2:
                raise MemoryError("out of memory")
            return at(step, site)

        trends.at = at
        run = CacheRun(EOC(MOST, trends), schedule(20, self.PAIR))
        for t in range(5):
            with run.evaluation(20.0 - t, t / 20):
                run.next_forward([(0, "row")]).branch(self.PAIR[0], lambda x: x, torch.ones(1, 3, 4))
        assert "memory ran out while keeping features" in run.trace.notes[0]
        assert run.nbytes == 0

    def test_a_cpu_and_a_limit_leave_no_room(self, room):
        assert self.run(EOC(HALF, Trends(2.0, shape=(3, 4))))[1].policy.aside.nbytes == 0
        room(2**20)
        _, run = self.run(EOC(HALF, Trends(2.0, shape=(3, 4))), limit=2**20)
        assert run.policy.aside is None

    def test_only_where_it_judges_and_as_far_as_the_prior_goes(self, room):
        room(2**20)
        trends = self.Counted(2.0, shape=(3, 4))
        trends.knows = lambda site: site == self.PAIR[1].name
        policy = EOC(HALF, trends, judged=(3, 9, 10)).prepared(schedule(20, self.PAIR))
        assert policy.aside.uses == {3: [self.PAIR[1].name], 9: [self.PAIR[1].name]}

    def test_nothing_is_held_once_it_declines(self, room):
        room(2**20)
        _, run = self.run(EOC(HALF, Trends(2.0, shape=(3, 4))))
        assert run.policy.aside.nbytes > 0
        run.decline("enough")
        assert run.nbytes == 0

    def test_another_device_gets_its_own(self, room):
        trends = self.Counted(2.0, shape=(3, 4))
        ready = EOC(HALF, trends).prepared(schedule(20, self.PAIR)).aside
        like = torch.empty(1, 3, 4, dtype=torch.bfloat16, device="meta")
        trend = ready.at(1, self.PAIR[0].name, like)
        assert (trend.device.type, trend.dtype) == ("meta", torch.bfloat16)
        assert ready.nbytes == 24
        assert ready.at(1, self.PAIR[0].name, torch.empty(1, 3, 4)).device.type == "cpu"


class TestTaylor:
    def test_what_was_computed_counts_whatever_came_between(self):
        past = [
            Feature(torch.tensor([value]), Step(at, 20, at / 20, 20.0 - at), computed)
            for value, at, computed in ((7.0, 4, False), (5.0, 2, True), (1.0, 0, True))
        ]
        assert Taylor(HALF).reuse(Step(5, 20, 0.25, 15.0), SITE, past).item() == 11

    @pytest.mark.parametrize("policy", [Taylor(MOST, 1), Taylor(MOST, 2), Taylor(MOST, 2, True)], ids=Taylor.describe)
    def test_linear_features_are_exact_once_two_were_computed(self, policy):
        found = sample(policy, linear)
        assert [found[t][0].item() for t in range(4, 20)] == pytest.approx([linear(t, SITE) for t in range(4, 20)])
        assert [found[t][0].item() for t in (1, 2, 3)] == [1.0] * 3

    @pytest.mark.parametrize("base", [MOST, FORA(4)], ids=["even distances", "uneven distances"])
    def test_quadratic_features_are_exact_with_the_exact_option_only(self, base):
        square = lambda t, site: float(t * t)  # noqa: E731
        newton, authors = sample(Taylor(base, 2, True), square), sample(Taylor(base, 2), square)
        assert [newton[t][0].item() for t in range(9, 20)] == pytest.approx([square(t, SITE) for t in range(9, 20)])
        assert authors[10][0].item() != pytest.approx(square(10, SITE))

    def test_the_authors_second_order_is_half_the_second_difference_times_the_squared_share(self):
        """f0 + s D + s s / 2 DD at share s of the interval, as TaylorSeer: 0, 16, 64 at 0, 4, 8 give D = 48, DD = 32."""
        found = sample(Taylor(MOST, 2), lambda t, site: float(t * t))
        assert found[10][0].item() == pytest.approx(64 + 0.5 * 48 + 0.5 * 0.5 / 2 * 32)
        assert sample(Taylor(MOST, 2, True), lambda t, s: float(t * t))[10][0].item() == pytest.approx(100)

    def test_the_whole_network_can_be_extrapolated_too(self):
        policy = Taylor(FORA(2, "aligned", level="model"))
        assert policy.level == "model"
        found = sample(policy, linear, sites=(MODEL,))
        assert found[5][0].item() == pytest.approx(linear(5, SITE))


class TestComposition:
    @pytest.mark.parametrize("inner", [GOC(HALF), EOC(HALF, Trends(1.0)), Taylor(HALF)], ids=lambda p: p.describe())
    @pytest.mark.parametrize("outer", [GOC, Taylor, lambda base: EOC(base, Trends(1.0))], ids=["goc", "taylor", "eoc"])
    def test_a_correction_of_a_correction_is_refused(self, outer, inner):
        with pytest.raises(ValueError, match=f"{type(inner).__name__} already replaces it; put"):
            outer(inner)

    @pytest.mark.parametrize(
        "correct", [GOC, Taylor, lambda base: EOC(base, Trends(1.0))], ids=["goc", "taylor", "eoc"]
    )
    def test_the_base_is_asked_about_everything_else(self, correct):
        class Particular(FORA):
            keeps_reused = True
            history = 5

            def prepared(self, schedule):
                return dataclasses.replace(self, interval=schedule.total)

            def objection(self, schedule):
                return f"interval {self.interval}"

            def select(self, step, site, x, past):
                return "chosen"

        policy = correct(Particular(2)).prepared(schedule(20))
        assert policy.base.interval == 20
        assert policy.objection(schedule(20)) == "interval 20"
        assert (policy.history, policy.keeps_reused, policy.select(None, SITE, None, [])) == (5, True, "chosen")

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (lambda: GOC(HALF, queue="all"), "GOC: queue is 'all'; choose one of used, recomputed"),
            (lambda: Taylor(HALF, 3), "Taylor: order is 3; 1 is linear, 2 quadratic"),
        ],
    )
    def test_settings_without_meaning_are_refused(self, bad, said):
        with pytest.raises(ValueError, match=said):
            bad()


@dataclasses.dataclass(frozen=True)
class Narrow(FORA):
    """Is asked about one branch only, and keeps that one."""

    def serves(self, site):
        return super().serves(site) and site.branch == "mlp"

    def keeps(self, site):
        return site.block < 14


@pytest.mark.parametrize("correction", [GOC, Taylor])
def test_what_the_policy_before_leaves_alone_stays_alone(correction):
    base = Narrow(2, "aligned")
    assert [correction(base).serves(site) for site in DIT_XL] == [base.serves(site) for site in DIT_XL]
    assert [correction(base).keeps(site) for site in DIT_XL] == [base.keeps(site) for site in DIT_XL]
