"""The sweep in the host: real sampling on a tiny DiT, through the node."""

import pytest
import torch
from priorcache.cache_core.policies import FORA, Forecast, Taylor
from priorcache.plots.metrics import relative_l2

SETTINGS = {
    "goals": "2x, 6 steps", "seed": 5, "runs": 1, "steps": 10, "cfg": 1.5, "sampler_name": "euler", "scheduler": "karras",
    "denoise": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sweep(comfy):
    """The node's own file; the host must be there before."""
    from priorcache.nodes import sweep

    return sweep


@pytest.fixture(scope="module")
def twenty(sweep):
    """A way to sample 20 steps, for what is only looked at."""
    return sweep.Sampling([], [], torch.zeros(1), 20, 1.0, "euler", "normal")


class Vae:
    """Latents of the tiny DiT are pixels."""

    def decode(self, latents):
        return latents.movedim(1, -1).clamp(-1, 1) / 2 + 0.5


@pytest.fixture
def sample(sweep, host, conds):
    """(model, seed, changes) -> final latents, sampled as the node does."""

    def sampled(model, seed=5, **changes):
        own = {"steps": 10, "cfg": 1.5, "sampler": "euler", "scheduler": "karras"} | changes
        with torch.inference_mode():
            return sweep.Sampling(*conds, torch.zeros(2, 3, 16, 16), **own)(model, seed)

    return sampled


@pytest.fixture
def run(sweep, conds):
    """(model, changes) -> what the node gives."""

    def ran(model, vae=None, policies=None, **changes):
        with torch.inference_mode():
            return sweep.PriorCacheSweep.execute(
                model, *conds, {"samples": torch.zeros(2, 3, 16, 16)}, **SETTINGS | changes, vae=vae, policies=policies
            )

    return ran


def figures(text: str) -> dict[str, list[str]]:
    """Name -> computed, seconds, faster, error, worst."""
    rows = text.split("\n\n")[0].splitlines()[1:]
    return {" ".join(row.split()[:-5]): row.split()[-5:] for row in rows}


@pytest.fixture
def points(monkeypatch):
    """What the node hands to its chart."""
    from priorcache.plots import sweep as plot

    drawn, draw = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda points, *rest: drawn.extend(points) or draw(points, *rest))
    return drawn


def test_uncached_comes_first_then_policies_then_goals_with_their_true_errors(host, model, run, sample, points):
    policies = {"policy0": FORA(2, "aligned"), "policy1": Taylor(FORA(2, "aligned"))}
    chart, grid, text = run(model, policies=policies).args
    exact = sample(model)
    attached = [sample(host.attach(model, p)) for p in (*policies.values(), Forecast(2.0))]
    expected = [exact, *attached, sample(model, steps=6)]
    assert [p.name for p in points] == [
        "uncached",
        *(p.describe() for p in policies.values()),
        "Forecast 2x",
        "6 steps",
    ]
    for point, latents in zip(points, expected, strict=True):
        assert point.errors == pytest.approx(relative_l2(latents, exact).tolist(), rel=1e-6)
    assert points[0].errors == (0.0, 0.0)
    assert all(p.error > 0 for p in points[1:])
    assert [p.computed for p in points] == pytest.approx([1.0, 0.5, 0.5, 0.5, 0.6])
    assert all(p.time > 0 for p in points)
    assert figures(text)["Forecast 2x"][0] == "50%"
    assert chart.shape == (1, 704, 800, 3)
    assert grid.ndim == 4


def test_every_run_has_a_seed_and_all_policies_sample_it(host, model, run, sample, points):
    run(model, goals="2x", runs=3)
    uncached, cached = points
    expected = [
        e for seed in (5, 6, 7) for e in relative_l2(sample(host.attach(model, Forecast(2.0)), seed), sample(model, seed)).tolist()
    ]  # fmt: skip
    assert cached.errors == pytest.approx(expected, rel=1e-6)
    assert len(uncached.seconds) == len(cached.seconds) == 3
    assert cached.uncached == uncached.seconds


