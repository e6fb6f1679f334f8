"""Build shards of epochs paired with the pictures that were seen.

    python shards/build_paired.py --config configs/shards/simulated_paired.yaml

One sample is one picture seen by one subject within one part of the split, with all its repetitions. The folder appears
whole or not at all; running the same command again finds it and stops.
"""

from __future__ import annotations

import collections

from ttd.config import Plan, UserError, run
from ttd.data.ingest import CPU_S_PER_MILLION_VALUES, StudyWriter, find_built, free_mb
from ttd.data.pairing import Pictures, Piece, Presentation, pieces, write_samples
from ttd.data.splits import SplitManifest, Use, recording_name
from ttd.eeg import epochs
from ttd.eeg.studies import Recording, open_study
from ttd.experiments.shards import BuildPairedConfig


def built(config: BuildPairedConfig) -> bool:
    """Whether these shards stand there already; without the study's folder the configuration alone decides."""
    recordings = open_study(config.study).recordings() if config.study.root.is_dir() else None
    return find_built(config.output_dir, config, recordings) is not None


def check(config: BuildPairedConfig) -> Plan:
    """Look at every file, find out which presentations exist, and say what they will take."""
    plan = Plan()
    if built(config):
        plan.notes.append(f"{config.output_dir}: already built with these settings, nothing to do")
        return plan
    recordings = open_study(config.study).recordings()
    presentations: list[Presentation] = []
    for recording in recordings:
        try:
            recording.check()
            presentations += [(recording, event) for event in recording.events()]
        except UserError as error:
            plan.problems.append(str(error))
    if plan.problems:
        return plan
    if not presentations:
        plan.problems.append(f"{config.study.root}: its events name no picture; paired shards need pictures")
        return plan
    absent = {event.image_path for _, event in presentations if event.image_path and not event.image_path.is_file()}
    for path in sorted(absent)[:3]:
        plan.problems.append(f"{path}: a picture named by the events is not there; put the stimuli there")
    plan.problems += config.parts.problems(presentations)
    if plan.problems:
        return plan
    n_chans = len(recordings[0].raw().ch_names)
    n_times = len(epochs.offsets(config.epochs, config.preprocessing.sfreq))
    need_mb, free = len(presentations) * n_chans * n_times * 2 / 1e6, free_mb(config.output_dir)
    if need_mb > free:
        plan.problems.append(f"output_dir={config.output_dir}: needs {need_mb:.0f} MB, {free:.0f} MB are free")
    values = sum(path.stat().st_size for recording in recordings for path in recording.signal_files) / 2
    parts = collections.Counter(config.parts.part(*presentation) for presentation in presentations)
    plan.notes.append(
        f"{len(recordings)} recordings, {len(presentations)} presentations "
        f"({', '.join(f'{n} {part}' for part, n in parts.items())}), {n_chans} channels × {n_times} samples: "
        f"{need_mb:.0f} MB on disk, about {values / 1e6 * CPU_S_PER_MILLION_VALUES + 5:.0f} CPU seconds"
    )
    return plan


def main(config: BuildPairedConfig) -> None:
    """Recording by recording: clean, cut, group; then write the manifest and the indexes."""
    if built(config):
        return
    from ttd.engine.tracking import progress, talk  # imports torch, which finished shards do not need

    talk()
    study, sfreq, tmin, tmax = (
        open_study(config.study),
        config.preprocessing.sfreq,
        config.epochs.tmin,
        config.epochs.tmax,
    )
    recordings, pictures = study.recordings(), Pictures()
    dropped: collections.Counter[str] = collections.Counter()
    uses: list[Use] = []
    assigned: dict[str, set[str]] = collections.defaultdict(set)
    hashes: dict[str, str] = {}
    waiting: dict[str, list[Piece]] = collections.defaultdict(list)  # of one subject, by part

    def write_waiting() -> None:
        for part in sorted(waiting):
            write_samples(writer, part, waiting[part], pictures)
        waiting.clear()

    with StudyWriter(config.output_dir, study, kind="paired", samples_per_shard=config.samples_per_shard) as writer:
        last: Recording = recordings[0]
        for recording in progress(recordings, desc="recordings"):
            if recording.subject != last.subject:
                write_waiting()
            last = recording
            name = recording_name(recording.subject, recording.session, recording.run)
            hashes[name] = recording.content_hash()
            for piece in pieces(recording, config.preprocessing, config.epochs, dropped):
                event, part = piece.event, config.parts.part(recording, piece.event)
                start, stop = event.onset_s + tmin, event.onset_s + tmax
                uses.append(Use(part, hashes[name], start, stop, event.concept, pictures.read(event)))
                assigned[part].add(config.parts.value(recording, event))
                waiting[part].append(piece)
        write_waiting()

        assignments = {part: sorted(values) for part, values in assigned.items()}
        manifest = SplitManifest(study=study.title, by=config.parts.by, assignments=assignments, recordings=hashes)
        manifest = manifest.counted(uses)
        manifest.write(writer.aside)
        grid = epochs.offsets(config.epochs, sfreq)
        writer.finish(
            config,
            recordings,
            {"dropped": dict(dropped), "presentations": len(uses) + sum(dropped.values())},
            sfreq=sfreq,
            tmin=float(grid[0] / sfreq),
            n_times=len(grid),
            normalise=config.normalise,
            preprocessing={**config.preprocessing.model_dump(), "epochs": config.epochs.model_dump()},
            split_fingerprint=manifest.fingerprint,
        )
    told = ", ".join(f"{n} {part}" for part, n in writer.counts.items())
    left_out = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none"
    print(f"{config.output_dir}: samples {told}; repetitions {len(uses)}; left out: {left_out}")


if __name__ == "__main__":
    run(main, BuildPairedConfig, doc=__doc__, check=check)
