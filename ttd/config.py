"""Configuration of every entry: pydantic models laid over YAML files, and the door each entry goes through.

An experiment is one YAML file. ``--config`` may be repeated (later files win, section by section), ``key.path=value``
overrides one field, ``--print-config`` prints the resolved experiment, ``--dry-run`` stops after the checks and estimates.
All mistakes are reported at once, each with its dotted path, before any process group starts.

Exit statuses: 0 done, 2 bad input, 3 finished with failed items, 75 stopped and resumable. Launchers change them, so rank 0
also writes ``outcome.json`` into the run folder. Without a launcher bad input leaves the folder as it is: what finished
there before is still finished.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ttd.explain import describe_fields as describe_fields
from ttd.explain import explain as explain
from ttd.floors import too_old
from ttd.redaction import redact, redact_tracebacks

DONE, BAD_INPUT, FAILED_ITEMS, STOPPED = 0, 2, 3, 75


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, a docstring below a field documents it, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _lay_over_defaults(cls, tree: Any) -> Any:
        """A section that is given in part keeps the rest of its default here, which may differ from its class's."""
        if not isinstance(tree, dict):
            return tree
        defaults = {
            name: field.default.model_dump(exclude_unset=True)
            for name, field in cls.model_fields.items()
            if isinstance(tree.get(name), dict) and type(field.default) is field.annotation
        }
        return tree | {name: merge(default, tree[name]) for name, default in defaults.items()}

    @classmethod
    def further_mistakes(cls, tree: dict) -> list[str]:
        """Mistakes of sections that are handed on unread, to be told together with those of this configuration."""
        return []


class UserError(Exception):
    """Something a user can put right. The message names the file or field, the value and the remedy; exit status 2."""


class FailedItemsError(Exception):
    """The work finished, but some items failed; they are recorded. Exit status 3."""


class StoppedError(Exception):
    """Stopped by a signal after saving; the same command resumes. Exit status 75."""


@dataclass
class Plan:
    """What an entry found out before it started: everything that is wrong, and what the work will cost."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


C = TypeVar("C", bound=Config)


def merge(base: dict, over: dict) -> dict:
    """Lay ``over`` on ``base``, section by section; a section with another ``name`` replaces the whole section."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        same_variant = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("name", 0) in (0, old.get("name", 0))
        )
        out[key] = merge(old, value) if same_variant and isinstance(old, dict) else value
    return out


def read_yaml(path: Path) -> dict:
    """Read one experiment file, or explain what is wrong with it."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such configuration file{hint}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold sections with keys, but holds a {type(content).__name__}")
    return content


def parse_override(text: str) -> dict:
    """``a.b=1`` → ``{"a": {"b": 1}}``; the value is read as YAML."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"{text!r}: an override is written key.path=value")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r}: the value is not valid YAML: {error}") from error
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def load_config(schema: type[C], files: Sequence[Path], overrides: Sequence[str] = ()) -> C:
    """Build ``schema`` from YAML files and overrides.

    Raises:
        UserError: with all mistakes at once, one line each.
    """
    tree: dict = {}
    for path in files:
        tree = merge(tree, read_yaml(Path(path)))
    for text in overrides:
        tree = merge(tree, parse_override(text))
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(explain(error, schema) + schema.further_mistakes(tree))) from error


STYLE: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
"""How YAML is written."""


def to_yaml(config: Config) -> str:
    """The resolved experiment as YAML that ``load_config`` reads back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), **STYLE)


def fingerprint(value: Any, n: int = 16) -> str:
    """A short stable hash of anything JSON can hold (or of a configuration)."""
    if isinstance(value, Config):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:n]


USAGE = """
options:
  --config FILE      an experiment (YAML); may be repeated, later files are laid over earlier ones
  key.path=value     override one field
  --print-config     print the resolved experiment and stop
  --dry-run          check everything, print what the work will cost, and stop
  --help             this text

fields of the experiment:
"""


def is_main_process() -> bool:
    """Whether this process is rank 0 of its launch, known before any process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def write_aside(path: Path, content: str | bytes) -> None:
    """Write a file so that it is whole or absent: aside, then renamed. Several machines may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or absent."""
    write_aside(path, json.dumps(content, indent=1, default=str) + "\n")


def write_lines(path: Path, records: Sequence[Any]) -> None:
    """Write one line of JSON for each record, all or none."""
    write_aside(path, "".join(json.dumps(record) + "\n" for record in records))


def write_outcome(
    folder: Path, status: int, message: str, seconds: float = 0.0, *, any_rank: bool = False, **more: Any
) -> None:
    """Leave ``outcome.json`` in a run folder: what launchers and templates read instead of an exit status.

    Rank 0 does, or ``any_rank`` that has an error of its own.

    Also as the file that ``TTD_OUTCOME`` names: the jobs of an array share a run folder, and each has an end of its own.
    """
    if any_rank or is_main_process():
        content = {"status": status, "message": redact(message), "seconds": round(seconds, 1), **more}
        write_json(folder / "outcome.json", content)
        if "TTD_OUTCOME" in os.environ:
            write_json(Path(os.environ["TTD_OUTCOME"]), content)


