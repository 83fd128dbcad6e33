"""What a checkpoint is told to be by its shapes alone, and what is refused."""

from __future__ import annotations

import pytest
import torch
from priorcache.models.checkpoint import PREFIXES, CheckpointError, from_diffusers, read
from priorcache.models.dit import DiT, DiTConfig

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}  # the paper's table 4, patch 2


def original(depth=2, hidden=16, patch=2, channels=4, rows=8, classes=10, tokens=None, device="cpu"):
    """A state dict in the layout of the paper's code; rows: output channels per pixel."""
    shapes = {
        "x_embedder.proj.weight": (hidden, channels, patch, patch),
        "x_embedder.proj.bias": (hidden,),
        "t_embedder.mlp.0.weight": (hidden, 256),
        "t_embedder.mlp.0.bias": (hidden,),
        "t_embedder.mlp.2.weight": (hidden, hidden),
        "t_embedder.mlp.2.bias": (hidden,),
        "y_embedder.embedding_table.weight": (classes + 1, hidden),
        "final_layer.linear.weight": (patch * patch * rows, hidden),
        "final_layer.linear.bias": (patch * patch * rows,),
        "final_layer.adaLN_modulation.1.weight": (2 * hidden, hidden),
        "final_layer.adaLN_modulation.1.bias": (2 * hidden,),
    }
    if tokens is not None:
        shapes["pos_embed"] = (1, tokens, hidden)
    layers = {
        "attn.qkv": (3 * hidden, hidden),
        "attn.proj": (hidden, hidden),
        "mlp.fc1": (4 * hidden, hidden),
        "mlp.fc2": (hidden, 4 * hidden),
        "adaLN_modulation.1": (6 * hidden, hidden),
    }
    for i in range(depth):
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
    return {name: torch.ones(shape, device=device) for name, shape in shapes.items()}


