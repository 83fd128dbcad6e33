"""Files of torch.save taken apart, changed, and written by hand, in the way that somebody who means harm would."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import torch
from hypothesis import strategies as st


def packed(content: object) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def records(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return out.getvalue()


def with_pickle(valid: bytes, pickled: bytes) -> bytes:
    """A file whose checksums are right, and whose pickle is another."""
    return archive({name: pickled if name.endswith("data.pkl") else data for name, data in records(valid).items()})


# --- opcodes of pickle protocol 2, which torch's reader of weights takes too ---


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(path: str) -> bytes:
    module, _, what = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + what.encode() + b"\n"


def many(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(path: str, *args: bytes) -> bytes:
    return name(path) + many(*args) + b"R"


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(k.replace("__", ".")) + v for k, v in entries.items()) + b"u"


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 4, device: str = "cpu") -> bytes:
    return many(text("storage"), name(kind), text(key), text(device), number(count)) + b"Q"


def tensor(of: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    shape, stride = many(*map(number, shape)), many(*map(number, stride))
    return call(
        "torch._utils._rebuild_tensor_v2", of, number(offset), shape, stride, b"\x89", call("collections.OrderedDict")
    )


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


EXECUTES = (
    "os.system", "posix.system", "nt.system", "os.popen", "os.execv", "subprocess.Popen", "subprocess.check_output",
    "builtins.exec", "builtins.eval", "builtins.open", "builtins.__import__", "builtins.getattr", "builtins.compile",
    "__builtin__.eval", "__builtin__.file", "io.open", "_io.open", "_io.FileIO", "codecs.open", "pathlib.Path.touch",
    "runpy.run_path", "importlib.import_module", "pty.spawn", "shutil.copy", "shutil.rmtree", "tempfile.mkstemp",
    "ctypes.CDLL", "webbrowser.open", "timeit.timeit", "code.interact", "pickle.loads", "_pickle.loads", "marshal.loads",
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.save", "torch.serialization.load", "torch.ops.load_library",
    "torch.utils.cpp_extension.load", "torch.storage._load_from_bytes", "torch._utils._rebuild_device_tensor_from_numpy",
    "numpy.load", "numpy.fromfile", "numpy.core.multiarray._reconstruct", "numpy.memmap", "argparse.FileType",
    "operator.methodcaller", "functools.partial", "logging.FileHandler", "smtplib.SMTP", "urllib.request.urlopen",
    "priorcache.priors.files.replace", "priorcache.priors.published.read", "safetensors.torch.save_file",
)  # fmt: skip

BUILDS = (
    "collections.OrderedDict", "collections.Counter", "argparse.Namespace", "torch.Size", "torch.device", "torch.Tensor",
    "torch.FloatTensor", "torch.LongTensor", "torch.HalfTensor", "torch.FloatStorage", "torch.storage.UntypedStorage",
    "torch.storage.TypedStorage", "torch.nn.parameter.Parameter", "torch.float32", "torch.float16", "torch.uint1",
    "builtins.bytearray", "builtins.set", "builtins.complex", "_codecs.encode", "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_wrapper_subclass", "torch._tensor._rebuild_from_type_v2", "torch.per_tensor_affine",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor", "torch._utils._rebuild_parameter_with_state",
)  # fmt: skip
"""What torch's reader of weights builds for whoever asks."""


def harm(marker: Path) -> st.SearchStrategy[bytes]:
    """An opcode sequence that leaves one object, and a file `marker` where anything of it is executed."""
    target = str(marker)
    words = (target, f"touch {target}", f"open({target!r}, 'w').write('x')", "w", "x", "latin1", "utf-8", "cpu", "meta",
             "__class__", "__reduce__", "0", "data.pkl")  # fmt: skip
    numbers = st.sampled_from([0, 1, 2, 4, -1, 255, 2**31, 2**40, 10**9, 2**62, 2**64])
    leaf = st.one_of(
        st.sampled_from(words).map(text),
        numbers.map(number),
        st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f"]),
        st.sampled_from([*EXECUTES, *BUILDS]).map(name),
        st.builds(
            storage, st.sampled_from(["torch.FloatStorage", "torch.storage.UntypedStorage", "torch.ByteStorage"]),
            st.sampled_from(["0", "1", "9", "../0", target]), numbers, st.sampled_from(["cpu", "cuda:0", "meta", "x"]),
        ),
        st.builds(tensor, st.just(storage()), *[st.lists(numbers, max_size=3).map(tuple)] * 2, numbers),
    )  # fmt: skip

    def larger(inner):
        few = st.lists(inner, max_size=4)
        return st.one_of(
            st.builds(lambda path, args: call(path, *args), st.sampled_from(EXECUTES), few),
            st.builds(lambda path, args: call(path, *args), st.sampled_from(BUILDS), few),
            st.builds(
                lambda path, args: name(path) + many(*args) + b"\x81", st.sampled_from([*EXECUTES, *BUILDS]), few
            ),
            st.builds(lambda a, b: a + b + b"b", inner, inner),  # BUILD
            st.builds(lambda a, b, c: a + b + c + b"s", inner, inner, inner),  # SETITEM
            st.builds(lambda items: many(*items), few),
            st.builds(lambda items: b"](" + b"".join(items) + b"e", few),
            st.builds(lambda keys, items: b"}(" + b"".join(map(bytes.__add__, keys, items)) + b"u", few, few),
            st.builds(lambda a, i: a + b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86", inner, st.integers(0, 3)),
        )

    return st.recursive(leaf, larger, max_leaves=10)
