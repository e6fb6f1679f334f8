"""Fetch the files of a study from where its authors published them, resumed and checked.

    python shards/fetch.py --study schalk2004 subjects=[1,2] --dry-run
    python shards/fetch.py --study schalk2004 subjects=[1,2]

``--study X`` stands for ``--config configs/fetch/X.yaml``. Licence, citation and what is known of the size come first, before
any server is asked; ``--dry-run`` stops after the listing. Run the same command again to go on where it stopped, or to see
whether anything changed on the server. Exit status 75: the server could not be reached, or a signal came; try again later.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttd.config import BAD_INPUT, FailedItemsError, Plan, StoppedError, UserError, fingerprint, run
from ttd.data.ingest import free_mb
from ttd.eeg.download import Fetched, RemoteFile, add_to_record, confine, differs, fetch, read_record
from ttd.eeg.listings import ByHandSource, SumsSource, list_files, subject_of
from ttd.eeg.studies.annex import is_absent
from ttd.eeg.web import PassingError
from ttd.experiments.fetch import FetchConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "fetch"
SPARE_BYTES = 200 << 20
"""Left free on the disk beside the files themselves."""


@dataclass
class Order:
    """The wanted files by how they stand: to be fetched, to be compared (they lie there unrecorded), done, or wrong."""

    fetch: dict[Path, RemoteFile] = field(default_factory=dict)
    compare: dict[Path, RemoteFile] = field(default_factory=dict)
    done: int = 0
    problems: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    fetch_bytes: int = 0
    begun_bytes: int = 0
    """Of files to be fetched, what came already."""
    total_bytes: int = 0
    about: str = ""
    """``about`` where a listing states no sizes."""


_ORDERS: dict[str, Order] = {}


def order(config: FetchConfig) -> Order:
    """List what is wanted and compare it with what is there; the listing is read once per run."""
    key = fingerprint(config)
    if key not in _ORDERS:
        _ORDERS[key] = _order(config)
    return _ORDERS[key]


def _order(config: FetchConfig) -> Order:
    out, record = Order(), read_record(config.root)
    for name in config.take or config.sources:
        source = config.sources[name]
        if isinstance(source, ByHandSource):
            out.by_hand.append(f"{name}: {source.how}")
            continue
        found = list_files(source)
        whose = {file.path: subject_of(source, file.path) for file in found}
        absent = sorted(set(config.subjects or []) - set(whose.values()))
        if absent and any(whose.values()):
            out.problems.append(f"subjects: {name} has no files of {', '.join(map(str, absent))}")
        chosen = None if config.subjects is None else {None, *config.subjects}
        for file in found:
            if chosen is None or whose[file.path] in chosen:
                size = file.size
                if size is None and isinstance(source, SumsSource):
                    size, out.about = source.mean_bytes, "about "
                _stand(out, config.root, file, record.get(file.path), size or 0)
    return out


def _stand(out: Order, root: Path, file: RemoteFile, fetched: Fetched | None, size: int) -> None:
    """Enter one file into the order."""
    try:
        path = confine(root, file.path)
    except UserError as error:
        out.problems.append(str(error))
        return
    out.total_bytes += size
    if is_absent(path):
        out.fetch[path] = file
        part = path.with_name(path.name + ".part")
        begun = min(part.stat().st_size, size) if part.exists() else 0
        out.begun_bytes += begun
        out.fetch_bytes += size - begun
    elif fetched is None or (path.stat().st_size, path.stat().st_mtime_ns) != (fetched.size, fetched.mtime_ns):
        out.compare[path] = file
    elif fetched.version != (file.version or file.checksum):
        out.problems.append(f"{path}: has changed on the server since it was fetched; delete it to fetch the new one")
    else:
        out.done += 1


def check(config: FetchConfig) -> Plan:
    """Licence and citation at once, then what the listings say; nothing is written.

    Raises:
        StoppedError: a listing cannot be had now.
    """
    size = config.size or "told by the listing, which is read now"
    facts = [f"{config.title}, licence: {config.licence}", config.citation, f"size: {size}", config.note]
    print("\n".join(filter(None, facts)), file=sys.stderr, flush=True)
    try:
        wanted = order(config)
    except PassingError as error:
        raise StoppedError(str(error)) from error
    plan = Plan(problems=list(wanted.problems))
    if wanted.by_hand and not wanted.total_bytes and not plan.problems:
        plan.problems.append(f"{config.title} ({config.licence}) is fetched by hand. " + "\n".join(wanted.by_hand))
        return plan
    free = free_mb(config.root) * 1e6
    if wanted.fetch_bytes and wanted.fetch_bytes + SPARE_BYTES > free:
        plan.problems.append(
            f"root={config.root}: {_size(wanted.fetch_bytes)} are to come and {_size(SPARE_BYTES)} stay free, "
            f"but only {_size(free)} are free; choose subjects=[…], or another disk"
        )
    n = len(wanted.fetch) + len(wanted.compare) + wanted.done
    plan.notes.append(
        f"{n} files, {wanted.about}{_size(wanted.total_bytes)}: {wanted.done} are here, "
        f"{len(wanted.compare)} to be compared, {len(wanted.fetch)} to be fetched "
        f"({wanted.about}{_size(wanted.fetch_bytes)}) into {config.root}"
    )
    plan.notes += [f"by hand: {line}" for line in wanted.by_hand]
    return plan


def main(config: FetchConfig) -> None:
    wanted = order(config)
    if not wanted.fetch and not wanted.compare:
        return
    from tqdm import tqdm

    config.root.mkdir(parents=True, exist_ok=True)
    failed, unchecked, passing = [], 0, 0
    with (config.root / ".fetch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"root={config.root}: another process is fetching into it") from error
        for path, file in wanted.compare.items():
            wrong = differs(path, file)
            if wrong:
                failed.append(f"{path}: lies there already, but {wrong}; delete it to fetch it")
            else:
                add_to_record(config.root, Fetched.of(config.root, file))
        show = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "mininterval": 1.0}
        with tqdm(total=wanted.begun_bytes + wanted.fetch_bytes, desc=config.title, **show) as bar:
            for path, file in wanted.fetch.items():
                try:
                    fetch(file, path, bar.update)
                except UserError as error:
                    failed.append(str(error))
                    passing += isinstance(error, PassingError)
                    continue
                except KeyboardInterrupt:
                    raise StoppedError(f"stopped in {path.name}; the same command goes on from there") from None
                unchecked += not file.checksum
                add_to_record(config.root, Fetched.of(config.root, file))
    by_size = f", {unchecked} of them by size alone (the listing states no sum)" if unchecked else ""
    n = len(wanted.fetch) + len(wanted.compare) - len(failed)
    print(f"{config.root}: {n} files fetched or compared and right{by_size}, {len(failed)} failed")
    archives = [path for path in wanted.fetch if path.suffix == ".zip" and path.is_file()]
    for path in archives:
        print(f"unpack: python -m zipfile -e {path} {path.parent}")
    if failed:
        raise (StoppedError if passing == len(failed) else FailedItemsError)("\n".join(failed))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"


def studies() -> list[str]:
    """What ``--study`` may be."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def arguments(argv: Sequence[str]) -> list[str]:
    """``--study X`` as the configuration file it stands for.

    Raises:
        UserError: there is none of that name, or no study is given at all.
    """
    out, rest = [], list(argv)
    if not any(word.startswith(("--study", "--config", "--help", "-h")) for word in rest):
        raise UserError(f"give a study as --study NAME; there are {', '.join(studies())}; --help says more")
    while rest:
        word = rest.pop(0)
        if word == "--study" or word.startswith("--study="):
            name = word.partition("=")[2] or (rest.pop(0) if rest else "")
            if name not in studies():
                raise UserError(f"--study {name}: not known; there are {', '.join(studies())}")
            out += ["--config", str(CONFIGS / f"{name}.yaml")]
        else:
            out.append(word)
    return out


if __name__ == "__main__":
    try:
        given = arguments(sys.argv[1:])
    except UserError as error:
        print(f"fetch.py: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    run(main, FetchConfig, doc=f"{__doc__}\nStudies: {', '.join(studies())}.", check=check, argv=given)
