"""A ComfyUI with this pack and the demo model, to click around in. Stop it with Ctrl+C."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from host_server import started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument(
        "--base", type=Path, default=Path.home() / "comfyui-priorcache-demo", help="where models and outputs go"
    )
    parser.add_argument("--gpu", action="store_true", help="on the device that ComfyUI prefers, in place of the CPU")
    args = parser.parse_args()
    with started(args.base, port=args.port, cpu=not args.gpu) as server:
        print(f"{server.url}  (log: {server.log})", flush=True)
        try:
            while server.process.poll() is None:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
