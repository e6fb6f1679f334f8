"""THINGS-EEG1 as it lies on disk, with simulated signals: float32 BrainVision written here, events real or made up.

Times are small: pictures follow each other in a few samples, sequences in a few more. Nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ttd.eeg.montage import THINGS_EEG1_63

LAYOUTS = {
    21: "onset duration eventnumber blocksequencenumber isteststim object objectnumber presentationnumber sequencenumber "
    "stim stimnumber teststimnumber withinsequencenumber istarget stimname response rt correct time_stimon time_stimoff "
    "stimdur",
    # Subject 1: other order, neither isteststim nor teststimnumber.
    19: "onset duration stim stimname eventnumber sequencenumber blocksequencenumber presentationnumber object "
    "objectnumber stimnumber withinsequencenumber time_stimon time_stimoff stimdur istarget response rt correct",
    # Subject 6, aborted.
    14: "onset duration eventnumber blocksequencenumber isteststim object objectnumber presentationnumber sequencenumber "
    "stim stimnumber teststimnumber withinsequencenumber istarget",
}
"""The columns of the three layouts."""


def real_table(folder: Path, subject: str) -> pd.DataFrame:
    """The events of a subject as published."""
    path = folder / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-rsvp_events.tsv"
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def made_table(n_concepts: int = 4, n_images: int = 3, n_validation: int = 2, repetitions: int = 2) -> pd.DataFrame:
    """Events in the layout of 21 columns: each round shows every concept once, then pictures 13 in validation; the
    second presentation of each part is a target."""
    rows = []
    concepts = [f"thing{i}" for i in range(n_concepts)]
    main = [(concept, number, number - 1) for number in range(1, n_images + 1) for concept in concepts]
    last = [(concept, 13, n_images + r) for r in range(repetitions) for concept in concepts[:n_validation]]
    for i, (concept, number, sequence) in enumerate(main + last):
        test = number == 13
        name = f"{concept}_{number:02d}s.jpg"
        row = dict.fromkeys(LAYOUTS[21].split(), "0") | {"duration": "50", "eventnumber": str(i), "stimname": name}
        row |= {"object": "-1" if test else concept, "objectnumber": "-1" if test else concept[5:]}
        row |= {"isteststim": str(int(test)), "sequencenumber": str(sequence), "stim": f"stimuli\\{concept}\\{name}"}
        rows.append(row | {"istarget": str(int(i in (1, len(main) + 1)))})
    return pd.DataFrame(rows)


def squeeze(table: pd.DataFrame, step: int = 10, pause: int = 300, first: int = 300) -> pd.DataFrame:
    """The table with new onsets: ``step`` samples from picture to picture, ``pause`` more from sequence to sequence."""
    new_sequence = (table["sequencenumber"] != table["sequencenumber"].shift()).to_numpy()
    onset = first + step * np.arange(len(table)) + pause * (np.cumsum(new_sequence) - 1)
    return table.assign(onset=onset.astype(str))


def write_subject(
    root: Path,
    subject: str,
    table: pd.DataFrame,
    *,
    ch_names: Sequence[str] = THINGS_EEG1_63,
    layout: int | None = None,
) -> Path:
    """One subject: recording, markers, events, sidecar; returns the header. Noise of 10 µV on every channel."""
    folder = root / f"sub-{subject}" / "eeg"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"sub-{subject}_task-rsvp"
    columns = LAYOUTS[layout].split() if layout else list(table.columns)
    table[columns].to_csv(f"{stem}_events.tsv", sep="\t", index=False)
    onsets = table["onset"].astype(float).to_numpy()
    onsets = onsets.astype(int) if onsets[-1] > 250 else np.rint(onsets * 1000).astype(int)
    markers = [line for onset in onsets for line in (f"E  1,{onset + 1}", f"E  2,{onset + 51}")]
    lines = [f"Mk{i}=Stimulus,{text},1,0" for i, text in enumerate(markers, start=2)]
    name = f"{stem.name}_eeg"
    head = "Brain Vision Data Exchange {} File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\nDataFile={}.eeg\n"
    first = "\n[Marker Infos]\nMk1=New Segment,,1,1,0,20200101120000000000\n"
    (folder / f"{name}.vmrk").write_text(head.format("Marker", name) + first + "\n".join(lines) + "\n")
    infos = [
        f"MarkerFile={name}.vmrk",
        "DataFormat=BINARY",
        "DataOrientation=MULTIPLEXED",
        f"NumberOfChannels={len(ch_names)}",
        "SamplingInterval=1000",
        "\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]",
        *(f"Ch{i}={channel},,1,µV" for i, channel in enumerate(ch_names, start=1)),
    ]
    (folder / f"{name}.vhdr").write_text(head.format("Header", name) + "\n".join(infos) + "\n", encoding="utf-8")
    rng = np.random.default_rng(int(subject))
    samples = rng.standard_normal((int(onsets[-1]) + 400, len(ch_names)), dtype=np.float32) * 10  # [T, C] in µV
    samples.tofile(folder / f"{name}.eeg")
    return folder / f"{name}.vhdr"


def write_participants(root: Path, excluded: dict[str, str], subjects: Iterable[str]) -> None:
    """participants.tsv with the columns of the study."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"sub-{s}\t20\tF\t{int(s in excluded)}\t{excluded.get(s, 'n/a')}" for s in subjects]
    head = "participant_id\tage\tgender\texclude\tnote_IZ"
    (root / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")


def write_pictures(folder: Path, table: pd.DataFrame) -> Path:
    """A picture of 4 × 4 pixels for every file name, all different: <folder>/<concept>/<name>."""
    for i, name in enumerate(sorted(set(table["stim"].str.rpartition("\\")[2]))):
        path = folder / name.rpartition("_")[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([i % 256, i // 256 % 256, 128], np.uint8)
        Image.fromarray(np.broadcast_to(colour, (4, 4, 3)).copy()).save(path, "PNG")
    return folder
