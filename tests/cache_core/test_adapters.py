"""The contract of every adapter: stock blocks are the reference. The networks come from `tests/architectures`."""

import inspect
import itertools
from dataclasses import dataclass
from functools import cache

import architectures
import pytest
import torch
from architectures import count
from priorcache.cache_core.adapters import ADAPTERS, Adapter, adapter_for, computing, installed, overridden
from priorcache.cache_core.adapters.marks import entropy
from priorcache.cache_core.adapters.routes import host_name
from priorcache.cache_core.policies import FORA, Full
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import STACK, Action
from subjects import left_over
from torch import nn

CASES = architectures.cases()
PLAIN = {architecture: name for name, (architecture, _) in reversed(CASES.items())}
"""Architecture -> its first case: for what does not depend on the settings of a block."""


@cache
def made(name: str):
    """(network, inputs of a step) of a case, made once."""
    return CASES[name][1]()


@pytest.fixture(params=CASES)
def case(request):
    """(network, inputs of a step, adapter) of a small random network with its gates open."""
    if CASES[request.param][0] not in architectures.WITHOUT_HOST:
        request.getfixturevalue("comfy")
    failed = request.session.testsfailed
    with torch.inference_mode():
        network, inputs = made(request.param)
        yield network, inputs, adapter_for(network)
    for module in network.modules():
        module._forward_hooks.clear()
    if request.session.testsfailed > failed:
        made.cache_clear()  # who knows what is left of these


BOOKKEEPING = pytest.mark.parametrize("case", PLAIN.values(), indirect=True)


def sample(network, inputs, adapter, run: CacheRun, steps: int = 4, conds=((0, "a"), (1, "b"))) -> list[torch.Tensor]:
    out = []
    for step in range(steps):
        sigma = float(steps - step)
        given = inputs(step)
        with run.evaluation(sigma, step / run.total):
            forward = run.next_forward(conds[: count(given)], count(given))
            with installed(adapter, network, forward):
                out.append(network(**given))
    return out


def plain(network, inputs, steps: int = 4) -> list[torch.Tensor]:
    return [network(**inputs(step)) for step in range(steps)]


def rows(value, chosen):
    """These rows of every tensor of an input; settings, and what is one for both rows, stay as they are."""
    if isinstance(value, torch.Tensor):
        return value[chosen] if len(value) == 2 else value
    return [rows(v, chosen) for v in value] if isinstance(value, list) else value


def copied(output):
    """A block's output as it is now."""
    return tuple(map(copied, output)) if isinstance(output, tuple) else output.clone()


