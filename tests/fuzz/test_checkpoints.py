"""Checkpoints of DiT, in both layouts, and of PixArt: a model, or CheckpointError; and nothing in a file is executed."""

from __future__ import annotations

import io
import json
import math
import zipfile

import pytest
import torch
from fuzzing import DEEP, KINDS, NUMBERS, anything, cases, edited, filled, put, spliced, tried
from hypothesis import given
from hypothesis import strategies as st
from pickles import (
    archive,
    call,
    harm,
    number,
    packed,
    program,
    records,
    storage,
    table,
    tensor,
    text,
    with_pickle,
)  # fmt: skip
from priorcache.models.checkpoint import EMBEDDINGS, PREDICTIONS, PREFIXES, CheckpointError, read
from priorcache.models.dit import DiT, DiTConfig
from safetensors.torch import save

CONFIG = DiTConfig(8, 2, 2, 2, 3, 5, learn_sigma=False, grid_size=2)
METADATA = {"num_heads": "2", "prediction_type": "v_prediction"}
ORIGINAL = {k: torch.zeros(v.shape) for k, v in DiT(CONFIG, device="meta").state_dict().items()}
BLOCK = {
    "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2", "adaLN_modulation.1": "norm1.linear",
}  # fmt: skip
SHARED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}  # fmt: skip
ENDS = {
    "x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2",
}  # fmt: skip


def diffusers_layout() -> dict[str, torch.Tensor]:
    out = {}
    for key, value in ORIGINAL.items():
        stem, _, kind = key.rpartition(".")
        block, _, inner = stem.removeprefix("blocks.").partition(".")
        if stem in ENDS:
            out[f"{ENDS[stem]}.{kind}"] = value
        elif stem in SHARED:
            out |= {f"transformer_blocks.{i}.norm1.emb.{SHARED[stem]}.{kind}": value.clone() for i in range(2)}
        elif inner in BLOCK:
            out[f"transformer_blocks.{block}.{BLOCK[inner]}.{kind}"] = value
        elif inner == "attn.qkv":
            parts = zip("qkv", value.chunk(3), strict=True)
            out |= {f"transformer_blocks.{block}.attn1.to_{n}.{kind}": part.clone() for n, part in parts}
    return out


DIFFUSERS = diffusers_layout()
LAYOUTS = {"original": ORIGINAL, "diffusers": DIFFUSERS}
FILES = {name: save(weights, METADATA) for name, weights in LAYOUTS.items()}
PICKLED = packed(ORIGINAL)

layouts = st.sampled_from(list(LAYOUTS))
keys = {name: st.sampled_from(sorted(weights)) for name, weights in LAYOUTS.items()}
strange = st.text(max_size=9) | st.sampled_from([
    "blocks.9.attn.proj.weight", f"blocks.{'9' * 5000}.mlp.fc1.bias", "blocks.٣.x.y", "blocks.-1.x.y", "blocks.0.", "blocks.00.mlp.fc1.bias",
    f"transformer_blocks.{'1' * 5000}.ff.net.2.bias", "transformer_blocks.7.norm1.linear.weight", "x" * 70_000, "model.", "pos_embed",
    "final_layer.linear.weight", "proj_out_2.weight", "y_embedder.y_embedding", "t_block.1.weight", "optimizer.step", "\0", "",
])  # fmt: skip
shapes = (
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 24, 32, 48]), max_size=5)
    .map(tuple)
    .filter(lambda shape: math.prod(shape) < 20_000)
)
tensors = st.builds(filled, shapes, st.sampled_from(KINDS), st.sampled_from(NUMBERS))
widgets = {
    "heads": st.sampled_from([0, 0, 0, 1, 2, 3, 8, 256]),
    "embedding": st.sampled_from(EMBEDDINGS),
    "prediction": st.sampled_from(PREDICTIONS),
}
texts = st.text(max_size=8) | st.sampled_from(
    ["2", "0", "-2", "9" * 5000, "²", "x" * 5000, "v_prediction", "1", "None"]
)
told = st.dictionaries(
    st.sampled_from(["num_heads", "prediction_type", "pe_interpolation", "format"]) | st.text(max_size=4), texts
)


@pytest.fixture(scope="module")
def load(comfy):
    from priorcache.models import host

    def load(path, **options):
        with torch.inference_mode():
            model = host.load(str(path), **options).model.diffusion_model
            size = 4 * model.config.patch_size
            out = model(
                torch.zeros(1, model.config.in_channels, size, size), torch.zeros(1), y=torch.zeros(1, dtype=torch.long)
            )
        assert out.shape == (1, model.config.in_channels, size, size)
        return model

    return load


