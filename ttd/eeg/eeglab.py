"""EEGLAB files (``.set``) are opened by a process of their own before they are opened here.

They are MATLAB files, and SciPy's reader of those ends its process on some damaged ones instead of raising (6 of 1,000;
benchmarks/fuzz_cpu_2026-11-20.md). What that other process has read is read here in the same way. It starts with the first file,
serves all that follow, and ends with this process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ttd.config import UserError

SPARE_BYTES = 4 << 30
"""Address space beside what a file may unpack to: Python with MNE maps about 2 GB."""
UNPACKED = 20
"""Times its size that a file may take when it is read; EEG seldom compresses to less than a half."""

_lock = threading.Lock()
_reader: subprocess.Popen[str] | None = None


def check(path: Path) -> None:
    """Refuse a file that MNE cannot open, and one whose ``.fdt`` is not as long as it says.

    Raises:
        UserError: naming the file, the defect and the remedy.
    """
    with path.open("rb") as file:
        if file.read(10) == b"MATLAB 7.3":
            raise UserError(f"{path}: saved as MATLAB 7.3; save it again in EEGLAB with pop_saveset(…, 'version', '6')")
    found = _ask(path)
    if found is None:
        raise UserError(f"{path}: damaged: it made the reader of MATLAB files crash; export it again")
    if "problem" in found:
        raise UserError(f"{path}: cannot be read as a recording: {found['problem']}")
    data, n_chans, n_times = Path(found["data"]), found["n_chans"], found["n_times"]
    if data.suffix.lower() == ".fdt" and data.stat().st_size != 4 * n_chans * n_times:
        raise UserError(
            f"{data}: has {data.stat().st_size:,} bytes, but {path.name} tells of {n_chans} channels × {n_times:,} samples "
            "of 4 bytes; one of the two is damaged, copy both again"
        )


def _ask(path: Path) -> dict[str, Any] | None:
    """What the other process says about a file; None where that was its end."""
    global _reader
    with _lock:
        if _reader is None or _reader.poll() is not None:
            command = [sys.executable, "-m", "ttd.eeg.eeglab"]
            _reader = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert _reader.stdin is not None
        assert _reader.stdout is not None
        _reader.stdin.write(json.dumps(str(path.absolute())) + "\n")
        _reader.stdin.flush()
        answer = _reader.stdout.readline()
        if not answer:
            _reader.wait()
            return None
        return json.loads(answer)


def _describe(path: Path) -> dict[str, Any]:
    """Open a file as the studies do, its samples included where they lie in it."""
    import mne

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = SPARE_BYTES + UNPACKED * path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        raw = mne.io.read_raw_eeglab(path, verbose="ERROR")
        if raw.n_times:
            raw.get_data(stop=1)  # all of them, if they lie in this file
    except Exception as error:  # readers of foreign formats raise anything
        return {"problem": (str(error) or type(error).__name__).strip().splitlines()[0]}
    return {"data": str(raw.filenames[0]), "n_chans": len(raw.ch_names), "n_times": int(raw.n_times)}


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(_describe(Path(json.loads(line)))), flush=True)
