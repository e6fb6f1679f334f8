"""Work by item: one mechanism for targets, generation, evaluation features and lifting.

Items are cut into fixed batches by their index before ranks are assigned, so results do not depend on the world size.
Each item's result is a folder, whole or absent, with ``status.json`` written last. Running the same command again does
what is missing; an item made from other inputs (another fingerprint) is made again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from ttd.config import Config, StoppedError, fingerprint, write_json
from ttd.engine.stopping import StopRequest
from ttd.engine.tracking import progress, talk
from ttd.redaction import redact

log = logging.getLogger(__name__)

WAIT = timedelta(hours=24)
"""How long ranks that have done their items wait for the others: longer than any share of a job takes."""


class ItemsConfig(Config):
    batch_size: int = 8
    """Items worked on together. Batches are fixed, so changing it changes what is computed together."""
    schedule: Literal["static", "claimed"] = "static"
    """static: rank r takes every world-th batch. claimed: whoever is free takes the next, across jobs."""
    stale_after_s: float = 120.0
    """A claim without a sign of life for this long belongs to a process that died."""


@dataclass(frozen=True)
class Item:
    """One piece of work. ``key`` names its folder, ``inputs`` is what the result depends on (JSON)."""

    key: str
    payload: Any = None
    inputs: Any = None


@dataclass
class ItemsResult:
    """How the items stand after the work, in their order. ``left``: still in the hands of another process."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    made: int = 0
    """Items made by this call and this process."""

    def summary(self) -> str:
        text = f"{len(self.done)} items done, {len(self.failed)} failed"
        return text + "".join(f"\n  {key}: {error}" for key, error in list(self.failed.items())[:5])


Work = Callable[[list[Item], list[Path]], list[dict[str, Any]]]
"""Make a batch: write item i's files into folder i, return one JSON record per item."""


def run_items(
    items: Sequence[Item],
    work: Work,
    folder: Path,
    *,
    inputs: Any,
    config: ItemsConfig | None = None,
    accelerator: Accelerator | None = None,
    desc: str = "items",
) -> ItemsResult:
    """Do ``work`` for all items that have no result yet, each into ``folder/<key>/``. Every rank must call it.

    ``inputs`` is what every result depends on (JSON: configuration, fingerprints of weights). When a batch raises, its
    items are tried one by one; those that raise again are recorded as failed, and tried again by the next start.
    Callers raise ``FailedItemsError(result.summary())`` once they have used the rest.

    Raises:
        ValueError: two items share a key, or a key is no file name.
        StoppedError: a signal or the stop file, after the batch at hand.
    """
    talk()
    config = config or ItemsConfig()
    _check_keys(items)
    rank, world = _place(accelerator)
    todo = Todo(items, work, folder, fingerprint(inputs), config.batch_size)
    with StopRequest() as stop:
        if config.schedule == "static":
            made = _static(todo, rank, world, stop, desc)
        else:
            made = _claimed(todo, config.stale_after_s, stop, desc)
        stopped = stop.requested
    if accelerator is not None:
        accelerator.wait_for_everyone()
    result = todo.result()
    result.made = made
    if not result.left and (accelerator is None or accelerator.is_main_process):
        # with claims, other jobs may still be at it
        todo.sweep(older_than_s=config.stale_after_s if config.schedule == "claimed" else 0.0)
    if result.left and (stopped or accelerator is not None):
        raise StoppedError(f"stopped with {len(result.left)} of {len(items)} items left; the same command resumes")
    return result


