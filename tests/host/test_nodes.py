"""The nodes themselves, called as the host calls them."""

import dataclasses
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import drawn
import pytest
import torch
from priorcache.cache_core.policies import FORA, GOC, DuCa, Full, Taylor, ToCa
from priorcache.cache_core.sites import Action, Schedule
from priorcache.cache_core.trace import RunTrace, Trace
from priorcache.errors import SettingError
from priorcache.models.checkpoint import CheckpointError
from priorcache.priors.prior import Prior, PriorError
from safetensors.torch import save_file


@pytest.fixture
def nodes(host):
    import folder_paths
    import priorcache.nodes as pack

    pack.register_folder()
    return {n.GET_SCHEMA().node_id: n for n in pack.NODES} | {"folder_paths": folder_paths}


@pytest.fixture
def prior_folder(nodes, tmp_path, monkeypatch):
    monkeypatch.setitem(nodes["folder_paths"].folder_names_and_paths, "priorcache", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def calibrate(host, nodes, model, size=(16, 16), **changes):
    label = host.dit.conditioning(torch.tensor([1, 2]))
    null = host.dit.conditioning(torch.tensor([-1, -1]))
    settings = {
        "seed": 5, "runs": 2, "steps": 5, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "longest_gap": 2, "mean_features": False,
    }  # fmt: skip
    with torch.inference_mode():
        return nodes["PriorCacheCalibrate"].execute(
            model, label, null, {"samples": torch.zeros(2, 3, *size)}, **settings | changes
        )


class TestSchemas:
    def test_every_node_is_named_and_filed_as_promised(self, nodes):
        for name, node in nodes.items():
            if name != "folder_paths":
                schema = node.GET_SCHEMA()
                assert name.startswith("PriorCache")
                assert schema.category in (
                    "PriorCache",
                    *(f"PriorCache/{g}" for g in ("policies", "priors", "loaders", "demo")),
                )
                assert schema.description
                assert schema.search_aliases

    def test_every_input_and_output_has_a_tooltip_and_every_widget_a_default(self, nodes):
        for name, node in nodes.items():
            if name == "folder_paths":
                continue
            schema = node.GET_SCHEMA()
            for entry in [*schema.inputs, *schema.outputs]:
                assert entry.tooltip, f"{name}.{entry.id} has no tooltip"
            for entry in schema.inputs:
                widget = entry.io_type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
                listed = entry.io_type == "COMBO" and entry.id in (
                    "model_name",
                    "prior_name",
                    "router_name",
                    "image",
                )  # the user's own files
                assert not widget or listed or entry.default is not None, f"{name}.{entry.id} has no default"
                if entry.io_type in ("INT", "FLOAT"):
                    assert entry.min <= entry.default <= entry.max

    def test_every_node_has_a_help_page(self, nodes):
        from pack import ROOT

        pages = {p.stem for p in (ROOT / "web" / "docs").glob("*.md")}
        assert pages == set(nodes) - {"folder_paths"}

    def test_help_pages_name_every_input(self, nodes):
        from pack import ROOT

        for name, node in nodes.items():
            if name != "folder_paths":
                page = (ROOT / "web" / "docs" / f"{name}.md").read_text()
                missing = [i.id for i in node.GET_SCHEMA().inputs if i.id not in page]
                assert not missing, f"{name}: {missing}"

    def test_promised_inputs_are_still_there_in_order(self, nodes):
        """Saved workflows store widget values by position: this list may only gain entries at its ends."""
        promised = {
            "PriorCacheLoadDiT": ["model_name", "heads", "timestep_embedding", "weight_dtype", "prediction"],
            "PriorCacheDiTLabel": ["labels"],
            "PriorCacheFORA": ["interval", "phase", "start", "end", "scope"],
            "PriorCacheDuCa": ["preset", "interval", "ratio", "selection", "mode"],
            "PriorCacheToCa": ["preset", "interval", "ratio", "selection", "mode"],
            "PriorCacheApply": ["model", "policy", "measure"],
            "PriorCacheCalibrate": [
                "model", "positive", "negative", "latent_image", "seed", "runs", "steps", "cfg", "sampler_name", "scheduler",
                "denoise", "longest_gap", "mean_features",
            ],
            "PriorCacheSavePrior": ["prior", "name", "overwrite"],
            "PriorCacheLoadPrior": ["prior_name", "model"],
            "PriorCacheMergePriors": ["prior", "other"],
            "PriorCacheInspect": [
                "trace", "latent", "prior", "before", "before_latent", "preview", "theme", "export", "filename_prefix",
            ],
            "PriorCacheDemoPrompt": ["prompt"],
            "PriorCacheDemoModel": ["model"],
            "PriorCacheDemoVAE": [],
            "PriorCacheEOC": ["policy", "prior", "theta", "least_error"],
            "PriorCacheGOC": ["policy", "eta", "queue", "inflections", "whole_blocks", "prior"],
            "PriorCacheTaylor": ["policy", "order", "exact"],
            "PriorCacheCompare": ["images_a", "images_b", "latent_a", "latent_b"],
            "PriorCacheForecast": ["speedup", "coordinate", "order", "corrector"],
            "PriorCachePlan": ["prior", "goal", "value", "model"],
            "PriorCacheSearch": [
                "prior", "model", "positive", "negative", "latent_image", "seed", "samplings", "speedups", "runs",
            ],
            "PriorCacheSweep": [
                "model", "positive", "negative", "latent_image", "goals", "seed", "runs", "steps", "cfg", "sampler_name",
                "scheduler", "denoise", "vae", "policies",
            ],
            "PriorCacheAuto": ["model", "speedup"],
            "PriorCacheMemoryBudget": ["policy", "model", "megabytes"],
            "PriorCacheStamp": ["images", "trace"],
            "PriorCacheReplay": ["image", "run"],
            "PriorCacheTune": [
                "policy", "model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler",
                "denoise", "samplings", "ceiling",
            ],
            "PriorCacheLoadPixArt": ["model_name", "heads", "weight_dtype", "prediction"],
            "PriorCacheL2C": ["prior", "threshold"],
            "PriorCacheLoadRouter": ["router_name", "rule", "model"],
            "PriorCacheTrainRouter": [
                "model", "positive", "negative", "latent_image", "seed", "runs", "steps", "cfg", "sampler_name", "scheduler",
                "denoise", "iterations", "penalty", "learning_rate", "threshold", "save_memory", "prior",
            ],
        }  # fmt: skip
        later = {
            *(
                ("PriorCacheInspect", i)
                for i in ("before", "before_latent", "preview", "theme", "export", "filename_prefix")
            ),
            ("PriorCacheLoadDiT", "prediction"),
            ("PriorCacheApply", "store"),
            ("PriorCacheFORA", "preset"),
        }
        for name, inputs in promised.items():
            found = nodes[name].GET_SCHEMA().inputs
            assert [i.id for i in found][: len(inputs)] == inputs
            for entry in found:  # an API workflow saved before an input existed does not carry it
                assert entry.optional or entry.id in inputs, f"{name}.{entry.id} must be optional"
                assert entry.optional or (name, entry.id) not in later


class TestLoadDiT:
    @pytest.fixture
    def load(self, nodes, tmp_path, monkeypatch):
        monkeypatch.setitem(
            nodes["folder_paths"].folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors", ".pt"})
        )

        def call(name, heads=4, embedding="auto", dtype="default", prediction="auto"):
            with torch.inference_mode():
                return nodes["PriorCacheLoadDiT"].execute(name, heads, embedding, dtype, prediction).args[0]

        return call

    def test_safetensors_and_pt_give_the_same_pictures(self, host, load, tmp_path):
        _, weights = host.weights()
        save_file(weights, tmp_path / "a.safetensors", metadata={"num_heads": "4"})
        torch.save(weights, tmp_path / "b.pt")
        first = host.sample(load("a.safetensors", heads=0))
        assert torch.equal(first, host.sample(load("b.pt")))
        assert torch.equal(first, host.sample(host.model()))

    def test_the_host_can_load_it_again(self, host, load, tmp_path):
        _, weights = host.weights()
        save_file(weights, tmp_path / "a.safetensors", metadata={"num_heads": "4"})
        function, arguments = load("a.safetensors").cached_patcher_init
        with torch.inference_mode():
            again = function(*arguments, disable_dynamic=True)
        assert torch.equal(host.sample(again), host.sample(host.model()))

    def test_a_pickle_is_refused_and_not_executed(self, load, tmp_path):
        marker = tmp_path / "executed"

        class Evil:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        torch.save({"final_layer.linear.weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match=r"evil\.pt"):
            load("evil.pt")
        assert not marker.exists()

    @pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"\xff" * 64])
    def test_a_broken_file_is_named(self, load, tmp_path, content):
        (tmp_path / "broken.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
            load("broken.safetensors")

    @pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.1), ("fp16", 0.02)])
    def test_half_precision_keeps_labels_exact(self, host, load, tmp_path, dtype, bound):
        """Labels above 256 are not whole numbers in bfloat16; they must not pass through it."""
        _, weights = host.weights(num_classes=1000)
        save_file(weights, tmp_path / "many.safetensors", metadata={"num_heads": "4"})
        exact = host.sample(load("many.safetensors"), labels=(985, 984))
        half = host.sample(load("many.safetensors", dtype=dtype), labels=(985, 984))
        assert ((half - exact).norm() / exact.norm()).item() < bound

    def test_a_velocity_model_is_told_by_its_metadata_or_by_the_widget(self, host, load, tmp_path):
        """x = a * x0 + s * noise, v = a * noise - s * x0: a velocity model's picture is a * x - s * v."""
        _, weights = host.weights()
        save_file(weights, tmp_path / "noise.safetensors", metadata={"num_heads": "4"})
        save_file(weights, tmp_path / "v.safetensors", metadata={"num_heads": "4", "prediction_type": "v_prediction"})
        told, widget = load("v.safetensors"), load("noise.safetensors", prediction="v_prediction")
        assert torch.equal(host.sample(told), host.sample(widget))
        assert torch.equal(
            host.sample(load("v.safetensors", prediction="epsilon")), host.sample(load("noise.safetensors"))
        )
        x, v, sigma = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor(2.0)
        a, s = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
        found = told.model.model_sampling.calculate_denoised(sigma, v, x / a)
        torch.testing.assert_close(found, a * x - s * v)


