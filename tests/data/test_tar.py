"""The walk through an archive ends, and refuses whatever is not a plain, whole file with a short name."""

import io
import os
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
from small_shards import sample, write_part

from ttd.data import members, tar
from ttd.data.reader import ShardReader


def archive(tmp_path, *parts):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(parts))
    return os.open(path, os.O_RDONLY)


def plain(name=b"a.bin", size=b"%011o\0" % 4, kind=b"0"):
    block = bytearray(tar.header("x", 4))
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % tar._checksum(block)
    return bytes(block) + b"body".ljust(512, b"\0")


def test_what_tarfile_writes_is_walked(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, content in (("a.txt", b"x" * 600), ("b/c.txt", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    entries = list(tar.walk(archive(tmp_path, out.getvalue())))
    assert entries == [("a.txt", 512, 600), ("b/c.txt", 2048, 0)]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (plain(size=b"\xff" * 12), "not an octal number"),  # base-256, -1: tarfile goes back and hangs
        (plain(size=b"\x80" + b"\xff" * 11), "not an octal number"),
        (plain(size=b"-0000000004\0"), "not an octal number"),
        (plain(size=b"77777777777\0"), "8589934591 bytes announced, 1536 there"),
        (plain(kind=b"1"), "links and extensions are refused"),
        (plain(kind=b"2"), "links and extensions are refused"),
        (plain(kind=b"6"), "links and extensions are refused"),
        (plain(kind=b"x"), "links and extensions are refused"),
        (plain(kind=b"L"), "links and extensions are refused"),
        (plain(kind=b"K"), "links and extensions are refused"),
        (plain(kind=b"g"), "links and extensions are refused"),
        (plain(kind=b"S"), "links and extensions are refused"),
        (plain(kind=b"3"), "links and extensions are refused"),
        (plain(kind=b"4"), "links and extensions are refused"),
        (plain(kind=b"5"), "links and extensions are refused"),
        (plain(name=b"/etc/passwd"), "is refused"),
        (plain(name=b"../../a"), "is refused"),
        (plain(name=b""), "is refused"),
        (plain()[:100], "the end mark is missing"),
        (b"\x1f\x8b" + bytes(600), "not an octal number"),
        (plain() + tar.END + b"more", "something stands after the end mark"),
        (plain() + bytes(512) + plain(), "a header was zeroed"),
    ],
)
def test_what_is_not_a_plain_file_is_refused_at_once(tmp_path, block, words):
    fd, start = archive(tmp_path, block, tar.END), time.process_time()
    if len(block) < 512:
        fd = archive(tmp_path, block)
    tracemalloc.start()
    with pytest.raises(tar.TarDamageError, match=words):
        list(tar.walk(fd))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert time.process_time() - start < 1


def test_a_name_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 to 100 characters"):
        tar.header("n" * 101, 1)


def test_a_reader_holds_few_files_open_and_survives_a_fork(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MAX_OPEN_FILES", 1)
    write_part(tmp_path / "train", n=6)
    reader = ShardReader.open(tmp_path / "train")
    for i in (0, 5, 2, 1):
        np.testing.assert_array_equal(reader.eeg(i), sample(i))
    open_here = reader.index.reader.source.local.open.fds
    assert len(open_here) == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.eeg(3), sample(3)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(reader.eeg(4), sample(4))
