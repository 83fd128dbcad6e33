"""The core tests over six versions of ComfyUI -> docs/hosts.json and the table in README.md.

python tools/dev.py hosts                 # all of them; --only 0.20.1 or --part nodes for some, the rest stays
python tools/dev.py hosts --fetch         # fetches and installs, tests nothing

Every version runs with the packages that it pins itself, laid over the environment of the latest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))
import dev
from scenarios import between, put, table

README, RECORD = dev.ROOT / "README.md", dev.ROOT / "docs" / "hosts.json"
BEGIN, END = "<!-- hosts: written by tools/dev.py hosts -->\n", "<!-- /hosts -->\n"
ADAPTERS = "tests/cache_core/test_adapters.py"
SERVER = "tests/host/test_server.py::TestLatestHost"
CORE: dict[str, tuple[str, ...]] = {
    "compatibility": ("tests/host/test_compatibility.py",),
    "nodes": ("tests/host/test_nodes.py",),
    "sampling": ("tests/host/test_sampling.py", "tests/host/test_forecast.py", "tests/host/test_conflicts.py"),
    "workflows": (
        f"{SERVER}::test_all_nodes_are_there_and_nothing_was_complained_about",
        f"{SERVER}::test_help_pages_and_templates_are_served",
        f"{SERVER}::test_the_first_workflow_leaves_pictures_curves_and_sentences",
        f"{SERVER}::test_every_shipped_workflow_runs",
    ),
    "blocks": (
        f"{ADAPTERS}::test_one_adapter_knows_the_network",
        f"{ADAPTERS}::test_the_equation_with_nothing_reused_equals_the_stock_block",
        f"{ADAPTERS}::test_reuse_adds_the_old_branch_with_the_gate_of_now",
    ),
}
"""What must work everywhere: column of the table -> tests."""
KNOWN = {
    "0.16.3": "HunyuanVideo with a given first frame fails in ComfyUI itself where two rows are sampled at once.",
}
"""Why something fails that is not this pack's to mend; shown where something does."""
DATA = ("comfyui-workflow-templates", "comfyui-embedded-docs")
"""Pinned packages without code; a hundred megabytes each."""


def overlay(version: str, tree: Path) -> Path:
    """The Python of an environment that has what a host pins, and for the rest what the running environment has."""
    folder = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-{version}")
    python, stamp = folder / "bin" / "python", folder / "installed"
    pins = [line for line in (tree / "requirements.txt").read_text().splitlines() if not line.startswith(DATA)]
    with dev.locked(folder.name):
        if not stamp.exists() or stamp.read_text().splitlines() != pins:
            dev.layered(folder, Path(sys.executable))
            requirements = folder / "requirements.txt"
            requirements.write_text("\n".join(pins))
            dev.run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "-r", requirements)
            stamp.write_text("\n".join(pins))
    return python


def outcome(python: Path, tree: Path, parts: Iterable[str]) -> dict:
    """For each of these parts of CORE: how many tests passed, were skipped, and why those that failed did."""
    env = os.environ | {"COMFYUI_PATH": str(tree), "COMFYUI_FLOOR": str(tree)}
    out = {}
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [python, "-m", "pytest", f"--junitxml={report}", "-p", "no:cacheprovider", *CORE[part]]
            subprocess.run([str(c) for c in command], cwd=dev.ROOT, env=env, stdout=sys.stderr)
            if not report.exists():
                raise SystemExit(f"pytest left no report: {' '.join(map(str, command))}")
            out[part] = counted(ElementTree.parse(report).getroot())
    return out


def counted(report: ElementTree.Element) -> dict:
    """A pytest report in JUnit's form as {"passed", "skipped", "failed": {test: reason}}."""
    passed, skipped, failed = 0, 0, {}
    for case in report.iter("testcase"):
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if bad is not None:
            failed[case.get("name", "")] = bad.get("message", "").strip().split("\n")[0][:300]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}


def rows(record: dict) -> list[list[str]]:
    """One row per host, newest first."""

    def cell(part: dict | None) -> str:
        if part is None:
            return "not run"
        failed = len(part["failed"])
        return f"{part['passed']} of {part['passed'] + failed}" if failed else f"✓ {part['passed']}"

    newest_first = sorted(record, key=lambda v: tuple(map(int, v.split("."))), reverse=True)
    return [[version, *(cell(record[version].get(part)) for part in CORE)] for version in newest_first]


def inserted(readme: str, record: dict) -> str:
    """README.md with its table anew."""
    failing = [v for v, parts in record.items() if any(part["failed"] for part in parts.values())]
    reasons = "".join(f"\n{v}: {KNOWN[v]}\n" for v in failing if v in KNOWN)
    return between(readme, BEGIN, END, table(["ComfyUI", *CORE], rows(record)) + reasons)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=dev.HOSTS, help="one version; may be given several times")
    parser.add_argument("--part", action="append", choices=CORE, help="one column of the table; the others stay")
    parser.add_argument("--fetch", action="store_true", help="fetch and install only")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for version in args.only or dev.HOSTS:
        tree = dev.fetch_host(version, Path(sys.executable).with_name("pip"))
        python = Path(sys.executable) if version == dev.LATEST else overlay(version, tree)
        if args.fetch:
            continue
        dev.say(f"ComfyUI {version}")
        record[version] = record.get(version, {}) | outcome(python, tree, args.part or tuple(CORE))
        put(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    if record:
        put(README, inserted(README.read_text(), record))
        print(table(["ComfyUI", *CORE], rows(record)))
        for version, parts in sorted(record.items()):
            for part, result in parts.items():
                for test, reason in result["failed"].items():
                    print(f"{version}, {part}: {test}: {reason}")


if __name__ == "__main__":
    main()