def scaled(output, factor: float):
    """A block's output as it would be, had somebody changed the block."""
    if isinstance(output, tuple):
        return tuple(scaled(o, factor) for o in output)
    return output if output is None else output * factor


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for what another order of the same arithmetic changes in this precision."""
    allowed = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[expected.dtype]
    torch.testing.assert_close(ours, expected, rtol=allowed, atol=allowed)


def test_computing_everything_is_bit_equal_to_stock(case):
    network, inputs, adapter = case
    stock = plain(network, inputs, steps=2)
    for policy, measure in itertools.product((Full(), FORA(1)), ("off", "errors")):
        ours = sample(network, inputs, adapter, CacheRun(policy, 4, measure=measure), steps=2)
        assert all(map(torch.equal, ours, stock)), (policy.describe(), measure)


@BOOKKEEPING
def test_computing_everything_for_longer_is_as_well(case):
    network, inputs, adapter = case
    stock = plain(network, inputs)
    for policy in (FORA(1), FORA(2, end=0.0)):
        assert all(map(torch.equal, sample(network, inputs, adapter, CacheRun(policy, 4, measure="errors")), stock))


ROUNDS = {"cosmos_predict2"}
"""Architectures whose equation rounds otherwise than the block of some hosts: that of Cosmos-Predict2, up to ComfyUI 0.20."""


def test_the_equation_with_nothing_reused_equals_the_stock_block(case):
    network, inputs, adapter = case
    equations = [
        (block.module, lambda *a, b=block, **k: b.equation(b.module, computing, *a, **k))
        for block in adapter.blocks(network)
    ]
    stock = network(**inputs(0))
    with overridden(equations):
        ours = network(**inputs(0))
    assert_close(ours, stock)
    assert torch.equal(ours, stock) or adapter.architecture in ROUNDS


def test_the_equation_does_without_what_the_host_does_without(case):
    """Other nodes call blocks themselves, and leave out what may be left out."""
    network, _, adapter = case
    for block in {block.kind: block for block in adapter.blocks(network)}.values():
        ours = inspect.signature(block.equation).parameters
        theirs = [
            p for p in inspect.signature(block.module.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        optional = [p.name for p in theirs if p.default is not p.empty]
        assert [name for name in optional if ours[name].default is inspect.Parameter.empty] == []
        positional = [p.name for p in theirs if p.name not in optional]
        assert list(ours)[2 : 2 + len(positional)] == positional


@dataclass(frozen=True)
class Some(FORA):
    """FORA for the branches of one name in every block, or for all of them."""

    branch: str = "all"

    def decide(self, step, site):
        return super().decide(step, site) if self.branch in ("all", site.branch) else Action.COMPUTE


def test_reuse_adds_the_old_branch_with_the_gate_of_now(case):
    """Must equal the stock network whose branch modules return what they returned before."""
    network, inputs, adapter = case
    captures = [(b.sites[n], m) for b in adapter.blocks(network) for n, ms in b.captures.items() for m in ms]
    before: dict[nn.Module, torch.Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, out: before.update({m: out.clone()})) for _, m in captures]
    network(**inputs(0))
    for hook in hooks:
        hook.remove()
    for branch in ("all", *dict.fromkeys(site.branch for site, _ in captures)):
        ours = sample(network, inputs, adapter, CacheRun(Some(2, "aligned", branch=branch), 4), steps=2)[1]
        old = [(m, lambda *a, m=m, **k: before[m].clone()) for s, m in captures if branch in ("all", s.branch)]
        with overridden(old):  # copies, because some hosts gate in place
            assert_close(ours, network(**inputs(1)))
        if branch == "all":  # alone, a branch may stay what it was: attention to one word does
            assert not torch.equal(ours, network(**inputs(1)))


@BOOKKEEPING
def test_a_reused_branch_is_not_run(case):
    network, inputs, adapter = case
    calls = []
    block = adapter.blocks(network)[-1]
    for name, modules in block.captures.items():
        modules[0].register_forward_hook(lambda *_, n=name: calls.append(n))
    run = CacheRun(FORA(2, "aligned"), 4)
    run.checked.add((network, block.kind))  # the comparison with the host runs the equation once more
    sample(network, inputs, adapter, run)
    assert sorted(calls) == sorted([*block.captures] * 2)
    assert run.trace.computed_fraction == 0.5


@dataclass(frozen=True)
class Skipping(FORA):
    """Where FORA would reuse, all blocks are skipped at once."""

    stack = True


class Stacked(Skipping):
    """The same for a policy that is asked about nothing else."""

    stack = False

    def serves(self, site):
        return site == STACK


def test_skipping_all_blocks_runs_the_final_layer_of_now_on_the_state_of_before(case):
    """Must equal the stock network whose last block returns, for the picture, what it returned before."""
    network, inputs, adapter = case
    block = adapter.blocks(network)[-1]
    returns = block.equation.returns
    place = returns.index(block.equation.picture)
    before = []

    def keep(_, args, out):
        before.append(copied(out[place] if len(returns) > 1 else out))

    hook = block.module.register_forward_hook(keep)
    stock = plain(network, inputs, steps=2)
    hook.remove()
    theirs = block.module.forward

    def ending(*args, **kwargs):
        out = theirs(*args, **kwargs)
        if len(returns) == 1:
            return copied(before[0])
        return tuple(before[0].clone() if i == place else o for i, o in enumerate(out))

    with overridden([(block.module, ending)]):
        expected = network(**inputs(1))
    assert not torch.equal(expected, stock[1])
    for policy, measure in ((Skipping, "off"), (Skipping, "truth"), (Stacked, "off")):
        ours = sample(network, inputs, adapter, CacheRun(policy(2, "aligned"), 4, measure=measure), steps=2)
        assert torch.equal(ours[0], stock[0])
        assert torch.equal(ours[1], expected)


@BOOKKEEPING
def test_skipping_all_blocks_never_runs_one(case):
    network, inputs, adapter = case
    calls = []
    for block in adapter.blocks(network):
        for name, modules in block.captures.items():
            modules[0].register_forward_hook(lambda *_, s=block.sites[name]: calls.append(s))
    run = CacheRun(Skipping(2, "aligned"), 4)
    run.checked = {(network, block.kind) for block in adapter.blocks(network)}
    sample(network, inputs, adapter, run)
    run.close(complete=True)
    sites = [site for block in adapter.blocks(network) for site in block.sites.values()]
    assert sorted(calls) == sorted(sites * 2)
    assert run.trace.computed_fraction == 0.5
    assert run.trace.full_steps() == [0, 2]
    for step in (1, 3):
        assert {r.site for r in run.trace.rows if r.step == step and r.action is Action.REUSE} == {STACK, *sites}


def test_blocks_that_do_not_say_what_they_hand_on_are_not_skipped_and_that_is_told():
    network, inputs = CASES["dit"][1]()
    adapter = adapter_for(network)

    class Silent(type(adapter)):
        def blocks(self, network):
            return [b._replace(equation=lambda *a, b=b, **k: b.equation(*a, **k)) for b in super().blocks(network)]

    with torch.inference_mode():
        run = CacheRun(Skipping(2, "aligned"), 4)
        ours = sample(network, inputs, Silent(), run)
        for a, b in zip(ours, sample(network, inputs, adapter, CacheRun(FORA(2, "aligned"), 4)), strict=True):
            assert torch.equal(a, b)
    assert run.trace.notes == ["The blocks of dit cannot be skipped all at once."]


@BOOKKEEPING
def test_a_policy_of_the_stack_alone_keeps_no_branch(case):
    network, inputs, adapter = case
    run = CacheRun(Stacked(2, "aligned"), 4)
    sample(network, inputs, adapter, run)
    assert {r.site for r in run.trace.rows} == {STACK}
    assert run.trace.computed_fraction == 0.5


@pytest.mark.parametrize(("measure", "fetched"), [("off", [True, False]), ("truth", [True, True])])
@pytest.mark.parametrize("kind", [FORA, Skipping])
@pytest.mark.parametrize("name", ["ltx-2", "ltx-2 without sound", "ltx-2 streams apart", "minimax h3"])
def test_where_no_block_computes_the_host_brings_no_weights(comfy, monkeypatch, name, kind, measure, fetched):
    prefetch = pytest.importorskip("comfy.model_prefetch", reason="newer than this host")
    asked = []

    def queue(blocks, device, options):
        asked.append(options["prefetch_dynamic_vbars"])

    def inputs(step: int) -> dict:
        own = given(step)
        return own | {"transformer_options": own["transformer_options"] | {"prefetch_dynamic_vbars": True}}

    monkeypatch.setattr(prefetch, "make_prefetch_queue", queue)
    with torch.inference_mode():
        network, given = CASES[name][1]()
        sample(network, inputs, adapter_for(network), CacheRun(kind(2, "aligned"), 4, measure=measure))
    assert asked == fetched * 2
    assert left_over(network) == []


@BOOKKEEPING
def test_blocks_are_not_skipped_where_somebody_else_replaced_one(case):
    network, inputs, adapter = case
    block = adapter.blocks(network)[0]
    original = block.module.forward
    block.module.forward = lambda *a, **k: original(*a, **k)
    run = CacheRun(Skipping(2, "aligned"), 4)
    sample(network, inputs, adapter, run)
    assert {r.action for r in run.trace.rows if r.site == STACK} == {Action.COMPUTE}
    assert Action.REUSE in {r.action for r in run.trace.rows}  # the other blocks' branches, as without it
    del block.module.forward


@BOOKKEEPING
def test_nothing_is_left_on_the_modules(case):
    network, inputs, adapter = case
    for kind, measure in itertools.product((FORA, Skipping), ("off", "truth")):
        sample(network, inputs, adapter, CacheRun(kind(2, "aligned"), 4, measure=measure), steps=2)
        assert left_over(network) == [], (kind, measure)


@BOOKKEEPING
def test_nothing_is_left_after_an_exception_in_mid_forward(case):
    network, inputs, adapter = case
    block = adapter.blocks(network)[-1]
    module = next(iter(block.captures.values()))[0]
    handle = module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sample(network, inputs, adapter, CacheRun(FORA(2), 4))
    assert left_over(network) == []
    handle.remove()


@BOOKKEEPING
def test_a_forward_that_somebody_else_replaced_is_kept_and_computed(case):
    network, inputs, adapter = case
    block = adapter.blocks(network)[1]
    original = block.module.forward
    theirs = lambda *a, **k: scaled(original(*a, **k), 2.0)  # noqa: E731
    block.module.forward = theirs
    expected = network(**inputs(0))
    run = CacheRun(FORA(2, "aligned"), 4)
    ours = sample(network, inputs, adapter, run, steps=2)
    assert torch.equal(ours[0], expected)
    assert block.module.__dict__["forward"] is theirs
    assert {r.action for r in run.trace.rows if r.site.block == 1} == {Action.COMPUTE}
    assert Action.REUSE in {r.action for r in run.trace.rows if r.site.block == 0}
    del block.module.forward


@BOOKKEEPING
@pytest.mark.parametrize("module", ["comfy.ldm.later", "custom_nodes.patcher"])
def test_a_block_that_is_not_the_known_one_declines_and_computes(case, module):
    network, inputs, adapter = case
    whose = host_name() if module.startswith("comfy.") else "another node"
    for block in {block.kind: block.module for block in reversed(adapter.blocks(network))}.values():
        known = type(block)

        class Changed(known):
            def forward(self, *args, **kwargs):
                return scaled(super().forward(*args, **kwargs), 1.5)

        Changed.__module__ = module
        block.__class__ = Changed
        run = CacheRun(FORA(2, "aligned"), 4)
        found, stock = (s(network, inputs, *more, steps=2) for s, more in ((sample, (adapter, run)), (plain, ())))
        assert all(map(torch.equal, found, stock))
        assert len(run.trace.notes) == 1
        assert f"the {adapter.architecture} block of {whose} is not the one known here" in run.trace.notes[0]
        assert "scope 'whole network', still speed this model up" in run.trace.notes[0]
        block.__class__ = known


def test_where_another_node_skips_the_first_block_the_next_is_compared_with_the_host(comfy):
    with torch.inference_mode():
        network, given = CASES["qwen image"][1]()
        skipped = {"patches_replace": {"dit": {("double_block", 0): lambda args, _: args}}}
        adapter, run = adapter_for(network), CacheRun(FORA(2, "aligned"), 4)
        known = type(network.transformer_blocks[0])
        changed = type("Changed", (known,), {"forward": lambda *a, **k: scaled(known.forward(*a, **k), 1.5)})
        for block in network.transformer_blocks:
            block.__class__ = changed

        def inputs(step: int) -> dict:
            return given(step) | {"transformer_options": dict(skipped)}

        found, stock = sample(network, inputs, adapter, run), plain(network, inputs)
    assert all(map(torch.equal, found, stock))
    assert "the qwen_image block of another node is not the one known here" in run.trace.notes[0]


def test_a_host_function_that_is_gone_declines_and_computes(comfy, monkeypatch):
    from comfy.ldm.flux import math

    with torch.inference_mode():
        network, inputs = CASES["flux dev"][1]()
        expected = plain(network, inputs)
        monkeypatch.delattr(math, "attention")
        run = CacheRun(FORA(2, "aligned"), 4)
        found = sample(network, inputs, adapter_for(network), run)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "cannot import name 'attention'" in run.trace.notes[0]


@pytest.mark.parametrize("kind", [FORA, Skipping])
def test_nobody_writes_to_what_is_kept(case, kind):
    """Hosts gate and add in place; what is in the store must not be among what they write to."""
    network, inputs, adapter = case
    run, kept = CacheRun(kind(2, "aligned"), 4), []
    put = run.store.put

    def spied(site, streams, value, *rest, **named):
        kept.append((value, value.clone()))
        put(site, streams, value, *rest, **named)

    run.store.put = spied
    sample(network, inputs, adapter, run, steps=2)
    assert kept
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((name, FORA) for name in CASES), *((name, Skipping) for name in PLAIN.values())],
    indirect=["case"],
)
def test_conds_may_be_batched_split_and_reordered_without_a_difference(case, kind):
    """Nothing is lost, and no cond gets another one's rows."""
    network, inputs, adapter = case
    if count(inputs(0)) == 1:
        pytest.skip("the network takes one row at a time")
    expected = sample(network, inputs, adapter, CacheRun(kind(2, "aligned"), 4))

    def together(run, step):
        with installed(adapter, network, run.next_forward([(0, "a"), (1, "b")])):
            return network(**inputs(step))

    def apart(run, step):
        parts = []
        for row, cond in enumerate([(0, "a"), (1, "b")]):
            own = {k: rows(v, slice(row, row + 1)) for k, v in inputs(step).items()}
            with installed(adapter, network, run.next_forward([cond])):
                parts.append(network(**own))
        return torch.cat(parts)

    def reordered(run, step):
        with installed(adapter, network, run.next_forward([(1, "b"), (0, "a")])):
            return network(**{k: rows(v, [1, 0]) for k, v in inputs(step).items()})[[1, 0]]

    run = CacheRun(kind(2, "aligned"), 4)  # computes, reuses, computes, reuses
    for step, call in enumerate((apart, reordered, together, apart)):
        with run.evaluation(4.0 - step, step / 4):
            assert_close(call(run, step), expected[step])
    assert run.trace.computed_fraction == 0.5


