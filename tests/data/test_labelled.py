"""Labelled epochs for probes: halves with a gap, rejection without labels, category averages."""

import numpy as np
import pytest

from ttd.config import UserError
from ttd.data.labelled import EvokedAverages, ShardEpochs, load, locked, missing
from ttd.data.writer import ShardWriter

CH_NAMES = ["Fz", "Cz", "Pz"]


@pytest.fixture
def windows(tmp_path):
    """Runs 01 and 02 of 10 s, windows of 1 s end to end at 20 Hz; window 3 of run 02 holds 300 µV. Run 03 trains."""
    for part, runs in (("train", ["03"]), ("test", ["01", "02"])):
        with ShardWriter(tmp_path / part, kind="window", samples_per_shard=8) as writer:
            for run in runs:
                for i in range(10):
                    eeg = np.full((1, 3, 20), float(i), np.float16)
                    eeg[0, 1, 4] = 300 if (run, i) == ("02", 3) else i
                    meta = {"study": "S", "subject": "001", "cap": "three", "sessions": [""], "runs": [run]}
                    meta |= {"onsets": [float(i)], "licence": "CC0"}
                    writer.write(f"run-{run}_window-{i}", {"eeg.npy": eeg, "meta.json": meta})
            facts = {"study": "S", "part": part, "sfreq": 20.0, "tmin": 0.0, "n_times": 20, "caps": {"three": CH_NAMES}}
            writer.finish({**facts, "statistics": {"three": {"mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 8.0]}}})
    return tmp_path


EYES = {"label_by": "run", "classes": {"01": "open", "02": "closed"}}


def test_only_the_named_runs_are_taken_with_the_scale_of_the_training_part(windows):
    data = load(ShardEpochs(shards=windows, **EYES))
    assert (len(data.labels), set(data.groups)) == (20, {"01", "02"})
    assert data.eeg.shape == (20, 3, 20)
    assert data.scale is not None
    assert data.scale[1].tolist() == [2.0, 4.0, 8.0]


def test_halves_of_each_recording_keep_their_distance(windows):
    data = load(ShardEpochs(shards=windows, **EYES, leave_out="half", gap_s=2))
    number = {half: sorted({int(key[-1]) for key in data.keys[data.groups == half]}) for half in set(data.groups)}
    assert number == {"first half": [0, 1, 2, 3], "second half": [6, 7, 8, 9]}  # 4 and 5 lie within 4 to 6 s
    assert data.dropped == {"within 2 s round the middle": 4}


def test_rejection_counts_what_it_drops_and_keeps_the_other_keys(windows):
    everything, kept = (load(ShardEpochs(shards=windows, **EYES, reject_uv=uv)) for uv in (None, 75))
    assert kept.dropped == {"above 75 µV": 1}
    assert set(everything.keys) - set(kept.keys) == {"run-02_window-3"}


def test_the_locked_part_is_named_for_the_ledger(windows):
    configs = {"a": ShardEpochs(shards=windows, **EYES), "b": ShardEpochs(shards=windows, **EYES, gap_s=1)}
    assert locked(configs) == [windows]


def test_a_single_class_is_refused_by_the_name_of_its_source(windows):
    with pytest.raises(UserError, match=f"{windows}: needs at least two classes, holds \\['open'\\]"):
        load(ShardEpochs(shards=windows, label_by="run", classes={"01": "open"}))


def evoked(tmp_path, **changes):
    rng = np.random.default_rng(0)
    arrays = {"evoked_uV": 3 + rng.normal(size=(4, 5, 3, 275)), "time_s": -0.1 + np.arange(275) / 250}
    arrays |= {"channels": np.array(CH_NAMES), "categories": np.array(["a", "b", "c", "d"])} | changes
    np.savez(tmp_path / "evoked.npz", **arrays)
    return tmp_path / "evoked.npz", arrays["evoked_uV"]


def test_averages_are_grouped_by_subject_and_keep_their_category(tmp_path):
    file, values = evoked(tmp_path)
    data = load(EvokedAverages(file=file, sfreq=250, tmin=0.0, tmax=0.6))
    assert (data.eeg.shape, data.tmin) == ((20, 3, 150), pytest.approx(0))
    row = np.flatnonzero((data.groups == "subject-03") & (data.labels == "c"))[0]
    assert np.allclose(data.eeg[row], values[2, 3, :, 25:175], atol=1e-5)


def test_subject_normalisation_takes_away_what_a_subjects_categories_share(tmp_path):
    file, values = evoked(tmp_path)
    told = {"sfreq": 250, "tmin": 0.0, "tmax": 0.6, "normalise": "subject"}
    before = load(EvokedAverages(file=file, **told)).eeg
    after = load(EvokedAverages(file=evoked(tmp_path, evoked_uV=7 + 2 * values)[0], **told)).eeg
    assert np.allclose(before, after, atol=1e-4)
    assert np.allclose(before.reshape(5, 4, 3, 150).mean(1), 0, atol=1e-5)


def test_the_normalisation_of_an_epoch_depends_on_no_other_epoch(tmp_path):
    file, values = evoked(tmp_path)
    told = {"sfreq": 250, "normalise": "epoch"}
    before = load(EvokedAverages(file=file, **told)).eeg
    values[1] *= 5  # category b of every subject
    after = load(EvokedAverages(file=evoked(tmp_path, evoked_uV=values)[0], **told)).eeg
    assert np.allclose(before, after, atol=1e-4)


def test_a_file_without_categories_or_beyond_its_time_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", evoked_uV=np.zeros((1, 2, 3, 4)))
    with pytest.raises(UserError, match="not an npz of category averages"):
        load(EvokedAverages(file=tmp_path / "other.npz"))
    with pytest.raises(UserError, match="holds -0.1 to 0.996 s, not 0 to 2"):
        load(EvokedAverages(file=evoked(tmp_path)[0], tmax=2.0))
    assert missing(EvokedAverages(file=tmp_path / "absent.npz")) is not None