def diffusers_layout(depth=2, hidden=16, patch=2, channels=4, rows=8, classes=10):
    """The same in the layout of diffusers' DiTTransformer2DModel, with equal embedders in every block."""
    shapes = {
        "pos_embed.proj": (hidden, channels, patch, patch),
        "proj_out_1": (2 * hidden, hidden),
        "proj_out_2": (patch * patch * rows, hidden),
    }
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        shapes |= {f"{block}.attn1.to_{n}": (hidden, hidden) for n in ("q", "k", "v", "out.0")}
        shapes |= {f"{block}.ff.net.0.proj": (4 * hidden, hidden), f"{block}.ff.net.2": (hidden, 4 * hidden)}
        shapes |= {f"{block}.norm1.linear": (6 * hidden, hidden)}
        shapes |= {f"{block}.norm1.emb.timestep_embedder.linear_1": (hidden, 256)}
        shapes |= {f"{block}.norm1.emb.timestep_embedder.linear_2": (hidden, hidden)}
    out = {f"{k}.weight": torch.ones(s) for k, s in shapes.items()} | {
        f"{k}.bias": torch.ones(s[:1]) for k, s in shapes.items()
    }
    table = "norm1.emb.class_embedder.embedding_table.weight"
    return out | {f"transformer_blocks.{i}.{table}": torch.ones(classes + 1, hidden) for i in range(depth)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("pixels", [256, 512])
def test_every_published_geometry_is_read_from_its_shapes(size, patch, pixels):
    depth, hidden, heads = SIZES[size]
    grid = pixels // 8 // patch
    weights = original(depth, hidden, patch, classes=1000, tokens=grid**2, device="meta")
    config, kept = read(weights)
    assert config == DiTConfig(hidden, depth, heads, patch, 4, 1000, learn_sigma=True, grid_size=grid)
    assert kept.keys() == weights.keys()


@pytest.mark.parametrize("size", SIZES)
def test_the_published_parameter_counts_come_out(size):
    depth, hidden, _ = SIZES[size]
    config, _ = read(original(depth, hidden, 2, classes=1000, tokens=256, device="meta"))
    count = sum(p.numel() for n, p in DiT(config, device="meta").named_parameters() if n != "pos_embed")
    assert round(count / 1e6) == pytest.approx(MILLIONS[size], abs=1)


def test_the_weights_come_back_as_they_were_and_load():
    weights = original(tokens=16)
    config, kept = read(weights, heads=2)
    assert all(kept[name] is weights[name] for name in weights)
    assert DiT(config).load_state_dict(kept).missing_keys == []


@pytest.mark.parametrize(("rows", "learned"), [(4, False), (8, True)])
def test_learned_variances_are_told_by_the_last_layer(rows, learned):
    config, _ = read(original(rows=rows), heads=2)
    assert (config.learn_sigma, config.out_channels) == (learned, rows)


def test_pixel_models_and_other_class_counts_are_read():
    config, _ = read(original(channels=3, rows=3, classes=12, tokens=64), heads=4)
    assert (config.in_channels, config.num_classes, config.grid_size, config.num_heads) == (3, 12, 8, 4)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_key_prefixes_are_taken_off_and_other_keys_left(prefix):
    weights = original()
    wrapped = {prefix + k: v for k, v in weights.items()} | {"optimizer.step": torch.ones(1)}
    assert read(wrapped, heads=2)[1].keys() == weights.keys()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_key_prefixes_are_taken_off_the_diffusers_layout_too(prefix):
    wrapped = {prefix + k: v for k, v in diffusers_layout().items()}
    assert read(wrapped, heads=2)[1].keys() == original().keys()


def test_the_prediction_is_noise_unless_the_file_or_the_caller_says_velocity():
    told = {"prediction_type": "v_prediction"}
    assert read(original(), 2)[0].prediction == "epsilon"
    assert read(original(), 2, metadata=told)[0].prediction == "v_prediction"
    assert read(original(), 2, metadata=told, prediction="epsilon")[0].prediction == "epsilon"
    assert read(original(), 2, prediction="v_prediction")[0].prediction == "v_prediction"
    with pytest.raises(CheckpointError, match="'sample' is unknown; choose one of epsilon, v_prediction"):
        read(original(), 2, metadata={"prediction_type": "sample"})


def test_position_embeddings_of_diffusers_are_computed_not_read():
    weights = diffusers_layout() | {"pos_embed.pos_embed": torch.ones(1, 16, 16)}
    assert read(weights, heads=2)[0].grid_size is None


def test_query_key_and_value_are_stacked_in_this_order():
    weights = diffusers_layout()
    for value, n in enumerate("qkv"):
        weights[f"transformer_blocks.1.attn1.to_{n}.weight"] = torch.full((16, 16), float(value))
    stacked = from_diffusers(weights)["blocks.1.attn.qkv.weight"]
    assert stacked[:, 0].tolist() == [0.0] * 16 + [1.0] * 16 + [2.0] * 16


@pytest.mark.parametrize(
    ("embedding", "of_original", "of_diffusers"),
    [("auto", 0.0, 1.0), ("original", 0.0, 0.0), ("diffusers", 1.0, 1.0)],
)
def test_timestep_frequencies_follow_the_layout_or_the_wish(embedding, of_original, of_diffusers):
    assert read(original(), 2, embedding)[0].frequency_shift == of_original
    assert read(diffusers_layout(), 2, embedding)[0].frequency_shift == of_diffusers


def test_an_unknown_embedding_is_refused_with_the_choices():
    with pytest.raises(CheckpointError, match="'paper' is unknown; choose one of auto, original, diffusers"):
        read(original(), 2, "paper")


# --- heads ---


def test_heads_asked_for_win_over_the_metadata_and_that_over_the_published_ones():
    weights = original(hidden=384, depth=1, device="meta")
    assert read(weights)[0].num_heads == 6
    assert read(weights, metadata={"num_heads": "12"})[0].num_heads == 12
    assert read(weights, heads=3, metadata={"num_heads": "12"})[0].num_heads == 3


@pytest.mark.parametrize("told", ["", "many", "-4", "0", "1e3", "9" * 10, "²"])
def test_metadata_that_tells_no_number_of_heads_is_not_believed(told):
    with pytest.raises(CheckpointError, match=r"hidden size 16 is not one of the published ones.*set 'heads'"):
        read(original(), metadata={"num_heads": told})


@pytest.mark.parametrize("heads", [3, 5, 32, -2])
def test_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(CheckpointError, match=f"{heads} heads.*set 'heads'"):
        read(original(), heads=heads)


# --- what is no DiT ---


@pytest.mark.parametrize(
    "content",
    [
        None,
        [torch.ones(1)],
        torch.ones(1),
        {"ema": original()},
        original() | {"epoch": 3},
        original() | {"name": "DiT"},
    ],
)
def test_a_file_that_is_no_table_of_tensors_is_refused(content):
    with pytest.raises(CheckpointError, match="something other than a plain table of tensors"):
        read(content, heads=2)


@pytest.mark.parametrize(
    "keys", [[], ["double_blocks.0.img_mod.lin.weight"], ["transformer_blocks.0.norm1.linear.weight"]]
)
def test_another_architecture_is_refused_with_a_way_out(keys):
    with pytest.raises(CheckpointError, match=r"not a class-conditional DiT.*ComfyUI's own loaders"):
        read(dict.fromkeys(keys, torch.ones(1)), heads=2)


@pytest.mark.parametrize("name", [k for k in original(tokens=16) if not k.startswith(("blocks.1", "pos_embed"))])
def test_a_missing_tensor_is_named(name):
    weights = {k: v for k, v in original(tokens=16).items() if k != name}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read(weights, heads=2)


@pytest.mark.parametrize("name", original(tokens=16))
def test_a_tensor_of_the_wrong_shape_is_refused(name):
    weights = original(tokens=16)
    weights[name] = torch.ones([n + 1 for n in weights[name].shape])
    with pytest.raises(CheckpointError):
        read(weights, heads=2)


@pytest.mark.parametrize("name", original(tokens=16))
def test_a_tensor_of_the_wrong_number_of_dimensions_is_refused_by_name(name):
    weights = original(tokens=16)
    weights[name] = weights[name][None]
    with pytest.raises(CheckpointError, match=f"{name} has shape"):
        read(weights, heads=2)


def test_the_expected_shape_is_said():
    weights = original() | {"blocks.1.mlp.fc1.bias": torch.ones(5)}
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.fc1.bias has shape \(5,\); expected \(64,\)"):
        read(weights, heads=2)


def test_blocks_with_a_gap_are_refused():
    weights = {k.replace("blocks.1.", "blocks.2."): v for k, v in original().items()}
    with pytest.raises(CheckpointError, match=r"blocks \[0, 2\] are present; .* without gaps"):
        read(weights, heads=2)


def test_more_blocks_than_any_model_has_are_refused_at_once():
    weights = {f"blocks.{i}.mlp.fc1.bias": torch.ones(0) for i in range(5000)} | {
        k: v for k, v in original().items() if not k.startswith("blocks")
    }
    with pytest.raises(CheckpointError, match="5000 blocks are present; at most 1000"):
        read(weights, heads=2)


def test_a_block_number_of_many_digits_is_no_block():
    with pytest.raises(CheckpointError, match="does not belong in such a block"):
        read(original() | {f"blocks.{'9' * 5000}.mlp.fc1.bias": torch.ones(64)}, heads=2)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_tensors_of_anything_but_floating_point_numbers_are_refused(kind):
    weights = original() | {"blocks.1.mlp.fc1.weight": torch.ones(64, 16).to(kind)}
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.fc1.weight holds torch.\w+; floating-point"):
        read(weights, heads=2)


def test_names_that_are_no_text_are_refused():
    with pytest.raises(CheckpointError, match="plain table of tensors"):
        read(original() | {3: torch.ones(1)}, heads=2)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(CheckpointError, match=r"blocks \[\] are present"):
        read(original(depth=0), heads=2)


@pytest.mark.parametrize("name", ["blocks.0.attn.q_norm.weight", "blocks.1.cross_attn.qkv.weight"])
def test_a_block_with_more_in_it_is_another_architecture(name):
    with pytest.raises(CheckpointError, match=f"{name} does not belong in such a block"):
        read(original() | {name: torch.ones(8)}, heads=2)


@pytest.mark.parametrize("tokens", [2, 15, 17])
def test_a_grid_that_is_not_square_is_refused(tokens):
    with pytest.raises(CheckpointError, match=f"pos_embed has {tokens} tokens"):
        read(original(tokens=tokens), heads=2)


def test_patches_that_are_not_square_are_refused():
    weights = original() | {"x_embedder.proj.weight": torch.ones(16, 4, 2, 4)}
    with pytest.raises(CheckpointError, match="patch 2 x 4"):
        read(weights, heads=2)


@pytest.mark.parametrize("rows", [0, 1, 5, 12])
def test_a_last_layer_of_other_channels_is_refused(rows):
    with pytest.raises(CheckpointError, match=f"final_layer has {4 * rows} rows"):
        read(original(rows=rows), heads=2)


@pytest.mark.parametrize("weights", [original(patch=0), original(classes=-1), original(channels=0, rows=0)])
def test_sizes_of_zero_are_refused(weights):
    with pytest.raises(CheckpointError):
        read(weights, heads=2)


def test_a_hidden_size_that_positions_cannot_fill_is_refused():
    with pytest.raises(CheckpointError, match="hidden size 6"):
        read(original(hidden=6), heads=1)


# --- what is no DiT, in the layout of diffusers ---


@pytest.mark.parametrize("name", ["attn1.to_k.weight", "norm1.emb.timestep_embedder.linear_1.weight"])
def test_parts_of_different_types_are_refused(name):
    weights = diffusers_layout()
    weights[f"transformer_blocks.1.{name}"] = weights[f"transformer_blocks.1.{name}"].to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"different shapes or types|block 1 has its own"):
        read(weights, heads=2)


