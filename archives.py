"""What is looked at in a file of torch.save before torch reads it.

torch's reader of weights executes nothing, but it makes objects of whatever size a file asks for, and unpacks what is
packed. A table of weights needs neither.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

from .errors import PriorCacheError, shown

MAX_PICKLE = 2**20
"""Bytes of the list of tensors: some 4000 of them."""

NEEDED = re.compile(
    r"collections OrderedDict|argparse Namespace|torch (\w+Storage|Size|device|[a-z]+\d\w*)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)
"""Names that such a list refers to."""


def check(path: Path) -> None:
    """Raise PriorCacheError unless a file is as torch.save writes weights: nothing packed, and nothing but tensors."""
    if not path.is_file():
        raise PriorCacheError("there is no such file")
    if not zipfile.is_zipfile(path):
        raise PriorCacheError(
            "not a file that torch.save wrote, or cut off; PyTorch before 1.6 wrote another kind: save it anew"
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise PriorCacheError("it unpacks to more than it is, which torch.save never writes")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise PriorCacheError(f"its list of tensors is longer than any ({MAX_PICKLE >> 20} MiB)")
                _check_names(archive.read(entry))


def _check_names(pickled: bytes) -> None:
    for op, argument, _ in pickletools.genops(pickled):
        if op.proto > 2:
            raise PriorCacheError(f"its list of tensors uses {op.name}, which torch.save never writes")
        if op.name in ("GLOBAL", "INST") and not NEEDED.fullmatch(argument):
            raise PriorCacheError(f"it refers to {shown(argument)}, which weights do not need; export the bare weights")