@pytest.mark.parametrize("kind", [FORA, Skipping])
@BOOKKEEPING
def test_conds_in_passes_of_their_own_get_nothing_of_each_other(case, kind):
    network, inputs, adapter = case
    given = {"a": inputs, "b": lambda step: inputs(step + 10)}
    alone = {
        key: sample(network, own, adapter, CacheRun(kind(2, "aligned"), 4), conds=((0, key), (1, key)))
        for key, own in given.items()
    }
    run = CacheRun(kind(2, "aligned"), 4)
    for step, order in enumerate(("ab", "ba", "ba", "ab")):
        with run.evaluation(4.0 - step, step / 4):
            for key in order:
                own = given[key](step)
                forward = run.next_forward([(0, key)], count(own))
                with installed(adapter, network, forward):
                    assert torch.equal(network(**own), alone[key][step])


@pytest.mark.parametrize("kind", [FORA, Skipping])
@BOOKKEEPING
def test_where_a_network_runs_twice_in_one_forward_the_second_run_is_computed(case, kind):
    network, inputs, adapter = case
    run, given = CacheRun(kind(2, "aligned"), 4), inputs(0)
    conds = ((0, "a"), (1, "b"))[: count(given)]
    sample(network, inputs, adapter, run, steps=1)
    with run.evaluation(0.5, 0.25), installed(adapter, network, run.next_forward(conds, count(given))):
        first, second = (network(**inputs(1)) for _ in range(2))
    assert_close(second, network(**inputs(1)))
    assert not torch.equal(first, second)
    assert kind is Skipping or "several times in one pass" in run.trace.notes[0]