@pytest.mark.parametrize("name", ["timestep_embedder.linear_1.weight", "class_embedder.embedding_table.weight"])
def test_blocks_with_embedders_of_their_own_are_refused(name):
    weights = diffusers_layout()
    weights[f"transformer_blocks.1.norm1.emb.{name}"] *= 2
    with pytest.raises(CheckpointError, match=r"block 1 has its own .*; only models that share one embedder are DiT"):
        read(weights, heads=2)


@pytest.mark.parametrize("n", "qkv")
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_attention_without_one_of_its_inputs_is_refused(n, kind):
    weights = {k: v for k, v in diffusers_layout().items() if k != f"transformer_blocks.1.attn1.to_{n}.{kind}"}
    with pytest.raises(CheckpointError, match=f"transformer_blocks.1.attn1 lacks to_q, to_k or to_v {kind}"):
        read(weights, heads=2)


@pytest.mark.parametrize(
    "edit",
    [
        {"to_q.weight": torch.ones(16, 9)},
        {"to_q.weight": torch.ones(16)},
        {"to_q.weight": torch.ones(8, 16), "to_k.weight": torch.ones(24, 16)},
        {"to_q.weight": torch.ones(17, 16)},
    ],
)
def test_attention_inputs_of_the_wrong_shape_are_refused(edit):
    with pytest.raises(CheckpointError):
        read(diffusers_layout() | {f"transformer_blocks.1.attn1.{k}": v for k, v in edit.items()}, heads=2)


def test_diffusers_blocks_with_a_gap_are_refused():
    weights = {k.replace("blocks.1.", "blocks.3."): v for k, v in diffusers_layout().items()}
    with pytest.raises(CheckpointError, match=r"blocks \[0, 3\] are present"):
        read(weights, heads=2)


@pytest.mark.parametrize("name", ["attn1.norm_q.weight", "attn2.to_q.weight", "norm1.emb.other.weight"])
def test_a_diffusers_block_with_more_in_it_is_another_architecture(name):
    with pytest.raises(CheckpointError):
        read(diffusers_layout() | {f"transformer_blocks.1.{name}": torch.ones(16, 16)}, heads=2)