@pytest.fixture(scope="module", autouse=True)
def warm(folder, load):
    for name, content in {
        "a.safetensors": FILES["original"],
        "b.safetensors": FILES["diffusers"],
        "c.pt": PICKLED,
    }.items():
        load(put(folder / name, content), heads=2)
        (folder / name).unlink()


def check(folder, load, content: bytes, ending: str = ".safetensors", family: str = "DiT checkpoint", **options):
    path, marker = put(folder / f"model{ending}", content), folder.parent / "executed"
    try:
        return tried(family, lambda: load(path, **options), CheckpointError, folder, says=path.name)
    finally:
        path.unlink()
        assert not marker.exists()


def test_the_files_that_are_changed_are_models(folder, load):
    for content in FILES.values():
        assert check(folder, load, content).config.num_heads == 2
    assert check(folder, load, PICKLED, ".pt", heads=2).config.depth == 2


class TestBytes:
    @cases(200)
    @given(content=layouts.flatmap(lambda name: edited(FILES[name], int.from_bytes(FILES[name][:8], "little"))))
    def test_changed(self, folder, load, content):
        check(folder, load, content)

    @cases(60)
    @given(
        content=st.binary(max_size=300), ending=st.sampled_from([".safetensors", ".sft", ".pt", ".ckpt", ".bin", ""])
    )
    def test_random(self, folder, load, content, ending):
        assert check(folder, load, content, ending) is None

    @cases(150)
    @given(content=edited(PICKLED), ending=st.sampled_from([".pt", ".ckpt"]))
    def test_of_a_pickled_one_changed(self, folder, load, content, ending):
        check(folder, load, content, ending, heads=2)

    @cases(120)
    @given(content=edited(next(d for n, d in records(PICKLED).items() if n.endswith(".pkl"))))
    def test_of_a_pickle_changed(self, folder, load, content):
        check(folder, load, with_pickle(PICKLED, content), ".pt", heads=2)


class TestHeader:
    header = json.loads(FILES["original"][8 : 8 + int.from_bytes(FILES["original"][:8], "little")])
    body = FILES["original"][8 + int.from_bytes(FILES["original"][:8], "little") :]

    @cases(120)
    @given(
        name=st.sampled_from([*ORIGINAL, "__metadata__"]),
        entry=st.fixed_dictionaries({
            "dtype": st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "I8", "U8", "F4", "X"]),
            "shape": st.lists(st.sampled_from([0, 1, 8, 2**31, 2**40, 2**62, 2**63, 2**64, -1]), max_size=4),
            "data_offsets": st.lists(st.integers(-1, len(body) + 9) | st.sampled_from([2**40, 2**64 - 1]), max_size=3),
        }) | anything,
    )  # fmt: skip
    def test_with_one_entry_replaced(self, folder, load, name, entry):
        check(folder, load, spliced(json.dumps(self.header | {name: entry}), self.body))

    @cases(20)
    @given(text=st.sampled_from(DEEP), inside=st.booleans())
    def test_of_deep_json(self, folder, load, text, inside):
        whole = json.dumps(self.header | {"__metadata__": {"a": 0}}).replace('"a": 0', f'"a": {text}')
        check(folder, load, spliced(whole if inside else text, self.body))

    @cases(10)
    @given(size=st.sampled_from([10**5, 4 * 10**6]), key=st.sampled_from(["num_heads", "prediction_type", "x"]))
    def test_of_much_metadata(self, folder, load, size, key):
        check(folder, load, save(ORIGINAL, METADATA | {key: "9" * size}))

    @cases(6)
    @given(blocks=st.sampled_from([500, 5000, 30_000]), layout=layouts)
    def test_of_many_blocks(self, folder, load, blocks, layout):
        stem = {"original": "blocks.{}.mlp.fc1.bias", "diffusers": "transformer_blocks.{}.ff.net.2.bias"}[layout]
        header = {stem.format(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(blocks)}
        check(folder, load, spliced(json.dumps(header | self.header), self.body))


class TestWeights:
    @cases(500)
    @given(data=st.data(), layout=layouts, ending=st.sampled_from([".safetensors", ".safetensors", ".pt"]))
    def test_with_tensors_replaced(self, folder, load, data, layout, ending):
        weights = dict(LAYOUTS[layout])
        for key in data.draw(st.lists(keys[layout] | strange, min_size=1, max_size=3)):
            value = data.draw(st.none() | tensors)
            weights.pop(key, None)
            if value is not None:
                weights[key] = value
        key, options = data.draw(keys[layout]), {name: data.draw(of) for name, of in widgets.items()}
        if data.draw(st.booleans()) and key in weights:  # of the right shape, and another type or number
            weights[key] = filled(
                weights[key].shape, data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(NUMBERS))
            )
        weights = {key.encode("utf-8", "ignore").decode(): value for key, value in weights.items()}
        content = packed(weights) if ending == ".pt" else save(weights, METADATA)
        check(folder, load, content, ending, **options)

    @cases(300)
    @given(layout=layouts, metadata=told, heads=widgets["heads"], prediction=widgets["prediction"])
    def test_with_any_metadata(self, folder, load, layout, metadata, heads, prediction):
        metadata = {
            k.encode("utf-8", "ignore").decode(): v.encode("utf-8", "ignore").decode() for k, v in metadata.items()
        }
        check(folder, load, save(LAYOUTS[layout], metadata), heads=heads, prediction=prediction)

    @cases(100)
    @given(
        layout=layouts, prefix=st.sampled_from(PREFIXES) | st.text(max_size=4), some=st.integers(0, 30), data=st.data()
    )
    def test_with_prefixes(self, folder, load, layout, prefix, some, data):
        prefix = prefix.encode("utf-8", "ignore").decode()
        weights = {(prefix if i >= some else "") + k: v for i, (k, v) in enumerate(LAYOUTS[layout].items())}
        check(folder, load, save(weights, METADATA))

    @cases(800)
    @given(data=st.data(), layout=layouts, heads=st.integers(-3, 9) | st.sampled_from([10**30]))
    def test_as_a_table_alone(self, folder, data, layout, heads):
        """What a file cannot hold, too: without reading one."""
        weights = dict(LAYOUTS[layout])
        for key in data.draw(st.lists(keys[layout] | strange | st.integers(), min_size=1, max_size=3)):
            weights[key] = data.draw(tensors | st.none() | st.integers() | st.just(torch.zeros(1).expand(10**9)))
        embedding, prediction = (data.draw(widgets[name] | st.text(max_size=5)) for name in ("embedding", "prediction"))
        tried(
            "DiT table of weights",
            lambda: read(weights, heads, embedding, METADATA, prediction),
            CheckpointError,
            folder,
        )


