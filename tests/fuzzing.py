"""What a case of tests/fuzz may do, and what it may not: one place for every bound, and the count of all cases."""

from __future__ import annotations

import codecs
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from priorcache.cache_core.run import CacheRun
from priorcache.cache_core.sites import MODEL, Schedule, Step

SECONDS = 60
"""After which a case counts as endless. The files are small: nearly all of them take milliseconds."""

MEBIBYTES = 96
"""By how much a case may raise the memory that this process holds. No file here is larger than one of them."""

MESSAGE = 1000
"""The longest message, in characters."""


@dataclass
class Tally:
    """What became of the cases of one family."""

    cases: int = 0
    accepted: int = 0
    slowest: float = 0.0  # seconds of processor time
    memory: int = 0  # bytes, most in one case


TALLIES: dict[str, Tally] = {}

FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "exec", "compile", "import",
    "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink",
    "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile", "webbrowser.open", "marshal.loads",
    "pickle.find_class",
)  # fmt: skip
"""What Python reports to its audit hooks when something is executed, fetched or changed on disk."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Everything forbidden that happens while it is on, as Python's own audit hooks report it."""

    def __init__(self):
        self.on, self.seen, self.readable, self.writable = False, [], (), None
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = Path(os.path.abspath(os.fsdecode(args[0])))
            inside = [path.is_relative_to(root) for root in self.readable]
            if args[2] & WRITING and not (self.writable and path.is_relative_to(self.writable)):
                self.seen.append(f"{path} was opened for writing")
            elif not any(inside) and not path.is_relative_to("/proc"):
                self.seen.append(f"{path} was read")
        elif event in FORBIDDEN and not (
            self.writable and event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
        ):
            self.seen.append(f"{event}{args!r:.200}")

    @contextmanager
    def over(self, readable: tuple[Path, ...], writable: Path | None) -> Iterator[None]:
        self.seen, self.readable, self.writable, self.on = [], readable, writable, True
        try:
            yield
        finally:
            self.on = False


WATCH = Watch()

import_module("torch.nested._internal.nested_tensor")  # torch does so where a broken pickle makes it ask
for codec in (
    "cp437",
    "raw_unicode_escape",
    "unicode_escape",
    "latin1",
):  # of zipfile and pickletools, imported when used
    codecs.lookup(codec)