class TestDiTModel:
    def test_noise_schedule_is_linear_in_beta(self, host, model):
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alphas = torch.cumprod(1 - betas, 0)
        expected = ((1 - alphas) / alphas).sqrt().float()
        found = model.get_model_object("model_sampling").sigmas
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert found[-1].item() == pytest.approx(157.4, abs=0.05)

    def test_each_picture_gets_its_own_label_and_null_is_the_last_class(self, host, model):
        both = host.sample(model, labels=(3, 7), cfg=1.0)
        alone = host.sample(model, labels=(3, 3), cfg=1.0)
        torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both[1], alone[1], atol=1e-2)

    def test_a_label_out_of_range_and_a_text_prompt_are_explained(self, host, model):
        with pytest.raises(ValueError, match="0 to 9"):
            host.sample(model, labels=(10, 10))
        with pytest.raises(ValueError, match="DiT Class Label"):
            host.sample(model, positive=[[torch.zeros(1, 4, 8), {}]])

    @pytest.mark.parametrize(
        ("text", "expected"), [("3", [3]), ("0-3", [0, 1, 2, 3]), ("3, 7,7 20-22,", [3, 7, 7, 20, 21, 22])]
    )
    def test_labels_are_read(self, host, text, expected):
        assert host.dit.parse_labels(text) == expected

    @pytest.mark.parametrize("text", ["", "cat", "-1", "5-3", "0-99999", "1.5", "0x10", "9999999"])
    def test_other_text_is_refused(self, host, text):
        with pytest.raises(ValueError, match="DiT Class Label"):
            host.dit.parse_labels(text)


