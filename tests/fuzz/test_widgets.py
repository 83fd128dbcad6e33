"""What a workflow says: widgets of every node that needs no model, as the host passes them on, and names of files.

The host checks a workflow before it runs it: it converts numbers and compares them with the ranges and lists of a widget.
What it lets pass must work or be refused by us.
"""

from __future__ import annotations

import asyncio
import copy
import math
from contextlib import suppress

import contract
import pytest
import torch
from fuzzing import anything, asked, cases, put, tree, tried
from hypothesis import given
from hypothesis import strategies as st
from pickles import packed
from priorcache.cache_core.policies import FORA, CachePolicy
from priorcache.cache_core.sites import Schedule, Site
from priorcache.errors import PriorCacheError
from priorcache.models import words
from priorcache.priors.plan import Plan
from priorcache.priors.prior import Prior, PriorError, Subject

T, SITES = 10, ("blocks.0.attn", "blocks.0.mlp")
SIGMAS = tuple(9.0 * 0.6**i for i in range(T)) + (0.0,)  # noqa: RUF005
SCHEDULE = Schedule(T, SIGMAS, "euler", "EPS", tuple(Site(s, 0, 1) for s in SITES))
NAN = float("nan")
PRIOR = Prior(
    Subject("DiT", "0" * 16, "EPS", "euler", "normal", T, 4.0), SITES, 2,
    {
        "sigmas": torch.tensor(SIGMAS[:T]), "power": torch.ones(T, 2), "difference": torch.full((2, T, 2), 0.1),
        "router": torch.full((T, 2), NAN).index_fill(0, torch.arange(1, T, 2), 0.2),
        **{f"mean/{site}": torch.ones(T, 2, 3).half() for site in SITES},
    },
    plans=(Plan("FORA", {"interval": 2, "level": "model"}, T, 5, 0.1, 0.2, 4),),
)  # fmt: skip
WIRES = {"policy": FORA(2, "aligned"), "prior": PRIOR}

POLICIES = ("FORA", "GOC", "EOC", "Taylor", "L2C", "Forecast", "DuCa", "ToCa")
odd = st.one_of(
    anything,
    st.sampled_from(
        ["nan", "inf", "-inf", "1e999", "1_0", "0x10", " 2 ", "٣", "²", "1,5", "True", NAN, 1e308, -0.0, 10**25]
    ),
    anything.map(lambda value: {"__value__": value}),
)


def value(widget) -> st.SearchStrategy:
    """Mostly what the widget allows."""
    if widget.io_type == "COMBO":
        usual = st.sampled_from(widget.options or [""])
    elif widget.io_type == "INT":
        usual = st.integers(widget.min, widget.max)
    elif widget.io_type == "FLOAT":
        usual = st.floats(widget.min, widget.max) | st.sampled_from(["nan", NAN])
    elif widget.io_type == "BOOLEAN":
        usual = st.booleans()
    else:
        usual = st.text(max_size=20)
    return st.integers(0, 5).flatmap(lambda n: usual if n else odd)


@pytest.fixture(scope="module")
def nodes(comfy, folder):
    """Name -> node, entered where the host looks for nodes; its model folders lie in `folder`."""
    import folder_paths
    import priorcache.nodes as pack
    from priorcache.models import host, pixart  # noqa: F401 - which nodes import when they run

    import nodes as theirs

    models = folder / "models"
    for sub in ("priorcache", "diffusion_models"):
        (models / sub / "below").mkdir(parents=True)
    pack.register_folder()
    before = dict(folder_paths.folder_names_and_paths)
    for name, sub in (("priorcache", "priorcache"), ("priorcache_routers", "priorcache"), ("diffusion_models",) * 2):
        folder_paths.folder_names_and_paths[name] = ([str(models / sub)], before[name][1])
    PRIOR.save(models / "priorcache" / "prior.safetensors")
    PRIOR.save(models / "priorcache" / "below" / "prior.safetensors")
    PRIOR.save(folder / "secret.safetensors")
    put(models / "priorcache" / "router.pt", packed({f"{i}.prob": torch.zeros(4) for i in range(4)}))
    put(folder / "secret.pt", packed({f"{i}.prob": torch.zeros(4) for i in range(4)}))
    put(models / "diffusion_models" / "no.safetensors", b"nothing")
    PRIOR.plans[0].restored()  # reads the types of its settings once
    found = {node.GET_SCHEMA().node_id: node for node in pack.NODES}
    theirs.NODE_CLASS_MAPPINGS.update(found)
    yield found
    folder_paths.folder_names_and_paths.update(before)
    for name in found:
        del theirs.NODE_CLASS_MAPPINGS[name]


