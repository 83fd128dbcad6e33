"""Calibration statistics of runs whose features are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from priorcache.cache_core.policies import Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Feature, Lane, Site, Step
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.statistics import CHUNK, Statistics, _in_few_launches, squares

SUBJECT = Subject("DiT", "0123456789abcdef", "EPS", "euler", "normal", steps=4, cfg=4.0)
SITES = (Site("blocks.0.attn", 0, 1), Site("blocks.0.mlp", 0, 1))
BOTH = ((0, "p"), (1, "n"))


def sample(statistics: Statistics, feature, derivative=None, steps: int = 4, pictures: int = 1, conds=BOTH) -> None:
    """One sampling run of a stub model: feature(t, site, rows) and derivative(t, rows) are its outputs."""
    run = CacheRun(Full(), steps, observers=(statistics,))
    for t in range(steps):
        with run.evaluation(sigma=float(steps - t), progress=t / steps):
            forward = run.next_forward(conds)
            rows = pictures * len(conds)
            for site in SITES:
                out = feature(t, site, rows)
                assert forward.branch(site, lambda x, out=out: out, torch.zeros(rows)) is out
            forward.computed(MODEL, (derivative or (lambda t, rows: torch.ones(rows, 2)))(t, rows))
    statistics.end_trajectory(pictures)
    run.close(complete=True)


def prior_of(statistics: Statistics, seeds: tuple[int, ...] = (0,)) -> Prior:
    return statistics.prior(SUBJECT, (2, 8, 8), seeds)


def random_model(seed: int, pictures: int = 1, conds: int = 2):
    """Features (rows, 3, 4) and derivatives (rows, 2, 5, 5) of a random trajectory, as tables and as functions."""
    own = torch.Generator().manual_seed(seed)
    rows = pictures * conds
    features = {s: torch.randn(4, rows, 3, 4, generator=own) for s in SITES}
    derivatives = torch.randn(4, rows, 2, 5, 5, generator=own)
    return (
        features,
        derivatives,
        lambda t, site, rows: features[site][t].clone(),
        lambda t, rows: derivatives[t].clone(),
    )


def test_constant_features_differ_by_nothing():
    statistics = Statistics(gaps=2)
    sample(statistics, lambda t, site, rows: torch.full((rows, 3, 4), 2.0))
    prior = prior_of(statistics)
    assert prior.tables["power"].tolist() == [[4.0, 4.0]] * 4
    for gap in (1, 2):
        assert torch.equal(prior.reuse_error(gap)[gap:], torch.zeros(4 - gap, 2).double())


def test_linear_features_differ_by_the_square_of_the_gap():
    v = torch.tensor([[1.0, -2.0, 3.0]])  # mean square 14 / 3
    statistics = Statistics(gaps=3)
    sample(statistics, lambda t, site, rows: (v * (t + 1)).expand(rows, -1).clone())
    tables = prior_of(statistics).tables
    for t in range(4):
        assert tables["power"][t].tolist() == pytest.approx([(t + 1) ** 2 * 14 / 3] * 2)
        for gap in (1, 2, 3):
            entry = tables["difference"][gap - 1, t]
            assert entry.isnan().all() if t < gap else entry.tolist() == pytest.approx([gap**2 * 14 / 3] * 2)


def test_reuse_error_of_linear_features_is_gap_over_time():
    statistics = Statistics(gaps=2)
    sample(statistics, lambda t, site, rows: torch.full((rows, 5), 3.0 * (t + 1)))
    error = prior_of(statistics).reuse_error(2)
    assert error[2:, 0].tolist() == pytest.approx([2 / 3, 2 / 4])


def test_a_known_trajectory_gives_what_numpy_gives():
    features, derivatives, feature, derivative = random_model(0, pictures=2)
    statistics = Statistics(gaps=2, features=True)
    sample(statistics, feature, derivative, pictures=2)
    tables = prior_of(statistics).tables
    for s, site in enumerate(SITES):
        f = features[site].numpy().astype(np.float64)
        assert np.allclose(tables["power"][:, s], (f**2).mean((1, 2, 3)), rtol=1e-6)
        for gap in (1, 2):
            change = ((f[gap:] - f[:-gap]) ** 2).mean((1, 2, 3))
            assert np.allclose(tables["difference"][gap - 1, gap:, s], change, rtol=1e-6)
        mean = f[:, :2].mean(1)  # rows 0 and 1 are the positive ones
        assert np.allclose(tables[f"mean/{site.name}"], mean, rtol=1e-3, atol=1e-3)
    for role, own in (("positive", slice(0, 2)), ("negative", slice(2, 4))):
        d = derivatives[:, own].numpy().astype(np.float64).reshape(4, -1)
        assert np.allclose(tables[f"gram/{role}"], d @ d.T / d.shape[1], rtol=1e-6, atol=1e-6)


def test_the_gram_of_linear_derivatives_is_the_product_of_the_times():
    statistics = Statistics()
    sample(
        statistics,
        lambda t, site, rows: torch.ones(rows, 1),
        lambda t, rows: torch.cat([torch.full((1, 6), t + 1.0), torch.full((1, 6), 10.0 * (t + 1))]),
    )
    tables = prior_of(statistics).tables
    times = torch.arange(1, 5).double()
    assert torch.allclose(tables["gram/positive"], times.outer(times))
    assert torch.allclose(tables["gram/negative"], 100 * times.outer(times))


def test_sigmas_sites_and_counts_are_those_of_the_run():
    statistics = Statistics()
    sample(statistics, lambda t, site, rows: torch.ones(rows, 1), pictures=2)
    prior = prior_of(statistics, seeds=(7,))
    assert prior.tables["sigmas"].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert prior.sites == tuple(s.name for s in SITES)
    assert (prior.samples, prior.seeds, prior.shape, prior.subject) == (2, (7,), (2, 8, 8), SUBJECT)


def test_only_the_positive_cond_enters_the_mean_features():
    def feature(t, site, rows):
        return torch.tensor([[[3.0, 5.0]], [[100.0, 100.0]]])

    statistics = Statistics(features=True)
    sample(statistics, feature)
    assert prior_of(statistics).tables["mean/blocks.0.mlp"].tolist() == [[[3.0, 5.0]]] * 4


def test_mean_features_find_the_positive_rows_wherever_they_are():
    statistics = Statistics(features=True)
    sample(statistics, lambda t, site, rows: torch.tensor([[[100.0]], [[3.0]]]), conds=BOTH[::-1])
    assert prior_of(statistics).tables["mean/blocks.0.attn"].tolist() == [[[3.0]]] * 4


def test_prompts_of_different_lengths_have_no_mean_features():
    statistics = Statistics(features=True)
    sample(statistics, lambda t, site, rows: torch.ones(rows, 5, 2))
    with pytest.raises(PriorError, match="7 tokens in one positive prompt and 5 in another"):
        sample(statistics, lambda t, site, rows: torch.ones(rows, 7, 2))


@pytest.mark.parametrize(("largest", "dtype"), [(65504.0, torch.float16), (70000.0, torch.float32)])
def test_mean_features_beyond_half_precision_keep_their_range(tmp_path, largest, dtype):
    statistics = Statistics(features=True)
    sample(statistics, lambda t, site, rows: torch.full((rows, 1, 2), largest if t else 1.0))
    mean = Prior.load(prior_of(statistics).save(tmp_path / "a.safetensors")).tables["mean/blocks.0.mlp"]
    assert mean.dtype is dtype
    assert mean.flatten().tolist() == [1.0] * 2 + [largest] * 6


def test_mean_features_are_left_out_unless_asked_for():
    statistics = Statistics()
    sample(statistics, lambda t, site, rows: torch.ones(rows, 1, 1))
    assert not [name for name in prior_of(statistics).tables if name.startswith("mean/")]


def test_a_batch_of_three_weighs_three():
    statistics = Statistics(gaps=1, features=True)
    for value, pictures in ((1.0, 1), (5.0, 3)):
        sample(
            statistics,
            lambda t, site, rows, v=value: torch.full((rows, 1, 2), v * (t + 1)),
            lambda t, rows, v=value: torch.full((rows, 4), v),
            pictures=pictures,
        )
    prior = prior_of(statistics)
    assert prior.samples == 4
    assert prior.tables["power"][0, 0].item() == (1 + 3 * 25) / 4
    assert prior.tables["difference"][0, 1, 0].item() == (1 + 3 * 25) / 4
    assert prior.tables["gram/positive"][2, 3].item() == (1 + 3 * 25) / 4
    assert prior.tables["mean/blocks.0.attn"][0].tolist() == [[4.0, 4.0]]  # (1 + 3 * 5) / 4


@pytest.mark.parametrize("pictures", [(1, 1), (1, 3)])
def test_merged_statistics_are_the_statistics_of_all(pictures):
    together, apart = Statistics(features=True), []
    for seed, count in enumerate(pictures):
        alone = Statistics(features=True)
        for statistics in (together, alone):
            _, _, feature, derivative = random_model(seed, count)
            sample(statistics, feature, derivative, pictures=count)
        apart.append(prior_of(alone, (seed,)))
    whole, merged = prior_of(together, (0, 1)), Prior.merge(apart)
    assert (whole.samples, whole.seeds) == (merged.samples, merged.seeds)
    assert whole.tables.keys() == merged.tables.keys()
    for name, table in whole.tables.items():
        tolerance = 2e-3 if table.dtype is torch.float16 else 1e-6
        assert torch.allclose(table, merged.tables[name], rtol=tolerance, atol=tolerance, equal_nan=True), name


def test_conds_in_separate_calls_count_as_those_in_one():
    _, _, feature, derivative = random_model(0)
    batched, split = Statistics(features=True), Statistics(features=True)
    sample(batched, feature, derivative)
    run = CacheRun(Full(), 4, observers=(split,))
    for t in range(4):
        with run.evaluation(sigma=4.0 - t, progress=t / 4):
            for row, cond in enumerate(BOTH):
                forward = run.next_forward([cond])
                for site in SITES:
                    forward.branch(site, lambda x, s=site: feature(t, s, 2)[row : row + 1], torch.zeros(1))  # noqa: B023
                forward.computed(MODEL, derivative(t, 2)[row : row + 1])
    split.end_trajectory(1)
    run.close(complete=True)
    a, b = prior_of(batched).tables, prior_of(split).tables
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[n].double(), b[n].double(), rtol=1e-6, equal_nan=True) for n in a)


def test_two_positive_prompts_still_give_a_mean():
    statistics = Statistics()
    sample(statistics, lambda t, site, rows: torch.ones(rows, 1), conds=((0, "p"), (0, "q"), (1, "n")))
    assert prior_of(statistics).tables["gram/positive"].tolist() == [[1.0] * 4] * 4


def test_half_precision_features_are_added_up_in_float():
    statistics = Statistics()
    sample(statistics, lambda t, site, rows: torch.full((rows, 64), 300.0 + 8 * t, dtype=torch.float16))
    tables = prior_of(statistics).tables
    assert tables["power"][0, 0].item() == pytest.approx(90000.0)  # beyond what half precision holds
    assert tables["difference"][0, 1, 0].item() == 64.0


def test_mean_features_of_half_precision_are_added_up_in_float():
    statistics = Statistics(features=True)
    half = torch.float16  # four of these are beyond what it holds
    sample(statistics, lambda t, site, rows: torch.full((rows, 1, 1), 30000.0, dtype=half), pictures=4)
    mean = prior_of(statistics).tables["mean/blocks.0.mlp"]
    assert mean.dtype is half
    assert mean.tolist() == [[[30000.0]]] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (2, CHUNK // 64, 80)], ids=["one chunk", "several, the last one shorter"])
def test_squares_are_those_of_numpy(dtype, shape):
    own = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=own).to(dtype)
    near, far = (x + 0.01 * torch.randn(shape, generator=own)).to(dtype), torch.randn(shape, generator=own).to(dtype)
    exact, *past = (t.double().numpy() for t in (x, near, far))
    expected = [(exact**2).sum(), *(((exact - t) ** 2).sum() for t in past)]
    assert [t.item() for t in squares(x, near, far)] == pytest.approx(expected, rel=2e-5)
    assert squares(x, x)[1].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_squares_in_few_launches_are_the_same(dtype):
    own = torch.Generator().manual_seed(0)
    x, near, far = (torch.randn(2, 50, 7, generator=own).to(dtype) for _ in range(3))
    expected = [t.item() for t in squares(x, near, far)]
    within = 1e-3 if dtype is torch.bfloat16 else 1e-5
    assert [t.item() for t in _in_few_launches(x, [near, far])] == pytest.approx(expected, rel=within)
    assert _in_few_launches(x, [])[0].item() == pytest.approx(expected[0], rel=1e-5)


def test_squares_do_not_depend_on_how_a_tensor_lies_in_memory():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 3, 5).transpose(1, 2)
    assert [t.item() for t in squares(x, y)] == pytest.approx([t.item() for t in squares(x, y.contiguous())])


@pytest.mark.parametrize("features", [False, True])
def test_nothing_of_a_branch_is_read_while_sampling(features):
    """Tensors without data raise where a number is asked for: on a device that would be a wait."""
    statistics = Statistics(2, features)
    out = torch.empty(2, 3, 4, dtype=torch.bfloat16, device="meta")
    past = [Feature(out, Step(t, 4, 0.0, 1.0), True) for t in (1, 0)]
    statistics.branch(Step(2, 4, 0.5, 1.0), SITES[0], (Lane(0, 0, "p"), Lane(0, 1, "n")), out, past)
    assert len(statistics._noted) == 3


def test_a_model_without_known_blocks_still_gives_its_outer_tables():
    statistics = Statistics(gaps=2)
    run = CacheRun(Full(), 3, observers=(statistics,))
    for t in range(3):
        with run.evaluation(sigma=3.0 - t, progress=t / 3):
            run.next_forward(BOTH).computed(MODEL, torch.ones(2, 4))
    statistics.end_trajectory(1)
    prior = prior_of(statistics)
    assert prior.sites == ()
    assert tuple(prior.tables["power"].shape) == (3, 0)
    assert tuple(prior.tables["difference"].shape) == (2, 3, 0)


def test_the_network_alone_is_measured_as_beside_branches_and_holds_nothing_of_them():
    _, _, feature, derivative = random_model(0)
    whole, alone = Statistics(gaps=2), Statistics(gaps=2, branches=False)
    for statistics in (whole, alone):
        sample(statistics, feature, derivative)
    run = CacheRun(Full(), 4, observers=(Statistics(branches=False),))
    assert not run.wants_branches
    assert run.store.history == 0
    prior, other = prior_of(alone), prior_of(whole)
    for role in ("positive", "negative"):
        assert torch.equal(prior.tables[f"gram/{role}"], other.tables[f"gram/{role}"])
    assert len(prior.tables["difference"]) == 2


def test_the_error_of_reusing_the_networks_output_comes_from_its_gram_table():
    _, derivatives, feature, derivative = random_model(0)
    statistics = Statistics(gaps=1)
    sample(statistics, feature, derivative)
    prior = prior_of(statistics)
    own = derivatives[:, 0].double()
    for gap in (1, 3):
        expected = [((own[t] - own[t - gap]).norm() / own[t].norm()).item() for t in range(gap, 4)]
        assert prior.output_error(gap)[gap:].tolist() == pytest.approx(expected, rel=1e-5)
        assert prior.output_error(gap)[:gap].isnan().all()
    assert prior.output_error(4).isnan().all()
    prior.tables.pop("gram/positive")
    assert prior.output_error(1).isnan().all()


def test_mean_features_need_branches():
    with pytest.raises(PriorError, match="scope is 'whole network'"):
        Statistics(features=True, branches=False)


def test_what_was_measured_is_a_valid_file(tmp_path):
    _, _, feature, derivative = random_model(0)
    statistics = Statistics(gaps=3, features=True)
    sample(statistics, feature, derivative)
    assert Prior.load(prior_of(statistics).save(tmp_path / "a.safetensors")).evaluations == 4


def test_observing_changes_no_output_and_decides_nothing():
    run = CacheRun(Full(), 2, observers=(Statistics(),))
    out = torch.randn(2, 3)
    before = out.clone()
    with run.evaluation(sigma=1.0, progress=0.0):
        assert run.next_forward(BOTH).branch(SITES[0], lambda x: out, out) is out
    assert torch.equal(out, before)
    assert run.trace.computed_fraction == 1.0


@pytest.mark.parametrize("lengths", [(2, 4), (4, 2)])
def test_runs_of_different_lengths_are_refused(lengths):
    """An adaptive sampler takes another number of evaluations with every seed: such runs have no common table."""

    def calibrate():
        statistics = Statistics()
        for steps in lengths:
            sample(statistics, lambda t, site, rows: torch.ones(rows, 1), steps=steps)
        return prior_of(statistics)

    with pytest.raises(PriorError):
        calibrate()


def test_no_sampling_is_no_prior():
    with pytest.raises(PriorError, match="no sampling run was completed"):
        prior_of(Statistics())


def test_a_run_that_never_ended_is_no_prior():
    statistics = Statistics()
    run = CacheRun(Full(), 2, observers=(statistics,))
    with run.evaluation(sigma=1.0, progress=0.0):
        run.next_forward(BOTH).computed(MODEL, torch.ones(2, 2))
    with pytest.raises(PriorError, match="nothing was calibrated"):
        prior_of(statistics)


@pytest.mark.parametrize("gaps", [0, -1])
def test_gaps_below_one_are_refused(gaps):
    with pytest.raises(ValueError, match="shortest reuse distance is 1"):
        Statistics(gaps)
