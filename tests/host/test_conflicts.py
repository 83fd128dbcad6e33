"""Beside other nodes that reach into the same model: one clear error, or a coexistence that is told."""

import functools
import itertools

import pytest
import subjects
import torch
from matrix import levels
from priorcache.cache_core.policies import FORA, Full, Taylor
from priorcache.cache_core.sites import Action
from priorcache.cache_core.trace import Trace
from subjects import close

ALIGNED = FORA(2, "aligned")
NETWORK = FORA(2, "aligned", level="model")
LEVELS = pytest.mark.parametrize("policy", [ALIGNED, NETWORK], ids=["branches", "network"])


def guided(host, kind, model, sampler=None) -> torch.Tensor:
    """What a guider of this kind samples."""
    guider = kind(model)
    guider.set_conds(*[host.dit.conditioning(torch.tensor([1, 2]))] * (1 + (kind is host.comfy.samplers.CFGGuider)))
    latent = torch.zeros(2, 3, 16, 16)
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, 0)
        sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)
        sampler = sampler or host.comfy.samplers.sampler_object("euler")
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True)


def hosts_cache(name: str, model, threshold: float = 0.2):
    from comfy_extras import nodes_easycache

    return getattr(nodes_easycache, f"{name}Node").execute(model, threshold, 0.15, 0.95, False).args[0]


def named(function, module: str, qualname: str = "wrapper"):
    """A function as it would come from a pack in the folder of custom nodes."""
    function.__module__, function.__qualname__ = module, qualname
    return function


def passing(apply_model, args):
    return apply_model(args["input"], args["timestep"], **args["c"])


class TestTheHostsCaches:
    @pytest.mark.scenario("EasyCache, LazyCache", "refused with the remedy")
    @levels()
    @pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
    def test_attached_after_them_is_refused_at_once(self, host, model, policy, name):
        with pytest.raises(host.node.CacheError, match=rf"^{name} and PriorCache.*remove one"):
            host.attach(hosts_cache(name, model), policy)

    @pytest.mark.scenario("EasyCache, LazyCache", "refused with the remedy")
    @levels()
    @pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
    def test_attached_before_them_is_refused_when_sampling(self, host, model, policy, name):
        both = hosts_cache(name, host.attach(model, policy))
        with pytest.raises(host.node.CacheError, match=rf"^{name} and PriorCache.*remove one"):
            host.sample(both)
        assert torch.isfinite(host.sample(host.attach(model, policy))).all()

    @pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
    def test_alone_they_work_on_the_dit(self, host, model, name):
        calls = []
        theirs = hosts_cache(name, model, threshold=3.0)
        hook = model.model.diffusion_model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        stock = host.sample(model, steps=12)
        whole, cached = len(calls), host.sample(theirs, steps=12)
        hook.remove()
        assert len(calls) < 2 * whole
        assert not torch.equal(stock, cached)

    def test_on_another_clone_they_are_left_alone(self, host, model):
        mine, theirs = host.attach(model, ALIGNED), hosts_cache("LazyCache", model)
        expected = host.sample(host.attach(host.model(), ALIGNED))
        host.sample(theirs)
        assert torch.equal(host.sample(mine), expected)