def admitted(node, inputs: dict) -> dict | None:
    """The inputs as the host passes them on, or None where it refuses them."""
    import execution

    name = node.GET_SCHEMA().node_id
    prompt = {"1": {"class_type": name, "inputs": copy.deepcopy(inputs)}}
    valid, errors, _ = asyncio.run(execution.validate_inputs("id", prompt, "1", {}))
    return prompt["1"]["inputs"] if valid and not errors else None


def drawn(data, node) -> dict | None:
    """Widgets of a node that the host lets pass, and its wires."""
    schema = node.GET_SCHEMA()
    wires = {i.id: WIRES[i.id] for i in schema.inputs if i.id in WIRES}
    widgets = {i.id: data.draw(value(i), i.id) for i in schema.inputs if i.id not in WIRES and i.id != "model"}
    if data.draw(st.integers(0, 7)) == 0:
        widgets.pop(data.draw(st.sampled_from(sorted(widgets))))
    with suppress(RecursionError, OverflowError, KeyError, IndexError, TypeError, ValueError):  # the host's own ends
        passed = admitted(node, widgets | dict.fromkeys(wires, True))
        return None if passed is None else passed | wires
    return None


def run(node, inputs: dict):
    return node.execute(**inputs).args


class TestPolicies:
    def test_every_policy_is_here(self):
        assert (
            contract.missing(POLICIES, "Full", "Budget") == set()
        )  # which have no node, and one that asks for a model

    @pytest.fixture(scope="class", autouse=True)
    def warm(self, nodes, folder):
        for name in POLICIES:
            node = nodes[f"PriorCache{name}"]
            inputs = {i.id: WIRES.get(i.id, getattr(i, "default", None)) for i in node.GET_SCHEMA().inputs}
            asked(run(node, inputs)[0], SCHEDULE)

    @pytest.mark.parametrize("name", POLICIES)
    @cases(250)
    @given(data=st.data())
    def test_widgets_make_a_policy_that_answers(self, nodes, folder, name, data):
        node = nodes[f"PriorCache{name}"]
        inputs = drawn(data, node)

        def use():
            made = run(node, inputs)[0]
            assert isinstance(made, CachePolicy)
            assert not any(isinstance(v, float) and math.isnan(v) for v in inputs.values())
            asked(made, SCHEDULE)
            return made

        if inputs is not None:
            tried(f"widgets of {name}", use, PriorCacheError, folder)

    @cases(300)
    @given(data=st.data())
    def test_goals_of_a_plan(self, nodes, folder, data, monkeypatch_module):
        node = nodes["PriorCachePlan"]
        inputs = drawn(data, node)
        if inputs is not None:
            tried("widgets of Plan", lambda: run(node, inputs), PriorCacheError, folder)

    @pytest.fixture(scope="class")
    def monkeypatch_module(self, nodes):
        """Without the picture, which takes a second."""
        from priorcache.nodes import forecast

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forecast, "pictured", lambda *a: (torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), ""))
            patch.setattr(forecast.ui, "PreviewImage", lambda *a, **k: type("Shown", (), {"as_dict": dict})())
            yield


lists = st.lists(st.sampled_from([*"0123456789-,. ;ex+n\n\t٣", "nan", "inf", "1e-6", "20-22", "999999"])).map("".join)
texts = (
    st.text(max_size=30)
    | lists
    | st.sampled_from(["9" * 5000, "0-4094," * 9, "1 " * 100_000, "-" * 10**6, "\ud800", "\0"])
)


