"""ToCa: the published step strings, token counts and operation counts; what is chosen, and what that changes."""

import dataclasses

import architectures
import pytest
import torch
from architectures.dit import dit
from priorcache.cache_core.adapters import adapter_for, installed, sites_of
from priorcache.cache_core.policies import FORA, DuCa, ToCa
from priorcache.cache_core.policies.toca import spread
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import Action, Feature, Schedule, Site, Step

MLP = Site("blocks.0.mlp", 0, 3)


def step(index: int, total: int) -> Step:
    return Step(index, total, index / total, float(total - index))


def string(policy: ToCa, total: int) -> str:
    return " ".join(policy.prepared(Schedule(total)).steps)


def computed(policy: ToCa, total: int) -> list[int]:
    return [i for i, kind in enumerate(policy.prepared(Schedule(total)).steps) if kind == "F"]


PUBLISHED_DIT = (
    "F c c c F0+c F c c c F c c c F c c c F0+c c F c c F c c F c c F c c F c F c F c F c F c F c F c F c F c F"
)


class TestSchedule:
    def test_dit_ddim_50_as_published(self):
        assert string(ToCa("dit", faithful=True), 50) == PUBLISHED_DIT

    def test_dit_ddim_50_with_one_decision_per_step(self):
        assert string(ToCa("dit"), 50) == PUBLISHED_DIT.replace("F0+c", "F")

    def test_dit_ddpm_250_as_published(self):
        steps = ToCa("dit, 250 steps", faithful=True).prepared(Schedule(250)).steps
        assert [249 - i for i, kind in enumerate(steps) if kind == "F0+c"] == [245, 155]
        assert (steps.count("F"), steps.count("c")) == (72, 176)

    def test_pixart_20_steps_as_published(self):
        assert string(ToCa("pixart", faithful=True), 20) == "F c c c F0+c c F c c F c c F c c F c c F c"

    @pytest.mark.parametrize(("interval", "full"), [(4, range(2, 50, 4)), (5, range(2, 50, 5)), (6, range(2, 50, 6))])
    def test_flux_begins_with_three_full_steps(self, interval, full):
        assert computed(ToCa("flux", interval), 50) == [0, 1, *full]

    @pytest.mark.parametrize("preset", ["dit", "pixart", "flux"])
    def test_without_tokens_it_is_fora(self, preset):
        fora = FORA(3, "published" if preset == "dit" else "aligned")
        expected = [i for i in range(50) if fora.decide(step(i, 50), MLP) is Action.COMPUTE]
        assert computed(ToCa(preset, 3, ratio=0), 50) == expected

    def test_given_steps_take_the_place_of_the_schedule(self):
        policy = ToCa("dit", steps=("F", "c", "F", "c")).prepared(Schedule(4))
        assert policy.steps == ("F", "c", "F", "c")
        assert policy.objection(Schedule(5))

    def test_the_first_block_alone_takes_a_hiccup_for_full(self):
        policy = ToCa("dit", steps=("F", "F0+c"))
        assert policy.decide(step(1, 2), MLP) is Action.COMPUTE
        assert policy.decide(step(1, 2), Site("blocks.1.mlp", 1, 3)) is Action.PARTIAL


