"""Fetching studies: resumed after a kill, refused when a sum differs, confined to its folder; against a local server."""

from __future__ import annotations

import hashlib
import json
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from range_server import Site, serve

import ttd.eeg.download
import ttd.eeg.web
from ttd.config import UserError, load_config
from ttd.eeg.download import RemoteFile
from ttd.experiments.fetch import FetchConfig

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "shards" / "fetch.py"
CONTENT = {f"S00{s}/S00{s}R0{r}.edf": bytes([s, r]) * (1000 * r) for s in (1, 2) for r in (1, 2)} | {
    "RECORDS": b"S001\n"
}
BIG = np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(ttd.eeg.web, "BACKOFF_S", 0.01)
    site = Site()
    server = serve(site)
    yield site
    server.shutdown()
    server.server_close()


def physionet(site: Site, content: dict[str, bytes]) -> None:
    sums = "".join(f"{hashlib.sha256(data).hexdigest()} {name}\n" for name, data in content.items())
    site.files |= {f"/db/{name}": data for name, data in content.items()} | {"/db/SHA256SUMS.txt": sums.encode()}


def write_config(tmp_path: Path, site: Site, source: dict | None = None) -> Path:
    source = source or {
        "name": "sha256sums", "url": f"{site.url}/db/", "mean_bytes": 1500, "subject": r"^S0*(\d+)/",
    }  # fmt: skip
    facts = {"root": str(tmp_path / "got"), "title": "Schalk2004", "citation": "Schalk et al.", "licence": "ODC-By"}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({**facts, "sources": {"recordings": source}}))
    return path


def fetch(config: Path, *more: str) -> int:
    before = sys.argv
    sys.argv = [str(SCRIPT), "--config", str(config), *more]
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before
    return end.value.code


def got(tmp_path: Path) -> dict[str, bytes]:
    root = tmp_path / "got"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name[0] != "."}


def test_a_study_arrives_whole_and_the_second_run_transfers_nothing(tmp_path, site, capsys):
    physionet(site, CONTENT)
    config = write_config(tmp_path, site)
    assert fetch(config) == 0
    assert got(tmp_path) == CONTENT
    assert "licence: ODC-By" in capsys.readouterr().err
    site.asked.clear()
    assert fetch(config) == 0
    assert [path for path, _ in site.asked] == ["/db/SHA256SUMS.txt"]
    assert "5 are here, 0 to be compared, 0 to be fetched" in capsys.readouterr().err


def test_a_dry_run_states_licence_and_size_and_writes_nothing(tmp_path, site, capsys):
    physionet(site, CONTENT)
    assert fetch(write_config(tmp_path, site), "--dry-run") == 0
    said = capsys.readouterr().err
    assert said.index("licence: ODC-By") < said.index("5 files, about 0.01 MB")
    assert not (tmp_path / "got").exists()


def test_only_the_files_of_the_chosen_subjects_and_of_everybody_come(tmp_path, site, capsys):
    physionet(site, CONTENT)
    config = write_config(tmp_path, site)
    assert fetch(config, "subjects=[2]") == 0
    assert sorted(got(tmp_path)) == ["RECORDS", "S002/S002R01.edf", "S002/S002R02.edf"]
    assert fetch(config, "subjects=[2,7]") == 2
    assert "recordings has no files of 7" in capsys.readouterr().err


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_transfer_goes_on_at_the_byte_where_it_stopped(tmp_path, site, by):
    physionet(site, {"S001/S001R01.edf": BIG})
    config, part = write_config(tmp_path, site), tmp_path / "got/S001/S001R01.edf.part"
    site.pause_s = 0.05
    line = [sys.executable, SCRIPT, "--config", config]
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a job in the background ignores it
    running = subprocess.Popen(line, stderr=subprocess.DEVNULL, preexec_fn=listen)
    while not (part.exists() and part.stat().st_size > 1 << 19):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(by)
    assert running.wait() == {signal.SIGKILL: -9, signal.SIGINT: 75}[by]
    site.pause_s, there = 0.0, part.stat().st_size
    assert not part.with_suffix("").exists()
    assert 0 < there < len(BIG)
    site.asked.clear()
    assert fetch(config) == 0
    assert site.asked[-1] == ("/db/S001/S001R01.edf", f"bytes={there}-")
    assert got(tmp_path) == {"S001/S001R01.edf": BIG}