class TestHarm:
    @cases(400)
    @given(data=st.data())
    def test_pickles_that_would_execute_something(self, folder, load, data):
        body = data.draw(harm(folder.parent / "executed"))
        if data.draw(st.booleans()):
            body = table(state_dict=body)
        elif data.draw(st.booleans()):
            body = b"}(" + text("final_layer.linear.weight") + body + b"u"
        check(folder, load, with_pickle(PICKLED, program(body)), data.draw(st.sampled_from([".pt", ".ckpt", ".bin"])))

    @cases(60)
    @given(
        legacy=st.booleans(), protocol=st.integers(0, 5),
        content=st.sampled_from([ORIGINAL, {}, [1], torch.zeros(3), {"state_dict": 3}, {"model": ORIGINAL}, {"a": {"b": 1}}]),
    )  # fmt: skip
    def test_other_ways_of_saving(self, folder, load, legacy, protocol, content):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
        check(folder, load, file.getvalue(), ".pt", heads=2)

    @cases(40)
    @given(
        side=st.sampled_from([8, 10**4, 10**6]), stride=st.sampled_from([0, 1]),
        key=st.sampled_from([*(k for k in DIFFUSERS if "to_" in k), *(k for k in DIFFUSERS if "emb." in k)]),
    )  # fmt: skip
    def test_tensors_that_claim_more_than_the_file_holds(self, folder, load, side, stride, key):
        weights = dict(DIFFUSERS)
        same = [
            k for k in weights if k.rpartition(".")[0].rpartition("_")[0] == key.rpartition(".")[0].rpartition("_")[0]
        ]
        for name in same:
            weights[name] = torch.zeros(1).expand(side, side) if stride == 0 else torch.zeros(8).expand(side, 8)
        check(folder, load, packed(weights), ".pt", heads=2)

    @cases(30)
    @given(
        count=st.sampled_from([2**31, 10**10, 2**40]),
        made=st.sampled_from(["builtins.bytearray", "torch.FloatTensor", "torch.storage.UntypedStorage"]),
    )
    def test_pickles_that_ask_for_much_memory(self, folder, load, count, made):
        check(folder, load, with_pickle(PICKLED, program(table(a=call(made, number(count))))), ".pt")

    @cases(40)
    @given(
        count=st.sampled_from([0, 4, 10**6, 2**31, 2**40]),
        shape=st.sampled_from([(4,), (2**20, 2**20), (0, 2**40), (-1,)]),
    )
    def test_pickles_that_claim_a_large_storage(self, folder, load, count, shape):
        body = table(a=tensor(storage(count=count), shape, (1,) * len(shape)))
        check(folder, load, with_pickle(PICKLED, program(body)), ".pt")

    @pytest.mark.parametrize("size", [2**20 + 1, 300 * 2**20])
    @pytest.mark.parametrize("name", ["data.pkl", "data/0"])
    def test_what_unpacks_to_much_more(self, folder, load, size, name):
        entries = {k: bytes(size) if k.endswith(name) else v for k, v in records(PICKLED).items()}
        assert check(folder, load, archive(entries, zipfile.ZIP_DEFLATED), ".pt", heads=2) is None


