"""What a build would stumble over is said beforehand, with its files and the remedy."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest
from PIL import Image

from ttd.config import UserError
from ttd.data import checks
from ttd.data.checks import picture_problems, recording_problems
from ttd.data.ingest import nothing_to_train_on, only_build
from ttd.data.pairing import PartsConfig
from ttd.eeg.epochs import EpochsConfig
from ttd.eeg.preprocessing import PreprocessingConfig
from ttd.eeg.studies import open_study
from ttd.eeg.studies.recordings import RecordingsConfig
from ttd.eeg.studies.table import TableConfig

TABLE = """recording,onset,image,concept,part
sub-01_run-1.fif,1,a.png,ant,train
sub-01_run-1.fif,3,b.png,bee,train
sub-01_run-1.fif,5,c.png,cow,test
"""


def write_fif(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(0, 1e-5, (len(names), 2000))
    mne.io.RawArray(data, mne.create_info(names, 200.0, "eeg"), verbose="ERROR").save(path, verbose="ERROR")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_fif(tmp_path / "study/sub-01_run-1.fif", ["Fz", "Cz"])
    (tmp_path / "study/pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"study/pictures/{name}.png")
    return tmp_path / "study"


def problems_of(root: Path, table: str = TABLE, **parts) -> list[str]:
    (root / "events.csv").write_text(table)
    recordings = open_study(TableConfig(root=root, title="Mine2026")).recordings()
    shown = [(recording, recording.events()) for recording in recordings]
    return picture_problems(shown, PartsConfig(**parts), EpochsConfig())


def test_a_good_study_has_no_problems(root):
    assert problems_of(root) == []


def test_one_picture_in_two_parts_is_named_with_both_parts_and_the_remedy(root):
    (found,) = problems_of(root, TABLE + "sub-01_run-1.fif,7,a.png,ant,test\n")
    assert "one picture in several parts" in found
    assert f"{root}/pictures/a.png (concept 'ant') in train" in found
    assert f"{root}/pictures/a.png (concept 'ant') in test" in found
    assert "column part, or study.validation" in found


def test_one_content_under_two_names_in_two_parts_is_named_unless_the_split_allows_it(root):
    shutil.copy(root / "pictures/a.png", root / "pictures/c.png")
    (found,) = problems_of(root)
    assert "the same picture under several names" in found
    assert "a.png (concept 'ant') in train" in found
    assert "c.png (concept 'cow') in test" in found
    (found,) = problems_of(root, by="concept", test=("cow",))
    assert "put their concepts into the same list" in found
    assert problems_of(root, by="run", test=("1",)) == []


def test_pictures_that_cannot_be_decoded_are_all_named_by_path(root):
    for name in "ab":
        path = root / f"pictures/{name}.png"
        path.write_bytes(path.read_bytes()[:1500])
    found = problems_of(root)
    assert [line.split(": ")[0] for line in found] == [str(root / "pictures/a.png"), str(root / "pictures/b.png")]
    assert all("this picture cannot be used" in line for line in found)


def test_of_very_many_pictures_only_the_first_are_decoded_beforehand(root, monkeypatch):
    monkeypatch.setattr(checks, "DECODED", 1)
    path = root / "pictures/b.png"
    path.write_bytes(path.read_bytes()[:1500])
    assert problems_of(root) == []


def test_all_files_that_are_damaged_or_hold_no_electrode_are_named_at_once(tmp_path):
    write_fif(tmp_path / "S001R01.fif", ["Fz", "Cz"])
    write_fif(tmp_path / "S002R01.fif", ["X1", "X2"])
    write_fif(tmp_path / "S003R01.fif", ["Y1", "Y2"])
    (tmp_path / "S004R01.fif").write_bytes(bytes(5000))
    recordings = open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()
    found = recording_problems(recordings, PreprocessingConfig(sfreq=100))
    assert [line.split(": ")[0] for line in found] == [str(tmp_path / f"S00{i}R01.fif") for i in (2, 3, 4)]
    assert "no channel is an electrode of the 10-05 system (found X1, X2)" in found[0]


def test_two_recordings_of_one_name_are_named_by_their_files(tmp_path):
    for i, folder in enumerate(("x", "y")):
        write_fif(tmp_path / folder / "S001R01.fif", ["Fz", "Cz", "Pz"][: i + 2])
    recordings = open_study(RecordingsConfig(root=tmp_path, title="X")).recordings()
    (found,) = recording_problems(recordings, PreprocessingConfig(sfreq=100))
    assert f"{tmp_path}/x/S001R01.fif and {tmp_path}/y/S001R01.fif: all are recording 'sub-001_run-01'" in found
    assert "adapt study.names" in found


def test_an_empty_training_part_is_explained_by_counts_and_the_unit_of_the_onsets(root):
    (root / "events.csv").write_text(TABLE)
    study = open_study(TableConfig(root=root, title="Mine2026", onset_unit="ms"))
    said = nothing_to_train_on(study, "paired", {"outside the recording": 2, "above 75 µV": 1})
    assert "left out: 2 outside the recording, 1 above 75 µV; compare the onsets" in said
    assert "study.onset_unit=ms" in said
    assert "windows.n_times" in nothing_to_train_on(study, "window", {})


def test_a_second_build_into_one_folder_is_refused_until_the_first_ends(tmp_path):
    root = tmp_path / "shards"
    with only_build(root):
        with pytest.raises(UserError, match="another process is building there"), only_build(root):
            pass
        with only_build(tmp_path / "others"):
            pass
    with only_build(root):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_was_killed_holds_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ttd.data.ingest import only_build\n"
        "with only_build(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "shards"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is building"), only_build(tmp_path / "shards"):
            pass
        other.send_signal(signal.SIGKILL)
    with only_build(tmp_path / "shards"):
        pass


def test_shards_that_another_process_finished_meanwhile_are_not_overwritten(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/build.json").write_text("{}")
    with pytest.raises(UserError, match="built by another process just now"), only_build(tmp_path / "shards"):
        pass