ROUGH = {
    "hidream long prompt", "hunyuan video 1.5", "ltxv guide frame", "ltx-2 guide frame", "ltx-2 streams apart",
    "ltx-2 sound alone", "ltx-2 video alone", "z-image omni, one reference",
    "z-image two references",
}  # fmt: skip
"""Cases that put in or leave out tokens of their own, such as those of vision or of a guide, or branches: told roughly."""


def test_the_size_of_every_branch_is_told_beforehand(case, request):
    network, inputs, adapter = case
    run, given = CacheRun(Skipping(2, "aligned"), 4), inputs(0)
    with run.evaluation(4.0, 0.0):
        cache = run.next_forward([(0, "a"), (1, "b")][: count(given)], count(given))
        with installed(adapter, network, cache):
            network(**given)
    told = adapter.sizes(network, architectures.latents(given), architectures.text(given))
    kept = {site: past[0].value for site in told if (past := run.store.get(site, cache.streams))}
    assert {site: told[site][1] for site in kept} == {site: k.shape[-1] for site, k in kept.items()}
    expected, held = sum(n * d for n, d in told.values()), sum(k[0].numel() for k in kept.values())
    if request.node.callspec.params["case"] not in ROUGH:
        assert set(kept) == {site for site, (tokens, _) in told.items() if tokens}
        assert expected == pytest.approx(held, rel=0.05)


