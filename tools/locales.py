"""Writes locales/en from the nodes themselves, and puts locales/zh in the same order: python tools/dev.py locales.

Chinese is written by hand in locales/zh/nodeDefs.json. What a node does not have any more is dropped there; what is not
translated yet is named, and the command fails.
"""

from __future__ import annotations

import json
from pathlib import Path

from pack import ROOT, load_host, load_pack

FOLDER = ROOT / "locales"
LANGUAGES = ("en", "zh")
MAIN = {
    "nodeCategories": {name: name for name in ("PriorCache", "policies", "priors", "loaders", "demo")},
    "dataTypes": {
        "PRIORCACHE_POLICY": "cache policy",
        "PRIORCACHE_TRACE": "cache trace",
        "PRIORCACHE_PRIOR": "cache prior",
    },
}
"""Names beside those of nodes, under the frontend's own keys."""


def english(nodes) -> dict:
    """The texts of node classes in the form of the frontend's nodeDefs.json."""
    return {schema.node_id: _node(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def _node(schema) -> dict:
    inputs = {}
    for entry in schema.inputs:
        inputs[entry.id] = {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}
        if getattr(entry, "control_after_generate", None):
            inputs["control_after_generate"] = {"name": "control after generate"}  # the widget that the frontend adds
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": {
            str(i): {"name": entry.display_name or entry.io_type, "tooltip": entry.tooltip}
            for i, entry in enumerate(schema.outputs)
        },
    }


def paths(tree: dict, above: str = "") -> set[str]:
    """Dotted names of all texts in a tree of them."""
    found = set()
    for key, value in tree.items():
        found |= paths(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}"}
    return found


def arranged(texts: dict, like: dict) -> dict:
    """`texts` in the order of `like`, without what `like` does not have."""
    return {
        key: arranged(texts[key], value) if isinstance(value, dict) else texts[key]
        for key, value in like.items()
        if key in texts
    }


def read(language: str, name: str) -> dict:
    return json.loads((FOLDER / language / f"{name}.json").read_text(encoding="utf-8"))


def text(tree: dict) -> str:
    return json.dumps(tree, ensure_ascii=False, indent=2) + "\n"


def write(path: Path, tree: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(tree), encoding="utf-8")


def main() -> None:
    load_host()
    load_pack()
    from priorcache.nodes import NODES, register_folder

    register_folder()
    untranslated = []
    for name, tree in (("nodeDefs", english(NODES)), ("main", MAIN)):
        write(FOLDER / "en" / f"{name}.json", tree)
        theirs = arranged(read("zh", name), tree)
        write(FOLDER / "zh" / f"{name}.json", theirs)
        untranslated += sorted(paths(tree) - paths(theirs))
    if untranslated:
        raise SystemExit("not translated in locales/zh:\n  " + "\n  ".join(untranslated))


if __name__ == "__main__":
    main()