def _wait_for_outcome(folder: Path, since: float, timeout_s: float) -> bool:
    """Let rank 0 write its outcome: a launcher ends all ranks as soon as one of them exits with a status.

    False where it does not: then rank 0 has no such error, and waits for this rank in vain.
    """
    path = Path(
        os.environ.get("TTD_OUTCOME", folder / "outcome.json")
    )  # the folder's may be another job's of the array
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if path.exists() and path.stat().st_mtime >= since:
            return True
        time.sleep(0.05)
    return False


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate) started this process: it hides the exit status."""
    return "RANK" in os.environ or "ACCELERATE_USE_CPU" in os.environ


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends what is within like Ctrl-C; not below a launcher, which ends its processes by SIGTERM itself."""
    if is_launched() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_step(command: Sequence[str | Path]) -> int:
    """Run a command of a chain to its end and return its status; STOPPED where a signal asked to stop meanwhile.

    Ctrl-C reaches the command by itself; SIGTERM, which only this process got, is handed on.
    """
    process, stopped = subprocess.Popen(command), False
    while True:
        try:
            status = process.wait()
            return STOPPED if stopped else status
        except KeyboardInterrupt as signalled:
            stopped = True
            if signalled.args:
                process.terminate()


def finished_at(folder: Path) -> float:
    """When the process of a run folder last ended well; 0 where it did not."""
    path = folder / "outcome.json"
    done = path.is_file() and json.loads(path.read_text())["status"] == DONE
    return path.stat().st_mtime if done else 0.0


def blocked(folder: Path) -> list[str]:
    """Why ``folder`` cannot be made: something on its path is a file, or nobody may write there."""
    parts = [folder, *folder.parents]
    files = [f"output_dir={folder}: {path} is a file; give a folder" for path in parts if path.is_file()]
    there = next((path for path in parts if path.is_dir()), None)
    if files or there is None or os.access(there, os.W_OK | os.X_OK):
        return files
    return [f"output_dir={folder}: {there} may not be written to; give another folder, or the right to write there"]


def _arguments(argv: Sequence[str]) -> tuple[list[Path], list[str], set[str]]:
    files, overrides, flags = [], [], set()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--config":
            if not rest:
                raise UserError("--config: give a file after it")
            files.append(Path(rest.pop(0)))
        elif word.startswith("--config="):
            files.append(Path(word.partition("=")[2]))
        elif word in ("--print-config", "--dry-run", "--help", "-h"):
            flags.add("--help" if word == "-h" else word)
        elif not word.startswith("-") and "=" in word:
            overrides.append(word)
        else:
            raise UserError(f"{word}: not understood; see --help")
    return files, overrides, flags


def run(
    main: Callable[[C], None],
    schema: type[C],
    *,
    doc: str | None,
    check: Callable[[C], Plan] | None = None,
    argv: Sequence[str] | None = None,
    refuse_unsafe: bool = True,
) -> typing.NoReturn:
    """The door of every entry: parse, check, print the plan, run, leave an outcome, exit with its status.

    ``check(config)`` must not start a process group nor write anything: it lists all problems and the costs.
    The run folder is ``config.output_dir``. ``refuse_unsafe``: do not start with packages below their floor.
    """
    redact_tracebacks()
    start, config, message, status, started = time.monotonic(), None, "", DONE, False
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if is_main_process() else (lambda text: None)
    try:
        with interruptible():
            files, overrides, flags = _arguments(sys.argv[1:] if argv is None else argv)
            if "--help" in flags:
                if is_main_process():
                    print((doc or "").strip() + "\n" + USAGE + "\n".join(describe_fields(schema)))
                sys.exit(DONE)
            config = load_config(schema, files, overrides)
            if "--print-config" in flags:
                if is_main_process():
                    print(to_yaml(config), end="")
                sys.exit(DONE)
            old = [f"{what}; {remedy}" for what, remedy in too_old()] if refuse_unsafe else []
            if old:
                raise UserError("\n".join(old))
            plan = check(config) if check else Plan()
            problems = blocked(getattr(config, "output_dir", None) or Path()) + plan.problems
            if problems:
                raise UserError("\n".join(problems))
            for note in plan.notes:
                say(note)
            if "--dry-run" in flags:
                say("dry run: everything needed is there; nothing was started")
                sys.exit(DONE)
            started = True
            main(config)
            message = "done"
    except UserError as error:
        status, message = BAD_INPUT, str(error)
    except FailedItemsError as error:
        status, message = FAILED_ITEMS, str(error)
    except StoppedError as error:
        status, message = STOPPED, str(error)
    except KeyboardInterrupt:
        status, message = STOPPED, "stopped; the same command goes on"
    if status != DONE:
        say(redact(f"{Path(sys.argv[0]).name}: {message}"))
    folder = getattr(config, "output_dir", None)
    if (
        folder is not None
        and not blocked(folder)
        and (is_launched() or (started and status != BAD_INPUT and folder.is_dir()))
    ):
        write_outcome(folder, status, message, time.monotonic() - start, entry=Path(sys.argv[0]).name)
        since = time.time() - (time.monotonic() - start)
        patience_s = 10.0 if status == STOPPED else 2.0  # all ranks stop together; an error may be this rank's alone
        if status != DONE and not is_main_process() and not _wait_for_outcome(folder, since, patience_s):
            message = f"rank {os.environ['RANK']}: {message}"  # nobody else tells it
            print(redact(f"{Path(sys.argv[0]).name}: {message}"), file=sys.stderr, flush=True)
            seconds = time.monotonic() - start
            write_outcome(folder, status, message, seconds, any_rank=True, entry=Path(sys.argv[0]).name)
    sys.stdout.flush()
    sys.exit(status)