class TestPixArt:
    SETTINGS = {  # noqa: RUF012
        "hidden_size": 8, "depth": 2, "num_heads": 2, "patch_size": 2, "in_channels": 4, "pred_sigma": True,
        "caption_channels": 6, "model_max_length": 3, "micro_condition": False, "pe_interpolation": 1,
    }  # fmt: skip
    METADATA = {"num_heads": "2", "pe_interpolation": "1"}  # noqa: RUF012

    @pytest.fixture(scope="class")
    def pixart(self, comfy):
        from priorcache.models import pixart as loader

        def load(path, **options):
            with torch.inference_mode():
                return loader.load(str(path), **options)

        return load

    @pytest.fixture(scope="class")
    def weights(self, comfy):
        from comfy.ldm.pixart.pixartms import PixArtMS

        shapes = PixArtMS(**self.SETTINGS, operations=torch.nn, device="meta").state_dict()
        return {k: torch.zeros(v.shape) for k, v in shapes.items()}

    @pytest.fixture(scope="class", autouse=True)
    def valid(self, folder, pixart, weights):
        content = save(weights, self.METADATA)
        pixart(put(folder / "pixart.safetensors", content))
        (folder / "pixart.safetensors").unlink()
        return content

    def check(self, *given, **options):
        return check(*given, family="PixArt checkpoint", **options)

    def test_the_file_that_is_changed_is_a_model(self, folder, pixart, valid):
        assert self.check(folder, pixart, valid) is not None

    @cases(150)
    @given(data=st.data())
    def test_changed_bytes(self, folder, pixart, valid, data):
        self.check(folder, pixart, data.draw(edited(valid, int.from_bytes(valid[:8], "little"))))

    @cases(400)
    @given(data=st.data(), ending=st.sampled_from([".safetensors", ".safetensors", ".pt"]))
    def test_with_tensors_replaced(self, folder, pixart, weights, data, ending):
        changed = dict(weights)
        names = st.sampled_from(sorted(weights)) | st.sampled_from([
            "x_embedder.proj.weight", "y_embedder.y_embedding", "t_block.1.weight", "final_layer.linear.weight", "pos_embed",
            "csize_embedder.mlp.0.weight", "blocks.0.attn.q_norm.weight",
        ])  # fmt: skip
        for key in data.draw(st.lists(names | strange, min_size=1, max_size=3)):
            value = data.draw(st.none() | tensors)
            changed.pop(key, None)
            if value is not None:
                changed[key] = value
        metadata = self.METADATA if ending == ".pt" or data.draw(st.booleans()) else {"num_heads": "2"}
        changed = {key.encode("utf-8", "ignore").decode(): value for key, value in changed.items()}
        content = packed(changed) if ending == ".pt" else save(changed, metadata)
        heads, prediction = data.draw(widgets["heads"]), data.draw(widgets["prediction"])
        self.check(folder, pixart, content, ending, heads=heads, prediction=prediction)

    @cases(200)
    @given(metadata=told, heads=widgets["heads"])
    def test_with_any_metadata(self, folder, pixart, weights, metadata, heads):
        metadata = {
            k.encode("utf-8", "ignore").decode(): v.encode("utf-8", "ignore").decode() for k, v in metadata.items()
        }
        self.check(folder, pixart, save(weights, metadata), heads=heads)

    @cases(100)
    @given(data=st.data())
    def test_pickles_that_would_execute_something(self, folder, pixart, weights, data):
        body = data.draw(harm(folder.parent / "executed"))
        self.check(folder, pixart, with_pickle(packed(weights), program(body)), ".pt")
