"""Listings of foreign servers: damaged ones are refused or read as files, and no path leaves the study's folder."""

from __future__ import annotations

import random

import pytest

from ttd.config import UserError
from ttd.eeg.download import confine
from ttd.eeg.listings import FigshareSource, OSFSource, S3Source, SumsSource, list_files, parse_xml


@pytest.mark.parametrize(
    "listed", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:evil", "", "a\nb", ".fetch.jsonl", "x.part"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, listed):
    with pytest.raises(UserError, match="no plain path below the study's folder; refused"):
        confine(tmp_path, listed)


def test_a_link_inside_the_folder_does_not_lead_out_of_it(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        confine(tmp_path / "root", "link/evil")


def test_an_entity_bomb_is_refused_before_it_grows():
    bomb = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    with pytest.raises(ValueError, match="declares a document type; refused"):
        parse_xml(f"{bomb}]><l>&j;</l>".encode())
    with pytest.raises(ValueError, match="codec can't decode"):
        parse_xml(f"{bomb}]><l>&j;</l>".encode("utf-16"))


PAGES = {
    "s3": b"<L><Contents><Key>ds1/sub-01/a.eeg</Key><ETag>&quot;%s&quot;</ETag><Size>7</Size></Contents></L>"
    % (b"0" * 32),
    "osf": b'{"data": [{"attributes": {"kind": "file", "name": "a", "size": 7, "extra": {"hashes": {"md5": "%s"}}},'
    b' "links": {"download": "https://osf.io/x"}}], "links": {"next": null}}' % (b"0" * 32),
    "figshare": b'[{"name": "a.zip", "size": 7, "computed_md5": "%s", "download_url": "https://x.org/1"}]'
    % (b"0" * 32),
    "sha256sums": b"%s S001/a.edf\n%s RECORDS\n" % (b"0" * 64, b"1" * 64),
}
SOURCES = {
    "s3": S3Source(bucket="https://x.org/b", prefix="ds1/"),
    "osf": OSFSource(node="abcde"),
    "figshare": FigshareSource(article=1),
    "sha256sums": SumsSource(url="https://x.org/", mean_bytes=1),
}


@pytest.mark.parametrize("name", list(PAGES))
def test_damaged_listings_are_refused_or_read_as_files_never_anything_else(monkeypatch, name):
    rng, refused = random.Random(0), 0
    whole = PAGES[name]
    monkeypatch.setattr("ttd.eeg.listings.read_small", lambda url: whole)
    assert all(file.size in (7, None) and file.checksum for file in list_files(SOURCES[name]))
    for case in range(200):
        page = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(page))
            page[at : at + rng.choice([0, 1, 1, 8])] = rng.choice(
                [b"", b"\x00", b"[" * 3000, b"1e999", rng.randbytes(3)]
            )
        page = page[: rng.randrange(len(page))] if case % 4 == 0 else page
        monkeypatch.setattr("ttd.eeg.listings.read_small", lambda url, page=bytes(page): page)
        try:
            found = list_files(SOURCES[name])
        except UserError:
            refused += 1
            continue
        for file in found:
            assert isinstance(file.path, str)
            assert isinstance(file.url, str)
            assert file.size is None or file.size >= 0
            assert file.checksum == "" or len(file.checksum) in (36, 71)
    assert refused > 20
