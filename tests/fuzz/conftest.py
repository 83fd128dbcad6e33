"""Whatever a file or a widget holds: a result, or one clear error. `python tools/dev.py fuzz` runs many more cases."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All that the loaders of one module may read."""
    return tmp_path_factory.mktemp("models").resolve()
