"""Foreign pickles: what is data reads as its own library reads it, everything else is refused and nothing runs."""

import contextlib
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from ttd.untrusted import Inert, RefusedError, read_npy, read_torch


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def dictionary(seed: int = 0) -> dict:
    """The content of a preprocessed THINGS-EEG2 file, in small."""
    rng = np.random.default_rng(seed)
    return {
        "preprocessed_eeg_data": rng.standard_normal((6, 4, 17, 100)),
        "ch_names": [f"E{i}" for i in range(17)],
        "times": np.linspace(-0.2, 0.79, 100),
    }


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype
            assert np.array_equal(found[key], value)
        else:
            assert found[key] == value


def test_a_dictionary_saved_with_numpy_is_read(tmp_path):
    np.save(tmp_path / "a.npy", dictionary(), allow_pickle=True)
    assert_same(read_npy(tmp_path / "a.npy"), dictionary())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("spelling", [b"numpy.core", b"numpy._core"])
def test_a_pickle_named_npy_is_read_in_either_spelling_of_numpy(tmp_path, protocol, spelling):
    content = {**dictionary(), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "n": np.float64(0.5), "big": ">f4"}
    content["swapped"] = np.arange(5, dtype=">f4")
    written = pickle.dumps(content, protocol=protocol)
    if spelling == b"numpy.core" and protocol < 4:  # names with their length would need it changed
        written = written.replace(b"numpy._core", spelling)
    elif spelling == b"numpy.core":
        for word in (b"multiarray", b"numeric"):
            new, old = b"numpy._core." + word, b"numpy.core." + word
            written = written.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
    assert (b"numpy._core" in written) == (spelling == b"numpy._core")
    (tmp_path / "a.npy").write_bytes(written)
    assert_same(read_npy(tmp_path / "a.npy"), content)


def test_arrays_are_views_of_the_file(tmp_path):
    """Reading 200 MB takes no 200 MB."""
    (tmp_path / "a.npy").write_bytes(pickle.dumps({"x": np.zeros((50, 1000, 1000), np.float32)}, protocol=4))
    code = (
        "import resource, sys, pathlib; from ttd.untrusted import read_npy\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"x = read_npy(pathlib.Path({str(tmp_path / 'a.npy')!r}))['x']\n"
        "assert x.shape == (50, 1000, 1000) and not x.flags.writeable and x[49, 0, 0] == 0\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|b1", "<i2", "<U5", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_arrays_read_as_numpy_reads_them(tmp_path, dtype, order):
    array = np.array(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    found = read_npy(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert np.array_equal(found, np.load(tmp_path / "a.npy"))


def test_lists_of_names_in_an_object_array_are_read(tmp_path):
    names = np.array([["a", "b"], ["c", None]], dtype=object)
    np.save(tmp_path / "a.npy", names, allow_pickle=True)
    assert read_npy(tmp_path / "a.npy").tolist() == names.tolist()


def torch_content() -> dict:
    import torch

    base = torch.arange(24.0)
    return {
        "dataset": [{"eeg": torch.randn(8, 50), "label": 3, "name": "n02_7"} for _ in range(5)],
        "view": base[4:16].view(3, 4).T,
        "half": torch.randn(3).half(),
        "brain": torch.randn(4, 2).bfloat16(),
        "whole": torch.arange(5),
        "truth": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "shape": torch.Size([2, 3]),
        "state": OrderedDict(weight=torch.nn.Parameter(torch.ones(2))),
        "same": base,
        "loss": np.float64(0.25),
    }


def assert_same_tensors(found, expected):
    import torch

    if isinstance(expected, torch.Tensor):
        assert found.shape == tuple(expected.shape)
        values = expected.detach()
        assert np.array_equal(found, (values.float() if values.dtype == torch.bfloat16 else values).numpy())
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same_tensors(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same_tensors(a, b)
    else:
        assert found == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_read_as_torch_reads_them_from_both_containers(tmp_path, zipped):
    import torch

    content = torch_content()
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    loss = content.pop("loss")
    found = read_torch(tmp_path / "a.pth")
    assert found.pop("loss") == loss
    assert_same_tensors(found, content)


@pytest.mark.realdata
def test_the_checkpoints_of_the_original_read_with_their_foreign_classes_inert(real_data):
    import torch

    folder = real_data("ttdnet")
    with pytest.raises(RefusedError, match=r"checkpoint_best\.pth: refused, nothing was run: it names \S+"):
        read_torch(folder / "checkpoint_best.pth")
    best = read_torch(folder / "checkpoint_best.pth", unknown="inert")
    assert isinstance(best["config"], Inert)
    latest = read_torch(folder / "latest.pth", unknown="inert")
    expected = torch.load(folder / "latest.pth", weights_only=True)
    for part in ("cond_model", "pool_proj", "unet_lora"):
        assert_same_tensors(latest[part], expected[part])


# ----------------------------------------------------------------------------------------------- nothing is executed


def slots(folder: Path, canary: Canary) -> dict[Path, object]:
    """A file with the canary in every place that a reader might unpickle, and its reader."""
    import torch

    files: dict[Path, object] = {}
    for protocol in range(6):
        path = folder / f"pickle{protocol}.npy"
        path.write_bytes(pickle.dumps({**dictionary(), "ch_names": canary}, protocol=protocol))
        files[path] = read_npy
    np.save(folder / "dict.npy", {"a": canary}, allow_pickle=True)
    np.save(folder / "objects.npy", np.array([1, canary], dtype=object), allow_pickle=True)
    (folder / "bare.npy").write_bytes(pickle.dumps(canary))
    for name in ("dict", "objects", "bare"):
        files[folder / f"{name}.npy"] = read_npy
    for zipped in (True, False):
        path = folder / f"zip-{zipped}.pth"
        torch.save({"dataset": [torch.ones(2), canary]}, path, _use_new_zipfile_serialization=zipped)
        files[path] = read_torch
    (folder / "plain.pth").write_bytes(pickle.dumps(canary))
    legacy = [0x1950A86A20F9469CFC6C, canary, {}]  # in the head of the old container
    (folder / "head.pth").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in legacy))
    files |= {folder / "plain.pth": read_torch, folder / "head.pth": read_torch}
    return files


def test_a_canary_in_every_slot_never_runs_and_its_file_is_named(tmp_path):
    mark = tmp_path / "executed"
    files = slots(tmp_path, Canary(mark))
    for path, read in files.items():
        with pytest.raises(RefusedError, match=path.name):
            read(path)
        with contextlib.suppress(RefusedError):
            read(path, unknown="inert")
        assert not mark.exists(), path
    assert len(files) == 13
    np.load(tmp_path / "dict.npy", allow_pickle=True)  # the canary is alive
    assert mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",  # REDUCE
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",  # STACK_GLOBAL
        b"(ios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x02\x00\x00\x00lso.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"\x80\x02Pstorage\n.",  # PERSID
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ of a class that is known, but is no data
        b"\x80\x02cnumpy\nndarray\n}b.",  # BUILD on a class
        b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x01K\x02\x86R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\nK\x00\x85U\x01b\x87R.",
        b"",
        b".",
        b"\x80\x02",
    ],
)
def test_programs_are_refused(tmp_path, program):
    (tmp_path / "a.npy").write_bytes(program)
    with pytest.raises(RefusedError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")
    if program:
        with pytest.raises(RefusedError, match=r"a\.npy"):
            read_torch(tmp_path / "a.npy")


# ----------------------------------------------------------------------------------------------------------- bombs


def npy_header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def nested_tuples(depth: int) -> bytes:
    return b"\x80\x02}(" + b")" + b"\x86".join([b"2"] * depth) + b"\x86K\x01u."


def array_of_text(n_bytes: int, *, n: int) -> bytes:
    """A list of n arrays that share one text as their content; each would copy it."""
    out = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x000cnumpy\nndarray\nq\x010"
    out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x020"
    size = struct.pack("<I", n_bytes)
    out += b"X" + size + b"a" * n_bytes + b"q\x030("
    array = b"h\x00h\x01K\x00\x85U\x01b\x87R(K\x01J" + size + b"\x85h\x02\x89h\x03tb"
    return out + array * n + b"l."


BOMBS = {
    "npy claims 2^40": npy_header("(1099511627776,)") + bytes(64),
    "npy overflows": npy_header("(4294967296, 4294967296)") + bytes(64),
    "npy of objects": npy_header("(1099511627776,)", "|O") + pickle.dumps(None),
    "npy text of a gigabyte": npy_header("(1,)", "<U250000000") + bytes(64),
    "npy header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
    "bytes claim 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "text claims 2^40": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "lists without end": b"\x80\x02" + b"]" * 3_000_000 + b".",
    "encoded again and again": b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    + b"U\x06latin1\x86q\x01" + b"h\x00h\x01R" * 5000 + b".",
    "a key that takes for ever": nested_tuples(64),
    "digits that take for ever": npy_header("(" + "1" * 400 + "x,)") + bytes(64),
    "one text as many arrays": array_of_text(1 << 20, n=600),
}  # fmt: skip


