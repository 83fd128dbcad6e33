"""Corrector: right where its assumptions hold, silent where there is nothing to make good."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from priorcache.cache_core.corrector import SAMPLERS, Corrector

SIGMAS = (1.0, 0.93, 0.85, 0.76, 0.66, 0.55, 0.43, 0.3, 0.16, 0.0)
TOTAL = len(SIGMAS) - 1
GENERATOR = torch.Generator().manual_seed(3)
START, *CURVE = torch.randn(4, 2, 3, generator=GENERATOR)


def sampled(sampler: str, outputs) -> list[torch.Tensor]:
    """x before every step and at the end; outputs(step, x) is the denoised picture. As k-diffusion has these samplers."""
    x, before, path = START, None, [START]
    for i in range(TOTAL):
        denoised, ratio = outputs(i, x), SIGMAS[i + 1] / SIGMAS[i]
        told = denoised
        if sampler == "dpmpp_2m" and before is not None and SIGMAS[i + 1]:
            r = math.log(SIGMAS[i - 1] / SIGMAS[i]) / math.log(SIGMAS[i] / SIGMAS[i + 1])
            told = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
        x, before = ratio * x + (1 - ratio) * told, denoised
        path.append(x)
    return path


def forecast(sampler: str, computed: tuple[int, ...], degree: int, exact, follows: float, corrects: bool = True):
    """The same along held derivatives between computed steps, with a corrector."""
    correct, held = Corrector(SIGMAS[:TOTAL], SIGMAS, degree, sampler, follows), []

    def outputs(i, x):
        if i in computed:
            held[:] = [(x - exact(i, x)) / SIGMAS[i]]
        denoised = x - SIGMAS[i] * held[0]
        return correct(i, x, denoised, i in computed) if corrects else denoised

    return sampled(sampler, outputs)


def curved(degree: int):
    """A denoised picture whose derivative is a polynomial in sigma, wherever x is."""
    return lambda i, x: x - SIGMAS[i] * sum(part * SIGMAS[i] ** n for n, part in enumerate(CURVE[: degree + 1]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("degree", "computed"), [(1, (0, 3, 5, 8)), (1, (0, 1, 2, 7)), (2, (0, 1, 4, 6, 8))])
def test_after_a_computed_step_the_sampler_is_where_it_would_have_come(sampler, degree, computed):
    """Of a model whose derivative no displacement of x changes."""
    exact = sampled(sampler, curved(degree))
    found, plain = (forecast(sampler, computed, degree, curved(degree), 1.0, c) for c in (True, False))
    for step in computed:
        assert found[step + 1] == pytest.approx(exact[step + 1], abs=2e-6)
    assert (plain[-1] - exact[-1]).norm() > 0.02


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_model_that_pulls_x_back_is_met_by_its_share(sampler, share):
    """The denoised picture moves by a share of what x does: what is computed beside the path still tells of the path."""
    target = lambda i: CURVE[0] + SIGMAS[i] * CURVE[1]  # noqa: E731
    model = lambda i, x: share * x + (1 - share) * target(i)  # noqa: E731
    exact = sampled(sampler, model)[-1]
    plain, linear, quadratic = (
        (forecast(sampler, (0, 2, 4, 6, 8), degree, model, share, corrects)[-1] - exact).norm()
        for degree, corrects in ((1, False), (1, True), (2, True))
    )
    assert linear < plain / 2
    assert quadratic < linear


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_forecasts_that_were_right_are_left_as_they_are(sampler):
    exact = sampled(sampler, lambda i, x: x - SIGMAS[i] * CURVE[0])
    assert forecast(sampler, (0, 3, 5), 1, lambda i, x: x - SIGMAS[i] * CURVE[0], 0.3)[-1] == pytest.approx(
        exact[-1], abs=1e-6
    )


@given(st.sampled_from(SAMPLERS), st.integers(1, 2))
def test_where_every_step_is_computed_nothing_is_touched(sampler, degree):
    correct = Corrector(SIGMAS[:TOTAL], SIGMAS, degree, sampler, 0.3)
    for i in range(TOTAL):
        denoised = torch.randn(2, 3)
        assert correct(i, START, denoised, True) is denoised


@pytest.mark.parametrize(("sampler", "degree", "held"), [("euler", 1, 2), ("euler", 2, 3), ("dpmpp_2m", 1, 4)])
def test_holds_a_few_latents_and_says_how_many(sampler, degree, held):
    correct, most = Corrector(SIGMAS[:TOTAL], SIGMAS, degree, sampler, 0.3), 0
    assert correct.held == held
    for i in range(TOTAL):
        correct(i, torch.randn(2, 3), torch.randn(2, 3), i % 3 == 0)
        most = max(most, correct.nbytes)
    assert most == held * START.nbytes
    correct.clear()
    assert correct.nbytes == 0


def test_answers_in_the_dtype_that_came():
    correct = Corrector(SIGMAS[:TOTAL], SIGMAS, 1, "dpmpp_2m", 0.3)
    for i in range(TOTAL):
        x = torch.randn(2, 3, dtype=torch.bfloat16)
        assert correct(i, x, x / 2, i % 2 == 0).dtype == torch.bfloat16
