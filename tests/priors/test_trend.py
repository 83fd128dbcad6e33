"""What GOC and EOC take from a prior, on features that are known beforehand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from priorcache.cache_core.policies import EOC, FORA, Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import Action, Schedule, Site
from priorcache.priors.inflections import consistency, inflections
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.statistics import Statistics
from priorcache.priors.trend import Trend, judged

SITES = (Site("blocks.0.attn", 0, 1), Site("blocks.0.mlp", 0, 1))
HALF = FORA(2, "aligned")


def calibrated(feature, total=20, runs=1, gaps=2, **settings) -> Prior:
    """The prior of a stub model: feature(run, t, site) is what its branches (rows p, p, n, n) compute."""
    statistics = Statistics(gaps, **settings)
    for number in range(runs):
        run = CacheRun(Full(), total, observers=(statistics,))
        for t in range(total):
            with run.evaluation(float(total - t), t / total):
                forward = run.next_forward(((0, "p"), (1, "n")))
                for site in SITES:
                    out = feature(number, t, site)
                    forward.branch(site, lambda x, out=out: out, torch.zeros(len(out)))
                statistics._sigmas[t] = float(total - t)
        statistics.end_trajectory(2)
    subject = Subject("DiT", "0123456789abcdef", "EPS", "ddim", "normal", steps=total, cfg=1.5)
    return statistics.prior(subject, (3, 8, 8), tuple(range(runs)))


def noisy(number, t, site):
    own = torch.Generator().manual_seed(1000 * number + 10 * t + SITES.index(site))
    return torch.randn(4, 3, 5, generator=own)


class TestInflections:
    @pytest.mark.parametrize("turn", [5, 17])
    def test_a_path_that_turns_around_is_found_where_it_turns(self, turn):
        """A triangle: up to `turn` - 1, down from there on."""
        prior = calibrated(lambda n, t, s: torch.full((4, 3, 5), float(t if t < turn else 2 * (turn - 1) - t)))
        assert inflections(prior) == (turn,)

    def test_a_straight_path_is_consistent_and_a_zigzag_is_not(self):
        straight = consistency(calibrated(lambda n, t, s: torch.full((4, 3, 5), t + 1.0)))
        assert straight[:2].isnan().all()
        assert straight[2:].tolist() == pytest.approx([1.0] * 18)
        zigzag = consistency(calibrated(lambda n, t, s: torch.full((4, 3, 5), (-1.0) ** t)))
        assert zigzag[2:].tolist() == pytest.approx([-1.0] * 18)

    def test_it_is_the_cosine_of_successive_changes(self):
        prior = calibrated(noisy)
        found = consistency(prior)
        for t in range(2, 20):
            cosines = []
            for site in SITES:
                f2, f1, f0 = (noisy(0, i, site).double().flatten() for i in (t - 2, t - 1, t))
                cosines.append(torch.cosine_similarity(f0 - f1, f1 - f2, dim=0).item())
            assert found[t].item() == pytest.approx(sum(cosines) / 2, abs=1e-5)

    def test_a_stricter_limit_finds_more(self):
        prior = calibrated(
            lambda n, t, s: torch.tensor([[[t + 1.0, 0.0 if t < 9 else t - 8.0]]]).expand(4, 1, 2).clone()
        )
        assert inflections(prior) == ()
        assert inflections(prior, 0.8) == (9,)  # it turns by 45 degrees there

    def test_changes_over_one_evaluation_alone_do_not_tell(self):
        with pytest.raises(PriorError, match="gap 2 was not measured"):
            inflections(calibrated(noisy, gaps=1))


class TestTrend:
    def test_is_the_change_of_the_mean_of_the_positive_rows(self):
        whole = Trend(calibrated(noisy, runs=3, features=True))
        some = Trend(calibrated(noisy, runs=3, features=True, policy=HALF))
        for t in (1, 7, 19):
            for site in SITES:
                mean = torch.stack([noisy(n, t, site)[:2] - noisy(n, t - 1, site)[:2] for n in range(3)]).mean((0, 1))
                torch.testing.assert_close(whole.at(t, site.name), mean, rtol=0, atol=2e-3)
                torch.testing.assert_close(some.at(t, site.name).float(), mean, rtol=1e-3, atol=1e-3)

    def test_with_a_policy_only_what_it_reuses_is_kept_in_half_precision(self):
        whole, some = (
            calibrated(noisy, features=True),
            calibrated(noisy, features=True, policy=FORA(2, "aligned", end=0.5)),
        )
        assert some.tables["trend_steps/blocks.0.mlp"].tolist() == [1, 3, 5, 7, 9]
        assert some.tables["trend/blocks.0.mlp"].dtype is torch.float16
        assert some.tables["trend/blocks.0.mlp"].shape == (5, 3, 5)
        assert not [name for name in some.tables if name.startswith("mean/")]
        bytes_of = lambda prior, kind: sum(t.nbytes for n, t in prior.tables.items() if n.startswith(kind))  # noqa: E731
        assert bytes_of(whole, "mean/") == 4 * bytes_of(some, "trend/")
        assert Trend(some).at(2, "blocks.0.mlp") is None
        assert Trend(some).at(3, "blocks.0.mlp") is not None

    def test_a_branch_that_is_never_reused_is_left_out(self):
        @dataclasses.dataclass(frozen=True)
        class OnlyMLP(FORA):
            def decide(self, step, site):
                return super().decide(step, site) if site.branch == "mlp" else Action.COMPUTE

        trend = Trend(calibrated(noisy, features=True, policy=OnlyMLP(2, "aligned")))
        assert (trend.knows("blocks.0.mlp"), trend.knows("blocks.0.attn")) == (True, False)

    def test_trends_survive_a_file_and_merge(self, tmp_path):
        settings = {"features": True, "policy": HALF}
        both = calibrated(noisy, runs=2, **settings)
        apart = [calibrated(lambda n, t, s, i=i: noisy(i, t, s), **settings) for i in range(2)]
        merged = Prior.load(Prior.merge(apart).save(tmp_path / "a.safetensors"))
        assert merged.tables.keys() == both.tables.keys()
        for name, table in both.tables.items():
            if name.startswith("trend"):
                torch.testing.assert_close(merged.tables[name], table, rtol=2e-3, atol=2e-3)

    def test_priors_of_other_trend_steps_do_not_merge(self):
        a, b = (calibrated(noisy, features=True, policy=FORA(2, "aligned", start=s, end=s + 0.5)) for s in (0.0, 0.5))
        with pytest.raises(PriorError, match="trend_steps"):
            Prior.merge([a, b])

    @pytest.mark.parametrize(
        ("name", "table", "said"),
        [
            ("trend_steps/blocks.0.mlp", torch.tensor([1, 1, 3]), "one whole number for each row"),
            ("trend_steps/blocks.0.mlp", torch.arange(10), "must rise, from 1"),
            ("trend_steps/blocks.0.mlp", torch.arange(10) + 11, "to at most 19"),
            ("trend_steps/blocks.0.mlp", torch.arange(1, 11).flip(0), "must rise"),
            ("trend_steps/blocks.0.mlp", torch.arange(1, 11).float(), "whole number"),
            ("trend/blocks.9.mlp", torch.zeros(10, 3, 5), "belong together"),
            ("trend/blocks.0.mlp", torch.full((10, 3, 5), torch.inf), "not finite"),
            ("trend/blocks.0.mlp", torch.zeros(10, 3, 5, dtype=torch.bfloat16), "float16, float32 and float64"),
        ],
    )
    def test_files_with_impossible_trends_are_refused(self, tmp_path, name, table, said):
        prior = calibrated(noisy, features=True, policy=HALF)
        broken = dataclasses.replace(prior, tables=prior.tables | {name: table})
        with pytest.raises(PriorError, match=said):
            broken.save(tmp_path / "a.safetensors")

    def test_a_prior_without_mean_features_says_what_to_switch_on(self):
        with pytest.raises(PriorError, match="mean_features"):
            Trend(calibrated(noisy))

    def test_a_policy_of_whole_networks_has_no_branches_to_keep(self):
        with pytest.raises(PriorError, match="scope set to branches"):
            Statistics(features=True, policy=FORA(2, level="model"))

    def test_feeds_eoc(self):
        prior = calibrated(lambda n, t, s: torch.full((4, 3, 5), float(t)), features=True, policy=HALF)
        run = CacheRun(EOC(HALF, Trend(prior), 0.1), Schedule(20, tuple(20.0 - i for i in range(21)), sites=SITES))
        for t in range(4):
            with run.evaluation(20.0 - t, t / 20):
                out = run.next_forward([(0, "row")]).branch(SITES[0], lambda x, t=t: x + t, torch.zeros(4, 3, 5))
        assert run.declined is None
        torch.testing.assert_close(out, torch.full((4, 3, 5), 2 * 1.1))


def test_judged_steps_are_those_where_reuse_costs_enough():
    """|f(t) - f(t - 1)| / |f(t)| = 1 / (t + 1)."""
    prior = calibrated(lambda n, t, s: torch.full((4, 3, 5), t + 1.0))
    assert judged(prior, 0.25) == (1, 2, 3)
    assert judged(prior, 0.0) == tuple(range(1, 20))
