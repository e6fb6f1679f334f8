"""EEGLAB files: read as they were written, and refused without harm where they are damaged."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ttd.config import UserError
from ttd.eeg import eeglab, files
from ttd.eeg.studies.interface import read_signal_file

SPEC = importlib.util.spec_from_file_location(
    "fuzz_readers", Path(__file__).parents[2] / "benchmarks" / "fuzz_readers.py"
)
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("make", [fuzz.make_set, fuzz.make_set_and_fdt])
def test_samples_come_in_volts_whether_they_lie_in_the_file_or_beside_it(tmp_path, make):
    path = make(tmp_path)
    files.check_signal_file(path)
    raw = read_signal_file(path)
    assert (raw.ch_names, raw.info["sfreq"]) == (["Cz", "Pz", "Oz"], 100.0)
    np.testing.assert_allclose(raw.get_data(), fuzz.eeglab_content()[1] * 1e-6, rtol=1e-6)


def test_a_file_that_makes_the_reader_crash_is_refused_and_the_next_one_is_read(tmp_path, monkeypatch):
    good = fuzz.make_set(tmp_path)
    bad = tmp_path / "bad.set"
    content = good.read_bytes()
    for case in range(1000):
        bad.write_bytes(fuzz.damaged(content, np.random.default_rng(case)))
        if eeglab._ask(bad) is None:
            break
    else:
        pytest.fail("this SciPy survives a thousand damaged files; the process of its own may go")
    with pytest.raises(UserError, match=r"bad\.set: damaged: it made the reader of MATLAB files crash"):
        files.check_signal_file(bad)
    files.check_signal_file(good)


def test_a_companion_of_another_length_is_refused(tmp_path):
    path = fuzz.make_set_and_fdt(tmp_path)
    with (tmp_path / "a.fdt").open("ab") as file:
        file.write(bytes(12))
    with pytest.raises(UserError, match=r"a\.fdt: has 2,892 bytes, but a\.set tells of 3 channels × 240 samples"):
        files.check_signal_file(path)


def test_matlab_7_3_is_refused_with_the_way_to_save_it(tmp_path):
    (tmp_path / "a.set").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    with pytest.raises(UserError, match="pop_saveset"):
        files.check_signal_file(tmp_path / "a.set")


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused_within_bounded_memory(tmp_path):
    content, _ = fuzz.eeglab_content()
    zeros = np.zeros((3, 60_000_000), np.float32)  # 720 MB, packed into less than one
    scipy.io.savemat(tmp_path / "a.set", {"EEG": {**content, "data": zeros}}, appendmat=False, do_compression=True)
    del zeros
    assert (tmp_path / "a.set").stat().st_size < 1e6
    program = (
        "import mne, sys; from pathlib import Path; from ttd.eeg import eeglab\n"
        "now = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "eeglab.SPARE_BYTES = now + (300 << 20)\n"
        "print(eeglab._describe(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, tmp_path / "a.set"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.startswith("{'problem'"), ended.stdout