class TestTokens:
    @pytest.mark.parametrize(
        ("policy", "index", "expected"),
        [
            (ToCa("dit"), 38, (0, 0, 0, 0)),
            (ToCa("dit"), 37, (1, 1, 1, 2)),
            (ToCa("dit"), 30, (21, 25, 28, 32)),
            (ToCa("dit"), 20, (50, 58, 66, 75)),
            (ToCa("dit"), 10, (78, 91, 105, 118)),
            (ToCa("dit"), 1, (104, 122, 139, 156)),
            (DuCa("dit"), 30, (15, 17, 20, 23)),
            (DuCa("dit"), 10, (56, 65, 75, 84)),
            (DuCa("dit"), 1, (74, 87, 99, 112)),
            (ToCa("dit, 250 steps"), 248, (48, 34, 19, 5)),
            (ToCa("dit, 250 steps"), 125, (80, 56, 32, 8)),
            (ToCa("dit, 250 steps"), 1, (112, 79, 45, 12)),
        ],
    )
    def test_counts_are_the_published_ones(self, policy, index, expected):
        total = 250 if "250" in policy.preset else 50
        for layer, count in zip((0, 9, 18, 27), expected, strict=True):
            site, x = Site(f"blocks.{layer}.mlp", layer, 28), torch.zeros(2, 256, 1)
            past = [Feature(x, step(0, total), True)]
            assert policy.select(step(total - 1 - index, total), site, x, past).shape == (2, count)

    def test_a_share_that_is_a_whole_number_of_tokens_is_that_number(self):
        site, x = Site("blocks.11.cross_attn", 11, 28), torch.zeros(1, 144, 1)
        exact = 0.3 * (1.9 - 1.8 * 16 / 27) * (1.6 - 1.2 * 11 / 27) * 0.6 * 144
        assert exact == pytest.approx(24)
        assert ToCa("pixart").select(step(16, 27), site, x, [Feature(x, step(0, 27), True)]).shape == (1, 24)

    def test_pixart_computes_words_and_mlp_and_no_attention(self):
        policy, now = ToCa("pixart"), step(10, 20)
        actions = [policy.decide(now, Site(f"blocks.0.{b}", 0, 28)) for b in ("attn", "cross_attn", "mlp")]
        assert actions == [Action.REUSE, Action.PARTIAL, Action.PARTIAL]
        shares = [policy.share(now, Site(f"blocks.0.{b}", 0, 28)) for b in ("cross_attn", "mlp")]
        assert shares == pytest.approx([0.3 * (1.9 - 0.9) * 1.6 * f for f in (0.6, 1.6)])

    def test_flux_computes_both_mlps_and_reuses_attention_and_single_blocks(self):
        policy, now = ToCa("flux"), step(3, 50)
        of = {"double_blocks.18.attn": 18, "double_blocks.18.img_mlp": 18, "single_blocks.0.single": 19}
        actions = [policy.decide(now, Site(name, block, 57)) for name, block in of.items()]
        assert actions == [Action.REUSE, Action.PARTIAL, Action.REUSE]
        assert policy.share(now, Site("double_blocks.18.img_mlp", 18, 57)) == pytest.approx(0.1 * (1.5 - 18 / 27) * 0.4)


CASES = architectures.cases()
PLAIN = {architecture: name for name, (architecture, _) in reversed(CASES.items())}
ALIKE = {
    "dit": ("dit", "ernie_image", "ideogram4", "krea2", "lumina", "minimax_h3", "omnigen2"),
    "pixart": (
        "ace_step", "ace_step15", "cosmos_predict2", "hunyuan_dit", "kandinsky5", "ltxav", "ltxv", "pixartms", "wan",
    ),
    "flux": ("auraflow", "flux", "hidream", "joyimage", "lens", "mochi", "qwen_image", "sd3"),
}  # fmt: skip
"""The preset of every architecture: its first case."""
EACH = [(name, preset) for preset, kin in ALIKE.items() for name in map(PLAIN.get, kin)]
FLUX = tuple(Site(f"double_blocks.{i}.{name}", i, 2) for i in range(2) for name in ("attn", "img_mlp", "txt_mlp"))
WORDS = tuple(Site(f"blocks.0.{name}", 0, 1) for name in ("attn", "cross_attn", "mlp"))


