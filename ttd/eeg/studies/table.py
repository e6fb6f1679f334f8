"""One's own recordings: loose files, a table of what was shown when, and a folder of pictures.

    <root>/events.csv          recording,onset,image[,concept,label,part]
    <root>/pictures/           what column ``image`` names (jpg, png)
    <root>/sub-01_run-1.edf    what column ``recording`` names (EDF, BDF, BrainVision, EEGLAB, FIF), in folders or not

The table is CSV as RFC 4180 has it, or with semicolons or tabs, in UTF-8. All its mistakes are reported at once, each with
line, column, value and remedy.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import field_validator

from ttd.config import Config, UserError
from ttd.eeg import files
from ttd.eeg.studies.interface import Event, Recording, Study, read_signal_file
from ttd.eeg.studies.recordings import LooseRecording, RecordingsConfig

NEEDED, KNOWN = ("recording", "onset", "image"), ("recording", "onset", "image", "concept", "label", "part")
PARTS = ("train", "validation", "test")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
SHOWN = 100
"""Mistakes that are listed; the rest is counted."""


class TableConfig(Config):
    """Where recordings, table and pictures lie."""

    name: Literal["table"] = "table"
    root: Path
    """The folder with the table, ``pictures/`` and the recordings."""
    title: str
    """Author and year of the study, as Miller2026."""
    events: str = "events.csv"
    """The table, below ``root``."""
    onset_unit: Literal["s", "ms", "samples"] = "s"
    """Of column ``onset``, counted from the first sample of the recording."""
    names: str = (
        r"sub-(?P<subject>[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?"
        r"(?:_task-[A-Za-z0-9]+)?(?:_run-(?P<run>[A-Za-z0-9]+))?"
    )
    """Regular expression with the groups subject and, where there are any, session and run; searched in the file name."""
    citation: str = ""
    licence: str = "not stated"

    @field_validator("names")
    @classmethod
    def _has_a_subject(cls, names: str) -> str:
        return RecordingsConfig._has_a_subject(names)


class Table(Study):
    """The recordings that a table names."""

    def __init__(self, config: TableConfig):
        self.config, self.location = config, config.root
        self.title, self.citation, self.licence = config.title, config.citation or config.title, config.licence
        if not config.root.is_dir():
            raise UserError(f"study.root={config.root}: no such folder; give the folder with {config.events}")

    def recordings(self) -> list[Recording]:
        """Every recording that the table names, sorted by subject, session and run.

        Raises:
            UserError: the table is missing or has mistakes; all of them are named.
        """
        reader = _TableReader(self.config)
        found: list[Recording] = list(reader.read())
        return sorted(found, key=lambda recording: (recording.subject, recording.session, recording.run))


class TableRecording(LooseRecording):
    """One file, and the rows of the table that name it."""

    def __init__(self, path: Path, events: list[Event], *, subject: str, session: str, run: str):
        super().__init__(path, subject=subject, session=session, run=run)
        self._events = events

    def events(self) -> list[Event]:
        """The rows of the table, in the order of time."""
        return sorted(self._events, key=lambda event: event.onset_s)


@functools.cache
def _length(path: Path, size: int, mtime_ns: int) -> tuple[float, float] | None:
    """Samples per second and seconds of a recording, from its header; None where it cannot be read."""
    try:
        files.check_signal_file(path)
        raw = read_signal_file(path)
    except UserError:  # the recording's own check says what is wrong with it
        return None
    return float(raw.info["sfreq"]), raw.n_times / float(raw.info["sfreq"])


class _TableReader:
    """Reads the table once and collects what is wrong with it."""

    def __init__(self, config: TableConfig):
        self.config, self.path = config, config.root / config.events
        self.mistakes: dict[str, tuple[str, list[int]]] = {}
        """What is wrong, and its lines: a mistake that many lines make is told once."""
        self.rows: dict[Path, list[Event]] = {}
        self.seen: dict[tuple[str, str], int] = {}
        self.concepts: dict[str, tuple[str, int]] = {}
        self.pictures: dict[str, str] = {}
        self.parts: set[bool] = set()
        self.checked: dict[Path, str] = {}

    def wrong(self, line: int, column: str, value: str, why: str) -> None:
        self.say(f"column {column}: {value!r} {why}", line)

    def say(self, text: str, line: int | None = None, *, key: str = "") -> None:
        """Keep a mistake; those of one ``key`` (the text itself where there is none) are one."""
        self.mistakes.setdefault(key or text, (text, []))[1].extend([line] if line else [])

    def told(self) -> list[str]:
        """Every mistake with its first line and the number of further ones."""
        return [
            text if not at else f"line {at[0]}{f' and {len(at) - 1} more' if len(at) > 1 else ''}, {text}"
            for text, at in self.mistakes.values()
        ]

    def read(self) -> Iterator[TableRecording]:
        """The recordings.

        Raises:
            UserError: with every mistake, a line each.
        """
        for line, row in self._lines():
            self._row(line, row)
        if len(self.parts) > 1:
            self.say("column part: filled in some lines and empty in others; fill it in all, or in none")
        if not self.rows and not self.mistakes:
            self.say("no line below the header; write one per presentation")
        whose = self._whose()
        if self.mistakes:
            rest = len(self.mistakes) - SHOWN
            lines = self.told()[:SHOWN] + ([f"and {rest} more"] if rest > 0 else [])
            raise UserError(f"{self.path}: {len(self.mistakes)} mistakes\n  " + "\n  ".join(lines))
        for path, events in self.rows.items():
            subject, session, run = whose[path]
            yield TableRecording(path, events, subject=subject, session=session, run=run)

    def _lines(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(line, row by column) of the table; blank lines are left out."""
        if self.path.is_file() and not self.path.read_bytes().strip():
            raise UserError(f"{self.path}: the table is empty; its first line must be {','.join(KNOWN)}")
        files.check_present(self.path)
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: not UTF-8 (byte {error.start}); save it as “CSV UTF-8”") from error
        head = text.splitlines()[0] if text.strip() else ""
        delimiter = max(",;\t", key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            columns = [name.strip().lower() for name in next(reader, [])]
            absent = [name for name in NEEDED if name not in columns]
            for name in absent:
                near = difflib.get_close_matches(name, [c for c in columns if c not in KNOWN], n=1)
                hint = f"; is it the one called {near[0]!r}?" if near else f", has {', '.join(columns) or 'none'}"
                self.say(f"line 1: needs the column {name}{hint}")
            for name in (n for n in KNOWN if columns.count(n) > 1):
                self.say(f"line 1: column {name} occurs twice")
            if self.mistakes:
                return
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(columns):
                    why = f"has {len(values)} fields, the header {len(columns)}; quote values that hold a {delimiter!r}"
                    self.say(f"line {reader.line_num}: {why}")
                    continue
                yield reader.line_num, dict(zip(columns, (value.strip() for value in values), strict=True))
        except csv.Error as error:
            self.say(f"line {reader.line_num}: {error}; is a quotation mark missing?")

    def _row(self, line: int, row: dict[str, str]) -> None:
        recording = self._place(line, "recording", row["recording"], self.config.root)
        onset = self._onset(line, row["onset"], recording)
        picture = self._place(line, "image", row["image"], self.config.root / "pictures")
        part = row.get("part", "").lower() or None
        self.parts.add(part is not None)
        if part is not None and part not in PARTS:
            self.wrong(line, "part", row["part"], f"is none of {', '.join(PARTS)}")
        if recording is None or onset is None or picture is None:
            return
        place = PurePosixPath(row["image"].replace("\\", "/"))
        image_id = str(place.with_suffix(""))
        first = self.pictures.setdefault(image_id, str(place))
        if first != str(place):
            self.wrong(line, "image", row["image"], f"and {first!r} have one name; rename one of the two")
        concept = row.get("concept") or place.parent.name or place.stem
        known, before = self.concepts.setdefault(image_id, (concept, line))
        if known != concept:
            self.wrong(line, "concept", concept, f"but line {before} calls the same picture {known!r}; make them agree")
        moment = (str(recording), f"{onset:.6f}")
        if self.seen.setdefault(moment, line) != line:
            self.wrong(
                line, "onset", row["onset"], f"stands in line {self.seen[moment]} already, for the same recording"
            )
        event = Event(onset, image_id, concept, picture, row.get("label") or concept, part if part in PARTS else None)
        self.rows.setdefault(recording, []).append(event)

    def _place(self, line: int, column: str, value: str, folder: Path) -> Path | None:
        """The file that a value names below ``folder``; None, and a mistake, where there is none."""
        place = PurePosixPath(value.replace("\\", "/"))
        if not place.parts or place.is_absolute() or ".." in place.parts or ":" in value:
            self.wrong(line, column, value, f"must be a path below {folder}")
            return None
        path = folder / place
        if path not in self.checked:
            self.checked[path] = self._check(path, column, folder)
        if self.checked[path]:
            self.wrong(line, column, value, self.checked[path])
            return None
        return path

    def _check(self, path: Path, column: str, folder: Path) -> str:
        if path.is_symlink() and not path.is_file():
            return f"is a link to a file that is not there ({path}); `datalad get` it, or copy the file itself"
        if not path.is_file():
            names = [str(p.relative_to(folder)) for p in path.parent.glob("*")] if path.parent.is_dir() else []
            near = difflib.get_close_matches(str(path.relative_to(folder)), names, n=1)
            return f"is not there (looked for {path}); " + (f"did you mean {near[0]!r}?" if near else "put it there")
        if column == "recording":
            if path.suffix.lower() not in files.SIGNAL_SUFFIXES:
                return f"is no kind of recording known here; known: {', '.join(files.SIGNAL_SUFFIXES)}"
            if not re.search(self.config.names, path.name):
                return f"does not say whose it is by study.names={self.config.names!r}; rename it, or adapt study.names"
            return ""
        with path.open("rb") as file:
            good = file.read(8).startswith(SIGNATURES)
        return "" if good else "is neither a JPEG nor a PNG; convert it"

    def _onset(self, line: int, value: str, recording: Path | None) -> float | None:
        unit = self.config.onset_unit
        try:
            number = float(value)
        except ValueError:
            hint = f"; write {value.replace(',', '.')}" if re.fullmatch(r"-?\d+,\d+", value) else ""
            self.wrong(line, "onset", value, f"is not a number{hint}")
            return None
        if not math.isfinite(number) or number < 0:
            self.wrong(line, "onset", value, "must be a number from 0 on, counted from the start of the recording")
            return None
        stat = recording.stat() if recording else None
        length = _length(recording, stat.st_size, stat.st_mtime_ns) if recording and stat else None
        sfreq, seconds = length or (1.0, math.inf)
        onset = {"s": number, "ms": number / 1000, "samples": number / sfreq}[unit]
        if onset >= seconds:
            others = " or ".join(f"study.onset_unit={other}" for other in ("s", "ms", "samples") if other != unit)
            why = f"lies after the end of the recording ({seconds:.1f} s)"
            remedy = f"if the column is not in {unit}, say {others}"
            self.say(f"column onset: {value!r} {why}; {remedy}", line, key="after the end")
            return None
        return onset

    def _whose(self) -> dict[Path, tuple[str, str, str]]:
        """Subject, session and run of every recording; two of one name are a mistake."""
        out: dict[Path, tuple[str, str, str]] = {}
        for path in self.rows:
            match = re.search(self.config.names, path.name)
            assert match is not None  # checked when the path was
            found = match.groupdict(default="")
            entities = (found["subject"], found.get("session", ""), found.get("run", ""))
            twin = next((other for other, e in out.items() if e == entities), None)
            if twin:
                self.say(
                    f"column recording: {path.name!r} and {twin.name!r} are both subject {entities[0]!r}, session "
                    f"{entities[1]!r}, run {entities[2]!r} by study.names; rename one, or adapt study.names"
                )
            out[path] = entities
        return out
