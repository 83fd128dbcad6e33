"""What is published, told from what is committed as comfy-cli tells it."""

import subprocess
import zipfile

import pytest
import registry
from comfy_cli.file_utils import zip_files
from pack import ROOT


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    target = tmp_path_factory.mktemp("published") / "node.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        zip_files(target)
    with zipfile.ZipFile(target) as packed:
        return packed.namelist()


def tracked_only(wrong: list[str]) -> list[str]:
    """Without files that are not committed yet: comfy-cli asks git."""
    known = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n"))
    return [one for one in wrong if one.split(" ")[0] in known]


def test_all_that_is_needed_is_published_and_nothing_else(names):
    assert tracked_only(registry.missing(names, ROOT)) == []
    assert "web/docs/PriorCacheApply.md" in names
    assert "pyproject.toml" in names


def test_what_is_missing_or_too_much_is_told(names):
    fewer = [n for n in names if n != "web/docs/PriorCacheApply.md"] + ["tests/conftest.py"]
    wrong = tracked_only(registry.missing(fewer, ROOT))
    assert wrong == ["web/docs/PriorCacheApply.md is not published", "tests/conftest.py should not be published"]


@pytest.mark.parametrize(
    ("line", "theirs"),
    [
        ("[WARNING] PriorCache: this model already had a cache attached", True),
        ("Import failed: /x/custom_nodes/ComfyUI-PriorCache", True),
        ("/x/custom_nodes/ComfyUI-PriorCache/nodes/prior.py:1: DeprecationWarning: old", True),
        ("   0.2 seconds: /x/custom_nodes/ComfyUI-PriorCache", False),
        ("[WARNING] something of another pack", False),
        (f"{registry.dev.HOME}/env/lib/aiohttp/web.py:193: DeprecationWarning: old", False),
    ],
)
def test_complaints_are_those_about_the_pack(line, theirs):
    assert registry.complains(line, "ComfyUI-PriorCache") == theirs
