"""Build shards of epochs paired with the pictures that were seen.

    python shards/build_paired.py --config configs/shards/simulated_paired.yaml

One sample is one picture seen by one subject within one part of the split, with all its repetitions. The folder appears
whole or not at all; running the same command again finds it and stops. ``only_subjects='["01"]'`` builds a portion of the study
for shards/merge.py.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any

from ttd.config import Plan, UserError, run
from ttd.data.checks import picture_problems, recording_problems
from ttd.data.ingest import CPU_S_PER_MILLION_VALUES, StudyWriter, find_built, free_mb, portion_of
from ttd.data.pairing import Pictures, Waiting, pieces
from ttd.data.splits import SplitManifest, Use, recording_name
from ttd.eeg import epochs
from ttd.eeg.channels import ChannelReport, as_json, interpolated
from ttd.eeg.studies import Event, Recording, Study, open_study
from ttd.experiments.shards import BuildPairedConfig
from ttd.pages import quality


def built(config: BuildPairedConfig) -> bool:
    """Whether these shards stand there already; without the study's folder the configuration alone decides."""
    recordings = open_study(config.study).recordings() if config.study.root.is_dir() else None
    inputs = recordings and portion_of(recordings, config.only_subjects)
    return find_built(config.output_dir, config, inputs, kind="paired") is not None


def check(config: BuildPairedConfig) -> Plan:
    """Look at every file, find out which presentations exist, and say what they will take."""
    plan = Plan()
    if built(config):
        plan.notes.append(f"{config.output_dir}: already built with these settings, nothing to do")
        return plan
    study = open_study(config.study)
    recordings, shown = portion_of(study.recordings(), config.only_subjects), []
    plan.problems += recording_problems(recordings, config.preprocessing)
    for recording in recordings:
        try:
            shown.append((recording, recording.events()))
        except UserError as error:
            plan.problems.append(str(error))
    plan.problems = list(dict.fromkeys(plan.problems))  # a damaged file has no events either
    presentations = [(recording, event) for recording, events in shown for event in events]
    if not plan.problems:
        whole = config.only_subjects is None
        plan.problems += config.parts.problems(presentations, whole=whole) if presentations else []
        if not whole:
            lacking = config.parts.lacking(presentations)
            plan.notes += [f"{line} in this portion; shards/merge.py looks at all of them" for line in lacking]
        elif not any(event.image_path for _, event in presentations):
            plan.problems.append(f"{config.study.root}: its events name no picture; paired shards need pictures")
    if not plan.problems:
        plan.problems += picture_problems(shown, config.parts, config.epochs)
    plan.problems += absent_pictures(config, study, shown)
    plan.notes += [f"sub-{subject}: left out, as the study says: {why}" for subject, why in study.excluded().items()]
    if plan.problems:
        plan.problems += plan.notes
        return plan
    n_chans = len(config.preprocessing.channels or recordings[0].ch_names())
    n_times = len(epochs.offsets(config.epochs, config.preprocessing.sfreq))
    parts: collections.Counter[str] = collections.Counter()
    for subject, of_subject in itertools.groupby(shown, key=lambda item: item[0].subject):
        kept, line = told(config, subject, list(of_subject))
        parts += kept
        plan.notes.append(line)
    need_mb, free = parts.total() * n_chans * n_times * 2 / 1e6, free_mb(config.output_dir)
    if need_mb > free:
        plan.problems.append(f"output_dir={config.output_dir}: needs {need_mb:.0f} MB, {free:.0f} MB are free")
    values = sum(path.stat().st_size for recording in recordings for path in recording.signal_files) / 2
    plan.notes.append(
        f"{len(recordings)} recordings, {parts.total()} presentations "
        f"({', '.join(f'{n} {part}' for part, n in parts.items())}), {n_chans} channels × {n_times} samples: "
        f"{need_mb:.0f} MB on disk, about {values / 1e6 * CPU_S_PER_MILLION_VALUES + 5:.0f} CPU seconds"
    )
    return plan


def absent_pictures(config: BuildPairedConfig, study: Study, shown: list[tuple[Recording, list[Event]]]) -> list[str]:
    """Why the pictures that the events name cannot be read, and how to get them."""
    folder = getattr(config.study, "images", None)
    if folder is not None and not folder.is_dir():
        return [f"study.images={folder}: no such folder; {study.pictures}"]
    paths = {event.image_path for _, events in shown for event in events if event.image_path}
    absent = sorted(path for path in paths if not path.is_file())
    found = [f"{path}: a picture named by the events is not there; {study.pictures}" for path in absent[:3]]
    return found + ([f"{len(absent) - 3} more of {len(paths)} pictures are not there"] if len(absent) > 3 else [])


