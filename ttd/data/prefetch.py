"""One thread that prepares batches ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

PREFETCH = 2
"""Micro-batches prepared ahead by the one thread that reads."""


def prefetched(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, made ahead by one thread, which ends with the generator; its exceptions are raised here.

    Not a daemon: one that is cut off inside torch at the interpreter's end aborts the process. It looks whether the
    main thread still runs instead.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None) -> bool:
        while not stop.is_set() and threading.main_thread().is_alive():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:
            put(None, error)

    threading.Thread(target=work, name="ttd-prefetch").start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