class TestOtherPacks:
    @pytest.mark.parametrize(
        ("module", "qualname", "told"),
        [
            ("/x/.cache/custom_nodes/ComfyUI-TeaCache.nodes", "TeaCache.apply.<locals>.wrapper", "ComfyUI-TeaCache"),
            ("C:\\packs\\ComfyUI-MagCache.nodes", "wrapper", "ComfyUI-MagCache"),
            ("/x/custom_nodes/Comfy-WaveSpeed.fbcache_nodes", "wrapper", "Comfy-WaveSpeed"),
            ("/x/custom_nodes/ComfyUI-KJNodes.nodes", "WanVideoTeaCacheKJ.patch.<locals>.wrapper", "ComfyUI-KJNodes"),
            ("/x/custom_nodes/ComfyUI-CacheDiT.nodes", "wrapper", "ComfyUI-CacheDiT"),
            ("/x/custom_nodes/ComfyUI-TaylorSeer.nodes", "wrapper", "ComfyUI-TaylorSeer"),
        ],
    )
    def test_that_cache_are_refused_by_name(self, host, model, module, qualname, told):
        theirs = model.clone()
        theirs.set_model_unet_function_wrapper(named(lambda f, a: passing(f, a), module, qualname))
        with pytest.raises(host.node.CacheError, match=f"^{told} and PriorCache"):
            host.attach(theirs, ALIGNED)

    def test_that_cache_through_a_wrapper_are_refused_too(self, host, model):
        theirs = host.attach(model, ALIGNED)
        kind = host.comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrapper = named(lambda executor, *a, **k: executor(*a, **k), "/x/custom_nodes/ComfyUI_Patches_ll.fb_cache")
        theirs.add_wrapper_with_key(kind, "patches_ll", functools.partial(wrapper))
        with pytest.raises(host.node.CacheError, match=r"^ComfyUI_Patches_ll and PriorCache"):
            host.sample(theirs)

    @pytest.mark.parametrize(
        ("module", "qualname"),
        [
            ("/x/.cache/y/custom_nodes/ComfyUI-TiledDiffusion.tiled", "wrapper"),
            ("/x/custom_nodes/KJNodes.memory", "empty_cache_wrapper"),
            ("comfy_extras.nodes_chroma_radiance", "wrapper"),
        ],
    )
    def test_that_do_not_cache_are_not_mistaken(self, host, model, module, qualname):
        theirs = model.clone()
        theirs.set_model_unet_function_wrapper(named(lambda f, a: passing(f, a), module, qualname))
        assert torch.equal(host.sample(host.attach(theirs, ALIGNED)), host.sample(host.attach(model, ALIGNED)))

    @LEVELS
    def test_that_call_the_model_once_per_tile_get_a_memory_per_tile(self, host, model, policy):
        def tiled(apply_model, args):
            x, t, c = args["input"], args["timestep"], args["c"]
            return torch.cat([apply_model(part, t, **c) for part in x.split(8, dim=-1)], dim=-1)

        theirs = model.clone()
        theirs.set_model_unet_function_wrapper(tiled)
        assert torch.equal(host.sample(host.attach(theirs, FORA(1, level=policy.level))), host.sample(theirs))
        trace = Trace()
        cached = host.sample(host.attach(theirs, policy, trace))
        assert trace.runs[0].computed_fraction == 0.5
        assert close(cached, host.sample(theirs)) < close(host.sample(model), host.sample(theirs))

    def test_that_batch_tiles_give_no_cond_the_rows_of_another(self, host, model, monkeypatch):
        """Tiles of both conds in one batch, tile by tile; in one step each cond comes alone, in as many rows."""
        seen: set[float] = set()

        def tiled(apply_model, args):
            x, t, c = args["input"], args["timestep"], args["c"]
            seen.add(t[0].item())
            own = {k: torch.cat([v] * 2) if isinstance(v, torch.Tensor) else v for k, v in c.items()}
            return torch.cat(apply_model(torch.cat(x.split(8, dim=-1)), t.repeat(2), **own).chunk(2), dim=-1)

        theirs, trace = model.clone(), Trace()
        theirs.set_model_unet_function_wrapper(tiled)
        stock, steady = host.sample(theirs), host.sample(host.attach(theirs, ALIGNED))
        fits = model.model.memory_required
        seen.clear()

        def both_but_in_the_fourth_step(shape, *args, **kwargs):
            return 1e30 if shape[0] > 2 and len(seen) == 3 else fits(shape, *args, **kwargs)

        monkeypatch.setattr(model.model, "memory_required", both_but_in_the_fourth_step)
        found = host.sample(host.attach(theirs, ALIGNED, trace))
        assert 0.6 < trace.runs[0].computed_fraction < 0.8
        assert 0 < close(found, stock) < 1.1 * close(steady, stock)

    def test_that_take_single_rows_out_of_a_batch_make_the_cache_decline(self, host, model):
        def by_row(apply_model, args):
            c = dict(args["c"])
            rows = range(len(args["input"]))
            own = [{k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in c.items()} for i in rows]
            parts = [apply_model(args["input"][i : i + 1], args["timestep"][i : i + 1], **own[i]) for i in rows]
            return torch.cat(parts)

        theirs, trace = model.clone(), Trace()
        theirs.set_model_unet_function_wrapper(by_row)
        assert torch.equal(host.sample(host.attach(theirs, ALIGNED, trace)), host.sample(theirs))
        assert "rearranges the rows" in trace.runs[0].notes[0]

    def test_that_tell_of_fewer_conds_than_there_are_make_the_cache_decline(self, host, model):
        """One cond after the other, of which the options tell; the uuids are still those of all."""

        def by_cond(apply_model, args):
            c, conds, parts = args["c"], args["cond_or_uncond"], []
            for i, cond in enumerate(conds):
                own = {k: v.chunk(len(conds))[i] if isinstance(v, torch.Tensor) else v for k, v in c.items()}
                own["transformer_options"] = c["transformer_options"] | {"cond_or_uncond": [cond]}
                x, t = (args[name].chunk(len(conds))[i] for name in ("input", "timestep"))
                parts.append(apply_model(x, t, **own))
            return torch.cat(parts)

        theirs, trace = model.clone(), Trace()
        theirs.set_model_unet_function_wrapper(by_cond)
        assert torch.equal(host.sample(host.attach(theirs, ALIGNED, trace)), host.sample(theirs))
        (note,) = trace.runs[0].notes
        assert "rearranges the rows" in note

    @levels()
    def test_that_guide_in_a_way_of_their_own_are_computed(self, host, model, policy):
        """As NAG's guider, which goes past what tells where an evaluation begins."""
        from comfy_extras.nodes_custom_sampler import Guider_Basic

        class Past(Guider_Basic):
            def __call__(self, *args, **kwargs):
                return self.predict_noise(*args, **kwargs)

        trace = Trace()
        assert torch.equal(guided(host, Past, host.attach(model, policy, trace)), guided(host, Guider_Basic, model))
        (run,) = trace.runs
        assert (run.moments, len(run.notes)) == ([], 1)
        assert "a way of its own" in run.notes[0]

    @levels()
    def test_that_sample_tile_by_tile_are_computed(self, host, model, policy):
        """As ClownOptions Tile of RES4LYF: the sampler itself calls the model for one half after the other."""
        from comfy.samplers import KSAMPLER

        def sample_tiles(model, x, sigmas, extra_args=None, callback=None, disable=None):
            for sigma, after in itertools.pairwise(sigmas):
                at = sigma * x.new_ones(len(x))
                whole = torch.cat([model(half, at, **extra_args) for half in x.chunk(2, dim=-1)], dim=-1)
                x = whole + (x - whole) / sigma * after
            return x

        trace, tiles = Trace(), KSAMPLER(sample_tiles)
        cached = guided(host, host.comfy.samplers.CFGGuider, host.attach(model, policy, trace), tiles)
        assert torch.equal(cached, guided(host, host.comfy.samplers.CFGGuider, model, tiles))
        assert "tiles" in trace.runs[0].notes[0]

    @levels()
    def test_whose_tiles_move_are_computed(self, host, model, policy):
        class SpotDiffusion:
            def __call__(self, apply_model, args):
                return passing(apply_model, args)

        theirs, trace = model.clone(), Trace()
        theirs.set_model_unet_function_wrapper(SpotDiffusion())
        assert torch.equal(host.sample(host.attach(theirs, policy, trace)), host.sample(model))
        assert "SpotDiffusion move" in trace.runs[0].notes[0]

    def test_that_set_the_hosts_memory_factor_to_nothing(self, host, model):
        theirs = model.clone()
        theirs.add_object_patch("memory_usage_factor", 0.0)
        assert torch.equal(host.sample(host.attach(theirs, ALIGNED)), host.sample(host.attach(model, ALIGNED)))

    def test_that_skip_the_blocks_under_an_unknown_name_make_the_cache_decline(self, host, model):
        """As TeaCache does: from the third call on, the network gives back what it gave before."""
        calls, kept = [], []

        def skipping(executor, *args, **kwargs):
            calls.append(1)
            if len(calls) <= 2:
                kept.append(executor(*args, **kwargs))
            return kept[-1]

        theirs, trace = host.attach(model, ALIGNED, trace := Trace()), trace
        network = theirs.model.diffusion_model
        original = network.forward

        def forward(*args, **kwargs):
            return skipping(original, *args, **kwargs)

        network.forward = forward
        try:
            host.sample(theirs)
        finally:
            del network.forward
        assert len(trace.runs[0].notes) == 1
        assert "from evaluation 2 on" in trace.runs[0].notes[0]
        assert "did not run" in trace.runs[0].notes[0]