class TestPolicyNodes:
    def test_fora_makes_the_policy_of_its_widgets(self, nodes):
        made = nodes["PriorCacheFORA"].execute(3, "aligned", 0.1, 0.9, "whole network").args[0]
        assert made == FORA(3, "aligned", 0.1, 0.9, level="model")

    @pytest.mark.parametrize(
        ("preset", "expected"),
        [
            ("custom", FORA(5, "published", 0.2, 0.9)),
            ("published", FORA(3)),
            ("25 %", FORA(2, "aligned", end=0.5)),
            ("50 %", FORA(2, "aligned")),
            ("75 %", FORA(4, "aligned")),
            ("first half", FORA(5, "published", 0.0, 0.5)),
        ],
    )
    def test_presets_of_fora_take_the_place_of_the_widgets(self, nodes, preset, expected):
        assert nodes["PriorCacheFORA"].execute(5, "published", 0.2, 0.9, "branches", preset).args[0] == expected

    def test_corrections_make_the_policies_of_their_widgets(self, nodes):
        base = FORA(2, "aligned")
        goc, taylor = nodes["PriorCacheGOC"].execute, nodes["PriorCacheTaylor"].execute
        assert goc(base, 1.2, "recomputed", "none", False).args[0] == GOC(base, 1.2, "recomputed", joint=False)
        assert goc(base, 1.2, "used", "published", True).args[0] == GOC(base, 1.2, inflections=(17,), steps=20)
        assert taylor(base, 2, True).args[0] == Taylor(base, 2, True)
        with pytest.raises(ValueError, match="connect Calibrate or Load Prior"):
            goc(base, 0.8, "used", "from prior", True)
        with pytest.raises(ValueError, match="Taylor already replaces it"):
            goc(taylor(base, 1, False).args[0], 0.8, "used", "none", True)

    def test_defaults_work(self, nodes):
        schema = nodes["PriorCacheFORA"].GET_SCHEMA()
        assert nodes["PriorCacheFORA"].execute(**{i.id: i.default for i in schema.inputs}).args[0] == FORA()


class TestTokenPolicies:
    @pytest.mark.parametrize(("name", "kind"), [("PriorCacheDuCa", DuCa), ("PriorCacheToCa", ToCa)])
    def test_the_widgets_are_the_policys_settings(self, nodes, name, kind):
        node = nodes[name]
        assert node.execute(**{i.id: i.default for i in node.GET_SCHEMA().inputs}).args[0] == kind()
        made = node.execute("pixart", 4, 0.5, "small values", "as published").args[0]
        assert made == kind("pixart", 4, 0.5, "small values", faithful=True)

    @pytest.mark.parametrize(("name", "kind"), [("PriorCacheDuCa", DuCa), ("PriorCacheToCa", ToCa)])
    def test_a_new_node_leaves_the_preset_to_the_model_and_every_other_stays(self, nodes, name, kind):
        preset = nodes[name].GET_SCHEMA().inputs[0]
        assert (preset.id, preset.default, preset.options) == ("preset", "auto", ["auto", *kind.presets])
        assert next(iter(kind.presets)) == "dit"

    @pytest.mark.parametrize("name", ["PriorCacheDuCa", "PriorCacheToCa"])
    def test_every_preset_and_selection_is_offered_and_works(self, nodes, name):
        preset, _, _, selection, _ = nodes[name].GET_SCHEMA().inputs
        for choice in preset.options:
            for kind in selection.options:
                policy = nodes[name].execute(choice, 0, -1.0, kind, "corrected").args[0]
                assert policy.prepared(Schedule(20)).steps[0] == "F"