def test_a_connection_that_breaks_is_resumed_without_asking_for_a_byte_twice(tmp_path, site):
    physionet(site, {"S001/a.edf": BIG})
    site.cut_after["/db/S001/a.edf"] = [1_000_000, 1_500_000]
    assert fetch(write_config(tmp_path, site)) == 0
    ranges = [asked for path, asked in site.asked if path.endswith("a.edf")]
    assert ranges == ["", "bytes=1000000-", "bytes=2500000-"]
    assert got(tmp_path) == {"S001/a.edf": BIG}


def test_a_file_whose_sum_differs_is_thrown_away_and_named_while_the_others_arrive(tmp_path, site, capsys):
    physionet(site, CONTENT)
    site.files["/db/S001/S001R01.edf"] = b"x" * 1000
    config = write_config(tmp_path, site)
    assert fetch(config) == 3
    said = capsys.readouterr().err
    assert "S001R01.edf: what came is wrong (its SHA256 is" in said
    assert "thrown away" in said
    assert sorted(got(tmp_path)) == sorted(set(CONTENT) - {"S001/S001R01.edf"})
    physionet(site, CONTENT)
    assert fetch(config) == 0
    assert got(tmp_path) == CONTENT


def test_a_server_that_forgets_ranges_or_changes_the_file_gives_the_whole_new_file(tmp_path, site):
    physionet(site, {"a.edf": BIG})
    config, part = write_config(tmp_path, site), tmp_path / "got/a.edf.part"
    for ranges in (False, True):
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"the beginning of another version")
        part.with_name("a.edf.part.json").write_text('{"validator": "\\"old\\""}')
        site.ranges = ranges
        assert fetch(config) == 0
        assert got(tmp_path) == {"a.edf": BIG}
        (tmp_path / "got/a.edf").unlink()


def test_a_part_of_an_unnamed_version_is_found_out_by_its_sum_and_fetched_anew(tmp_path, site):
    physionet(site, {"a.edf": BIG})
    site.etags = False
    (tmp_path / "got").mkdir()
    (tmp_path / "got/a.edf.part").write_bytes(b"something else")
    assert fetch(write_config(tmp_path, site)) == 0
    assert got(tmp_path) == {"a.edf": BIG}


def test_passing_errors_are_tried_again_and_lasting_ones_are_not(tmp_path, site, capsys):
    physionet(site, CONTENT)
    site.fail = {"/db/RECORDS": [503, 429, 500], "/db/S001/S001R01.edf": [404], "/db/S001/S001R02.edf": [503] * 4}
    assert fetch(write_config(tmp_path, site)) == 3
    said = capsys.readouterr().err
    assert "S001R01.edf: the server answers 404 (Not Found): there is no such file" in said
    assert "S001R02.edf: the server answers 503 (Service Unavailable), 4 times; try again later" in said
    asked = [path for path, _ in site.asked]
    assert (asked.count("/db/RECORDS"), asked.count("/db/S001/S001R01.edf")) == (4, 1)
    assert sorted(got(tmp_path)) == ["RECORDS", "S002/S002R01.edf", "S002/S002R02.edf"]


def test_a_file_that_changed_on_the_server_is_noticed_and_not_overwritten(tmp_path, site, capsys):
    physionet(site, CONTENT)
    config = write_config(tmp_path, site)
    assert fetch(config) == 0
    physionet(site, CONTENT | {"RECORDS": b"S001\nS002\n"})
    assert fetch(config) == 2
    assert "RECORDS: has changed on the server since it was fetched; delete it" in capsys.readouterr().err
    assert got(tmp_path) == CONTENT


def test_a_file_that_lies_there_already_is_compared_and_kept_only_if_it_is_right(tmp_path, site, capsys):
    physionet(site, CONTENT)
    (tmp_path / "got/S001").mkdir(parents=True)
    (tmp_path / "got/RECORDS").write_bytes(CONTENT["RECORDS"])
    (tmp_path / "got/S001/S001R01.edf").write_bytes(b"mine")
    (tmp_path / "got/S001/S001R02.edf").write_text(f"../../.git/annex/objects/xx/MD5E-s4000--{'0' * 32}.edf")
    assert fetch(write_config(tmp_path, site)) == 3
    assert "S001R01.edf: lies there already, but its SHA256 is" in capsys.readouterr().err
    assert "/db/RECORDS" not in [path for path, _ in site.asked]
    assert got(tmp_path) == CONTENT | {"S001/S001R01.edf": b"mine"}


def test_a_disk_that_is_too_small_is_refused_before_anything_comes(tmp_path, site, capsys, monkeypatch):
    physionet(site, CONTENT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 5000))
    assert fetch(write_config(tmp_path, site)) == 2
    assert "only 0.01 MB are free; choose subjects" in capsys.readouterr().err
    assert not (tmp_path / "got").exists()


