"""What a prompt asks for, by its graph."""

import pytest


@pytest.fixture
def recipe(host):
    from comfy_execution.graph import DynamicPrompt
    from priorcache.nodes.graph import recipe

    return lambda prompt, node: recipe(DynamicPrompt(prompt), node)


def graph(steps: int = 5, loader: str = "1", sampler: str = "2", output: int = 0, size=(64, 64)) -> dict:
    inputs = {"model": [loader, output], "steps": steps, "size": [*size]}
    return {
        loader: {"class_type": "Loader", "inputs": {"name": "a"}, "is_changed": ["b"]},
        sampler: {"class_type": "Sampler", "inputs": inputs},
        "9": {"class_type": "Preview", "inputs": {"latent": [sampler, 0], "again": [sampler, 0]}},
    }


def test_a_recipe_is_what_a_node_and_all_before_it_are_given_whatever_their_ids(recipe):
    own = recipe(graph(), "2")
    assert own == recipe(graph(loader="7", sampler="8"), "8") != ""
    assert len({own, recipe(graph(6), "2"), recipe(graph(output=1), "2"), recipe(graph(size=(64, 65)), "2")}) == 4
    other = graph()
    other["1"]["inputs"]["name"] = "b"
    assert recipe(other, "2") != own
    other = graph()
    other["9"]["inputs"]["more"] = 1  # behind it
    assert recipe(other, "2") == own
    assert recipe(other, "9") != recipe(graph(), "9")


def test_a_node_that_is_not_in_the_prompt_has_none(recipe):
    assert recipe(graph(), "3") == ""


def test_a_long_chain_has_one_too(recipe):
    prompt = {"0": {"class_type": "Loader", "inputs": {}}}
    for i in range(1, 5000):
        prompt[str(i)] = {"class_type": "Add", "inputs": {"a": [str(i - 1), 0], "b": [str(i - 1), 0]}}
    assert len(recipe(prompt, "4999")) == 64


def test_values_of_unrolled_nodes_need_not_be_text(recipe):
    prompt = graph()
    prompt["2"]["inputs"]["latent"] = {"samples": object()}
    assert len(recipe(prompt, "2")) == 64