class TestReplacedBlocks:
    @staticmethod
    def doubled(model):
        theirs, block = model.clone(), model.model.diffusion_model.blocks[1]
        original = type(block).forward
        theirs.add_object_patch("diffusion_model.blocks.1.forward", lambda *a, **k: original(block, *a, **k) * 1.1)
        return theirs

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_are_computed_by_their_owner_and_told_once(self, host, model, ours_first):
        trace = Trace()
        stock = host.sample(self.doubled(model))
        assert torch.equal(host.sample(host.attach(self.doubled(model), FORA(1))), stock)
        both = (
            self.doubled(host.attach(model, ALIGNED, trace))
            if ours_first
            else host.attach(self.doubled(model), ALIGNED, trace)
        )
        host.sample(both)
        actions = {b: {r.action for r in trace.runs[0].rows if r.site.block == b} for b in range(3)}
        assert actions == {0: set(Action) - {Action.PARTIAL}, 1: {Action.COMPUTE}, 2: set(Action) - {Action.PARTIAL}}
        assert trace.runs[0].notes == ["1 of 3 blocks were replaced by another node and are always computed."]

    def test_may_run_as_often_as_their_owner_likes(self, host, model):
        theirs, block, trace = model.clone(), model.model.diffusion_model.blocks[1], Trace()
        original = type(block).forward
        theirs.add_object_patch(
            "diffusion_model.blocks.1.forward", lambda x, c: original(block, original(block, x, c), c)
        )
        host.sample(host.attach(theirs, Taylor(ALIGNED), trace, "errors"))
        (run,) = trace.runs
        assert run.notes == ["1 of 3 blocks were replaced by another node and are always computed."]
        assert {row.action for row in run.rows if row.site.block == 0} == {Action.COMPUTE, Action.REUSE}

    def test_that_the_host_put_back_are_the_models_own_again(self, host, model):
        """The host restores a patched forward by writing the bound method into the module."""
        expected = host.sample(host.attach(model, ALIGNED))
        host.sample(self.doubled(model))
        trace = Trace()
        assert torch.equal(host.sample(host.attach(model, ALIGNED, trace)), expected)
        assert trace.runs[0].computed_fraction == 0.5
        assert trace.runs[0].notes == []

    def test_a_replaced_attention_is_called_where_it_is_computed(self, host, model):
        theirs, attention = model.clone(), model.model.diffusion_model.blocks[1].attn
        original, calls = type(attention).forward, []
        theirs.add_object_patch(
            "diffusion_model.blocks.1.attn.forward", lambda *a: calls.append(1) or original(attention, *a) * 0.5
        )
        stock = host.sample(theirs)
        assert torch.equal(host.sample(host.attach(theirs, FORA(1))), stock)
        calls.clear()
        trace = Trace()
        host.sample(host.attach(theirs, ALIGNED, trace))
        assert len(calls) == 3  # every second step
        assert trace.runs[0].computed_fraction == 0.5


