"""A real ComfyUI server with this pack in it, and a client for its HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-PriorCache"


class ServerError(RuntimeError):
    """The server did not start, or refused or failed a workflow."""


def base_directory(folder: Path) -> Path:
    """A user directory for a server: this pack linked under custom_nodes, the demo model in its place."""
    link = folder / "custom_nodes" / PACK
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(ROOT, target_is_directory=True)
    models = folder / "models" / "diffusion_models"
    models.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "demo").glob("*.safetensors"):
        shutil.copy2(file, models / file.name)
    return folder


@dataclass
class Result:
    """What one prompt left behind. `seconds` is wall time per node id that was executed, not taken from the cache."""

    outputs: dict[str, dict]
    seconds: dict[str, float] = field(default_factory=dict)


class Server:
    """ComfyUI on a free port of this machine only; use as a context manager. cpu: else on whatever device it prefers."""

    def __init__(self, host: Path, base: Path, log: Path, *extra: str, port: int = 0, cpu: bool = True):
        self.host, self.base, self.log, self.extra = host, base, log, (*["--cpu"] * cpu, *extra)
        self.port = port or _free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        command = [
            sys.executable, str(self.host / "main.py"), "--port", str(self.port), "--disable-api-nodes",
            "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:",
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, *self.extra,
        ]  # fmt: skip
        self._file = self.log.open("w")
        env = {"PYTHONDONTWRITEBYTECODE": "1"} | os.environ | {"HF_HUB_OFFLINE": "1"}  # dev.py has a place for bytecode
        self.process = subprocess.Popen(command, stdout=self._file, stderr=subprocess.STDOUT, cwd=self.host, env=env)
        for _ in range(3000):
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI stopped with code {self.process.returncode}:\n{self.output()[-3000:]}")
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise ServerError(f"ComfyUI did not answer within ten minutes:\n{self.output()[-3000:]}")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.load(reply)

    def image(self, entry: dict) -> bytes:
        query = "&".join(f"{k}={entry[k]}" for k in ("filename", "subfolder", "type"))
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as reply:
            return reply.read()

    def run(self, prompt: dict, timeout: float = 1800) -> Result:
        """Queue a workflow in API form and wait for it. Raises ServerError with the host's own message."""
        return asyncio.run(asyncio.wait_for(self._run(prompt), timeout))

    async def _run(self, prompt: dict) -> Result:
        client = uuid.uuid4().hex
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=2**26) as socket_:
                queued = {"prompt": prompt, "client_id": client, "extra_data": {"extra_pnginfo": {}}}  # as the frontend
                async with session.post(f"{self.url}/prompt", json=queued) as reply:
                    answer = await reply.json()
                if "prompt_id" not in answer or answer.get(
                    "node_errors"
                ):  # the host goes on with the outputs that are right
                    raise ServerError(f"the workflow was refused: {json.dumps(answer, indent=1)[:3000]}")
                seconds = await _follow(socket_, answer["prompt_id"])
            for _ in range(100):  # success is announced a moment before history is written
                async with session.get(f"{self.url}/history/{answer['prompt_id']}") as reply:
                    history = await reply.json()
                if answer["prompt_id"] in history:
                    return Result(history[answer["prompt_id"]]["outputs"], seconds)
                await asyncio.sleep(0.05)
        raise ServerError("the workflow finished but never appeared in the history")


async def _follow(socket_, prompt_id: str) -> dict[str, float]:
    seconds: dict[str, float] = {}
    current, since = None, time.perf_counter()
    async for message in socket_:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "execution_error":
            raise ServerError(f"{data.get('node_type')}: {data.get('exception_type')}: {data.get('exception_message')}")
        if event["type"] == "execution_interrupted":
            raise ServerError("interrupted")
        if event["type"] in ("executing", "execution_success"):
            now = time.perf_counter()
            if current is not None:
                seconds[current] = seconds.get(current, 0.0) + now - since
            current, since = data.get("node"), now
            if event["type"] == "execution_success":
                return seconds
    raise ServerError("the server closed the connection")


def started(folder: Path, *extra: str, host: str = "COMFYUI_PATH", log: Path | None = None, **options) -> Server:
    """The ComfyUI that an environment variable names, to be started in this folder with this pack and the demo model."""
    return Server(Path(os.environ[host]), base_directory(folder), log or folder / "server.log", *extra, **options)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
