"""Build shards of continuous windows without labels, for pretraining.

    python shards/build_unlabelled.py --config configs/shards/eegmmidb.yaml

Whole runs belong to a part. The folder appears whole or not at all; running the same command again finds it and stops.
``only_subjects='["01"]'`` builds a portion of the study for shards/merge.py.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

import numpy as np

from ttd.config import Plan, UserError, run
from ttd.data.checks import recording_problems
from ttd.data.ingest import CPU_S_PER_MILLION_VALUES, StudyWriter, find_built, free_mb, portion_of
from ttd.data.splits import SplitManifest, Use, recording_name
from ttd.eeg import epochs, stored
from ttd.eeg.channels import ChannelReport, as_json, interpolated
from ttd.eeg.montage import cap_name
from ttd.eeg.preprocessing import preprocess
from ttd.eeg.studies import EpochedRecording, Recording, open_study
from ttd.experiments.shards import BuildUnlabelledConfig
from ttd.pages import quality


def built(config: BuildUnlabelledConfig) -> bool:
    """Whether these shards stand there already; without the study's folder the configuration alone decides."""
    recordings = open_study(config.study).recordings() if config.study.root.is_dir() else None
    inputs = recordings and chosen(config, portion_of(recordings, config.only_subjects))
    return find_built(config.output_dir, config, inputs, kind="window") is not None


def check(config: BuildUnlabelledConfig) -> Plan:
    """Look at every file that will be read, and say what the windows will take."""
    plan = Plan()
    if built(config):
        plan.notes.append(f"{config.output_dir}: already built with these settings, nothing to do")
        return plan
    study = open_study(config.study)
    everything = study.recordings()
    recordings = chosen(config, portion_of(everything, config.only_subjects))
    plan.notes += [f"sub-{subject}: left out, as the study says: {why}" for subject, why in study.excluded().items()]
    known, named = {r.run for r in everything}, {run for runs in config.runs.values() for run in runs} - {"*"}
    if named - known:
        plan.problems.append(
            f"runs: no run is called {', '.join(sorted(named - known))}; "
            + (f"there are {', '.join(sorted(known))}" if known - {""} else 'this study has no runs: runs.train=["*"]')
        )
    plan.problems += recording_problems(recordings, config.preprocessing)
    if plan.problems:
        return plan
    stored = sum(path.stat().st_size for r in recordings for path in r.signal_files)
    need_mb = stored * max([config.windows.n_times / s for s in config.windows.stride.values()], default=1) / 1e6
    free = free_mb(config.output_dir)
    if need_mb > free:
        plan.problems.append(f"output_dir={config.output_dir}: needs up to {need_mb:.0f} MB, {free:.0f} MB are free")
    plan.notes.append(
        f"{len(recordings)} recordings, windows of {config.windows.n_times / config.preprocessing.sfreq:g} s: up to "
        f"{need_mb:.0f} MB on disk, up to {stored / 2e6 * CPU_S_PER_MILLION_VALUES + 5:.0f} CPU seconds"
    )
    return plan


def part_of(config: BuildUnlabelledConfig, recording: Recording) -> str | None:
    """The part that a recording's run belongs to, or None."""
    return next((part for part, runs in config.runs.items() if "*" in runs or recording.run in runs), None)


def chosen(config: BuildUnlabelledConfig, recordings: list[Recording]) -> list[Recording]:
    """The recordings that belong to a part."""
    return [recording for recording in recordings if part_of(config, recording)]