class TestReplacedNetworks:
    """As RES4LYF's patchers, which give the network another class; the host leaves it until the next model is loaded."""

    @staticmethod
    def reclassed(model):
        class Theirs(type(model.model.diffusion_model)):
            pass

        theirs = model.clone()
        theirs.add_object_patch("diffusion_model.__class__", Theirs)
        return theirs

    def test_are_no_reason_to_refuse_the_one_they_were_made_of(self, host, model, monkeypatch):
        expected = host.sample(host.attach(model, ALIGNED))
        host.sample(self.reclassed(model))
        monkeypatch.setattr(host.node, "adapter_for", lambda network: None)  # their class has none
        patched = host.attach(model, ALIGNED)
        monkeypatch.undo()
        assert torch.equal(host.sample(patched), expected)

    @pytest.mark.parametrize("sampled", [False, True])
    def test_are_computed_where_they_are_unknown(self, host, model, monkeypatch, sampled):
        theirs, trace = self.reclassed(model), Trace()
        stock = host.sample(theirs)
        if not sampled:
            host.sample(model)
        monkeypatch.setattr(host.node, "adapter_for", lambda network: None)
        assert torch.equal(host.sample(host.attach(theirs, ALIGNED, trace)), stock)
        assert "replaced the blocks" in trace.runs[0].notes[0]