class Endless(BaseException):
    """No loader may take this for a broken file."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Endless after so much time."""

    began, busy = time.monotonic(), time.process_time()

    def stop(*_):
        """On a machine that others use, too, a case may wait."""
        if time.process_time() - busy > seconds / 2 or time.monotonic() - began > 5 * seconds:
            raise Endless(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _status(name: str) -> int:
    """Bytes, from what Linux tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status tells no {name}")


@contextmanager
def bounded() -> Iterator[Callable[[], int]]:
    """No more than 2 GiB of addresses above what is mapped; gives how far the memory that is held has risen."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held, limits = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 2 * 2**30, limits[1]))
    try:
        yield lambda: max(_status("VmHWM") - held, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def tree(*folders: Path) -> dict[str, tuple]:
    """Everything below, with what would change if it were written to."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            stat = path.lstat()
            found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def tried(
    family: str, call: Callable, refusal: type[Exception], folder: Path, writable: Path | None = None, says: str = ""
):
    """What a call gives, or None where it refuses; fails where it does anything else, or more than that.

    family: under which it is counted, "" for not at all. refusal: its one class of errors. folder: all that it may read; `writable`: where it may write. says: what the message
    must hold.
    """
    tally = TALLIES.setdefault(family, Tally()) if family else Tally()
    before, began, refused, result = tree(folder), time.process_time(), None, None
    with within(SECONDS), bounded() as grown, WATCH.over((folder,), writable):
        try:
            result = call()
        except refusal as error:
            refused = error
    tally.cases += 1
    tally.accepted += refused is None
    tally.slowest = max(tally.slowest, time.process_time() - began)
    memory = grown()
    tally.memory = max(tally.memory, memory)
    assert not WATCH.seen, WATCH.seen
    assert memory <= MEBIBYTES * 2**20, f"took {memory / 2**20:.0f} MiB"
    if writable is None:
        assert tree(folder) == before, "the folder was written to"
    if refused is not None:
        check_message(refused, says)
    return result


def check_message(error: Exception, says: str = "") -> None:
    message = str(error)
    assert 20 <= len(message) <= MESSAGE, f"a message of {len(message)} characters: {message[:200]}"
    assert says in message, f"{says!r} is not in: {message}"
    cause = error.__cause__ or error.__context__
    short = isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and "alloc" in str(cause))
    assert not short, f"it asked for more memory than there is: {cause}"


def put(path: Path, content: bytes) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


# --- what mutates ---

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "1", "nan", "\0", "\ud800", "x" * 5000, "../..", "٣"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
"""Whatever JSON can say, and the edges of what it can."""

KINDS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
NUMBERS = (0.0, 1.0, 2.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))


def filled(shape: tuple[int, ...], kind: torch.dtype, number: float) -> torch.Tensor:
    whole = not (kind.is_floating_point or kind.is_complex)
    return torch.full(shape, 1.0 if whole else number).to(kind)


@st.composite
def edited(draw, valid: bytes, head: int | None = None) -> bytes:
    """A valid file with bytes changed, cut out, put in twice, cut off and added; `head`: most edits are before this."""
    content, reach = bytearray(valid), head or len(valid)
    for kind in draw(st.lists(st.sampled_from("sssfrdiz"), min_size=1, max_size=5)):
        if not content:
            break
        place = st.integers(0, min(reach, len(content)) - 1) | st.integers(0, len(content) - 1)
        at, length = draw(place), draw(st.integers(1, 16))
        if kind == "s":
            content[at] = draw(st.integers(0, 255))
        elif kind == "f":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "r":
            content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "d":
            del content[at : at + length]
        elif kind == "i":
            content[at:at] = content[at : at + length] * draw(st.integers(1, 3))
        else:
            content[at : at + length] = bytes(length)
    if draw(st.integers(0, 9)) < 2:
        content = content[: draw(st.integers(0, len(content)))]
    if draw(st.integers(0, 9)) == 0:
        content += draw(st.binary(max_size=32))
    return bytes(content)


def spliced(header: bytes | str, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header; `length`: what it says of the header's length."""
    header = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return ((len(header) if length is None else length) % 2**64).to_bytes(8, "little") + header + body


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


DEEP = (nested(100_000), "[" * 100_000, '{"a":' * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "9" * 100_000)
"""JSON that takes a recursive reader to its end, and a number of many digits."""


def summary() -> str:
    """One line per family of loaders."""
    lines = [f"{'loader':<34}{'cases':>8}{'accepted':>10}{'refused':>9}{'slowest':>10}{'most memory':>13}"]
    for name, t in sorted(TALLIES.items()):
        lines.append(
            f"{name:<34}{t.cases:>8}{t.accepted:>10}{t.cases - t.accepted:>9}{t.slowest:>8.2f} s{t.memory / 2**20:>9.1f} MiB"
        )
    total = sum(t.cases for t in TALLIES.values())
    accepted = sum(t.accepted for t in TALLIES.values())
    return "\n".join([*lines, f"{'all':<34}{total:>8}{accepted:>10}{total - accepted:>9}"])


BASE = 10_000
"""How many cases the shares given to `cases` add up to, at least."""

WANTED = int(os.environ.get("PRIORCACHE_FUZZ", "300"))
"""How many cases to try altogether; few in an ordinary run of the tests, the same ones each time."""


def cases(share: int):
    """Settings of a test that takes `share` of BASE."""
    return settings(
        max_examples=max(2, -(-share * WANTED // BASE)),
        derandomize="PRIORCACHE_FUZZ" not in os.environ,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


def asked(made, schedule: Schedule) -> None:
    """What sampling asks of a policy."""
    made.describe()
    made = made.prepared(schedule)
    objection = made.objection(schedule)
    if objection is not None:
        assert 10 < len(objection) < 500
        return
    run = CacheRun(made, schedule)
    for index, sigma in enumerate(schedule.sigmas[:-1]):
        with run.evaluation(sigma, index / schedule.total):
            forward = run.next_forward([(0, "u")])
            for site in (MODEL, *schedule.sites):
                made.decide(Step(index, schedule.total, index / schedule.total, sigma), site)
                forward.branch(site, lambda x: x * 2, torch.ones(1, 2, 3))