def main(config: BuildUnlabelledConfig) -> None:
    """Recording by recording: clean, cut into windows; then write the manifest, the indexes and the quality page."""
    if built(config):
        if config.only_subjects is None:
            quality.write(config.output_dir)
        return
    from ttd.engine.tracking import progress, talk  # imports torch, which finished shards do not need

    talk()
    study = open_study(config.study)
    known = study.recordings()
    everything, recordings = chosen(config, known), chosen(config, portion_of(known, config.only_subjects))
    sfreq, n_times = config.preprocessing.sfreq, config.windows.n_times
    per_part = collections.Counter(part_of(config, recording) for recording in everything)
    uses: list[Use] = []
    names: dict[str, list[str]] = collections.defaultdict(list)
    hashes: dict[str, str] = {}
    channels: dict[str, ChannelReport] = {}
    dropped: collections.Counter[str] = collections.Counter()
    with StudyWriter(config.output_dir, study, kind="window", samples_per_shard=config.samples_per_shard) as writer:
        for recording in progress(recordings, desc="recordings"):
            part = part_of(config, recording)
            assert part is not None
            name = recording_name(recording.subject, recording.session, recording.run)
            names[part].append(name)
            hashes[name] = recording.content_hash()
            limit = config.windows.max_windows and -(-config.windows.max_windows // per_part[part])
            for i, (onset_s, eeg, ch_names) in enumerate(windows(config, recording, limit, channels, dropped)):
                if limit and i == limit:
                    break
                meta = {"subject": recording.subject, "cap": cap_name(ch_names), "onsets": [onset_s]}
                meta |= {"sessions": [recording.session], "runs": [recording.run]}
                key = re.sub(r"[^A-Za-z0-9_=+-]", "-", f"{recording.name}_window-{i:05d}")
                writer.write(part, key, eeg[None], ch_names, meta)
                uses.append(Use(part, hashes[name], onset_s, onset_s + n_times / sfreq))
        manifest = SplitManifest(study=study.title, by="run", assignments=dict(names), recordings=hashes).counted(uses)
        manifest.write(writer.aside)
        cleaning = {**config.preprocessing.model_dump(), "interpolated": interpolated(channels)}
        facts = {"sfreq": sfreq, "tmin": 0.0, "n_times": n_times, "preprocessing": cleaning}
        report = {"channels": as_json(channels), "dropped": dict(dropped)}
        of = {recording.name: recording.subject for recording in everything}
        portion = None if config.only_subjects is None else {"recordings": of, "lacks": []}
        writer.finish(config, recordings, report, portion=portion, **facts, split_fingerprint=manifest.fingerprint)
        counts = writer.counts
    left_out = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
    written = ", ".join(f"{n} {part}" for part, n in counts.items())
    print(f"{config.output_dir}: windows {written}; left out: {left_out}")
    if config.only_subjects is None:
        print(f"quality: {quality.write(config.output_dir)}")


def windows(
    config: BuildUnlabelledConfig,
    recording: Recording,
    limit: int | None,
    channels: dict[str, ChannelReport],
    dropped: collections.Counter[str],
) -> Iterator[tuple[float, np.ndarray, list[str]]]:
    """(onset in seconds, window [C, T], its electrodes) of one recording; ``limit`` says how many will be used.

    What was found out about channels, and windows left out, are added to ``channels`` and ``dropped``.

    Raises:
        UserError: the recording is damaged, or holds windows of another length.
    """
    n_times, part, cleaning = config.windows.n_times, part_of(config, recording), config.preprocessing
    stride = config.windows.stride.get(part, n_times)  # type: ignore[call-overload]
    if isinstance(recording, EpochedRecording):
        if stride != n_times:
            raise UserError(f"windows.stride: {recording.path} holds windows, not a recording; leave {part} out of it")
        channels[recording.name] = ChannelReport()
        ch_names = stored.ch_names(recording, cleaning)
        numbers = set(of_part(config, recording)) if config.only_part else None
        for number, eeg in stored.windows(recording, cleaning, n_times, dropped=dropped):
            if numbers is None or number in numbers:
                yield number * n_times / cleaning.sfreq, eeg, ch_names
        return
    ranges = stretch(config, recording)
    raw = recording.raw()
    if limit:  # read and filter no more than will be used
        seconds = (ranges[0][0] if ranges else 0.0) + (n_times + (limit - 1) * stride) / cleaning.sfreq + 1.0
        raw.crop(0.0, min(seconds, raw.times[-1]))
    clean = preprocess(raw, cleaning, name=recording.path)
    channels[recording.name] = clean.channels
    for onset_s, eeg in epochs.windows(clean, n_times, stride, ranges):
        yield onset_s, eeg, clean.ch_names


def stretch(config: BuildUnlabelledConfig, recording: Recording) -> list[tuple[float, float]] | None:
    """The seconds of a recording that windows may come from; None for all of it."""
    if config.only_part is None:
        return None
    onsets = of_part(config, recording).values()
    return [(min(onsets), max(onsets))]


def of_part(config: BuildUnlabelledConfig, recording: Recording) -> dict[int, float]:
    """{number of the event: onset in seconds} of ``only_part``.

    Raises:
        UserError: the recording has no event of it.
    """
    found = {i: event.onset_s for i, event in enumerate(recording.events()) if event.part == config.only_part}
    if not found:
        raise UserError(f"{recording.path}: only_part={config.only_part}: no event of this part; choose other runs")
    return found


if __name__ == "__main__":
    run(main, BuildUnlabelledConfig, doc=__doc__, check=check)