class TestCorrections:
    """GOC, EOC and Taylor in real sampling runs, nine euler steps, cfg 2: 1, 3, 5, 7 are reused."""

    BASE = FORA(2, "aligned")
    RUN = {"seed": 5, "steps": 9, "cfg": 2.0}  # noqa: RUF012

    def sample(self, host, model, policy):
        trace = Trace()
        out = host.sample(host.attach(model, policy, trace, "errors"), **self.RUN)
        return out, trace.runs[0]

    @pytest.fixture(scope="class")
    def prior(self, host):
        from priorcache.nodes.calibrate import PriorCacheCalibrate

        node = {"PriorCacheCalibrate": PriorCacheCalibrate}
        return calibrate(host, node, host.model(), steps=9, runs=1, mean_features=True).args[0]

    def test_each_changes_the_picture_and_computes_no_more_than_its_base(self, host, nodes, model, prior):
        plain, run = self.sample(host, model, self.BASE)
        found = [
            nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "used", "none", True),
            nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "recomputed", "none", True),
            nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0),
            nodes["PriorCacheTaylor"].execute(self.BASE, 2, False),
            nodes["PriorCacheTaylor"].execute(self.BASE, 2, True),
        ]
        pictures = [plain]
        for node in found:
            out, own = self.sample(host, model, node.args[0])
            assert own.notes == []
            assert own.computed_fraction == run.computed_fraction == 5 / 9
            assert torch.isfinite(out).all()
            pictures.append(out)
        pairs = itertools.combinations(pictures, 2)
        assert not any(torch.equal(a, b) for a, b in pairs)

    def test_with_nothing_to_correct_each_is_its_base_bit_for_bit(self, host, nodes, model, prior):
        plain, _ = self.sample(host, model, self.BASE)
        for policy in (
            GOC(self.BASE, 0.0),
            GOC(self.BASE, 0.0, "recomputed"),
            GOC(self.BASE, 0.8, inflections=tuple(range(9))),
            nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.0, 0.0).args[0],
            nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 10.0).args[0],
        ):
            assert torch.equal(self.sample(host, model, policy)[0], plain)

    def test_a_prior_of_the_reused_steps_alone_serves_eoc_as_the_whole_one_does(self, host, nodes, model, prior):
        some = calibrate(host, nodes, model, steps=9, runs=1, mean_features=True, policy=self.BASE).args[0]
        assert some.tables["trend_steps/blocks.0.attn"].tolist() == [1, 3, 5, 7]
        assert some.nbytes < 0.5 * prior.nbytes
        a, b = (
            self.sample(host, model, nodes["PriorCacheEOC"].execute(self.BASE, p, 0.5, 0.0).args[0])[0]
            for p in (some, prior)
        )
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [({"steps": 12}, "calibrate with the settings"), ({"size": (24, 16)}, "calibrate at the size")],
        ids=["steps", "size"],
    )
    def test_eoc_computes_everything_where_its_prior_does_not_fit(self, host, nodes, model, prior, changed, said):
        policy = nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0).args[0]
        trace = Trace()
        out = host.sample(host.attach(model, policy, trace), **self.RUN | changed)
        assert torch.equal(out, host.sample(model, **self.RUN | changed))
        assert len(trace.runs[0].notes) == 1
        assert said in trace.runs[0].notes[0]

    def test_eoc_computes_everything_where_the_picture_has_its_sides_exchanged(self, host, nodes, model):
        """It has as many tokens, which lie elsewhere."""
        prior = calibrate(host, nodes, model, (24, 16), steps=9, runs=1, mean_features=True).args[0]
        policy, notes = nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0).args[0], []
        for size in ((24, 16), (16, 24)):
            trace = Trace()
            out = host.sample(host.attach(model, policy, trace), **self.RUN, size=size)
            assert torch.equal(out, host.sample(model, **self.RUN, size=size)) == (size == (16, 24))
            notes.append(trace.runs[0].notes)
        upright, (turned,) = notes
        assert upright == []
        assert "measured on latents of 3 x 24 x 16 and this run has 3 x 16 x 24; calibrate at the size" in turned

    @pytest.mark.parametrize(("measured", "sampler"), [("heun", "euler"), ("euler", "heun")])
    def test_eoc_goes_as_far_as_its_prior_is_of_the_same_calls(self, host, nodes, model, measured, sampler):
        """heun calls the model at the same noise levels, but twice: from its third call on they are others."""
        prior = calibrate(host, nodes, model, steps=9, runs=1, mean_features=True, sampler_name=measured).args[0]
        policy = nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0).args[0]
        trace = Trace()
        host.sample(host.attach(model, policy, trace), **self.RUN | {"sampler": sampler})
        run = trace.runs[0]
        assert re.search(r"computed everything from evaluation [23] on: its prior was measured at noise", run.notes[0])
        assert "calibrate with the sampler that you sample with" in run.notes[0]
        assert {row.step for row in run.rows if row.action is Action.REUSE} <= {1, 2}

    def test_a_scheduler_that_adds_a_step_is_served_by_what_was_measured_with_it(self, host, nodes, model):
        """ddim_uniform makes 13 steps of 12."""
        settings = {"steps": 12, "scheduler": "ddim_uniform"}
        prior = calibrate(host, nodes, model, runs=1, mean_features=True, **settings).args[0]
        assert (prior.subject.steps, prior.subject.total, prior.evaluations) == (12, 13, 13)
        for policy in (
            nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0).args[0],
            dataclasses.replace(
                nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "used", "from prior", True, prior).args[0],
                inflections=(3,),
            ),
        ):
            trace = Trace()
            host.sample(host.attach(model, policy, trace), seed=5, cfg=2.0, **settings)
            assert trace.runs[0].notes == []
            assert trace.runs[0].computed_fraction < 0.6

    @pytest.mark.parametrize("store", ["device", "cpu"])
    def test_what_eoc_brings_to_another_device_is_told_before(self, host, nodes, model, prior, store, monkeypatch):
        from priorcache.cache_core.policies import eoc

        policy, found = nodes["PriorCacheEOC"].execute(self.BASE, prior, 0.5, 0.0).args[0], []
        for room, ahead in ((0, False), (2**30, False), (2**30, True)):
            monkeypatch.setattr(eoc, "_room", lambda device, room=room: room)
            monkeypatch.setattr(eoc, "_ahead", lambda device, ahead=ahead: ahead)
            trace = Trace()
            found.append((host.sample(host.attach(model, policy, trace, store=store), **self.RUN), trace.runs[0]))
        (without, plain), *brought = found
        trends = sum(2 * mean[0].nbytes for name, mean in prior.tables.items() if name.startswith("mean/"))
        for evaluations, (out, run) in enumerate(brought, 1):  # in single precision
            assert torch.equal(out, without)
            assert run.expected_bytes == run.peak_bytes
            assert run.peak_bytes - plain.peak_bytes == evaluations * trends

    def test_eoc_needs_mean_features(self, host, nodes, model):
        with pytest.raises(PriorError, match="mean_features switched on"):
            nodes["PriorCacheEOC"].execute(self.BASE, calibrate(host, nodes, model, runs=1).args[0], 0.01, 0.0)

    def test_goc_leaves_out_the_inflections_of_a_prior(self, nodes, prior, monkeypatch):
        monkeypatch.setattr("priorcache.nodes.corrections.found_in", lambda of: (3, 7) if of is prior else ())
        policy = nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "used", "from prior", True, prior).args[0]
        assert (policy.inflections, policy.steps) == ((3, 7), 9)

    def test_goc_takes_no_inflections_that_are_not_steps(self, nodes, prior):
        """heun calls the model nine times in five steps."""
        about = dataclasses.replace(prior.subject, sampler="heun", steps=5, made=5)
        heun = dataclasses.replace(prior, subject=about)
        with pytest.raises(SettingError, match=r"heun calls the model 9 times in 5 steps.*or set inflections"):
            nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "used", "from prior", True, heun)
        assert nodes["PriorCacheGOC"].execute(self.BASE, 0.8, "used", "none", True, heun).args[0] == GOC(self.BASE)

    @pytest.mark.parametrize("order", [1, 2])
    def test_taylor_serves_the_whole_network(self, host, model, order):
        base = FORA(2, "aligned", level="model")
        plain, _ = self.sample(host, model, base)
        out, run = self.sample(host, model, Taylor(base, order))
        assert run.notes == []
        assert not torch.equal(out, plain)

    def test_on_a_sampler_that_calls_the_model_twice_per_step(self, host, model):
        for policy in (GOC(self.BASE), Taylor(self.BASE, 2)):
            trace = Trace()
            out = host.sample(host.attach(model, policy, trace), **self.RUN, sampler="heun")
            assert torch.isfinite(out).all()
            assert trace.runs[0].notes == []