def test_every_adapter_has_a_case(comfy):
    with torch.inference_mode():
        covered = {type(adapter_for(make()[0])) for _, make in CASES.values()}
    assert covered == {type(a) for a in ADAPTERS}


def test_one_adapter_knows_the_network(case):
    network, _, adapter = case
    assert [a for a in ADAPTERS if a.matches(network)] == [adapter]


def test_an_unknown_network_has_no_adapter():
    assert adapter_for(nn.Linear(1, 1)) is None


def test_adapters_name_every_branch_once(case):
    network, _, adapter = case
    assert isinstance(adapter, Adapter)
    names = [site.name for block in adapter.blocks(network) for site in block.sites.values()]
    assert len(names) == len(set(names))


class Everything(FORA):
    """PARTIAL wherever FORA would reuse, with every token chosen."""

    def decide(self, step, site):
        return Action.PARTIAL if super().decide(step, site) is Action.REUSE else Action.COMPUTE

    def select(self, step, site, x, past):
        return torch.arange(x.shape[1], device=x.device).flip(0).expand(x.shape[0], -1)


def tokenwise(network, inputs, adapter) -> set[str]:
    """Names of the sites whose branch may be called with some tokens alone, each tried with half of them."""
    found = set()

    def equation(block):
        def branch(name, fn, x, tokenwise=False):
            out = fn(x)
            if tokenwise:
                found.add(block.sites[name].name)
                assert_close(fn(x[:, ::2].contiguous()), out[:, ::2])
            return out

        return lambda *args, **kwargs: block.equation(block.module, branch, *args, **kwargs)

    with overridden([(block.module, equation(block)) for block in adapter.blocks(network)]):
        network(**inputs(0))
    return found