class TestSomeRows:
    @pytest.mark.parametrize("measure", ["off", "errors", "truth"])
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("begins", [0.0, 0.8])
    @pytest.mark.parametrize(
        ("policy", "block"), [(FORA(3, "aligned"), 1), (FORA(2, level="stack"), 0)], ids=["branches", "stack"]
    )
    def test_of_a_block_are_not_taken_for_all(self, host, tmp_path, measure, batch, begins, policy, block):
        """Skip-layer guidance that runs a block for the cond alone, from some noise on or throughout."""
        subject = subjects.flux(tmp_path)

        def conds_only(args, extra):
            rows = args["img"].shape[0]
            if rows != 2 * batch or args["transformer_options"]["sigmas"][0] > 0.8 + begins:
                return extra["original_block"](args)
            mine = {k: v[:batch] if isinstance(v, torch.Tensor) and len(v) == rows else v for k, v in args.items()}
            out = extra["original_block"](mine)
            return {k: torch.cat((v, args[k][batch:])) for k, v in out.items()}

        theirs, trace = subject.model.clone(), Trace()
        theirs.set_model_patch_replace(conds_only, "dit", "double_block", block)
        stock = subject.sample(theirs, batch=batch)
        assert not torch.equal(stock, subject.sample(batch=batch))
        assert close(subject.sample(host.attach(theirs, policy, trace, measure), batch=batch), stock) < 0.3
        unseen = policy.level == "stack" and measure == "truth"  # all blocks run, and only the last one's output counts
        assert unseen or "some of the pictures through a part" in trace.runs[0].notes[0]

    def test_of_one_stream_make_the_cache_decline(self, host, tmp_path):
        """As NAG, which runs three rows of text beside two of the picture."""
        subject = subjects.sd3(tmp_path)
        proj = subject.model.model.diffusion_model.joint_blocks[0].context_block.attn.proj
        theirs, trace = subject.model.clone(), Trace()
        theirs.add_object_patch(
            "diffusion_model.joint_blocks.0.context_block.attn.post_attention",
            lambda x: proj(torch.cat((x, x[:1])))[: len(x)],
        )
        assert torch.equal(subject.sample(host.attach(theirs, ALIGNED, trace)), subject.sample())
        assert "some of the pictures through a part" in trace.runs[0].notes[0]