@pytest.mark.usefixtures("undrawn")
class TestCalibrate:
    def test_measures_what_a_full_run_with_tracing_measures(self, host, nodes, model):
        prior = calibrate(host, nodes, model, runs=1).args[0]
        trace = Trace()
        host.sample(host.attach(model, Full(), trace, "errors"), seed=5, steps=5, cfg=2.0)
        sites, _, errors = trace.runs[0].table()
        assert prior.sites == tuple(s.name for s in sites)
        found = prior.reuse_error(1).T
        torch.testing.assert_close(
            found.nan_to_num(-1), torch.tensor(errors, dtype=torch.float64).nan_to_num(-1), rtol=1e-4, atol=1e-5
        )

    def test_two_seeds_at_once_are_two_priors_merged(self, host, nodes, model):
        both = calibrate(host, nodes, model).args[0]
        merged = Prior.merge([calibrate(host, nodes, model, runs=1, seed=s).args[0] for s in (5, 6)])
        assert (both.samples, both.seeds) == (merged.samples, merged.seeds) == (4, (5, 6))
        for name, table in both.tables.items():
            torch.testing.assert_close(merged.tables[name], table, rtol=1e-6, atol=1e-9, equal_nan=True)

    def test_gram_is_that_of_the_derivatives(self, host, nodes, model):
        prior = calibrate(host, nodes, model, runs=1, cfg=1.0).args[0]
        seen = []
        host.sample(model, seed=5, steps=5, cfg=1.0, callback=lambda i, x0, x, n: seen.append(x - x0))
        stack = torch.stack([(d / s).flatten() for d, s in zip(seen, prior.tables["sigmas"], strict=True)]).double()
        torch.testing.assert_close(
            prior.tables["gram/positive"], stack @ stack.T / stack.shape[1], rtol=1e-4, atol=1e-5
        )
        assert "gram/negative" not in prior.tables

    def test_the_whole_network_alone_gives_the_same_gram_table_and_holds_no_branches(self, host, nodes, model):
        whole = calibrate(host, nodes, model, runs=1).args[0]
        alone, _, summary = calibrate(host, nodes, model, runs=1, scope="whole network").args
        assert alone.sites == ()
        for name in ("sigmas", "gram/positive", "gram/negative"):
            assert torch.equal(alone.tables[name], whole.tables[name])
        assert "the network's output alone" in summary
        budget = {"policy": FORA(2), "model": model, "megabytes": 1}
        with pytest.raises(PriorError, match="tells of no branches"):
            nodes["PriorCacheMemoryBudget"].execute(**budget, prior=alone)
        with pytest.raises(PriorError, match="tells of no branches"):
            nodes["PriorCacheGOC"].execute(FORA(2), 0.8, "used", "from prior", True, alone)
        with pytest.raises(SettingError, match="choose one of branches, whole network"):
            calibrate(host, nodes, model, scope="everything")

    def test_changes_no_model_and_can_be_stopped(self, host, nodes, model, monkeypatch):
        before = host.sample(model)
        stop = host.comfy.model_management.InterruptProcessingException
        monkeypatch.setattr(
            host.comfy.utils.ProgressBar, "update_absolute", lambda self, value, *a, **k: (_ for _ in ()).throw(stop)
        )
        with pytest.raises(stop):
            calibrate(host, nodes, model)
        monkeypatch.undo()
        calibrate(host, nodes, model, runs=1)
        assert torch.equal(host.sample(model), before)

    def test_progress_runs_to_the_end_over_all_runs(self, host, nodes, model, monkeypatch):
        told = []
        monkeypatch.setattr(
            host.comfy.utils.ProgressBar,
            "update_absolute",
            lambda self, value, *a, **k: told.append((value, self.total)),
        )
        calibrate(host, nodes, model)
        assert told == [(i, 10) for i in range(1, 11)]

    def test_mean_features_are_the_positive_mean(self, host, nodes, model):
        prior = calibrate(host, nodes, model, runs=1, mean_features=True).args[0]
        assert prior.tables["mean/blocks.0.attn"].shape == (5, 64, 64)
        assert prior.tables["mean/blocks.0.attn"].dtype == torch.float16
        assert len([n for n in prior.tables if n.startswith("mean/")]) == len(prior.sites) == 6

    def test_a_sampler_without_fixed_steps_is_explained(self, host, nodes, model):
        with pytest.raises(PriorError, match="fixed steps"):
            calibrate(host, nodes, model, sampler_name="dpm_adaptive", runs=2)


