"""Files in the host's model folders."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..errors import SettingError, shown


def located(folder: str, name: str) -> str:
    """Path of a file that a model folder lists. Raises SettingError on any other name, one that leads out of it too.

    What somebody linked into a model folder is in it, as for all of the host's loaders.
    """
    try:
        path = folder_paths.get_full_path(folder, name)
    except (TypeError, ValueError):  # no name, or one on another drive
        path = None
    endings = folder_paths.folder_names_and_paths[folder][1]
    if path is None or (endings and Path(path).suffix.lower() not in endings):
        raise SettingError(
            f"{shown(name)} is no file of the model folder {folder} that this node can load; choose one from the list "
            "(R refreshes it)"
        )
    return path


def written(folder: str, name: str) -> tuple[str, int]:
    """For `fingerprint_inputs`: another one as soon as the file is written anew."""
    path = folder_paths.get_full_path(folder, name)
    return name, os.stat(path).st_mtime_ns if path else 0
