"""The published routers: files rebuilt from the masks that they are known to give must give these masks."""

import argparse
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from priorcache.cache_core.sites import Action, Schedule, Site, Step
from priorcache.priors import published
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.router import RouterError, policy

MASKS = json.loads((Path(__file__).parent / "l2c_router_masks.json").read_text())
"""File -> threshold, number of entries, and entry -> (attention of every block, MLP of every block); 1 computes."""

COMPUTED = {  # the paper's table 4
    "dit_xl2_256_ddim20": (312, 560), "dit_xl2_256_ddim50": (736, 1400),
    "uvit_h2_dpm20": (189, 522), "uvit_h2_dpm50": (88, 1392),
}  # fmt: skip


def entries(name: str) -> OrderedDict:
    """`0.prob`, `1.prob`, ... with gates on the known side of the threshold, and noise where nothing was trained."""
    known, rng = MASKS[name], torch.Generator().manual_seed(0)
    threshold, masks = known["threshold"], known["masks"]
    depth = len(next(iter(masks.values()))[0])
    out = OrderedDict()
    for i in range(known["num_router_entries"]):
        out[f"{i}.prob"] = torch.randn(2 * depth, generator=rng)
        if str(i) in masks:
            attention, mlp = masks[str(i)]
            active = torch.tensor([bit == "1" for pair in zip(attention, mlp, strict=True) for bit in pair])
            gate = torch.rand(2 * depth, generator=rng) * 0.98 + 0.01
            gate = torch.where(active, threshold + (1 - threshold) * gate, threshold * gate)
            out[f"{i}.prob"] = gate.logit()
    return out


def written(path: Path, name: str) -> Path:
    """A file in the layout of the published ones, tagged as they are with a device that is not here."""
    routers = entries(name)
    if name.startswith("dit"):
        state = {"step": torch.tensor(40000.0), "exp_avg": torch.zeros(56), "exp_avg_sq": torch.zeros(56)}
        group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
        optimizer = {"state": {0: state}, "param_groups": [group]}
        content = {"routers": routers, "opt": optimizer, "args": argparse.Namespace(l1=5e-6, model="DiT-XL/2")}
    else:
        content = routers
    torch.save(content, path)
    return retagged(path)


