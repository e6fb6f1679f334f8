"""Materialised shards at an address: read from front to back over http(s), s3 or a named program, checked like local ones.

The index comes first, so every byte of a shard has its checksum before it arrives, and no name comes from the archive. A batch is
staged: the samples it needs are fetched in the order of the file, one connection per shard. No shell is ever started, and
nothing is expanded (braces, variables, environment): an address is one folder.
"""

from __future__ import annotations

import http.client
import logging
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ttd.config import Config, UserError
from ttd.data.index import ShardIndex, parse_facts, parse_table
from ttd.data.members import PAUSES_S
from ttd.data.quarantine import NAME as QUARANTINE
from ttd.data.quarantine import parse_quarantine
from ttd.eeg.web import opener

logger = logging.getLogger(__name__)

MAX_SKIP = 1 << 20
"""Bytes that are read and thrown away rather than asking again from further on."""
LIMITS = {"index.json": 64 * 2**20, "index.npz": 512 * 2**20, QUARANTINE: 64 * 2**20}
"""Bytes of a downloaded file; a longer one is refused."""


class RemoteConfig(Config):
    url: str
    """Folder that ``shards/materialise.py`` wrote: http://…, https://…, s3://…, or ``pipe:`` and a command with ``{file}``."""
    streams: int = Field(default=8, ge=1)
    """Shards that are read side by side, over all ranks; best a multiple of their number. Part of the order."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest silence of a connection; then it is tried again, three times."""
    allow_pipe: list[str] = Field(default_factory=list)
    """Programs that ``pipe:`` may start (without a shell), by name: curl, aws."""

    @model_validator(mode="after")
    def _plain_address(self) -> RemoteConfig:
        scheme, _, rest = self.url.partition(":")
        if scheme == "pipe":
            program = next(iter(shlex.split(rest)), "")
            if program not in self.allow_pipe:
                raise ValueError(f"pipe: would start {program!r}; name it in allow_pipe if that is wanted")
            if "{file}" not in rest:
                raise ValueError("the command of pipe: must hold {file}, which stands for index.json or a shard's name")
            return self
        if scheme not in ("http", "https", "s3") or not rest.startswith("//") or not urlsplit(self.url).netloc:
            raise ValueError(
                "an address starts with http://, https:// or s3:// and a host; for a local folder set shards"
            )
        if any(c in "{}$`\\|<>\"'" or c.isspace() or not c.isprintable() for c in self.url):
            raise ValueError("an address is one folder: no braces, variables, quotes or spaces")
        return self


