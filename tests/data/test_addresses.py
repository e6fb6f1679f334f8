"""An address names one folder: no shell, no expansion, no other scheme; nothing is started that is not named."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError
from small_shards import facts, meta, sample
from web_server import serve

from ttd.config import UserError
from ttd.data import remote
from ttd.data.remote import RemoteConfig, open_remote_index
from ttd.data.writer import ShardWriter

HOSTILE = [
    "pipe:touch /tmp/started",
    "pipe:curl -s http://x/{file}",
    "-",
    "-o/tmp/started",
    "-ohttp://host/x",
    "file:///etc",
    "/etc",
    "hf://user/data",
    "http:",
    "http:///x",
    "http://host/${HOME}",
    "http://host/{000000..9999999}.tar",
    "http://host/`id`",
    "http://host/a b",
    "http://host/a\nb",
    "https://host/x|sh",
    "ftp://host/x",
    "data:,x",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_what_is_not_one_plain_address_is_refused(url):
    with pytest.raises(ValidationError, match=r"allow_pipe|starts with http|one folder"):
        RemoteConfig(url=url)


def test_no_address_starts_a_process_evaluates_text_or_reads_the_environment():
    code = f"""
        import os, sys
        started = []
        os.environ["GOPEN_REWRITE"] = "http://=pipe:touch "
        os.environ["USE_AIS_FOR"] = "http"
        from ttd.config import UserError
        from ttd.data.remote import RemoteConfig, open_remote_index
        from ttd.data import remote
        remote.PAUSES_S = ()
        watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
        sys.addaudithook(lambda event, args: started.append((event, args)) if event in watched else None)
        for url in {HOSTILE!r} + ["http://127.0.0.1:9/x"]:
            try:
                open_remote_index(RemoteConfig(url=url))
            except (ValueError, UserError):
                continue
            raise SystemExit(f"{{url}} was taken")
        print(len(started), started)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0 []"


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "train", kind="materialised") as writer:
        writer.write("a", {"eeg.npy": sample(0), "meta.json": meta(0)})
        writer.finish({**facts(), "source": {"targets": {}}})
    return tmp_path / "train"


def test_a_program_that_is_named_is_started_without_a_shell(folder, tmp_path):
    config = RemoteConfig(url=f"pipe:cat {folder}/{{file}} ;touch {tmp_path}/started", allow_pipe=["cat"])
    index = open_remote_index(config)
    assert index.n_samples == 1
    assert index.read_member(0, "meta.json") == meta(0)
    assert not (tmp_path / "started").exists()


def test_a_redirect_to_a_file_is_not_followed(folder, monkeypatch):
    import web_server

    class Redirecting(web_server.Handler):
        def do_GET(self):  # noqa: N802
            self.send_response(302)
            self.send_header("Location", Path("/etc/hostname").as_uri())
            self.end_headers()

    monkeypatch.setattr(web_server, "Handler", Redirecting)
    monkeypatch.setattr("ttd.data.remote.PAUSES_S", ())
    with serve(folder) as server, pytest.raises(UserError, match="not to be had"):
        open_remote_index(RemoteConfig(url=server.url))


def test_an_index_that_never_ends_is_refused(folder, monkeypatch):
    monkeypatch.setitem(remote.LIMITS, "index.json", 100)
    with serve(folder) as server, pytest.raises(UserError, match=r"index.json is longer than 100 bytes"):
        open_remote_index(RemoteConfig(url=server.url))


def test_the_test_part_is_locked_at_an_address_too(tmp_path):
    with ShardWriter(tmp_path / "test", kind="materialised") as writer:
        writer.write("a", {"eeg.npy": sample(0), "meta.json": meta(0)})
        writer.finish({**facts("test"), "source": {"targets": {}}})
    with serve(tmp_path / "test") as server, pytest.raises(UserError, match="the test part is locked"):
        open_remote_index(RemoteConfig(url=server.url))
