"""Shards that a job copied to its node's own disk are read there, and believed no more than others."""

import numpy as np
import pytest
from small_shards import write_part

from ttd.data.index import ShardIndex


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A part, and its copy below TTD_STAGED; gives both folders."""
    folder, copies = tmp_path / "shared/train", tmp_path / "near"
    write_part(folder, n=4)
    copy = copies.joinpath(*folder.resolve().parts[1:])
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("TTD_STAGED", str(copies))
    return folder, copy


def eeg(folder):
    return np.array(ShardIndex.read(folder).read_member(0, "eeg.npy"))


def test_the_copy_is_read_where_there_is_one(staged):
    folder, _ = staged
    before = eeg(folder)
    for tar in folder.glob("*.tar"):
        tar.write_bytes(b"")
    np.testing.assert_array_equal(eeg(folder), before)


def test_what_was_not_copied_is_read_from_the_shared_folder(staged):
    folder, copy = staged
    before = eeg(folder)
    for tar in copy.glob("*.tar"):
        tar.unlink()
    np.testing.assert_array_equal(eeg(folder), before)


def test_a_copy_that_differs_is_found_and_the_shared_file_read_instead(staged, caplog):
    folder, copy = staged
    before = eeg(folder)
    for tar in copy.glob("*.tar"):
        content = bytearray(tar.read_bytes())
        content[600:4000:7] = bytes(len(content[600:4000:7]))
        tar.write_bytes(content)
    np.testing.assert_array_equal(eeg(folder), before)
    assert "differs from the index; reading" in caplog.text


def test_the_index_is_always_the_shared_one(staged):
    folder, copy = staged
    (copy / "index.json").write_text("{}")
    assert len(ShardIndex.read(folder)) == 4
