"""Forecast: exact where it should be, modest where it cannot know."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from priorcache.cache_core.policies import Forecast
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Action, Schedule
from priorcache.errors import SettingError

SIGMAS = (14.6, 9.0, 6.1, 4.4, 3.2, 2.3, 1.7, 1.2, 0.8, 0.5, 0.25, 0.1, 0.0)
TOTAL = len(SIGMAS) - 1
EPS = Schedule(TOTAL, SIGMAS, "euler", "EPS")
FLOW = Schedule(TOTAL, tuple(1 - i / TOTAL for i in range(TOTAL + 1)), "euler", "FLUX")


def walk(policy, schedule, feature, dtype=torch.float32):
    """What a run gives at every step where the model's derivative is feature(step, sigma), and what it computed."""
    run = CacheRun(policy, schedule)
    out = []
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        with run.evaluation(sigma, i / schedule.total):
            forward = run.next_forward([(0, "u")])
            exact = torch.tensor([feature(i, sigma)], dtype=dtype)
            out.append(forward.branch(MODEL, lambda x, exact=exact: exact.clone(), exact).item())
    return out, [row.step for row in run.trace.rows if row.action is Action.COMPUTE]


@pytest.mark.parametrize(("coordinate", "schedule", "u"), [
    ("sigma", EPS, lambda i, s: s),
    ("step", EPS, lambda i, s: i),
    ("log snr", EPS, lambda i, s: -2 * torch.log(torch.tensor(s)).item()),
    ("sigma", FLOW, lambda i, s: s),
    ("auto", FLOW, lambda i, s: s),
    ("auto", EPS, lambda i, s: i),
])  # fmt: skip
def test_linear_features_are_exact_from_the_second_computed_step_on(coordinate, schedule, u):
    policy = Forecast(computed=(0, 1, 4, 9), coordinate=coordinate, order=1)
    found, computed = walk(policy, schedule, lambda i, s: 2 - 3 * u(i, s))
    assert computed == [0, 1, 4, 9]
    assert found == pytest.approx([2 - 3 * u(i, s) for i, s in enumerate(schedule.sigmas[:-1])], rel=1e-5)


def test_quadratic_features_are_exact_from_the_third_computed_step_on():
    policy = Forecast(computed=(0, 1, 3, 8), coordinate="step", order=2)
    found, _ = walk(policy, EPS, lambda i, s: 1 + i - 0.5 * i * i)
    exact = [1 + i - 0.5 * i * i for i in range(TOTAL)]
    assert found[3:] == pytest.approx(exact[3:], rel=1e-5)
    assert found[2] == pytest.approx(exact[1] + (exact[1] - exact[0]))  # two past steps: linear


def test_gains_of_a_step_scale_what_is_added_to_the_last_feature():
    gains = tuple((0.5 if i == 4 else 0.0, 0.0) for i in range(TOTAL))
    found, _ = walk(Forecast(computed=(0, 2), gains=gains, coordinate="step"), EPS, lambda i, s: 10.0 * i)
    assert found[4:6] == pytest.approx([20 + 0.5 * 20, 20])


def test_sums_in_float32_and_answers_in_the_dtype_that_came():
    """2 and 2 + 1/64 are neighbours in bfloat16, which at 10 steps further would round 22.17 - 20 to 2.125."""
    values = {0: 2.0, 1: 2.015625}
    run = CacheRun(Forecast(computed=(0, 1), order=1, coordinate="step"), EPS)
    for i, sigma in enumerate(SIGMAS[:-1]):
        with run.evaluation(sigma, i / TOTAL):
            exact = torch.tensor([values.get(i, 0.0)], dtype=torch.bfloat16)
            out = run.next_forward([(0, "u")]).branch(MODEL, lambda x, exact=exact: exact, exact)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2.0 + 11 / 64