class _Stream:
    """One file that is read from front to back."""

    def __init__(self, config: RemoteConfig, name: str):
        self.config, self.name, self.position = config, name, 0
        self.body: Any = None
        self.process: subprocess.Popen | None = None

    def open(self, offset: int) -> None:
        self.close()
        url = f"{self.config.url.rstrip('/')}/{self.name}"
        self.position = 0
        if url.startswith("pipe:"):
            command = [word.replace("{file}", self.name) for word in shlex.split(self.config.url.removeprefix("pipe:"))]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
            self.body = self.process.stdout
        elif url.startswith("s3:"):
            self.body, self.position = _s3(url, offset), offset
        else:
            request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
            try:
                self.body = opener().open(request, timeout=self.config.timeout_s)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in (404, 410):
                        raise FileNotFoundError(f"{url}: {error.code}") from None
                    raise OSError(f"{url}: {error.code} {error.reason}") from None
            if self.body.status == 206:
                if not (self.body.headers.get("Content-Range") or "").startswith(f"bytes {offset}-"):
                    raise OSError(f"{url}: the server sent another range than was asked for")
                self.position = offset

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns how many bytes there were."""
        if self.body is None or not 0 <= offset - self.position <= MAX_SKIP:
            self.open(offset)
        while self.position < offset:
            n = len(self.body.read(min(MAX_SKIP, offset - self.position)))
            if not n:
                return 0
            self.position += n
        done = 0
        while done < len(buffer):
            content = self.body.read(len(buffer) - done)
            if not content:
                break
            buffer[done : done + len(content)] = content
            done += len(content)
            self.position += len(content)
        return done

    def close(self) -> None:
        if self.body is not None:
            self.body.close()
            self.body = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _s3(url: str, offset: int) -> Any:
    try:
        import fsspec

        file = fsspec.open(url, "rb").open()
    except ImportError as error:
        raise UserError(f"{url}: reading s3 needs the package s3fs: pip install s3fs") from error
    file.seek(offset)
    return file


def _patiently(stream: _Stream, offset: int, buffer: memoryview) -> int:
    """``stream.read_into``, tried again from where it broke off, at most three times.

    Raises:
        FileNotFoundError: the server says there is no such file.
        OSError: it was still not to be had.
    """
    done, problem = 0, ""
    for pause in (*PAUSES_S, None):
        try:
            done += stream.read_into(offset + done, buffer[done:])
            if done == len(buffer):
                return done
            problem = ""
        except FileNotFoundError:
            raise
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        stream.close()
        if pause is not None:
            what = problem or f"{done} of {len(buffer)} bytes arrived"
            logger.warning("%s at byte %d: %s; trying again in %.2f s", stream.name, offset + done, what, pause)
            time.sleep(pause)
    if problem:
        raise OSError(problem)
    return done


class RemoteShards:
    """The source of a remote index: what the next batch needs is staged, then read like any other."""

    sequential = True

    def __init__(self, config: RemoteConfig):
        self.config, self.where = config, config.url.rstrip("/")
        self.pool = ThreadPoolExecutor(config.streams, "ttd-remote")
        self.open: dict[str, _Stream] = {}
        self.staged: dict[str, list[tuple[int, memoryview]]] = {}

    @property
    def folder(self) -> Path | None:
        """None: nothing can be written there."""
        return None

    def stage(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Fetch the samples at (shard, first byte, end), one connection per shard, and forget those of the last batch.

        Raises:
            UserError: a shard is not there, or its server does not answer.
        """
        wanted: dict[str, set[tuple[int, int]]] = {}
        for shard, start, stop in spans:
            wanted.setdefault(shard, set()).add((start, stop))
        for shard in [name for name in self.open if name not in wanted][: -self.config.streams]:
            self.open.pop(shard).close()  # far more than a pass keeps open: finished shards
        streams = {shard: self.open.setdefault(shard, _Stream(self.config, shard)) for shard in wanted}
        fetched = self.pool.map(lambda shard: self._fetch(streams[shard], sorted(wanted[shard])), wanted)
        self.staged = dict(zip(wanted, fetched, strict=True))

    def _fetch(self, stream: _Stream, spans: list[tuple[int, int]]) -> list[tuple[int, memoryview]]:
        out = []
        for start, stop in spans:
            view = memoryview(bytearray(stop - start))
            try:
                out.append((start, view[: _patiently(stream, start, view)]))
            except OSError as error:
                raise UserError(
                    f"{self.where}/{stream.name}: not to be had after {len(PAUSES_S)} more tries: {error}"
                ) from error
        return out

    def read_into(self, shard: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from what is staged, else from the shard itself."""
        for start, view in self.staged.get(shard, ()):
            if start <= offset < start + len(view):
                part = view[offset - start : offset - start + len(buffer)]
                buffer[: len(part)] = part
                return len(part)
        self.stage([(shard, offset, offset + len(buffer))])
        _, view = self.staged[shard][0]
        buffer[: len(view)] = view
        return len(view)


def _download(config: RemoteConfig, name: str) -> bytes:
    """A small file beside the shards, whole.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is longer than it may be, or the server does not answer.
    """
    for pause in (*PAUSES_S, None):
        stream = _Stream(config, name)
        try:
            stream.open(0)
            content = stream.body.read(LIMITS[name] + 1)
            if len(content) > LIMITS[name]:
                raise UserError(f"{config.url}: {name} is longer than {LIMITS[name]} bytes")
            if stream.process is not None and not content:
                raise FileNotFoundError(name)
            return content
        except FileNotFoundError:
            raise
        except (OSError, http.client.HTTPException) as error:
            problem = error
            if pause is not None:
                time.sleep(pause)
        finally:
            stream.close()
    raise UserError(f"{config.url}: {name} is not to be had after {len(PAUSES_S)} more tries: {problem}")


def open_remote_index(config: RemoteConfig) -> ShardIndex:
    """The index of a remote folder of materialised shards.

    Raises:
        UserError: it is not there or damaged, holds no materialised samples, or is the locked test part.
    """
    try:
        facts = parse_facts(f"{config.url}/index.json", _download(config, "index.json"))
        table = parse_table(f"{config.url}/index.npz", _download(config, "index.npz"), facts)
    except FileNotFoundError as error:
        raise UserError(
            f"{config.url}: holds no shards ({error}); copy what shards/materialise.py wrote there"
        ) from error
    if facts.part == "test":
        raise UserError(f"{config.url}: the test part is locked; training and selection take part train or validation")
    if facts.kind != "materialised" or facts.normalise != "channel":
        raise UserError(
            f"{config.url}: holds samples of kind {facts.kind!r}, normalised per {facts.normalise}; from an address only "
            "materialised samples that are normalised per channel are read"
        )
    try:
        quarantined = set(parse_quarantine(f"{config.url}/{QUARANTINE}", _download(config, QUARANTINE)))
    except FileNotFoundError:
        quarantined = set()
    return ShardIndex(Path(config.url), facts, table, quarantined, RemoteShards(config))
