"""What only the Cosmos-Predict2 adapter has to know: a control inside the blocks, and attention that learns."""

import itertools

import architectures
import pytest
import torch
from priorcache.cache_core.adapters import adapter_for, installed
from priorcache.cache_core.policies import FORA
from priorcache.cache_core.run import CacheRun

CASES = architectures.cases()


def called(network, inputs, run: CacheRun, steps: int, patches: dict | None = None) -> list[torch.Tensor]:
    out = []
    for step in range(steps):
        given = inputs(step)
        if patches is not None:
            given["transformer_options"] = {"patches": patches}
        with run.evaluation(4.0 - step, step / 4):
            streams = run.next_forward([(0, "a"), (1, "b")])
            with installed(adapter_for(network), network, streams):
                out.append(network(**given))
    return out


def test_lllite_controls_a_picture_whose_branches_are_reused(comfy):
    with torch.inference_mode():
        network, inputs = CASES["anima lllite"][1]()
        run = CacheRun(FORA(2, "aligned"), 4)
        ours = called(network, inputs, run, 4)
        assert run.trace.notes == []
        assert run.trace.computed_fraction == 0.5
        without = called(network, inputs, CacheRun(FORA(2, "aligned"), 4), 4, {})
    assert all((a - b).norm() > 0.05 * b.norm() for a, b in zip(ours, without, strict=True))


def growing():
    """Patches of another node, by name, that keep something from call to call: how often they were called."""
    calls = itertools.count(1)

    def attention(q, k, v, **_) -> dict:
        return {"q": q * next(calls), "v": v}

    def mlp(args: dict) -> dict:
        return args | {"x": args["x"] * next(calls)}

    return {"attn1_patch": attention, "attn2_patch": attention, "mlp_patch": mlp}


@pytest.mark.parametrize("policy", [FORA(1), FORA(2, "aligned")], ids=["everything", "half"])
@pytest.mark.parametrize("name", growing())
def test_another_patch_beside_it_is_computed_by_the_host(comfy, name, policy):
    with torch.inference_mode():
        network, inputs = CASES["anima lllite"][1]()
        lllite = inputs(0)["transformer_options"]["patches"]
        patches, fresh = (lllite | {name: [*lllite[name], growing()[name]]} for _ in range(2))
        stock = [network(**inputs(step) | {"transformer_options": {"patches": patches}}) for step in range(2)]
        run = CacheRun(policy, 4)
        ours = called(network, inputs, run, 2, fresh)
    assert all(map(torch.equal, ours, stock))
    assert len(run.trace.notes) == 1
    assert name in run.trace.notes[0]


def test_its_fused_rotation_has_gradients_while_a_router_is_trained(comfy):
    from priorcache.nodes.l2c import differentiable

    with torch.inference_mode():
        network, _ = CASES["cosmos predict2"][1]()
    attn = network.blocks[0].self_attn.requires_grad_(False)
    weights = {name: weight.clone() for name, weight in attn.state_dict().items()}
    rng = architectures.generator(0)
    x, angle = torch.randn(2, 6, 64, generator=rng), torch.rand(1, 6, 1, 16, generator=rng)
    by = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).unflatten(-1, (2, 2))
    with torch.no_grad():
        expected = attn(x, None, rope_emb=by)
    x.requires_grad_()
    for name, weight in weights.items():
        owner, _, last = name.rpartition(".")
        setattr(attn.get_submodule(owner), last, torch.nn.Parameter(weight, requires_grad=False))
    with differentiable():
        found = attn(x, None, rope_emb=by)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert x.grad.isfinite().all()