def told(
    config: BuildPairedConfig, subject: str, shown: list[tuple[Recording, list[Event]]]
) -> tuple[collections.Counter[str], str]:
    """Presentations of one subject by part, and the same with what is left out and why in one line."""
    kept: collections.Counter[str] = collections.Counter()
    left_out: collections.Counter[str] = collections.Counter()
    for recording, events in shown:
        left_out += recording.left_out()
        for part, why in config.parts.assign(recording, events, config.epochs):
            (left_out if why else kept)[why or part] += 1
    words = [f"{n} {part}" for part, n in kept.items()] + [f"left out {n} ({why})" for why, n in left_out.items()]
    remarks = [remark for remark in dict.fromkeys(recording.remark() for recording, _ in shown) if remark]
    return kept, f"sub-{subject}: " + "; ".join([", ".join(words), *remarks])


def main(config: BuildPairedConfig) -> None:
    """Recording by recording: clean, cut, group; then write the manifest, the indexes and the quality page."""
    if built(config):
        if config.only_subjects is None:
            quality.write(config.output_dir)
        return
    from ttd.engine.tracking import progress, talk  # imports torch, which finished shards do not need

    talk()
    study, sfreq, tmin, tmax = (
        open_study(config.study),
        config.preprocessing.sfreq,
        config.epochs.tmin,
        config.epochs.tmax,
    )
    everything, pictures = study.recordings(), Pictures()
    recordings = portion_of(everything, config.only_subjects)
    dropped: collections.Counter[str] = collections.Counter()
    channels: dict[str, ChannelReport] = {}
    uses: list[Use] = []
    assigned: dict[str, set[str]] = collections.defaultdict(set)
    hashes: dict[str, str] = {}
    grid = epochs.offsets(config.epochs, sfreq)

    with (
        StudyWriter(config.output_dir, study, kind="paired", samples_per_shard=config.samples_per_shard) as writer,
        Waiting(writer.aside, n_times=len(grid)) as waiting,
    ):
        last: Recording = recordings[0]
        for recording in progress(recordings, desc="recordings"):
            if recording.subject != last.subject:
                waiting.write(writer, pictures)
            last = recording
            name = recording_name(recording.subject, recording.session, recording.run)
            hashes[name] = recording.content_hash()
            dropped.update(recording.left_out())
            assignment = config.parts.assign(recording, recording.events(), config.epochs)
            for piece in pieces(recording, config.preprocessing, config.epochs, dropped, channels):
                event, (part, why) = piece.event, assignment[piece.number]
                if why:
                    dropped[why] += 1
                    continue
                start, stop = event.onset_s + tmin, event.onset_s + tmax
                uses.append(Use(part, hashes[name], start, stop, event.concept, pictures.read(event)))
                assigned[part].add(config.parts.value(recording, event))
                waiting.add(part, piece)
        waiting.write(writer, pictures)

        assignments = {part: sorted(values) for part, values in assigned.items()}
        manifest = SplitManifest(study=study.title, by=config.parts.by, assignments=assignments, recordings=hashes)
        manifest = manifest.counted(uses)
        manifest.write(writer.aside)
        writer.finish(
            config,
            recordings,
            {
                "dropped": dict(dropped),
                "presentations": len(uses) + sum(dropped.values()),
                "channels": as_json(channels),
                "excluded": study.excluded(),
            },
            portion=portion_report(config, everything) if config.only_subjects else None,
            sfreq=sfreq,
            tmin=float(grid[0] / sfreq),
            n_times=len(grid),
            normalise=config.normalise,
            preprocessing={
                **config.preprocessing.model_dump(),
                "epochs": config.epochs.model_dump(),
                "interpolated": interpolated(channels),
            },
            split_fingerprint=manifest.fingerprint,
        )
    written = ", ".join(f"{n} {part}" for part, n in writer.counts.items())
    left_out = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
    print(f"{config.output_dir}: samples {written}; repetitions {len(uses)}; left out: {left_out}")
    if config.only_subjects is None:
        print(f"quality: {quality.write(config.output_dir)}")


def portion_report(config: BuildPairedConfig, everything: list[Recording]) -> dict[str, Any]:
    """What ``shards/merge.py`` needs to know of a portion: the recordings of the whole study, and what this portion lacks."""
    mine = portion_of(everything, config.only_subjects)
    lacking = config.parts.lacking((recording, event) for recording in mine for event in recording.events())
    return {"recordings": {recording.name: recording.subject for recording in everything}, "lacks": list(lacking)}


if __name__ == "__main__":
    run(main, BuildPairedConfig, doc=__doc__, check=check)