def test_the_order_changes_from_run_to_run_and_the_first_sampling_is_not_counted(sweep, model, run, monkeypatch):
    order, original = [], sweep.Sampling.__call__

    def noted(self, model, seed, callback=None):
        order.append((seed, self.steps))
        return original(self, model, seed, callback)

    monkeypatch.setattr(sweep.Sampling, "__call__", noted)
    run(model, goals="7 steps, 6 steps", runs=3)
    assert order == [
        (5, 2),
        (5, 10), (5, 7), (5, 6),
        (6, 7), (6, 6), (6, 10),
        (7, 6), (7, 10), (7, 7),
    ]  # fmt: skip


def test_one_progress_bar_over_everything_ends_full(sweep, model, run, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, count):
            self.done += count

    monkeypatch.setattr(sweep.comfy.utils, "ProgressBar", Bar)
    run(model, runs=2)
    (bar,) = bars
    assert bar.done == bar.total == 2 + 2 * (10 + 10 + 6)


def test_cancel_stops_it_at_the_next_step_and_leaves_the_model_as_it_was(sweep, model, run, sample, monkeypatch):
    import comfy.model_management as management

    before, steps = sample(model), []

    class Bar:
        def __init__(self, total):
            pass

        def update(self, count):
            steps.append(1)
            if len(steps) == 17:  # in the second sampling that counts, where Forecast skips every other step
                management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(sweep.comfy.utils, "ProgressBar", Bar)
    with pytest.raises(management.InterruptProcessingException):
        run(model)
    assert len(steps) == 17
    assert not any(model.wrappers.values())
    assert torch.equal(sample(model), before)


def test_the_grid_shows_the_first_run_of_every_entry_in_order(model, run, sample):
    _, grid, _ = run(model, vae=Vae(), runs=2).args
    _, without, _ = run(model).args
    assert grid.shape[1] == 3 * (128 + 6) + 6
    assert without.shape[1] < grid.shape[1]
    shown = grid[0, 6:134:8, -134 * 2 : -134 * 2 + 128 : 8] * 255
    first = Vae().decode(sample(model))[0] * 255
    assert (shown - first).abs().max() <= 1


def test_a_video_is_shown_by_its_middle_frame(sweep):
    class Video:
        def decode(self, latents):
            return torch.arange(5.0)[None, :, None, None, None].expand(1, 5, 8, 8, 3) / 5

    assert sweep.pictures(Video(), torch.zeros(1))[0, 0, 0, 0] == pytest.approx(0.4)


def test_what_a_run_had_to_say_is_told(model, run):
    text = run(model, sampler_name="euler_ancestral", goals="2x").args[2]
    assert "Forecast 2x: Forecast, 5 computed, linear in step computed everything: the sampler euler_ancestral" in text


def test_a_model_that_has_a_cache_already_is_swept_without_it(host, model, run, points):
    run(host.attach(model, FORA(3)), goals="2x")
    cached = [p.error for p in points]
    points.clear()
    run(model, goals="2x")
    assert cached == [p.error for p in points]


@pytest.mark.parametrize(
    ("goals", "found"),
    [
        ("1.5x, 2, 3 x", [Forecast(1.5), Forecast(2.0), Forecast(3.0)]),
        ("2X;4x", [Forecast(2.0), Forecast(4.0)]),
        (" 2x,\n, 3x,", [Forecast(2.0), Forecast(3.0)]),
    ],
)
def test_goals_as_people_write_them(sweep, twenty, goals, found):
    assert [entry.policy for entry in sweep.contenders([], goals, twenty)] == found


def test_other_numbers_of_steps_are_sampled_as_such(sweep, twenty):
    fewer, more = sweep.contenders([], "12 Steps, 30steps", twenty)
    assert (fewer.name, fewer.sampling.steps, fewer.policy.history) == ("12 steps", 12, 0)
    assert (more.name, more.sampling.steps) == ("30 steps", 30)


@pytest.mark.parametrize("bad", ["fast", "0.5x", "21x", "0 steps", "2.5 steps", "-2x", "2x 3x", "nan", "1e9", "٣x"])
def test_what_is_no_goal_is_named(sweep, twenty, bad):
    with pytest.raises(ValueError, match=r"is no goal\. Write speed-ups from 1x to 20x, or numbers of steps"):
        sweep.contenders([FORA()], f"2x, {bad}", twenty)


def test_nothing_to_try_is_said(model, run):
    for goals, policies in (("", None), (" , ", {}), ("", {"policy0": None})):
        with pytest.raises(ValueError, match="nothing to try"):
            run(model, goals=goals, policies=policies)