class TestLists:
    @cases(500)
    @given(labels=texts)
    def test_class_labels(self, nodes, folder, labels):
        from priorcache.nodes.dit import MAX_LABELS

        def use():
            positive, negative = run(nodes["PriorCacheDiTLabel"], {"labels": labels})
            found, null = (c[0][1]["class_labels"] for c in (positive, negative))
            assert 0 < len(found) == len(null) <= MAX_LABELS
            assert (found >= 0).all()
            assert (null == -1).all()
            return found

        tried("class labels", use, PriorCacheError, folder)

    @cases(300)
    @given(speedups=texts, steps=st.integers(0, 1000))
    def test_speedups(self, nodes, folder, speedups, steps):
        from priorcache.nodes.forecast import evaluations

        counts = tried("speed-ups", lambda: evaluations(speedups, steps), PriorCacheError, folder)
        if counts is not None:
            assert counts == sorted(set(counts), reverse=True)
            assert all(2 <= count < steps for count in counts)

    @cases(300)
    @given(penalty=texts)
    def test_penalties(self, nodes, folder, penalty):
        from priorcache.nodes.l2c import parse_penalties

        found = tried("penalties", lambda: parse_penalties(penalty), PriorCacheError, folder)
        assert found is None or all(0 <= p < float("inf") for p in found)

    @cases(400)
    @given(
        prompt=st.lists(st.sampled_from([*words.VOCABULARY, "a", "an", "half disc", "RED", "\n", "\u2028", ",", "cat"])).map(" ".join)
        | texts | st.sampled_from(["red\n" * 5000, "red star\n" * 4000, "x" * 10**6])
    )  # fmt: skip
    def test_prompts(self, nodes, folder, prompt):
        def use():
            positive, negative = run(nodes["PriorCacheDemoPrompt"], {"prompt": prompt})
            assert positive[0][0].shape == negative[0][0].shape
            return positive

        tried("demo prompts", use, PriorCacheError, folder)

    @cases(200)
    @given(
        goals=texts
        | st.lists(st.sampled_from(["2x", "1.5", "10 steps", "1 step", "0x", "21X", "nanx", "9999 steps", ";"])).map(
            ",".join
        )
    )
    def test_goals_of_a_sweep(self, nodes, folder, goals):
        from priorcache.nodes.sampling import Sampling
        from priorcache.nodes.sweep import contenders

        sampling = Sampling([], [], torch.zeros(1), T, 1.0, "euler", "normal")

        def use():
            found = contenders([], goals, sampling)
            for entry in found:
                asked(entry.policy, SCHEDULE)
                assert entry.sampling.steps >= 1
            return found

        tried("goals of a sweep", use, PriorCacheError, folder)


SEPARATORS = st.sampled_from(["/", "\\", "//", "\u2215", "\uff0f", "/./", "\u29f5"])
PARTS = ("..", ".", "...", "models", "priorcache", "prior.safetensors", "router.pt", "secret.safetensors", "secret.pt", "below",
         "~", "C:", "\\\\host", "NUL", "con", "CON.safetensors", "\0", "\ud800", "\u202e", "é", "e\u0301", "x" * 300, "字" * 99,
         "etc", "passwd", "", " ", "%2e%2e", "$HOME", "prior", "no.safetensors", "-rf", "a.part", "COM¹", "*", "file:")  # fmt: skip
parts = st.sampled_from(PARTS) | st.text(max_size=5)
names = st.builds(
    lambda root, joint, parts, end: root + joint.join(parts) + end,
    st.sampled_from(["", "", "", "/", "\\", "//", "./", "../", "..\\", "C:\\", "~/"]), SEPARATORS, st.lists(parts, max_size=6),
    st.sampled_from(["", "", ".safetensors", ".pt", ".SAFETENSORS", "\0.safetensors", "/", " ", "."]),
)  # fmt: skip