def test_recomputing_every_token_equals_the_stock_network(case):
    """What an equation calls tokenwise may be called with other tokens; everything else is computed."""
    network, inputs, adapter = case
    run = CacheRun(Everything(2, "aligned"), 4)
    ours = sample(network, inputs, adapter, run, steps=2)
    for a, b in zip(ours, plain(network, inputs, steps=2), strict=True):
        assert_close(a, b)
    assert {r.site.name for r in run.trace.rows if r.action is Action.PARTIAL} == tokenwise(network, inputs, adapter)


def test_a_row_spreads_its_attention_over_the_words_of_its_own():
    """PixArt lays the text of all rows end to end."""
    query, key_value = nn.Linear(8, 8), nn.Linear(8, 16)
    (q, kv), mark = (torch.randn(2, 6, 8), torch.randn(2, 5, 16)), entropy(query, key_value, 2)
    alone = torch.cat([mark.note(q[row : row + 1], kv[row : row + 1]) for row in range(2)])
    assert_close(mark.note(q, kv), alone)
    assert_close(mark.note(q, kv.reshape(1, 10, 16)), alone)


def test_what_is_noted_of_tokens_is_theirs_and_changes_nothing(case):
    network, inputs, adapter = case
    stock, conds = network(**inputs(0)), ((0, "a"), (1, "b"))[: count(inputs(0))]
    for what in ("values", "received", "entropy"):
        known = {block.sites[name] for block in adapter.blocks(network) for w, name in block.marks if w == what}

        class Noting(FORA):
            marks = what

        run = CacheRun(Noting(2, "aligned"), 4)
        assert torch.equal(sample(network, inputs, adapter, run, steps=1, conds=conds)[0], stock)
        with run.evaluation(0.5, 0.9):
            streams = run.next_forward(conds).streams
        for site in [site for block in adapter.blocks(network) for site in block.sites.values()]:
            past = run.store.get(site, streams)
            if not past:  # a branch that this case does not run
                continue
            (feature,) = past
            assert (feature.marks is not None) == (site in known)
            if site in known:
                assert feature.marks.shape == feature.value.shape[:2]
                assert feature.marks.dtype == torch.float32
                assert torch.isfinite(feature.marks).all()
        assert run.store.nbytes
        assert bool(known) == (not run.trace.notes)
        assert left_over(network) == []
