"""The worker's side of docs/external_lifters.md, for any environment: Python 3.8, nothing to install.

A worker imports this file (it lies beside it), loads its model and calls ``serve``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def serve(load, **hello) -> None:
    """Answer questions until stdin ends.

    ``load()`` returns ``lift(image, output, seed, description)``, which writes a GLB to ``output``; it returns None, or
    a reason where there is nothing to lift. ``hello``: name, revision, licence; domain, wants, to_frame where they
    differ from the defaults.
    """
    answers = os.fdopen(os.dup(1), "w")  # stdout belongs to the protocol; what libraries print goes to stderr
    os.dup2(2, 1)

    def say(content) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    lift = load()
    say({"protocol": "ttd-lift", "version": 1, **hello})
    for line in sys.stdin:
        item = json.loads(line)
        answer = {"id": item["id"], "status": "ok"}
        try:
            reason = lift(item["image"], item["output"], item["seed"], item["description"])
            if reason is not None:
                answer.update(status="empty", reason=reason)
        except Exception as error:
            traceback.print_exc()
            if "CUDA error" in str(error):
                raise  # nothing works on this GPU context any more; a fresh process is started for the next item
            answer.update(status="failed", reason="%s: %s" % (type(error).__name__, error))  # noqa: UP031
        peak = peak_memory_mb()
        say(answer if peak is None else {**answer, "peak_memory_mb": peak})


def peak_memory_mb() -> float | None:
    """Highest GPU memory since the last call, by torch if the worker uses it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return peak