class TestSeveralTimesInOnePass:
    """What a block gives in one run of it says nothing of another one in the same pass."""

    @pytest.mark.parametrize("policy", [ALIGNED, Taylor(ALIGNED)], ids=["reused", "forecast"])
    def test_a_block_that_a_hook_calls_twice_is_computed(self, host, tmp_path, policy):
        subject, trace = subjects.flux(tmp_path), Trace()

        def twice(args, extra):
            return extra["original_block"](args | extra["original_block"](args))

        theirs = subject.model.clone()
        theirs.set_model_patch_replace(twice, "dit", "double_block", 1)
        assert torch.equal(subject.sample(host.attach(theirs, policy, trace)), subject.sample(theirs))
        (run,) = trace.runs
        assert run.complete
        (note,) = run.notes
        assert note.endswith("another node runs blocks of this model several times in one pass.")

    @pytest.mark.parametrize("policy", [ALIGNED, FORA(2, "aligned", level="stack")], ids=["branches", "stack"])
    def test_a_network_that_a_wrapper_calls_twice_is_computed(self, host, model, policy):
        def twice(executor, x, *args, **kwargs):
            return (executor(x, *args, **kwargs) + executor(0.9 * x, *args, **kwargs)) / 2

        theirs, trace = model.clone(), Trace()
        kind = host.comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        theirs.add_wrapper_with_key(kind, "theirs", twice)
        assert torch.equal(host.sample(host.attach(theirs, policy, trace)), host.sample(theirs))
        (note,) = trace.runs[0].notes
        assert note.endswith("another node runs blocks of this model several times in one pass.")


class TestTwice:
    @LEVELS
    def test_through_clones_before_and_after_each_other(self, host, model, policy):
        once = host.sample(host.attach(model, policy))
        first = host.attach(model, FORA(3, "aligned"))
        for again in (
            host.attach(first, policy),
            host.attach(first.clone(), policy),
            host.attach(host.attach(first.clone(), Full()).clone(), policy),
        ):
            assert torch.equal(host.sample(again), once)
            assert [len(again.get_wrappers(kind, host.node.KEY)) for kind in host.node.KINDS] == [1] * 5
        assert torch.equal(host.sample(first), host.sample(host.attach(model, FORA(3, "aligned"))))

    def test_a_cache_that_another_one_replaced_traces_nothing(self, host, model):
        first, second = Trace(), Trace()
        host.sample(host.attach(host.attach(model, ALIGNED, first), ALIGNED, second))
        assert (len(first.runs), len(second.runs)) == (0, 1)

    def test_wrappers_that_were_added_by_hand_are_told_apart_from_a_second_node(self, host, model):
        both = host.attach(model, ALIGNED)
        outer = host.comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        both.add_wrapper_with_key(outer, host.node.KEY, both.get_wrappers(outer, host.node.KEY)[0])
        with pytest.raises(host.node.CacheError, match="attached twice"):
            host.sample(both)


def test_a_guider_without_guidance_scale_is_served(host, model):
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    patched = host.attach(model, ALIGNED)
    out = guided(host, Guider_Basic, patched)
    assert torch.equal(out, host.sample(patched, cfg=1.0).to(out))


def test_where_another_node_passes_the_last_block_by_a_step_that_skips_all_of_them_is_computed(host, tmp_path):
    flux, levels, trace = subjects.flux(tmp_path), [], Trace()
    blocks = flux.model.model.diffusion_model.single_blocks

    def second(args, more):
        level = float(args["transformer_options"]["sigmas"][0])
        levels.extend([level] if level not in levels else [])
        return {"img": args["img"]} if levels.index(level) == 1 else more["original_block"](args)

    patched = flux.model.clone()
    patched.set_model_patch_replace(second, "dit", "single_block", len(blocks) - 1)
    stock = flux.sample(patched)
    assert torch.equal(flux.sample(host.attach(patched, FORA(2, "aligned", level="stack"), trace)), stock)
    assert "the blocks of this model did not run" in trace.runs[0].notes[0]
    assert trace.runs[0].computed_fraction == 1
