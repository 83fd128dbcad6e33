"""Units of work that need nothing of one another, done in turn or as tasks of a Ray cluster (docs/fleet.md).

A unit is a call of a function with plain arguments that gives bytes. Ray places the tasks, runs those of a lost machine
again, and brings the bytes back; only this process writes them, so that the machines need no disk in common.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from pack import ROOT, load_host, load_pack

NEEDED = "ray>=2.40"
RETRIES = 3
COMFYUI, PACK = "ComfyUI", "this pack"
CODE = (".", "benchmarks", "cache_core", "demo", "models", "nodes", "plots", "priors")

SHALLOW = (".", "demo")
"""Of these without what lies deeper: the tests, and what a demo left there."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="of a Ray cluster, such as 10.0.0.1:6379 or auto; local starts one of this machine",
    )
    parser.add_argument(
        "--cpus", type=int, default=1, help="cores of every task on a Ray cluster; with --gpu one GPU, too"
    )


def settings(args: argparse.Namespace, *without: str) -> str:
    """Arguments as JSON, which any machine can read; paths become absolute."""
    plain = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in without}
    return json.dumps(plain, sort_keys=True)


def restored(settings: str) -> argparse.Namespace:
    return argparse.Namespace(**json.loads(settings))


def digest(file: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        for part in iter(lambda: opened.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()[:16]


def results(
    work: Callable[..., bytes], settings: str, units: Iterable[tuple], args: argparse.Namespace, files: Iterable[Path],
    shared: dict[str, bytes] = MappingProxyType({}),
) -> Iterator[tuple[tuple, bytes]]:  # fmt: skip
    """(unit, work(settings, shared, *unit)) of every unit, in the order in which they are done; without --ray, here.

    work: a function of a module that the workers can import. files: what they read by themselves. Units are taken as
    there is room for them, so that whatever makes them may end early.
    """
    import comfy.cli_args

    if not args.ray:
        yield from ((unit, work(settings, shared, *unit)) for unit in units)
        return
    ray, cpu, fp32 = connected(args.ray), comfy.cli_args.args.cpu, comfy.cli_args.args.fp32_unet
    task = ray.remote(performed).options(num_cpus=args.cpus, num_gpus=0 if cpu else 1, max_retries=RETRIES)
    name = f"{work.__module__}.{work.__qualname__}"
    constant = (name, cpu, fp32, here(tuple(map(str, files))), settings, ray.put(dict(shared)))
    units, waiting = iter(units), {}
    while True:
        places = int(ray.cluster_resources().get("CPU" if cpu else "GPU", 1)) // (args.cpus if cpu else 1)
        room = 2 * max(places, 1) - len(waiting)  # one at work and one at hand for each; fewer when a node is lost
        for unit in islice(units, max(room, 0)):
            waiting[task.remote(*constant, unit)] = unit
        if not waiting:
            return
        (done,), _ = ray.wait([*waiting])
        yield waiting.pop(done), ray.get(done)


def connected(address: str):
    """The `ray` module, connected to a cluster whose workers find this pack and its ComfyUI where they are here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise SystemExit(f'--ray needs Ray: pip install "{NEEDED}", or leave --ray out') from None
    if not ray.is_initialized():
        paths = [str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {"PYTHONPATH": os.pathsep.join(paths), "COMFYUI_PATH": os.environ["COMFYUI_PATH"]}
        new = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, runtime_env={"env_vars": env}, log_to_driver=False, **new)
        except ConnectionError as error:
            raise SystemExit(f"no Ray cluster answers at {address} ({error}); start one, or use --ray local") from None
    return ray


def performed(
    work: str, cpu: bool, fp32: bool, expected: dict[str, str], settings: str, shared: dict[str, bytes], unit: tuple
) -> bytes:
    """What a task does, in a process of its own on some machine."""
    load_host(cpu=cpu, fp32=fp32)
    load_pack()
    agree(expected)
    module, _, name = work.rpartition(".")
    return getattr(importlib.import_module(module), name)(settings, shared, *unit)


def agree(expected: dict[str, str]) -> None:
    """Raise RuntimeError, naming every difference, unless this machine has what the one has that asks."""
    found = here(tuple(name for name in expected if name not in (COMFYUI, PACK)))
    if different := [
        f"{name}: {there} there, {found[name]} here" for name, there in expected.items() if found[name] != there
    ]:
        raise RuntimeError(
            f"this worker ({os.uname().nodename}) would not measure the same ({'; '.join(different)}); give every machine "
            "the same files"
        )


@lru_cache
def here(files: tuple[str, ...]) -> dict[str, str]:
    """What must be the same on every machine, by name: versions, and what files hold."""
    import comfyui_version

    code = hashlib.sha256()
    for file in sorted(
        file for folder in CODE for file in (ROOT / folder).glob("*.py" if folder in SHALLOW else "**/*.py")
    ):
        code.update(file.read_bytes())
    found = {name: digest(name) if Path(name).is_file() else "no such file" for name in files}
    return {COMFYUI: comfyui_version.__version__, PACK: code.hexdigest()[:16], **found}