def test_a_listing_with_dots_writes_nothing_at_all(tmp_path, site, capsys):
    physionet(site, {"../evil.edf": b"x", "good.edf": b"y"})
    assert fetch(write_config(tmp_path, site)) == 2
    assert "'../evil.edf', which is no plain path" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_addresses_other_than_http_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(UserError, match="not an http address; refused"):
        ttd.eeg.download.fetch(RemoteFile("a", secret.as_uri(), 6), tmp_path / "a", lambda n: None)


def test_a_disk_that_fills_up_midway_is_named_and_what_came_is_kept(tmp_path, site):
    site.files["/a"] = BIG
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(UserError, match="a.part: cannot be written: File too large; the same command goes on"):
            ttd.eeg.download.fetch(RemoteFile("a", f"{site.url}/a", len(BIG)), tmp_path / "a", lambda n: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.part").read_bytes() == BIG[: 1 << 20]
    ttd.eeg.download.fetch(RemoteFile("a", f"{site.url}/a", len(BIG)), tmp_path / "a", lambda n: None)
    assert (tmp_path / "a").read_bytes() == BIG


def test_a_file_larger_than_listed_is_refused_before_it_is_stored(tmp_path, site):
    site.files["/a"] = b"x" * 5000
    with pytest.raises(UserError, match="offers 5,000 bytes, the listing says 10: the file has changed"):
        ttd.eeg.download.fetch(RemoteFile("a", f"{site.url}/a", 10), tmp_path / "a", lambda n: None)
    assert not list(tmp_path.iterdir())


def test_openneuro_pages_are_followed_and_annex_sums_count_where_the_etag_is_none(tmp_path, site, capsys):
    table = tmp_path / "sums.tsv"
    md5 = hashlib.md5(BIG).hexdigest()
    table.write_text(f"path\tsize\tmd5\nsub-01/eeg/a.eeg\t{len(BIG)}\t{md5}\n")

    def page(entries: list[tuple[str, int, str]], more: str = "") -> bytes:
        body = "".join(
            f"<Contents><Key>{k}</Key><ETag>&quot;{e}&quot;</ETag><Size>{n}</Size></Contents>" for k, n, e in entries
        )
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{body}{more}</ListBucketResult>'.encode()

    readme = b"read me"
    first = [("ds1/README", 7, hashlib.md5(readme).hexdigest()), ("ds1/derivatives/x", 9, "0" * 32)]
    listing = "/bucket/?list-type=2&prefix=ds1%2F"
    site.files[listing] = page(first, "<NextContinuationToken>t/1</NextContinuationToken>")
    site.files[listing + "&continuation-token=t%2F1"] = page([("ds1/sub-01/eeg/a.eeg", len(BIG), md5[:30] + "-3")])
    site.files |= {"/bucket/ds1/README": readme, "/bucket/ds1/sub-01/eeg/a.eeg": BIG}
    source = {
        "name": "s3", "bucket": f"{site.url}/bucket", "prefix": "ds1/", "checksums": str(table),
        "exclude": ["derivatives/*"],
    }  # fmt: skip
    config = write_config(tmp_path, site, source)
    assert fetch(config) == 0
    assert got(tmp_path) == {"README": readme, "sub-01/eeg/a.eeg": BIG}

    table.write_text(f"path\tsize\tmd5\nsub-01/eeg/a.eeg\t{len(BIG)}\t{'0' * 32}\n")
    (tmp_path / "got/sub-01/eeg/a.eeg").unlink()
    assert fetch(config) == 3
    assert f"its MD5 is {md5}" in capsys.readouterr().err
    table.write_text("path\tsize\tmd5\nsub-01/eeg/a.eeg\t5\t" + "0" * 32 + "\n")
    assert fetch(config) == 2
    assert "the study was released anew" in capsys.readouterr().err


def test_osf_folders_pages_and_redirects_are_followed(tmp_path, site):
    def file(name: str, content: bytes) -> dict:
        sums = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
        facts = {"kind": "file", "name": name, "materialized_path": f"/eeg/{name}", "size": len(content)}
        site.redirects[f"/download/{name}"] = f"{site.url}/storage/{name}?signature=1"
        site.files[f"/storage/{name}"] = content
        return {
            "attributes": facts | {"extra": {"hashes": sums}},
            "links": {"download": f"{site.url}/download/{name}"},
        }

    start = "/v2/nodes/anp5v/files/osfstorage/?page%5Bsize%5D=100"
    related = {"links": {"related": {"href": f"{site.url}/v2/folder"}}}
    folder = {"attributes": {"kind": "folder", "name": "eeg"}, "relationships": {"files": related}}
    pages = {
        start: {"data": [folder], "links": {"next": None}},
        "/v2/folder": {"data": [file("sub-01.zip", BIG)], "links": {"next": f"{site.url}/v2/more"}},
        "/v2/more": {"data": [file("sub-02.zip", b"two")], "links": {"next": None}},
    }
    site.files |= {path: json.dumps(page).encode() for path, page in pages.items()}
    site.cut_after["/storage/sub-01.zip"] = [100_000]
    source = {"name": "osf", "node": "anp5v", "api": f"{site.url}/v2", "into": "Preprocessed"}
    assert fetch(write_config(tmp_path, site, source)) == 0
    assert got(tmp_path) == {"Preprocessed/eeg/sub-01.zip": BIG, "Preprocessed/eeg/sub-02.zip": b"two"}
    assert ("/storage/sub-01.zip?signature=1", "bytes=100000-") in site.asked


def test_a_figshare_listing_gives_names_sizes_and_sums_and_a_strange_one_is_refused(tmp_path, site, capsys):
    path = "/v2/articles/18470912/files?page=1&page_size=100"
    facts = {"name": "sub-01.zip", "size": 3, "computed_md5": hashlib.md5(b"one").hexdigest()}
    site.files[path] = json.dumps([facts | {"download_url": f"{site.url}/f/1"}]).encode()
    site.files["/f/1"] = b"one"
    config = write_config(tmp_path, site, {"name": "figshare", "article": 18470912, "api": f"{site.url}/v2"})
    assert fetch(config) == 0
    assert got(tmp_path) == {"sub-01.zip": b"one"}
    site.files[path] = b'{"message": "no"}'
    assert fetch(config) == 2
    assert "the listing of figshare has another form than expected" in capsys.readouterr().err


def test_a_listing_may_not_send_its_reader_to_another_server(tmp_path, site, capsys):
    start = "/v2/nodes/anp5v/files/osfstorage/?page%5Bsize%5D=100"
    site.files[start] = json.dumps({"data": [], "links": {"next": "http://10.0.0.1/secret"}}).encode()
    assert fetch(write_config(tmp_path, site, {"name": "osf", "node": "anp5v", "api": f"{site.url}/v2"})) == 2
    assert "a page of the listing is said to lie at http://10.0.0.1/secret" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs/fetch").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_named(path):
    config = load_config(FetchConfig, [path])
    assert config.licence
    assert all(source.name == "by_hand" or "http" in source.model_dump_json() for source in config.sources.values())


def test_a_study_that_is_fetched_by_hand_says_how_and_an_unknown_one_what_is_known(capsys, monkeypatch):
    for study, words in (
        ("things_images", "its password is given to those who accept"),
        ("no", "there are gifford2022"),
    ):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--study", study])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert end.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.realdata
def test_the_sums_of_things_eeg1_are_those_of_the_annex_keys(real_data):
    keys = (real_data("things-eeg1-ds003825") / "annex-symlinks.tsv").read_text()
    rows = (ROOT / "configs/fetch/grootswagers2022_md5.tsv").read_text().splitlines()[1:]
    assert len(rows) == 200
    for path, size, md5 in (row.split("\t") for row in rows):
        assert f"{path}\t" in keys
        assert f"/MD5E-s{size}--{md5}" in keys


def test_licence_and_citation_come_before_any_server_is_asked(tmp_path, site, capsys):
    site.fail = {"/db/SHA256SUMS.txt": [404]}
    assert fetch(write_config(tmp_path, site), "size=about 1 kB") == 2
    said = capsys.readouterr().err
    assert (
        said.index("licence: ODC-By") < said.index("Schalk et al.") < said.index("size: about 1 kB") < said.index("404")
    )


def test_a_network_that_fails_for_now_ends_with_75(tmp_path, site, capsys):
    physionet(site, CONTENT)
    config = write_config(tmp_path, site)
    site.fail = {"/db/SHA256SUMS.txt": [503] * 4}
    assert fetch(config) == 75
    assert "the server answers 503 (Service Unavailable), 4 times; try again later" in capsys.readouterr().err
    site.fail = {"/db/RECORDS": [503] * 4}
    assert fetch(config) == 75
    assert sorted(got(tmp_path)) == sorted(set(CONTENT) - {"RECORDS"})
    assert fetch(config) == 0
    assert got(tmp_path) == CONTENT


def test_without_arguments_the_studies_are_listed():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give a study as --study NAME; there are gifford2022, grootswagers2022, schalk2004" in done.stderr
