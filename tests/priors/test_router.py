"""Training of a router without the host's sampler: the DiT of this pack, and every architecture's own blocks."""

from contextlib import nullcontext

import architectures
import pytest
import torch
from architectures.dit import dit
from priorcache.cache_core.adapters import overridden, sites_of
from priorcache.cache_core.sites import Step
from priorcache.priors import router
from priorcache.priors.router import Recorder, RouterError, RouterTraining, cache_steps, ordinary, owned, policy
from subjects import left_over
from torch import nn

CASES = architectures.cases()
CHOSEN = [
    "dit", "dit learned sigma", "flux dev", "flux controlnet", "flux float16", "flux.2 references at timestep zero",
    "chroma", "hunyuan video padded text", "ltxv", "lumina", "z-image bfloat16", "pixart sigma", "qwen image", "sd3",
    "wan", "auraflow", "krea 2 clean references", "ideogram 4", "lens", "hidream", "omnigen2 two references", "boogu",
    "kandinsky 5", "mochi", "ernie image", "joyimage", "cosmos predict2", "hunyuan dit", "ltx-2", "ltx-2 without sound",
    "minimax h3", "ace-step", "ace-step 1.5",
]  # fmt: skip
"""Every adapter, with the cases whose networks write most to what passes through them."""


def recorded(network, inputs, steps: int = 4, runs: int = 1) -> list:
    """Trajectories as the host would leave them: every step one forward."""
    recorder = Recorder(network)
    for run in range(runs):
        with recorder.trajectory():
            for k in range(steps):
                network(**inputs(k + 10 * run))
                recorder.model(Step(k, steps, k / steps, 1.0), (), None)
    return recorder.trajectories


def training(network, inputs, steps: int = 4, **settings) -> RouterTraining:
    sites = [s.name for s in sites_of(network)]
    return RouterTraining(network, sites, recorded(network, inputs, steps), **{"penalty": 0.0, "rate": 0.05} | settings)


@pytest.mark.parametrize("name", CHOSEN)
def test_gates_learn_in_inference_mode_and_the_network_stays_as_it_is(name, request):
    architecture, make = CASES[name]
    hosted = nullcontext()
    if architecture not in architectures.WITHOUT_HOST:
        request.getfixturevalue("comfy")
        from priorcache.nodes.l2c import differentiable

        hosted = differentiable()
    with torch.inference_mode(), hosted:
        network, inputs = make()
        assert next(network.parameters()).is_inference()
        before = [(p, p.clone()) for p in network.parameters()]
        stock = network(**inputs(1))
        made = training(network, inputs)
        rows = {k: row.detach().clone() for k, row in made.rows.items()}
        made.run(2)
        assert torch.equal(network(**inputs(1)), stock)
        assert all(
            p is kept and torch.equal(p, value) for p, (kept, value) in zip(network.parameters(), before, strict=True)
        )
    assert left_over(network) == []
    assert {k for k, _ in made.losses} == set(rows) == {1, 3}
    for k, row in made.rows.items():
        assert row.isfinite().all()
        assert not torch.equal(row, rows[k])


def test_every_adapter_is_among_them():
    every = {architecture for architecture, _ in CASES.values()}
    assert {CASES[name][0] for name in CHOSEN} == every


def test_a_network_that_no_gradient_passes_through_is_refused(comfy):
    """Its rotation is a fused one; training puts a plain one in its place, which nobody does here."""
    with torch.inference_mode():
        network, inputs = CASES["joyimage"][1]()
        stock = network(**inputs(0))
        with pytest.raises(RouterError, match="a kernel that has no gradient"):
            training(network, inputs).run(1)
        assert torch.equal(network(**inputs(0)), stock)
    assert left_over(network) == []