def test_seeds_stay_unless_somebody_wants_them_to_change(nodes):
    """These nodes run by themselves: a new seed after every run would begin minutes of work anew."""
    schemas = [node.define_schema() for name, node in nodes.items() if name.startswith("PriorCache")]
    seeds = [i for schema in schemas for i in schema.inputs if i.id == "seed"]
    assert len(seeds) == 5
    assert {i.as_dict()["control_after_generate"] for i in seeds} == {"fixed"}


@pytest.mark.parametrize(
    ("name", "loader"), [("shapes-dit", "LoadDiT"), ("shapes-pixart", "LoadPixArt"), ("shapes-flux", "UNETLoader")]
)
def test_a_demo_model_is_the_file_that_comes_with_the_pack(nodes, name, loader, monkeypatch):
    from pack import ROOT

    import nodes as host_nodes

    folders = nodes["folder_paths"].folder_names_and_paths
    monkeypatch.setitem(folders, "diffusion_models", ([str(ROOT / "demo")], {".safetensors"}))
    with torch.inference_mode():
        if loader == "UNETLoader":
            (loaded,) = host_nodes.UNETLoader().load_unet(f"{name}.safetensors", "default")
        else:
            rest = ("default", "auto") if loader == "LoadPixArt" else ("auto", "default", "auto")
            loaded = nodes[f"PriorCache{loader}"].execute(f"{name}.safetensors", 0, *rest).args[0]
        demo = nodes["PriorCacheDemoModel"].execute(name).args[0]
    assert demo.model.model_type == loaded.model.model_type
    theirs, own = (model.model.diffusion_model.state_dict() for model in (loaded, demo))
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[key], own[key]) for key in own)


def test_a_demo_model_that_is_not_there_is_told_of(nodes, monkeypatch, tmp_path):
    from priorcache.nodes import demo

    with pytest.raises(SettingError, match="choose one of shapes-dit, shapes-flux, shapes-pixart"):
        nodes["PriorCacheDemoModel"].execute("../../secret")
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    with pytest.raises(SettingError, match="install the pack again"):
        nodes["PriorCacheDemoModel"].execute("shapes-dit")


def test_an_empty_line_of_prompts_leaves_everything_open(nodes):
    drawn = [nodes["PriorCacheDemoPrompt"].execute(text).args[0][0][0] for text in ("\nred star", "red star\n", "")]
    assert [len(context) for context in drawn] == [2, 1, 1]
    assert torch.equal(drawn[0][1:], drawn[1])
    assert torch.equal(drawn[0][:1], drawn[2])