class TestAuto:
    def test_every_architecture_is_alike_something(self):
        assert sorted(PLAIN) == sorted(name for kin in ALIKE.values() for name in kin)

    @pytest.mark.parametrize(("name", "preset"), [*EACH, ("boogu", "flux"), ("hunyuan video", "flux")])
    def test_takes_the_constants_of_the_model_most_alike_and_computes_tokens_by_them(self, request, name, preset):
        architecture, make = CASES[name]
        if architecture not in architectures.WITHOUT_HOST:
            request.getfixturevalue("comfy")
        with torch.inference_mode():
            sites = sites_of(make()[0])
        for kind, frames in ((ToCa, 1), (ToCa, 9), (DuCa, 1), (DuCa, 9)):
            ready = kind().prepared(Schedule(50, sites=sites, frames=frames))
            of_video = kind is DuCa and frames > 1 and preset == "flux"
            assert ready.preset == ("hunyuan video" if of_video else preset)
            assert ready == kind(ready.preset).prepared(Schedule(50))
            actions = {ready.decide(step(i, 50), site) for i in range(50) for site in sites}
            assert Action.PARTIAL in actions

    def test_what_is_set_beside_it_replaces_that_of_the_preset(self):
        ready = ToCa(interval=6, ratio=0.3).prepared(Schedule(50, sites=FLUX))
        assert ready == ToCa("flux", 6, 0.3).prepared(Schedule(50))
        assert (ready.settings.interval, ready.settings.ratio, ready.settings.warmup) == (6, 0.3, 3)

    def test_one_that_is_named_is_taken_whatever_the_model(self):
        policy, run = ToCa("dit"), Schedule(50, sites=FLUX)
        assert policy.prepared(run).preset == "dit"
        assert policy.remark(run) is None

    @pytest.mark.parametrize("sites", [(), (Site("blocks.0.attn", 0, 1),)])
    def test_where_none_is_alike_the_first_is_taken_and_said_to_be_none(self, sites):
        run = Schedule(50, sites=sites)
        assert ToCa().prepared(run) == ToCa("dit").prepared(run)
        assert "N=3 r=0.07 (dit, random): no preset knows the branches of this model." in ToCa().remark(run)

    @pytest.mark.parametrize(
        ("policy", "sites", "frames", "became", "why"),
        [
            (ToCa(), FLUX, 1, "ToCa N=4 r=0.1 (flux, random)", "(img_mlp and txt_mlp)"),
            (ToCa(), (MLP,), 1, "ToCa N=3 r=0.07 (dit, random)", "(mlp)"),
            (DuCa(interval=4), WORDS, 9, "DuCa N=4 r=0.75 (pixart, random)", "(cross_attn and mlp)"),
            (DuCa(), FLUX, 9, "DuCa N=5 r=0.1 (hunyuan video, random)", "(img_mlp and txt_mlp), and is for videos"),
        ],
        ids=["flux", "dit", "pixart", "hunyuan video"],
    )
    def test_the_trace_says_which_was_taken_and_why(self, policy, sites, frames, became, why):
        run = CacheRun(policy, Schedule(50, sites=sites, frames=frames))
        assert run.trace.policy == run.policy.describe() == became
        expected = f"{policy.describe()} chose {became}: of all presets it knows most branches of this model {why}."
        assert run.trace.notes == [run.trace.remark] == [expected]

    def test_before_a_run_it_is_called_what_it_is(self):
        assert ToCa().describe() == "ToCa (auto, random)"
        assert DuCa(interval=4, ratio=0.2, faithful=True).describe() == "DuCa N=4 r=0.2 (auto, random, faithful)"

    def test_a_run_that_is_computed_in_full_chose_nothing(self):
        run = CacheRun(ToCa(), Schedule(2, sites=FLUX))
        assert "leaves nothing to reuse" in run.declined
        assert (run.trace.policy, run.remark, len(run.trace.notes)) == ("ToCa (auto, random)", None, 1)


def chosen(policy: ToCa, rows: int = 2, age=None, marks=None, index: int = 45, tokens: int = 16) -> list[list[int]]:
    x = torch.zeros(rows, tokens, 1)
    where = policy.select(step(index, 50), MLP, x, [Feature(x, step(0, 50), True, age, marks)])
    return [sorted(row) for row in where.tolist()]