@pytest.mark.parametrize(
    ("speedup", "total", "count"), [(1.0, 20, 20), (2.0, 20, 10), (2.5, 20, 8), (3.0, 20, 6), (20.0, 20, 2)]
)
def test_a_speed_up_is_a_share_of_the_steps(speedup, total, count):
    schedule = Schedule(total, tuple(range(total, -1, -1)), "euler", "EPS")
    assert len(Forecast(speedup).prepared(schedule).computed) == count


def test_coordinate_and_order_follow_the_prediction():
    flow, eps = Forecast().prepared(FLOW), Forecast().prepared(EPS)
    assert (flow.coordinate, flow.order, flow.computed) == ("sigma", 2, (0, 1, 3, 5, 8, 11))
    assert (eps.coordinate, eps.order) == ("step", 2)
    assert Forecast(3.0).prepared(EPS).order == 1  # four computed steps are too few for parabolas
    assert Forecast(coordinate="log snr", order=1).prepared(FLOW).coordinate == "log snr"


SHIFTED = dataclasses.replace(FLOW, sigmas=tuple(5 * s / (1 + 4 * s) for s in FLOW.sigmas))


def test_where_noise_is_left_to_the_later_steps_the_last_two_are_computed_if_half_are():
    assert Forecast(2.0).prepared(SHIFTED).computed == (0, 2, 4, 7, 10, 11)
    assert Forecast(2.4).prepared(SHIFTED).computed == Forecast(2.4).prepared(FLOW).computed == (0, 2, 4, 7, 11)
    for count in range(2, TOTAL + 1):
        assert len(Forecast(TOTAL / count).prepared(SHIFTED).computed) == count


def test_along_a_shifted_schedule_of_a_flow_model_the_step_is_what_is_even():
    assert Forecast().prepared(SHIFTED).coordinate == "step"
    assert Forecast(1.3).prepared(SHIFTED).coordinate == Forecast(1.3).prepared(FLOW).coordinate == "log snr"
    assert Forecast(coordinate="sigma").prepared(SHIFTED).coordinate == "sigma"
    assert (
        Forecast(computed=(0, 3, 6), coordinate="sigma", sigmas=SHIFTED.sigmas).prepared(SHIFTED).coordinate == "sigma"
    )


@pytest.mark.parametrize(
    ("prediction", "sampler", "speedup", "order", "curvature"),
    [
        ("EPS", "euler", 2.0, 2, 1.0),
        ("EPS", "euler", 2.5, 2, 0.5),
        ("EPS", "euler", 4.0, 1, 1.0),
        ("EPS", "dpmpp_2m", 2.0, 2, 0.5),
        ("EPS", "dpmpp_2m", 2.5, 1, 1.0),
        ("FLOW", "euler", 2.0, 2, 0.5),
        ("FLOW", "ipndm_v", 2.5, 1, 1.0),
    ],
)
def test_the_fewer_steps_the_straighter(prediction, sampler, speedup, order, curvature):
    schedule = Schedule(20, tuple(range(20, -1, -1)), sampler, prediction)
    ready = Forecast(speedup).prepared(schedule)
    gains = {(1, 1.0): (1.0, 0.0), (2, 0.5): (1.0, 0.5), (2, 1.0): (1.0, 1.0)}[order, curvature if order == 2 else 1.0]
    assert (ready.order, ready.gains_at(7)) == (order, gains)
    assert ready.prepared(schedule) == ready


def fading(total: int) -> tuple[float, ...]:
    """Noise levels of which none is left to the last step."""
    return (*(10 * 0.001 ** (i / (total - 1)) for i in range(total)), 0.0)


@pytest.mark.parametrize(
    ("prediction", "sampler", "computed"),
    [
        ("EPS", "ddim", (0, 2, 4, 6, 9, 12, 15, 18)),
        ("V_PREDICTION", "dpmpp_2m", (0, 3, 5, 8, 10, 13, 15, 18)),
        ("FLOW", "dpmpp_2m", (0, 1, 3, 5, 8, 11, 15, 19)),
    ],
)
def test_which_steps_without_a_plan(prediction, sampler, computed):
    schedule = Schedule(20, fading(20), sampler, prediction)
    assert Forecast(2.5).prepared(schedule).computed == computed