def retagged(path: Path) -> Path:
    with zipfile.ZipFile(path) as old:
        files = {entry: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in files.items():
            if entry.filename.endswith("data.pkl"):
                assert b"X\x03\0\0\0cpu" in data
                data = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            new.writestr(entry, data)
    return path


def masks_of(prior: Prior, threshold: float, steps: range) -> list[list[str]]:
    """[attention, MLP] of these rows, as in the file of masks, asked from the policy site by site."""
    made = policy(prior, threshold)
    sites = [Site(name, i // 2, len(prior.sites) // 2) for i, name in enumerate(prior.sites)]
    total = prior.evaluations

    def bits(row: int, branch: str) -> str:
        step = Step(row, total, row / total, 1.0)
        return "".join("01"[made.decide(step, s) is Action.COMPUTE] for s in sites if s.branch == branch)

    return [[bits(row, "attn"), bits(row, "mlp")] for row in steps]


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_the_published_ones_bit_for_bit(tmp_path, name):
    prior = published.read(written(tmp_path / "router.pt", name))
    known, total = MASKS[name], MASKS[name]["num_router_entries"]
    rows = (
        {str(total - 1 - k): k for k in range(total)}
        if name.startswith("dit")
        else {str(i): 2 * i for i in range(total)}
    )
    found = {i: masks_of(prior, known["threshold"], [rows[i]])[0] for i in known["masks"]}
    assert found == known["masks"]
    trained = ~prior.tables["router"].isnan()
    assert set(torch.where(trained.all(1))[0].tolist()) == {rows[i] for i in known["masks"]}
    assert torch.equal(trained.any(1), trained.all(1))
    gates = prior.tables["router"][trained]
    assert (int((gates > known["threshold"]).sum()), len(gates)) == COMPUTED[name]


def test_the_ddim20_router_reuses_248_of_1120(tmp_path):
    made = policy(published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20")))
    sites = [Site(f"blocks.{i}.{b}", i, 28) for i in range(28) for b in ("attn", "mlp")]
    decided = [made.decide(Step(k, 20, k / 20, 1.0), s) for k in range(20) for s in sites]
    assert (decided.count(Action.REUSE), len(decided)) == (248, 1120)
    assert made.objection(Schedule(20, sites=tuple(sites))) is None
    assert "248 of 1120" in made.describe()


def test_a_router_of_one_call_per_step_serves_no_sampler_that_makes_several(tmp_path):
    made = policy(published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20")))
    assert "the sampler heun makes several" in made.objection(Schedule(20, sampler="heun"))
    assert made.objection(Schedule(20, sampler="euler")) is None
    sites = [Site(f"blocks.{i}.mlp", i, 28) for i in range(28)]
    assert Action.REUSE in {made.decide(Step(3, 20, 3 / 20, 1.0), site) for site in sites}
    assert {made.decide(Step(3, 20, 1 / 20, 1.0), site) for site in sites} == {Action.COMPUTE}  # of a sampler unknown


def test_the_first_of_two_steps_is_full_from_the_noisiest_on(tmp_path):
    prior = published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20"))
    assert prior.tables["router"].isnan().all(1).tolist() == [True, False] * 10
    prior = published.read(written(tmp_path / "router.pth", "uvit_h2_dpm20"))
    assert prior.tables["router"].isnan().all(1).tolist() == [True] * 2 + [False, True] * 9
    assert prior.sites[::29] == ("in_blocks.0.attn", "mid_block.mlp")
    assert prior.sites[-1] == "out_blocks.13.mlp"


def test_noise_levels_are_those_of_ddim_over_linear_betas(tmp_path):
    """cumprod(1 - beta) at 999 is 4.036e-5 for 1000 linear betas to 0.02, a sigma of 157.4."""
    sigmas = published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20")).tables["sigmas"]
    assert sigmas[0].item() == pytest.approx(157.4, abs=0.05)
    assert sigmas[-1].item() == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5)
    assert (sigmas.diff() < 0).all()
    assert (published.uvit_sigmas(20).diff() < 0).all()


def test_saves_and_loads_as_a_prior_and_takes_the_model_that_it_is_for(tmp_path):
    subject = Subject("DiT", "abc", "V_PREDICTION", "", "", 0, 0.0)
    prior = published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20"), subject=subject)
    assert (prior.subject.geometry, prior.subject.prediction, prior.subject.steps) == ("abc", "V_PREDICTION", 20)
    again = Prior.load(prior.save(tmp_path / "router.safetensors"))
    assert policy(again) == policy(prior)
    merged = Prior.merge([prior, again])
    assert policy(merged) == policy(prior)


def test_the_rule_may_be_told(tmp_path):
    torch.save(entries("dit_xl2_256_ddim20"), tmp_path / "bare.pt")
    assert published.read(tmp_path / "bare.pt").sites[-1] == "out_blocks.13.mlp"
    told = published.read(tmp_path / "bare.pt", "DiT")
    assert policy(told) == policy(published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20")))


def test_another_model_is_refused(tmp_path):
    path = written(tmp_path / "router.pt", "dit_xl2_256_ddim20")
    with pytest.raises(RouterError, match=r"router\.pt: a router for 56 branches.*this model has 2"):
        published.read(path, sites=("blocks.0.attn", "blocks.0.mlp"))


class Evil:
    """Its unpickling would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    marker = tmp_path / "executed"
    for name, content in {"flat": {"0.prob": Evil(marker)}, "args": {"routers": {}, "args": Evil(marker)}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(RouterError, match=rf"{name}\.pt: it refers to '_?io open', which weights do not need"):
            published.read(tmp_path / f"{name}.pt")
    assert not marker.exists()


def test_the_settings_of_a_file_are_no_namespace_of_ours(tmp_path):
    """A class that is only looked at: nothing of it reaches the prior, and argparse's own is not built."""
    prior = published.read(written(tmp_path / "router.pt", "dit_xl2_256_ddim20"))
    assert set(prior.tables) == {"sigmas", "power", "difference", "router"}
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "router.pt", map_location="cpu", weights_only=True)


def gates(*shape: int, value: float = 0.0) -> torch.Tensor:
    return torch.full(shape, value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no table"),
        ([1, 2], "no table"),
        ({"routers": 3}, "no table"),
        ({"model.weight": gates(4)}, "does not belong in a router file"),
        ({"0.prob": gates(4), "2.prob": gates(4)}, "1.prob is missing"),
        ({f"{i}.prob": gates(4) for i in range(5)}, "5 entries"),
        ({f"{i}.prob": gates(5) for i in range(4)}, "shape"),
        ({f"{i}.prob": gates(2, 2) for i in range(4)}, "shape"),
        ({f"{i}.prob": gates(0) for i in range(4)}, "shape"),
        ({f"{i}.prob": torch.zeros(1).expand(10**9) for i in range(4)}, "shape"),
        ({f"{i}.prob": gates(4).double() for i in range(4)}, "float32"),
        ({f"{i}.prob": gates(4 + 2 * i) for i in range(4)}, "as long as"),
        ({f"{i}.prob": 0.5 for i in range(4)}, "float32"),
        ({f"{i}.prob": gates(4, value=float("nan")) for i in range(4)}, "not finite"),
    ],
)
def test_what_is_no_router_is_refused_by_name(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RouterError, match=rf"^other\.pt.*{said}"):
        published.read(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["dit_xl2_256_ddim20", "uvit_h2_dpm20"])
def test_damaged_files_are_refused_or_give_a_router(tmp_path, name):
    whole = written(tmp_path / "whole.pt", name).read_bytes()
    rng = torch.Generator().manual_seed(1)
    broken = [b"", b"PK", whole[: len(whole) // 2], whole[100:], whole[:-30], b"\0" * 1000]
    for _ in range(60):
        at = int(torch.randint(len(whole), (1,), generator=rng))
        broken.append(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
    refused = []
    for data in broken:
        (tmp_path / "broken.pt").write_bytes(data)
        try:
            published.read(tmp_path / "broken.pt").save(tmp_path / "fine.safetensors")
        except PriorError as error:
            refused.append(str(error))
    assert len(refused) >= 6
    assert all("broken.pt" in said for said in refused)


def test_a_file_that_unpacks_to_more_than_a_router_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(published.MAX_BYTES + 1))
    assert (tmp_path / "bomb.pt").stat().st_size < 10**6
    with pytest.raises(RouterError, match="unpacks to more than it is"):
        published.read(tmp_path / "bomb.pt")
    with pytest.raises(RouterError, match=r"missing\.pt"):
        published.read(tmp_path / "missing.pt")
