"""The texts of the frontend's languages, held against the nodes themselves."""

import re

import pytest

import locales


@pytest.fixture(scope="module")
def english(comfy):
    from priorcache.nodes import NODES, register_folder

    register_folder()
    return locales.english(NODES)


def leaves(tree: dict, above: str = "") -> dict[str, str]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))


def test_english_is_what_the_nodes_say(english):
    stale = "locales/en is stale: python tools/dev.py locales"
    assert (locales.FOLDER / "en" / "nodeDefs.json").read_text(encoding="utf-8") == locales.text(english), stale
    assert (locales.FOLDER / "en" / "main.json").read_text(encoding="utf-8") == locales.text(locales.MAIN), stale


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_every_language_names_every_node_input_and_output_and_nothing_else(english, language):
    assert locales.paths(locales.read(language, "nodeDefs")) == locales.paths(english)
    assert locales.paths(locales.read(language, "main")) == locales.paths(locales.MAIN)


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_no_text_is_empty_or_holds_what_the_frontend_reads_as_markup(language):
    """The frontend's messages give {braces}, @ and | a meaning of their own."""
    for path, text in leaves(locales.read(language, "nodeDefs")).items():
        assert text.strip(), path
        assert not set(text) & set("{}@|"), f"{path}: {text}"


def test_chinese_sentences_are_chinese_and_keep_every_number(english):
    chinese = leaves(locales.read("zh", "nodeDefs"))
    for path, text in leaves(english).items():
        if path.endswith((".tooltip", ".description")):
            assert re.search(r"[\u4e00-\u9fff]", chinese[path]), path
            missing = [n for n in numbers(text) if n not in numbers(chinese[path])]
            assert not missing, f"{path} does not say {missing}: {chinese[path]}"


def test_chinese_tooltips_call_options_as_the_widgets_list_them(english, comfy):
    from priorcache.nodes import NODES

    chinese = leaves(locales.read("zh", "nodeDefs"))
    for node in NODES:
        schema = node.GET_SCHEMA()
        for entry in schema.inputs:
            path = f"{schema.node_id}.inputs.{entry.id}.tooltip"
            for option in getattr(entry, "options", None) or []:
                if f"{option}:" in entry.tooltip:
                    assert f"{option}：" in chinese[path], f"{path} does not explain {option}"