@pytest.mark.parametrize(("total", "speedup"), [(28, 3.0), (24, 3.0), (20, 2.8)])
def test_a_flow_is_not_extrapolated_three_times_as_far_as_it_is_known(total, speedup):
    computed = Forecast(speedup).prepared(Schedule(total, fading(total), "euler", "FLOW")).computed
    assert computed[:4] == (0, 2, 4, 7)


@pytest.mark.parametrize(
    ("prediction", "sampler", "total", "speedup", "end"),
    [
        ("EPS", "euler", 50, 2.0, (45, 47, 48, 49)),
        ("V_PREDICTION", "euler", 50, 4.0, (41, 46)),
        ("EPS", "euler", 28, 2.0, (25, 27)),
        ("EPS", "dpmpp_2m", 28, 2.0, (23, 25, 26, 27)),
        ("EPS", "dpmpp_2m", 28, 3.5, (21, 25)),
        ("EPS", "dpmpp_2m", 20, 2.0, (16, 18)),
        ("EPS", "ipndm", 50, 2.0, (46, 48)),
        ("FLOW", "euler", 50, 2.0, (46, 49)),
        ("EPS", "euler", 50, 1.0, (48, 49)),
    ],
)
def test_the_last_of_fine_steps_are_computed_where_noise_leaps(prediction, sampler, total, speedup, end):
    leaps = (*(0.1 * (total - i) for i in range(total - 1)), 0.01, 0.0)  # 0.2, then none to speak of
    computed = Forecast(speedup).prepared(Schedule(total, leaps, sampler, prediction)).computed
    assert len(computed) == int(total / speedup)
    assert computed[-len(end) :] == end


@pytest.mark.parametrize(
    ("total", "speedup", "end"), [(20, 2.0, (17, 19)), (20, 3.0, (13, 17)), (50, 2.0, (45, 47, 48, 49))]
)
def test_the_last_step_is_computed_where_much_noise_is_left_to_it(total, speedup, end):
    evenly = tuple(0.1 * (total - i) for i in range(total + 1))
    assert Forecast(speedup).prepared(Schedule(total, evenly, "euler", "EPS")).computed[-len(end) :] == end


def test_where_noise_fades_the_last_steps_are_as_the_others():
    assert Forecast(2.0).prepared(Schedule(50, fading(50), "dpmpp_2m", "EPS")).computed == tuple(range(0, 50, 2))


@pytest.mark.parametrize(("prediction", "sampler", "cfg", "speedup", "corrector"), [
    ("FLUX", "euler", 1.0, 2.0, "linear"),
    ("FLOW", "dpmpp_2m", 1.0, 4.0, "linear"),
    ("FLOW", "euler", 4.0, 2.0, "quadratic"),
    ("FLOW", "euler", 0.0, 2.0, "quadratic"),
    ("FLOW", "euler", 4.0, 3.0, "off"),
    ("FLOW", "euler", 1.0, 1.0, "off"),
    ("FLOW", "ipndm", 1.0, 2.0, "off"),
    ("EPS", "euler", 1.0, 2.5, "quadratic"),
    ("V_PREDICTION", "dpmpp_2m", 7.0, 2.0, "quadratic"),
    ("EPS", "euler", 1.0, 3.0, "off"),
    ("EPS", "euler", 1.0, 4.0, "off"),
    ("FLOW", "euler", 3.0, 4.0, "quadratic"),
])  # fmt: skip
def test_which_corrector_without_a_plan(prediction, sampler, cfg, speedup, corrector):
    total = 40 if speedup == 4.0 else 20  # 10 computed steps are many, and a quarter is few
    schedule = Schedule(total, tuple(range(total, -1, -1)), sampler, prediction, cfg=cfg)
    ready = Forecast(speedup).prepared(schedule)
    assert ready.corrector == corrector
    assert (ready.corrector_for(schedule) is None) == (corrector == "off")
    assert ("corrector" in ready.describe()) == (corrector != "off")