class TestSelection:
    def test_random_is_the_same_for_all_rows_and_for_ever_and_not_at_every_step(self):
        before = torch.get_rng_state()
        first, second = chosen(ToCa("dit"))
        assert first == second
        assert [first, second] == chosen(ToCa("dit"))
        assert chosen(ToCa("dit"), rows=1) == [first]
        assert chosen(ToCa("dit"), index=47)[0] != first
        assert torch.equal(torch.get_rng_state(), before)

    def test_tokens_passed_by_for_long_come_first(self):
        age = torch.zeros(2, 16, dtype=torch.int16)
        age[0, [3, 9]], age[1, [5, 6]] = 100, 100
        policy = ToCa("dit", ratio=0.06)
        found = chosen(policy, age=age)
        assert {3, 9} <= set(found[0])
        assert {5, 6} <= set(found[1])

    @pytest.mark.parametrize(
        ("selection", "best"),
        [("large values", 15), ("small values", 0), ("attention", 15), ("entropy", 15)],
    )
    def test_marks_decide(self, selection, best):
        marks = torch.arange(16.0).expand(2, -1)
        policy = ToCa("dit", selection=selection, ratio=1 / 32)
        assert all(best in row for row in chosen(policy, marks=marks))

    @pytest.mark.parametrize(("faithful", "best"), [(True, [0, 1]), (False, [0, 2])])
    def test_as_published_the_order_of_pictures_is_that_of_the_code(self, faithful, best):
        policy = ToCa("dit", selection="small values", ratio=1 / 32, faithful=faithful)
        assert chosen(policy, marks=torch.arange(2.0, 18).expand(2, -1)) == [best] * 2

    def test_without_marks_it_is_random(self):
        assert chosen(ToCa("dit", selection="small values")) == chosen(ToCa("dit"))

    def test_the_best_of_each_cell_is_raised(self):
        score = torch.tensor([[1.0, 2.0, 5.0, 4.0], [0.0, 1.5, 3.0, 1.0]]).repeat_interleave(2, 0).reshape(1, 16)
        raised = spread(score, 2, 0.5)[0].reshape(4, 4)
        assert raised[:2].tolist() == [[1.0, 3.0, 7.5, 4.0], [1.0, 3.0, 7.5, 4.0]]
        assert raised[2:].tolist() == [[0.0, 2.25, 4.5, 1.0], [0.0, 2.25, 4.5, 1.0]]

    @pytest.mark.parametrize("tokens", [15, 9])
    def test_tokens_of_no_such_square_have_no_cells(self, tokens):
        score = torch.rand(2, tokens)
        assert spread(score, 2, 0.5) is score


def test_each_setting_without_meaning_is_refused():
    for bad in ({"preset": "unet"}, {"selection": "best"}, {"interval": -1}, {"ratio": 1.5}, {"steps": ("F", "x")}):
        with pytest.raises(ValueError, match=r"^ToCa: "):
            ToCa(**bad)


def sample(policy, steps: int = 6, apart: bool = False, **settings) -> tuple[list[torch.Tensor], CacheRun]:
    """apart: at odd steps the two conds come in calls of their own, the second first."""
    network, inputs = dit()
    adapter, run, out = adapter_for(network), CacheRun(policy, steps, **settings), []
    conds = [(0, "a"), (1, "b")]
    with torch.inference_mode():
        for i in range(steps):
            given = inputs(i)
            with run.evaluation(float(steps - i), i / steps):
                whole = [(conds, slice(None))] if not (apart and i % 2) else [(conds[1:], [1]), (conds[:1], [0])]
                found = {}
                for some, rows in whole:
                    with installed(adapter, network, run.next_forward(some)):
                        found[str(rows)] = network(**{k: v[rows] for k, v in given.items()})
                out.append(
                    found["slice(None, None, None)"] if len(found) == 1 else torch.cat((found["[0]"], found["[1]"]))
                )
    return out, run


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_tokens_it_is_fora_bit_for_bit():
    assert equal(sample(ToCa("dit", interval=3, ratio=0))[0], sample(FORA(3))[0])


def test_with_all_tokens_of_the_mlp_only_attention_is_old():
    """Equal to what a policy gives that computes every MLP and reuses attention."""

    @dataclasses.dataclass(frozen=True)
    class Attention(FORA):
        def decide(self, step, site):
            return super().decide(step, site) if site.branch == "attn" else Action.COMPUTE

    @dataclasses.dataclass(frozen=True)
    class AllTokens(ToCa):
        def share(self, step, site):
            return float(site.branch == "mlp")

    kinds = tuple("F" if FORA(3).decide(step(i, 6), MLP) is Action.COMPUTE else "c" for i in range(6))
    ours, run = sample(AllTokens(steps=kinds))
    for a, b in zip(ours, sample(Attention(3))[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert Action.PARTIAL in {r.action for r in run.trace.rows}


@pytest.mark.parametrize("selection", ["random", "small values", "large values", "attention"])
def test_conds_may_be_regrouped_between_steps(selection):
    policy = ToCa("dit", selection=selection, steps=("F", "c", "c", "c", "F", "c"), ratio=0.2)
    together, run = sample(policy)
    for a, b in zip(together, sample(policy, apart=True)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert {r.action for r in run.trace.rows if r.step == 3} == {Action.PARTIAL, Action.REUSE}


def test_a_step_whose_share_is_no_whole_token_reuses():
    _, run = sample(ToCa("dit", ratio=1e-3, steps=("F", "c", "F", "c", "F", "c")))
    assert {r.action for r in run.trace.rows} == {Action.COMPUTE, Action.REUSE}