def read_items(folder: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The records of finished items in the order of ``keys``, each with its ``key``; others are left out."""
    statuses = [_read_status(folder / key) for key in keys]
    return [{"key": s["key"], **s["record"]} for s in statuses if s is not None and s["status"] == "done"]


def _check_keys(items: Sequence[Item]) -> None:
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        raise ValueError(f"items share a key: {sorted({k for k in keys if keys.count(k) > 1})[:5]}")
    for key in keys:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", key):
            raise ValueError(f"item key {key!r} is not a plain file name")


def _place(accelerator: Accelerator | None) -> tuple[int, int]:
    if accelerator is not None:
        return accelerator.process_index, accelerator.num_processes
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _read_status(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None


class Todo:
    """Items in fixed batches, and what their folders say about them."""

    def __init__(self, items: Sequence[Item], work: Work, folder: Path, common: str, batch_size: int):
        self.items, self.work, self.folder = list(items), work, folder
        self.prints = {item.key: fingerprint([common, item.key, item.inputs]) for item in items}
        self.batches = [self.items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        self.tried: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def status(self, item: Item) -> str | None:
        """done, failed, or None: no result, or one made from other inputs."""
        content = _read_status(self.folder / item.key)
        return content["status"] if content and content["fingerprint"] == self.prints[item.key] else None

    def unfinished(self, batch: list[Item]) -> list[Item]:
        """Items of a batch that this call still has to make; what failed before is tried once more."""
        return [i for i in batch if self.status(i) != "done" and i.key not in self.tried]

    def make(self, batch: list[Item]) -> int:
        """Work on a whole batch, keep what was missing; returns how many items were made."""
        missing = {item.key for item in self.unfinished(batch)}
        made = self._attempt(batch, missing, last=len(batch) == 1)
        if made is None:  # something in it raised: which one?
            made = sum(self._attempt([item], missing, last=True) or 0 for item in batch if item.key in missing)
        self.tried |= missing
        return made

    def _attempt(self, batch: list[Item], keep: set[str], *, last: bool) -> int | None:
        folders = [self.folder / f".{item.key}.{socket.gethostname()}.{os.getpid()}" for item in batch]
        start = time.monotonic()
        try:
            for path in folders:
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
            records = self.work(batch, folders)
            assert len(records) == len(batch), f"work returned {len(records)} records for {len(batch)} items"
            seconds = round((time.monotonic() - start) / len(batch), 3)
            for item, path, record in zip(batch, folders, records, strict=True):
                if item.key in keep:
                    self._commit(item, path, status="done", record=record, seconds=seconds)
            return len(keep & {item.key for item in batch})
        except Exception as error:
            if not last:
                log.warning("%s and %d more: %s; trying one by one", batch[0].key, len(batch) - 1, error)
                return None
            if (
                self.status(batch[0]) == "done"
            ):  # made elsewhere meanwhile, by a process that had taken this one for dead
                return 0
            log.warning("%s failed: %s: %s", batch[0].key, type(error).__name__, error)
            folders[0].mkdir(exist_ok=True)
            facts = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            self._commit(batch[0], folders[0], status="failed", **redact(facts))
            return 0
        finally:
            for path in folders:
                shutil.rmtree(path, ignore_errors=True)

    def _commit(self, item: Item, made: Path, *, status: str, record: dict | None = None, **facts: Any) -> None:
        content = {
            "key": item.key,
            "status": status,
            "fingerprint": self.prints[item.key],
            "record": record or {},
            **facts,
        }
        write_json(made / "status.json", content)
        final = self.folder / item.key
        if final.exists():  # failed before, or made from other inputs
            old = made.with_name(made.name + ".old")
            final.rename(old)
            made.rename(final)
            shutil.rmtree(old, ignore_errors=True)
            return
        try:
            made.rename(final)
        except OSError:  # made elsewhere in the meantime, by a process that had been taken for dead
            if self.status(item) != "done":
                raise

    def sweep(self, older_than_s: float) -> None:
        """Remove what killed processes left half-made, only when nothing is left to do: what nobody has touched for so long."""
        for path in self.folder.glob(".*"):
            with suppress(OSError):  # gone meanwhile
                newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
                if time.time() - newest >= older_than_s:
                    shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            (self.folder / ".claims").rmdir()  # where nobody holds one

    def result(self) -> ItemsResult:
        out = ItemsResult()
        for item in self.items:
            status = self.status(item)
            if status == "done":
                out.done.append(item.key)
            elif status == "failed":
                out.failed[item.key] = (_read_status(self.folder / item.key) or {}).get("error", "")
            else:
                out.left.append(item.key)
        return out


def _static(todo: Todo, rank: int, world: int, stop: StopRequest, desc: str) -> int:
    made = 0
    for batch in progress(todo.batches[rank::world], desc=desc):
        if stop.requested:
            break
        if todo.unfinished(batch):
            made += todo.make(batch)
    return made


def _claimed(todo: Todo, stale_after_s: float, stop: StopRequest, desc: str) -> int:
    made = 0
    claims = todo.folder / ".claims"
    waiting = dict(enumerate(todo.batches))
    while waiting and not stop.requested:
        claims.mkdir(exist_ok=True)  # another job that found everything done has removed it
        for number, batch in progress(list(waiting.items()), desc=desc):
            if stop.requested:
                break
            if todo.unfinished(batch):
                with _claim(claims / f"{number:06d}", stale_after_s) as mine:
                    if not mine:
                        continue  # somebody else works on it: look again later
                    if todo.unfinished(batch):
                        made += todo.make(batch)
            del waiting[number]
        if waiting and not stop.requested:
            time.sleep(min(1.0, stale_after_s / 4))
    return made


@contextmanager
def _claim(path: Path, stale_after_s: float) -> Iterator[bool]:
    """Whether this process may work on what ``path`` stands for: a file made with O_EXCL, touched while it is held."""
    try:
        if time.time() - path.stat().st_mtime > stale_after_s:
            path.rename(path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"))
            log.warning("%s: its owner shows no sign of life; taken over", path)
    except FileNotFoundError:
        pass
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except (FileExistsError, FileNotFoundError):  # somebody else's; or all is done, and the folder of claims is gone
        yield False
        return
    held = threading.Event()

    def beat() -> None:
        while not held.wait(stale_after_s / 4):
            try:
                os.utime(path)
            except FileNotFoundError:
                return

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield True
    finally:
        held.set()
        heart.join()
        path.unlink(missing_ok=True)