def test_a_corrector_that_was_asked_for_is_kept_where_the_samplers_step_is_known():
    asked = Forecast(corrector="quadratic")
    assert asked.prepared(EPS).corrector == "quadratic"
    assert asked.prepared(dataclasses.replace(EPS, sampler="ipndm")).corrector == "off"
    assert asked.prepared(dataclasses.replace(EPS, sigmas=())).corrector == "off"
    stays = (*SIGMAS[:3], *SIGMAS[2:-1])  # a step that takes no noise away
    assert asked.prepared(Schedule(TOTAL, stays, "euler", "EPS")).corrector == "off"


def test_a_search_may_choose_the_corrector():
    for sampler, offered in (("euler", True), ("dpmpp_2m", True), ("ipndm", False)):
        schedule = dataclasses.replace(FLOW, sampler=sampler)
        knobs = Forecast().prepared(schedule).knobs(schedule)
        assert ("corrector" in [knob.name for knob in knobs]) == offered


def test_an_order_that_was_asked_for_is_kept_whole():
    schedule = Schedule(20, tuple(range(20, -1, -1)), "dpmpp_2m", "FLOW")
    assert Forecast(4.0, order=2).prepared(schedule).gains_at(0) == (1.0, 1.0)
    with pytest.raises(SettingError, match="curvature is nan; give a finite number"):
        Forecast(curvature=float("nan"))


@pytest.mark.parametrize(
    "name",
    ["euler_ancestral", "dpmpp_2m_sde_gpu", "lcm", "ddpm", "seeds_2", "sa_solver", "er_sde", "res_multistep_ancestral"],
)
def test_declines_samplers_that_add_noise(name):
    assert "adds noise" in Forecast().objection(dataclasses.replace(EPS, sampler=name))


@pytest.mark.parametrize("name", ["heun", "dpm_2", "heunpp2", "exp_heun_2_x0", "dpm_adaptive_function"])
def test_declines_samplers_that_call_the_model_several_times_per_step(name):
    assert "several times" in Forecast().objection(dataclasses.replace(EPS, sampler=name))


@pytest.mark.parametrize(
    "name", ["euler", "dpmpp_2m", "ipndm", "deis", "lms", "res_multistep", "unipc", "some_new_one"]
)
def test_serves_the_others(name):
    assert Forecast().objection(dataclasses.replace(EPS, sampler=name)) is None


def test_declines_the_few_steps_of_distilled_models():
    assert "none to spare" in Forecast().objection(Schedule(9))
    assert Forecast().objection(Schedule(10)) is None


def test_an_unknown_sampler_that_calls_twice_per_step_is_computed():
    """Calls at sigmas 0, 1, 1, 2, 2, ...: after the first, none is at the step of its number."""
    run = CacheRun(Forecast(2.0), EPS)
    for call in range(2 * TOTAL - 1):
        step = (call + 1) // 2
        with run.evaluation(SIGMAS[step], step / TOTAL):
            run.next_forward([(0, "u")]).branch(MODEL, lambda x: x, torch.ones(1))
    skipped = [row.step for row in run.trace.rows if row.action is not Action.COMPUTE]
    assert skipped in ([], [1])