@pytest.mark.usefixtures("undrawn")
class TestPriorFiles:
    def test_save_then_load(self, host, nodes, model, prior_folder):
        prior = calibrate(host, nodes, model, runs=1).args[0]
        name = nodes["PriorCacheSavePrior"].execute(prior, "mine", False).args[0]
        assert name == "mine.safetensors"
        assert nodes["PriorCacheSavePrior"].execute(prior, "mine", False).args[0] == "mine-2.safetensors"
        assert nodes["PriorCacheSavePrior"].execute(prior, "mine.safetensors", True).args[0] == "mine.safetensors"
        assert sorted(p.name for p in prior_folder.iterdir()) == ["mine-2.safetensors", "mine.safetensors"]
        loaded = nodes["PriorCacheLoadPrior"].execute("mine.safetensors", model).args[0]
        assert loaded.subject == prior.subject

    def test_two_that_save_at_the_same_moment_get_a_file_each(self, nodes, prior_folder, monkeypatch):
        together, save = Barrier(2, timeout=30), Prior.save

        def waiting(prior, path):
            together.wait()
            return save(prior, path)

        monkeypatch.setattr(Prior, "save", waiting)
        priors = [drawn.prior(evaluations) for evaluations in (6, 7)]
        with ThreadPoolExecutor(2) as pool:
            made = list(
                pool.map(lambda prior: nodes["PriorCacheSavePrior"].execute(prior, "mine", False).args[0], priors)
            )
        assert sorted(made) == ["mine-2.safetensors", "mine.safetensors"]
        assert [Prior.load(prior_folder / name).evaluations for name in made] == [6, 7]

    def test_a_name_whose_prior_could_not_be_written_is_free_again(self, nodes, prior_folder, monkeypatch):
        def full(*_):
            raise OSError("disk full")

        monkeypatch.setattr(Prior, "save", full)
        with pytest.raises(PriorError, match=r"cannot be written to \(disk full"):
            nodes["PriorCacheSavePrior"].execute(drawn.prior(), "mine", False)
        assert list(prior_folder.iterdir()) == []

    def test_a_folder_that_cannot_be_written_to_is_named(self, nodes, prior_folder, monkeypatch):
        def full(*_, **__):
            raise PermissionError("Read-only file system")

        for what in ("mkdir", "touch"):
            with monkeypatch.context() as patch:
                patch.setattr(type(prior_folder), what, full)
                with pytest.raises(PriorError, match=r"cannot be written to \(Read-only"):
                    nodes["PriorCacheSavePrior"].execute(drawn.prior(), "mine", False)
        assert list(prior_folder.iterdir()) == []

    def test_two_priors_make_one_of_all_their_pictures(self, host, nodes, model):
        """As one calibration of both seeds would have it."""
        first, second, both = (
            calibrate(host, nodes, model, steps=3, **settings).args[0]
            for settings in ({"seed": 5, "runs": 1}, {"seed": 6, "runs": 1}, {"seed": 5, "runs": 2})
        )
        merged, text = nodes["PriorCacheMergePriors"].execute(first, second).args
        assert text == f"{first.samples} and {first.samples} pictures: {both.samples}; 0 and 0 plans: 0."
        assert merged.tables.keys() == both.tables.keys()
        for name, table in both.tables.items():
            torch.testing.assert_close(merged.tables[name], table, rtol=1e-4, atol=1e-6, equal_nan=True)
        twice, text = nodes["PriorCacheMergePriors"].execute(first, first).args
        assert text == f"twice the same pictures, which count once: {first.samples}; 0 and 0 plans: 0."
        assert (twice.samples, twice.seeds) == (first.samples, first.seeds)
        with pytest.raises(PriorError, match=r"differ in steps.*calibrate both alike"):
            nodes["PriorCacheMergePriors"].execute(
                first, calibrate(host, nodes, model, steps=4, seed=5, runs=1).args[0]
            )

    def test_no_name_leaves_the_folder(self, host, nodes, model, prior_folder):
        prior = calibrate(host, nodes, model, runs=1, steps=2).args[0]
        bad = ["../up", "a/b", "a\\b", "", " ", ".hidden", "nul\0", "x" * 200, "..", "a.", "NUL", "con.old", "字" * 99]
        for name in bad:
            with pytest.raises(PriorError, match="file name"):
                nodes["PriorCacheSavePrior"].execute(prior, name, False)
        assert list(prior_folder.iterdir()) == []

    def test_a_prior_of_another_model_is_refused_by_name(self, host, nodes, model, prior_folder):
        nodes["PriorCacheSavePrior"].execute(calibrate(host, nodes, model, runs=1, steps=2).args[0], "mine", False)
        with pytest.raises(PriorError, match=r"geometry.*Calibrate"):
            nodes["PriorCacheLoadPrior"].execute("mine.safetensors", host.model(depth=2))

    def test_weights_that_are_packed_are_those_of_the_same_network(self, host, monkeypatch):
        """As those of GGUF, whose state dict tells of bytes."""
        from priorcache.nodes.calibrate import subject

        model = host.model()
        expected, network = subject(model), model.model.diffusion_model
        packed = {name: torch.zeros(7, dtype=torch.uint8) for name in network.state_dict()}
        monkeypatch.setattr(network, "state_dict", lambda *_, **__: packed)
        assert subject(model) == expected

    def test_a_file_written_anew_is_loaded_anew(self, host, nodes, model, prior_folder):
        import os

        prior = calibrate(host, nodes, model, runs=1, steps=2).args[0]
        nodes["PriorCacheSavePrior"].execute(prior, "mine", False)
        before = nodes["PriorCacheLoadPrior"].fingerprint_inputs("mine.safetensors")
        os.utime(prior_folder / "mine.safetensors", ns=(1, 1))
        assert nodes["PriorCacheLoadPrior"].fingerprint_inputs("mine.safetensors") != before


