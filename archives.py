"""What is looked at in a file before its tensors are read.

torch's reader of weights executes nothing, but it makes objects of whatever size a file asks for, and unpacks what is
packed. A table of weights needs neither. ComfyUI's fastest reader of .safetensors believes what a file says of itself.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import PriorCacheError, excerpt, shown

MAX_HEADER = 16 * 2**20

MAX_PICKLE = 2**20
"""Bytes of the list of tensors: some 4000 of them."""

NEEDED = re.compile(
    r"collections OrderedDict|argparse Namespace|torch (\w+Storage|Size|device|[a-z]+\d\w*)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)
"""Names that such a list refers to."""


def check_safetensors(path: Path) -> None:
    """Raise PriorCacheError unless the length and the entries of a file's header are true."""
    size = _size(path)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 2 <= header <= min(MAX_HEADER, size - 8):
        raise PriorCacheError("not a safetensors file, or cut off")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise PriorCacheError(f"not a safetensors file, or damaged ({excerpt(error)})") from error


def check_pickled(path: Path) -> None:
    """Raise PriorCacheError unless a file is as torch.save writes weights: nothing packed, and nothing but tensors."""
    size = _size(path)
    if not zipfile.is_zipfile(path):
        raise PriorCacheError(
            "not a file that torch.save wrote, or cut off; PyTorch before 1.6 wrote another kind: save it anew"
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > size:
            raise PriorCacheError("it unpacks to more than it is, which torch.save never writes")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise PriorCacheError(f"its list of tensors is longer than any ({MAX_PICKLE >> 20} MiB)")
                _check_names(archive.read(entry))


def _size(path: Path) -> int:
    if not path.is_file():
        raise PriorCacheError("there is no such file")
    return path.stat().st_size


def _check_names(pickled: bytes) -> None:
    for op, argument, _ in pickletools.genops(pickled):
        if op.proto > 2:
            raise PriorCacheError(f"its list of tensors uses {op.name}, which torch.save never writes")
        if op.name in ("GLOBAL", "INST") and not NEEDED.fullmatch(argument):
            raise PriorCacheError(f"it refers to {shown(argument)}, which weights do not need; export the bare weights")