@pytest.mark.parametrize("save_memory", [True, False])
def test_gradients_are_those_of_the_objective(save_memory):
    """Mean square error plus penalty times the sum of gates, by central differences of twice the precision."""
    network, inputs = dit(depth=2)
    network = network.double()
    double = lambda k: {n: v.double() if n == "x" else v for n, v in inputs(k).items()}  # noqa: E731
    made = training(network, double, steps=2, penalty=0.3, save_memory=save_memory)
    full, now = made.pairs[1][0][0]
    features = made._features(full)
    row = made.rows[1].detach().double()

    def objective(row: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            error = made._student(now, row.sigmoid(), features) - now.out
        return error.square().mean() + 0.3 * row.sigmoid().sum()

    expected = torch.stack(
        [(objective(row + d) - objective(row - d)) / 2e-4 for d in 1e-4 * torch.eye(len(row), dtype=torch.float64)]
    )
    seen = []
    made.optimizer.step = lambda: seen.append(made.rows[1].grad.clone())
    made.run(1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_open_gates_give_the_network_itself_and_closed_ones_the_old_branches():
    network, inputs = dit()
    made = training(network, inputs)
    full, now = made.pairs[1][0][0]
    features = made._features(full)
    with torch.no_grad():
        opened = made._student(now, torch.ones(6), features)
        closed = made._student(now, torch.zeros(6), features)
        torch.testing.assert_close(opened, now.out, rtol=1e-5, atol=1e-5)
        branches = [(b, i, n) for i, b in enumerate(network.blocks) for n in ("attn", "mlp")]
        old = [(getattr(b, n), lambda *_, old=features[f"blocks.{i}.{n}"]: old) for b, i, n in branches]
        with overridden(old):
            torch.testing.assert_close(closed, network(*now.args, **now.kwargs), rtol=1e-5, atol=1e-5)


def test_a_branch_that_never_changes_is_closed_and_one_that_matters_stays_open():
    network, inputs = dit()
    with torch.no_grad():
        network.blocks[1].attn.proj.weight.zero_()  # what is left is its bias
    made = training(network, inputs, penalty=1e-3, rate=0.3)
    made.run(120)
    gates = dict(zip(made.sites, made.scores()[1], strict=True))
    assert gates["blocks.1.attn"] < 0.02
    assert sum(gates.values()) - gates["blocks.1.attn"] > 2.5
    assert made.scores()[1].min() == torch.tensor(-router.BOUND, dtype=torch.float64).sigmoid()


def test_a_larger_penalty_closes_more():
    counts = []
    for penalty in (1e-3, 0.1, 100.0):
        made = training(*dit(), penalty=penalty, rate=0.3)
        made.run(80)
        counts.append(int((made.scores()[1::2] < 0.1).sum()))
    assert counts[0] < 6
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_an_iteration_moves_the_gates_of_one_step_only():
    """Not even by the momentum of earlier ones."""
    made = training(*dit(), steps=6)
    for _ in range(7):
        before = {k: row.detach().clone() for k, row in made.rows.items()}
        made.run(1)
        moved = [k for k, row in made.rows.items() if not torch.equal(row, before[k])]
        assert moved == [made.losses[-1][0]]
    assert sorted(k for k, _ in made.losses[:6]) == [1, 1, 3, 3, 5, 5]


class TestOverflow:
    """In half precision a gate's gradient, which is a sum over all elements, may be beyond what can be written."""

    @pytest.fixture
    def overflowing(self, monkeypatch):
        """Lets the first so many backward passes leave infinity."""

        def give(count: int) -> None:
            backward, left = RouterTraining._backward, [count]

            def passed(self, loss):
                backward(self, loss)
                if left[0]:
                    left[0] -= 1
                    next(row for row in self.rows.values() if row.grad is not None).grad[0] = torch.inf

            monkeypatch.setattr(RouterTraining, "_backward", passed)

        return give

    def test_is_taken_again_of_a_smaller_loss(self, overflowing):
        network, inputs = dit()
        plain, made = (training(network, inputs) for _ in range(2))
        plain.run(3)
        overflowing(1)
        made.run(3)
        assert (plain.scale, made.scale) == (1.0, 1 / 16)
        assert made.scores()[1::2].isfinite().all()
        torch.testing.assert_close(made.scores(), plain.scores(), rtol=1e-4, atol=1e-6, equal_nan=True)
        assert [k for k, _ in made.losses] == [k for k, _ in plain.losses]

    def test_that_never_ends_is_said_and_moves_no_gate(self, overflowing):
        made = training(*dit())
        before = {k: row.detach().clone() for k, row in made.rows.items()}
        overflowing(100)
        with pytest.raises(RouterError, match=r"range of torch\.float32.*load the model in bfloat16 or float32"):
            made.run(1)
        assert made.losses == []
        assert made.scores().isnan().all()
        assert all(torch.equal(row, before[k]) for k, row in made.rows.items())


def test_steps_that_were_not_reached_have_no_gates():
    made = training(*dit(), steps=6)
    assert made.scores().isnan().all()
    made.run(1)
    assert made.scores().isfinite().all(1).sum() == 1


def test_goes_on_from_scores_and_stays_within_bounds():
    network, inputs = dit()
    first = training(network, inputs)
    first.run(4)
    again = training(network, inputs, scores=first.scores(), seed=9)
    torch.testing.assert_close(again.scores(), first.scores(), rtol=1e-5, atol=1e-7, equal_nan=True)
    sure = torch.tensor([[float("nan")] * 6, [0.0, 1.0] * 3, [float("nan")] * 6, [float("nan")] * 6])
    bounded = training(network, inputs, scores=sure)
    assert bounded.rows[1].tolist() == [-router.BOUND, router.BOUND] * 3
    assert bounded.scores()[3].isnan().all()


def test_the_same_seed_gives_the_same_gates():
    a, b, c = (training(*dit(), seed=s) for s in (1, 1, 2))
    for made in (a, b, c):
        made.run(3)
    assert torch.equal(a.scores().nan_to_num(), b.scores().nan_to_num())
    assert not torch.equal(a.scores().nan_to_num(), c.scores().nan_to_num())


def test_stopping_keeps_what_was_learned_and_leaves_nothing_on_the_network():
    network, inputs = dit()
    made = training(network, inputs)
    parameters = list(network.parameters())

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(50, stop)
    assert len(made.losses) == 3
    assert made.scores().isfinite().any()
    assert left_over(network) == []
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


def test_frozen_weights_gather_no_gradients():
    network, inputs = dit()
    weight = network.blocks[0].mlp.fc1.weight
    made = training(network, inputs)
    made.run(2)
    assert weight.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_ordinary_weights_lie_on_the_same_memory():
    with torch.inference_mode():
        network = nn.Linear(3, 2)
    weight = network.weight
    with torch.inference_mode(False), ordinary(network):
        assert not network.weight.is_inference()
        assert not network.weight.requires_grad
        assert network.weight.data_ptr() == weight.data_ptr()
        assert torch.equal(network.weight, weight)
    assert network.weight is weight


def test_a_block_that_is_not_the_known_one_is_refused():
    network, inputs = dit()
    forward = network.blocks[1].forward
    network.blocks[1].forward = lambda *a: forward(*a) * 1.5
    made = training(network, inputs)
    with pytest.raises(RouterError, match="something other than PriorCache knows"):
        made.run(1)


def test_an_unknown_network_is_refused():
    with pytest.raises(RouterError, match="no adapter for Linear"):
        RouterTraining(nn.Linear(1, 1), (), [{0: []}])


def test_steps_whose_conds_were_grouped_otherwise_are_left_out():
    network, inputs = dit()
    trajectories = recorded(network, inputs)
    trajectories[0][1][0] = trajectories[0][1][0]._replace(streams=("other",))
    made = RouterTraining(network, [s.name for s in sites_of(network)], trajectories)
    assert set(made.pairs) == {3}
    trajectories[0][3] = trajectories[0][3] * 2
    with pytest.raises(RouterError, match="no pair of steps"):
        RouterTraining(network, (), trajectories)


def test_every_second_evaluation_is_a_cache_step():
    assert [list(cache_steps(n)) for n in (1, 2, 4, 5)] == [[], [1], [1, 3], [1, 3]]


def test_what_does_not_change_is_kept_once():
    same, label, options = torch.ones(2), "label", {"patches": {}, "t": torch.zeros(1)}
    first = owned(((same,), {"options": options, "name": label}))
    assert first[0][0] is not same
    second = owned(((same + 0,), {"options": {"patches": {}, "t": torch.ones(1)}, "name": label}), first)
    assert second[0][0] is first[0][0]
    assert second[1]["options"]["t"].item() == 1
    assert first[1]["options"]["t"].item() == 0


def test_a_recorder_adds_up_the_forwards_of_an_evaluation_and_leaves_nothing():
    network, inputs = dit()
    recorder = Recorder(network)
    with recorder.trajectory():
        for calls in (1, 2):
            for _ in range(calls):
                network(**inputs(0))
            recorder.model(Step(0, 2, 0.0, 1.0), (), None)
    assert left_over(network) == []
    found = recorder.trajectories[0][0]
    assert len(found) == 3
    assert torch.equal(found[0].out, network(**inputs(0)))
    assert len({id(call.kwargs["x"]) for call in found}) == 1


def test_a_policy_needs_a_router():
    from priorcache.priors.prior import Prior, Subject

    nothing = Prior(Subject("DiT", "", "EPS", "", "", 4, 1.0), (), 1, {})
    with pytest.raises(RouterError, match="no router: make one with Train Router"):
        policy(nothing)
