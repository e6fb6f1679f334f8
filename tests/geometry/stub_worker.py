"""A worker of docs/external_lifters.md without a network: its answer to every picture is a copy of one GLB.

    python stub_worker.py --glb FILE [--z-up] [--licence NAME] [--version N] [--wants picture] [--starts FILE]
        [--start crash|hang|nonsense]

What it does with an item is written in the item's key: crash, hang, nonsense, stale, lies, broken, empty, fail.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--glb")
parser.add_argument("--z-up", action="store_true", help="the file has +Z up and its front towards -Y, and we say so")
parser.add_argument("--licence", default="MIT")
parser.add_argument("--version", type=int, default=1)
parser.add_argument("--wants", default="object")
parser.add_argument("--starts", help="file that gets our process number")
parser.add_argument("--start", help="what goes wrong before the first words")
arguments = parser.parse_args()


def say(content) -> None:
    print(json.dumps(content), flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if arguments.starts:
    with open(arguments.starts, "a") as file:
        file.write(f"{os.getpid()}\n")
note("loading")
if arguments.start == "crash":
    note("no such GPU")
    sys.exit(7)
if arguments.start == "hang":
    time.sleep(600)
if arguments.start == "nonsense":
    print("Welcome!", flush=True)
hello = {"protocol": "ttd-lift", "version": arguments.version, "name": "stub", "revision": "r1"}
hello |= {"licence": arguments.licence, "domain": "L", "wants": arguments.wants}
if arguments.z_up:
    hello["to_frame"] = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
say(hello)
for line in sys.stdin:
    item = json.loads(line)
    key, number = item["key"], item["id"]
    note(f"lifting {key}")
    if "crash" in key:
        note("CUDA out of memory")
        os._exit(3)
    if "hang" in key:
        time.sleep(600)
    if "nonsense" in key:
        print("100%|##########| 3/3", flush=True)
    elif "stale" in key:
        say({"id": number - 1, "status": "ok"})
    elif "lies" in key:
        say({"id": number, "status": "ok"})
    elif "broken" in key:
        Path(item["output"]).write_bytes(b"glTF and then nothing")
        say({"id": number, "status": "ok"})
    elif "empty" in key or "fail" in key:
        say({"id": number, "status": "empty" if "empty" in key else "failed", "reason": "as asked"})
    else:
        shutil.copyfile(arguments.glb, item["output"])
        say({"id": number, "status": "ok", "peak_memory_mb": 12.5})
