"""``shards/verify.py`` names every kind of damage, and every sharing between parts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from small_shards import write_part

from ttd.data.index import ShardIndex
from ttd.data.splits import SplitManifest
from ttd.data.verify import quarantine, verify
from ttd.data.writer import ShardWriter

SCRIPT = Path(__file__).parents[2] / "shards" / "verify.py"


@pytest.fixture
def root(tmp_path):
    write_part(tmp_path / "train", n=6)
    write_part(tmp_path / "test", n=2, part="test", first_image=100)
    SplitManifest(study="Simulated", by="given", assignments={"train": [], "test": []}).write(tmp_path)
    return tmp_path


def change(path, edit):
    content = bytearray(path.read_bytes())
    changed = edit(content)
    path.write_bytes(content if changed is None else changed)


def flip(offset):
    def edit(content):
        content[offset] ^= 1

    return edit


def messages(root):
    return [str(finding) for finding in verify(root).findings]


def test_what_we_wrote_is_well(root):
    report = verify(root)
    assert report.findings == []
    assert (report.n_samples, report.n_shards) == (8, 4)


# Per sample: header at 0, eeg.npy at 512 (368 bytes), header at 1024, meta.json at 1536 (under 512 bytes).
@pytest.mark.parametrize(
    ("edit", "words", "keys"),
    [
        (flip(700), "member eeg.npy at byte 512: damaged: the checksum differs", {"sub-0_img-0002"}),
        (flip(1600), "member meta.json at byte 1536: damaged", {"sub-0_img-0002"}),
        (flip(3), "at byte 0: the tar header is damaged", {"sub-0_img-0002"}),
        (flip(1024 + 150), "at byte 1024: the tar header is damaged", {"sub-0_img-0002"}),
        (lambda content: content[:1024], "truncated", {"sub-0_img-0002", "sub-1_img-0003"}),
        (lambda content: content[:600], "truncated: 88 of", {"sub-0_img-0002", "sub-1_img-0003"}),
        (lambda content: content[:2048], "truncated", {"sub-1_img-0003"}),
        (lambda content: b"", "truncated", {"sub-0_img-0002", "sub-1_img-0003"}),
        (lambda content: bytes(512) + content[512:], "the tar header is damaged", {"sub-0_img-0002"}),
        (lambda content: content[:-512], "was zeroed, or something stands after", set()),
        (lambda content: content + b"x", "something stands after the end mark", set()),
        (flip(1000), "the sha256 differs", set()),  # padding: nobody reads it
    ],
)
def test_damage_is_found_by_name(root, edit, words, keys):
    change(root / "train" / "000001.tar", edit)
    findings = verify(root).findings
    assert {finding.key for finding in findings} - {""} == keys
    assert any(words in str(finding) and "000001.tar" in str(finding) for finding in findings), findings


def test_swapped_and_missing_shards_are_found(root):
    a, b = root / "train" / "000000.tar", root / "train" / "000001.tar"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    assert {finding.key for finding in verify(root).findings} == {f"sub-{i % 2}_img-000{i}" for i in range(4)}
    b.unlink()
    assert any(
        "000001.tar: sample 'sub-0_img-0002': member eeg.npy at byte 512: the shard is missing" in line
        for line in messages(root)
    )


def test_quarantine_leaves_out_exactly_the_damaged_samples(root):
    change(root / "train" / "000001.tar", flip(700))
    assert quarantine(verify(root).findings) == []
    written = json.loads((root / "train" / "quarantine.json").read_text())["samples"]
    assert [entry["key"] for entry in written] == ["sub-0_img-0002"]
    assert "checksum" in written[0]["reason"]
    index = ShardIndex.read(root / "train")
    assert index.n_samples == 5
    assert index.quarantined == ["sub-0_img-0002"]
    again = verify(root)
    assert again.findings == []
    assert again.quarantined == 1


def test_images_that_two_parts_share_are_found(root):
    write_part(root / "test", n=2, part="test", first_image=4)
    assert any("share 2 images" in line for line in messages(root))


def test_raw_samples_that_two_parts_share_are_found(root):
    # The same recordings as the training part: subject, session and run agree, and so do the onsets.
    manifest = SplitManifest.read(root)
    same = {f"sub-{s}/1/{run}": f"hash of sub-{s}" for s in (0, 1) for run in ("train", "test")}
    manifest.model_copy(update={"recordings": same}).write(root)
    assert any("share raw samples with another part" in line for line in messages(root))


def test_several_parts_need_a_manifest(root):
    (root / "split.json").unlink()
    assert any("no split manifest" in line for line in messages(root))


def run_script(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_the_command_says_all_is_well_or_lists_what_is_not(root, tmp_path):
    done = run_script(f"shards={root}")
    assert done.returncode == 0, done.stderr
    assert "8 samples in 4 shards: all is well" in done.stdout
    change(root / "train" / "000001.tar", flip(700))
    done = run_script(f"shards={root}")
    assert done.returncode == 2
    assert "000001.tar: sample 'sub-0_img-0002'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / "train" / "quarantine.json").exists()
    assert run_script(f"shards={root}", "quarantine=true").returncode == 0
    assert "1 of them in quarantine" in run_script(f"shards={root}").stdout
    done = run_script(f"shards={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert "no index.json" in done.stderr


def test_findings_end_with_what_helps(root):
    change(root / "train" / "000000.tar", flip(700))
    done = subprocess.run([sys.executable, SCRIPT, f"shards={root}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "remedy: copy what is named again" in done.stderr
    assert done.stderr.rstrip().endswith("or quarantine=true leaves the named samples out from the next start on")
    (root / "split.json").unlink()
    command = [sys.executable, SCRIPT, f"shards={root}", "quarantine=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("delete the study's folder and build it again")


def test_windows_name_no_picture_and_their_parts_are_checked_all_the_same(tmp_path):
    for part, run in (("train", "1"), ("validation", "2")):
        with ShardWriter(tmp_path / part, kind="window") as writer:
            meta = {
                "study": "Simulated",
                "subject": "01",
                "cap": "one",
                "sessions": ["1"],
                "runs": [run],
                "onsets": [0.0],
            }
            writer.write(f"{part}-0", {"eeg.npy": np.ones((1, 1, 8), np.float16), "meta.json": meta})
            facts = {
                "study": "Simulated",
                "part": part,
                "sfreq": 8.0,
                "tmin": 0.0,
                "n_times": 8,
                "caps": {"one": ["Oz"]},
            }
            writer.finish({**facts, "statistics": {"one": {"mean": [0.0], "std": [1.0]}}})
    SplitManifest(study="Simulated", by="run", assignments={"train": ["01/1/1"], "validation": ["01/1/2"]}).write(
        tmp_path
    )
    report = verify(tmp_path)
    assert (report.findings, report.n_samples) == ([], 2)