class TestInspect:
    def test_walks_up_from_the_latent_to_the_samplers(self):
        from priorcache.nodes.graph import sampling

        prompt = {
            "1": {"inputs": {}},
            "6": {"inputs": {"model": ["1", 0]}},
            "7": {"inputs": {"model": ["1", 0], "latent_image": ["6", 0]}},
            "8": {"inputs": {"model": ["1", 0]}},
            "9": {"inputs": {"latent": ["7", 0], "trace": ["5", 1]}},
        }
        assert sampling(prompt, "9", "latent") == {"7", "6", "1"}
        assert sampling(prompt, "9", "prior") is None
        assert sampling(None, "9", "latent") is None

    def test_only_what_samples_with_the_cache_of_the_trace_counts(self):
        """Wired past it, or with another cache behind it, a sampler's runs of before are not those of this prompt."""
        from priorcache.nodes.graph import sampling

        def prompt(model: str) -> dict:
            return {
                "1": {"class_type": "UNETLoader", "inputs": {"name": ["a", "list"]}},
                "2": {"class_type": "PriorCacheApply", "inputs": {"model": ["1", 0]}},
                "3": {"class_type": "PriorCacheAuto", "inputs": {"model": ["2", 0]}},
                "4": {"class_type": "LoRA", "inputs": {"model": ["2", 0]}},
                "6": {"class_type": "KSampler", "inputs": {"model": [model, 0]}},
                "7": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "latent_image": ["6", 0]}},
                "8": {
                    "class_type": "ChainSampler",
                    "inputs": {"latent": ["6", 0]},
                },  # a loop's end, or a model in the latent
                "9": {
                    "class_type": "PriorCacheInspect",
                    "inputs": {"latent": ["7", 0], "more": ["8", 0], "trace": ["2", 1]},
                },
            }

        assert sampling(prompt("2"), "9", "latent") >= {"6"}
        assert sampling(prompt("4"), "9", "latent") >= {"6", "4"}
        assert sampling(prompt("1"), "9", "latent") == set()
        assert "6" not in sampling(prompt("3"), "9", "latent")
        assert "7" not in sampling(prompt("2"), "9", "latent")  # only its latent comes from behind the cache
        assert sampling(prompt("2"), "9", "more") >= {"6", "8"}
        unknown = prompt("1")
        unknown["9"]["inputs"]["trace"] = ["4", 0]  # through a node that is none of ours
        assert sampling(unknown, "9", "latent") == {"1", "6", "7"}
        assert sampling({"9": {"inputs": {"trace": ["2", 1]}}}, "9", "latent") is None

    def test_rounds_that_a_loop_no_longer_has_are_not_told_of(self, host):
        """Their nodes are gone where it was unrolled anew; where the host had kept its result, it has all of them."""
        from comfy_execution.graph import DynamicPrompt
        from priorcache.nodes.graph import sampled

        trace, prompt = Trace(), {"6": {"inputs": {}}, "9": {"inputs": {"latent": ["6", 0], "trace": ["5", 1]}}}
        for node in ("6.0.0.1", "6.0.0.2", "6.0.0.3"):
            trace.add(RunTrace("FORA", 4, origin=("earlier", node)))

        def shown(*nodes: str) -> list[str]:
            unrolled = DynamicPrompt(prompt)
            for node in nodes:
                unrolled.add_ephemeral_node(node, {"inputs": {}}, "6", "6")
            hidden = SimpleNamespace(prompt=prompt, unique_id="9", dynprompt=unrolled)
            return [run.origin[1] for run in sampled(trace, hidden, "latent")]

        assert shown() == ["6.0.0.1", "6.0.0.2", "6.0.0.3"]
        for unrolled in (("6.0.0.1", "6.0.0.2"), ()):
            assert shown(*unrolled) == ["6.0.0.1", "6.0.0.2"]

    def test_a_second_pass_by_a_guider_of_its_own_does_not_count(self):
        """And a switch of any type, which some packs make equal to all others, passes the cache on."""
        from priorcache.nodes.graph import sampling

        import nodes as theirs

        class Any(str):
            __eq__ = lambda self, other: True  # noqa: E731
            __hash__ = str.__hash__

        class Switch:
            RETURN_TYPES = (Any("*"),)

        prompt = {
            "1": {"class_type": "UNETLoader", "inputs": {"odd": ["a", -1]}},
            "2": {"class_type": "PriorCacheApply", "inputs": {"model": ["1", 0]}},
            "5:3": {"class_type": "Switch", "inputs": {"on": ["2", 0]}},
            "6": {"class_type": "KSampler", "inputs": {"model": ["5:3", 0]}},
            "7": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0]}},
            "8": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["7", 0], "latent_image": ["6", 0]}},
            "9": {"class_type": "PriorCacheInspect", "inputs": {"latent": ["8", 0], "trace": ["2", 1.0]}},
        }
        theirs.NODE_CLASS_MAPPINGS["Switch"] = Switch
        guider = type("BasicGuider", (), {"RETURN_TYPES": ("GUIDER",)})
        known = theirs.NODE_CLASS_MAPPINGS.setdefault("BasicGuider", guider)
        try:
            assert sampling(prompt, "9", "latent") == {"2", "5:3", "6"}
        finally:
            del theirs.NODE_CLASS_MAPPINGS["Switch"]
            if known is guider:
                del theirs.NODE_CLASS_MAPPINGS["BasicGuider"]

    def test_pictures_of_different_size_become_one_batch(self):
        import numpy as np
        from priorcache.nodes.inspect import _batch

        out = _batch([np.zeros((4, 6, 3), np.float32), np.zeros((8, 2, 3), np.float32)])
        assert out.shape == (2, 8, 6, 3)
        assert out[0, 7, 0, 0] == 1
        assert out[0, 3, 5, 0] == 0