class TestNames:
    @cases(700)
    @given(name=names, kind=st.sampled_from(["LoadPrior", "LoadRouter", "LoadDiT", "LoadPixArt"]), data=st.data())
    def test_no_name_reads_outside_of_the_model_folder(self, nodes, folder, name, kind, data):
        """Whatever the host's own check of the list is worth: the node is called with the name itself."""
        if data.draw(st.booleans()):
            name = f"{'../' * data.draw(st.integers(1, 9))}{folder}/{data.draw(st.sampled_from(['secret.safetensors', 'secret.pt']))}"
        rest = {
            "LoadPrior": {}, "LoadRouter": {"rule": "auto"},
            "LoadDiT": {"heads": 0, "timestep_embedding": "auto", "weight_dtype": "default"},
            "LoadPixArt": {"heads": 0, "weight_dtype": "default", "prediction": "auto"},
        }[kind]  # fmt: skip
        first = {"LoadPrior": "prior_name", "LoadRouter": "router_name"}.get(kind, "model_name")
        tried(
            "names to load",
            lambda: run(nodes[f"PriorCache{kind}"], {first: name, **rest}),
            PriorCacheError,
            folder / "models",
        )

    def test_names_that_are_listed_are_loaded(self, nodes, folder):
        load = nodes["PriorCacheLoadPrior"]
        for name in ("prior.safetensors", "below/prior.safetensors"):
            assert run(load, {"prior_name": name})[0].subject == PRIOR.subject
        assert run(nodes["PriorCacheLoadRouter"], {"router_name": "router.pt", "rule": "DiT"})[0].evaluations == 4
        for node, name in ((load, "router.pt"), (nodes["PriorCacheLoadRouter"], "prior.safetensors")):
            with pytest.raises(PriorCacheError, match="is no file of the model folder priorcache"):
                run(
                    node,
                    dict.fromkeys([node.GET_SCHEMA().inputs[0].id], name) | ({"rule": "auto"} if ".sa" in name else {}),
                )

    def test_what_somebody_linked_into_the_folder_is_in_it(self, nodes, folder):
        """As for every loader of the host: models often lie on another disk. No workflow makes a link."""
        link = folder / "models" / "priorcache" / "linked.safetensors"
        link.symlink_to(folder / "secret.safetensors")
        try:
            assert run(nodes["PriorCacheLoadPrior"], {"prior_name": link.name})[0].subject == PRIOR.subject
        finally:
            link.unlink()

    @cases(500)
    @given(name=names | parts | st.text(max_size=120), overwrite=st.booleans())
    def test_no_name_writes_outside_of_the_model_folder(self, nodes, folder, name, overwrite):
        target = folder / "models" / "priorcache"
        links = [target / "link.safetensors", target / "link-2.safetensors"]
        for link in links:
            if not link.is_symlink():
                link.symlink_to(folder / "secret.safetensors")
        before, ours = tree(folder), set(target.iterdir())
        inputs = {"prior": PRIOR, "name": name, "overwrite": overwrite}
        saved = tried(
            "names to save",
            lambda: run(nodes["PriorCacheSavePrior"], inputs),
            PriorError,
            folder / "models",
            writable=target,
        )
        new = set(target.iterdir()) - ours
        assert len(new) <= 1
        if saved is None:
            assert tree(folder) == before
            return
        path = target / saved[0]
        assert path.parent == target
        assert path.suffix == ".safetensors"
        assert not path.is_symlink()
        assert Prior.load(path).subject == PRIOR.subject
        after = tree(folder)
        changed = {p for p in before if p != str(target) and before[p] != after.get(p)}
        assert changed <= {str(path)}
        if new:
            path.unlink()

    def test_a_link_is_replaced_and_not_written_through(self, nodes, folder):
        link, outside = folder / "models" / "priorcache" / "aimed.safetensors", folder / "outside"
        outside.write_bytes(b"untouched")
        link.symlink_to(outside)
        run(nodes["PriorCacheSavePrior"], {"prior": PRIOR, "name": "aimed", "overwrite": True})
        assert outside.read_bytes() == b"untouched"
        assert not link.is_symlink()
        link.unlink()