class TestPlans:
    plan = Forecast(computed=(0, 2, 6), sigmas=SIGMAS, coordinate="step", gains=((1.0, 0.5),) * TOTAL)

    def test_on_their_own_schedule(self):
        ready = self.plan.prepared(EPS)
        assert (ready.computed, ready.gains) == (self.plan.computed, self.plan.gains)
        assert ready.objection(EPS) is None

    def test_on_another_number_of_steps(self):
        """Every second level of a schedule of twice the steps is one of the plan's."""
        between = [v for a, b in pairwise(SIGMAS[:-1]) for v in (a, (a * b) ** 0.5)]
        double = Schedule(2 * TOTAL, (*between, 0.1, 0.05, 0.0), "euler", "FLOW")
        ready = self.plan.prepared(double)
        assert ready.computed[::2] == (0, 4, 12)
        assert len(ready.computed) == 6
        assert ready.gains == self.plan.gains[:1] * (2 * TOTAL)
        assert ready.objection(double) is None
        assert f"was planned for {TOTAL} steps and is fitted into {2 * TOTAL}" in self.plan.remark(double)
        fewer = Schedule(9, (14.6, *SIGMAS[4:]), "euler", "FLOW")
        assert self.plan.prepared(fewer) == Forecast(TOTAL / 3).prepared(fewer)
        noisy = dataclasses.replace(double, prediction="EPS")
        assert self.plan.prepared(noisy) == Forecast(TOTAL / 3).prepared(noisy)
        assert f"was planned for {TOTAL} steps, and this run has {2 * TOTAL}" in self.plan.remark(noisy)

    def test_on_other_noise_they_decline(self):
        part = Schedule(10, (4.4, 3.8, *SIGMAS[4:]), "euler", "EPS")  # image to image
        assert "its plan is for noise from 14.6 to 0.1" in self.plan.prepared(part).objection(part)

    @pytest.mark.parametrize(("first", "last"), [(0.7, 0.0), (0.5, 0.0), (1.0, 0.4)])
    def test_on_a_part_of_their_noise_they_decline(self, first, last):
        """Image to image with a flow model, which begins at noise not so far away, and a sampler that stops early."""
        whole = tuple(1 - i / 20 for i in range(21))
        plan = Forecast(computed=tuple(range(0, 20, 2)), sigmas=whole)
        part = tuple(first + (last - first) * i / 20 for i in range(21))
        run = Schedule(20, part, "euler", "FLOW")
        assert "plan with this run's settings" in plan.prepared(run).objection(run)

    def test_a_first_noise_that_depends_on_the_number_of_steps_is_the_same_noise(self):
        noise = [14.6 * 0.8**i for i in range(60)]
        few, many = (Schedule(n, (*noise[s::s][:n], 0.0), "euler", "EPS") for n, s in ((14, 4), (28, 2)))
        plan = Forecast(computed=(0, 3, 6, 9), sigmas=few.sigmas)
        assert plan.prepared(many).objection(many) is None
        assert len(plan.prepared(many).computed) == 8

    @pytest.mark.parametrize(
        ("run", "difference"),
        [
            (Schedule(TOTAL, SIGMAS, "dpmpp_2m", "EPS", cfg=3.0), "the sampler euler, and this run has dpmpp_2m"),
            (Schedule(TOTAL, SIGMAS, "euler", "EPS", cfg=1.0), "cfg 3, and this run has 1"),
        ],
        ids=["sampler", "guidance"],
    )
    def test_on_another_sampler_or_guided_where_they_were_not_as_many_steps_are_computed_without_them(
        self, run, difference
    ):
        plan = dataclasses.replace(self.plan, sampler="euler", cfg=3.0)
        assert plan.prepared(run) == Forecast(TOTAL / 3).prepared(run)
        assert len(plan.prepared(run).computed) == 3
        assert f"was planned for {difference}: " in plan.remark(run)
        assert plan.prepared(run).objection(run) is None

    def test_without_guidance_they_do_not_serve_guiders_that_guide_in_their_own_way(self):
        """Dual CFG, perpendicular negatives: a scale that is not known."""
        plan, run = dataclasses.replace(self.plan, sampler="euler", cfg=1.0), Schedule(TOTAL, SIGMAS, "euler", "EPS")
        assert plan.prepared(run) == Forecast(TOTAL / 3).prepared(run)
        assert "was planned for cfg 1, and the guider of this run has guidance of its own: " in plan.remark(run)
        assert dataclasses.replace(plan, cfg=3.0).misfit(run) == ""
        assert plan.misfit(dataclasses.replace(run, sampler="")) == ""  # nothing is known of this one

    @pytest.mark.parametrize("run", [
        Schedule(TOTAL, SIGMAS, "euler_ancestral", "EPS", cfg=3.0), Schedule(TOTAL, SIGMAS, "heun", "EPS", cfg=3.0),
        Schedule(5, (*SIGMAS[:5], 0.0), "dpmpp_2m", "EPS", cfg=3.0), Schedule(TOTAL, SIGMAS[::-1], "dpmpp_2m", "EPS", cfg=3.0),
        Schedule(2, (0.0, 0.5, 1.0), "euler", "EPS", cfg=3.0),
    ], ids=["noisy", "several calls", "few steps", "rising", "from zero"])  # fmt: skip
    def test_where_everything_is_computed_nothing_else_is_said(self, run):
        (note,) = CacheRun(dataclasses.replace(self.plan, sampler="euler", cfg=3.0), run).trace.notes
        assert "computed everything" in note

    def test_other_noise_at_as_many_steps_takes_no_plan(self):
        """Another scheduler, or another shift of a flow model."""
        other = (*(s * 1.05 if 0 < i < TOTAL else s for i, s in enumerate(SIGMAS)),)
        for prediction in ("FLOW", "EPS"):
            run = Schedule(TOTAL, other, "euler", prediction)
            assert self.plan.prepared(run) == Forecast(TOTAL / 3).prepared(run)
            step, noise = max(enumerate(SIGMAS[1:TOTAL], 1), key=lambda level: level[1])
            where = f"({noise:.3g} at step {step}, here {noise * 1.05:.3g})"
            assert f"was planned for other noise levels than this run has at its steps {where}: " in self.plan.remark(
                run
            )

    def test_guidance_that_pushes_away_is_none_that_is_known(self):
        assert Forecast(2.0).prepared(dataclasses.replace(EPS, cfg=-2.0)).cfg == 0

    @pytest.mark.parametrize("told", [{"sampler": "euler", "cfg": 3.0}, {"sampler": "euler"}, {"cfg": 4.5}, {}])
    def test_on_their_own_sampler_and_at_about_their_guidance_they_serve(self, told):
        run = Schedule(TOTAL, SIGMAS, "euler", "EPS", cfg=4.0)
        ready = dataclasses.replace(self.plan, **told).prepared(run)
        assert (ready.computed, ready.gains) == (self.plan.computed, self.plan.gains)
        assert dataclasses.replace(self.plan, **told).remark(run) is None

    def test_what_was_settled_says_what_it_is_for(self):
        ready = Forecast(2.0).prepared(dataclasses.replace(EPS, cfg=3.0))
        assert (ready.sampler, ready.cfg, ready.sigmas) == (EPS.sampler, 3.0, EPS.sigmas)

    def test_an_unplanned_forecast_serves_any_noise(self):
        part = Schedule(TOTAL - 2, SIGMAS[2:], "euler", "EPS")
        assert Forecast().prepared(part).objection(part) is None


@pytest.mark.parametrize("bad", [
    {"speedup": 0.5}, {"coordinate": "time"}, {"order": 3}, {"corrector": "cubic"}, {"computed": (1, 2)}, {"computed": (0, 4, 3)},
    {"sigmas": (1.0, 0.5, 0.0), "gains": ((1.0, 0.0),)}, {"cfg": -1.0}, {"cfg": float("nan")},
])  # fmt: skip
def test_refuses_settings_without_meaning(bad):
    with pytest.raises(ValueError, match=r"^Forecast: "):
        Forecast(**bad)