def test_arrays_whose_content_is_text_are_read(tmp_path):
    (tmp_path / "a.npy").write_bytes(array_of_text(8, n=2))
    first, second = read_npy(tmp_path / "a.npy")
    assert first.tolist() == second.tolist() == [ord("a")] * 8


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_take_memory(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(BOMBS[name])
    before, start = resource.getrusage(resource.RUSAGE_SELF), sum(os.times()[:2])
    with pytest.raises(RefusedError, match=r"a\.npy"):
        read_npy(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    limit_kb = 260_000 if name == "lists without end" else 80_000
    assert after.ru_maxrss - before.ru_maxrss < limit_kb
    assert sum(os.times()[:2]) - start < 10


def rewritten(source: Path, target: Path, change) -> None:
    """A zip with the same entries, its data.pkl changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)


def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path):
    import torch

    torch.save({"x": torch.zeros(7, 11)}, tmp_path / "good.pth")
    for old, new in ((b"K\x07K\x0b", b"K\x08K\x0b"), (b"K\x0bK\x01", b"K\x7fK\x01"), (b"KM", b"K\xff")):
        rewritten(tmp_path / "good.pth", tmp_path / "bad.pth", lambda c, old=old, new=new: c.replace(old, new))
        with pytest.raises(RefusedError, match=r"bad\.pth: damaged: ValueError"):
            read_torch(tmp_path / "bad.pth")
    rewritten(tmp_path / "good.pth", tmp_path / "same.pth", lambda c: c)
    assert read_torch(tmp_path / "same.pth")["x"].shape == (7, 11)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(RefusedError, match="not stored as torch.save does"):
        read_torch(tmp_path / "a.pth")


def test_a_flipped_bit_of_a_tensor_is_found_by_the_checksum(tmp_path):
    import torch

    torch.save({"x": torch.zeros(1000)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(bytes(4000)) + 2000] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(RefusedError, match="does not agree with its checksum"):
        read_torch(tmp_path / "a.pth")


def test_an_npz_and_a_web_page_are_named_as_no_container(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    for content in (buffer.getvalue(), b"<!doctype html><html></html>", b""):
        (tmp_path / "a.pth").write_bytes(content)
        for read in (read_npy, read_torch):
            with pytest.raises(RefusedError, match=r"a\.pth"):
                read(tmp_path / "a.pth")
