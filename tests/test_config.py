"""The door of every entry: what it refuses, what it leaves behind, and how a signal ends it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ttd.config import Config, Plan, UserError, describe_fields, load_config, run

ROOT = Path(__file__).parents[1]
ENTRY = """
import sys, time
from pathlib import Path
from ttd.config import Config, run

class Toy(Config):
    output_dir: Path

def main(config):
    config.output_dir.mkdir(parents=True, exist_ok=True)
    print("ready", flush=True)
    time.sleep(30)

run(main, Toy, doc="")
"""


class Near(Config):
    name: Literal["near"] = "near"
    metres: float | None = None


class Far(Config):
    name: Literal["far"] = "far"
    light_years: float


class Rates(Config):
    lr: float = 1.0
    decay: float = 0.0
    near: Near = Near()


class Study(Config):
    output_dir: Path
    rates: Rates = Rates(decay=0.5, near=Near(metres=3.0))


class Toy(Config):
    output_dir: Path
    places: list[Annotated[Near | Far, Field(discriminator="name")]] = Field(default_factory=list)
    bad: bool = False


def test_a_section_given_in_part_keeps_the_rest_of_its_default_here_and_not_of_its_class():
    study = load_config(Study, [], ["output_dir=run", "rates.lr=2"])
    assert study.rates == Rates(lr=2.0, decay=0.5, near=Near(metres=3.0))
    assert load_config(Study, [], ["output_dir=run", "rates.near.metres=null"]).rates.near.metres is None
    assert Study(output_dir=Path("run"), rates=Rates()).rates.decay == 0.0


def work(config: Toy) -> None:
    config.output_dir.mkdir(parents=True, exist_ok=True)
    if config.bad:
        raise UserError("bad: found out late")


def check(config: Toy) -> Plan:
    return Plan(["bad: found out early"] if config.bad else [])


def go(*argv: str, checked: bool = True) -> int:
    with pytest.raises(SystemExit) as ended:
        run(work, Toy, doc="", check=check if checked else None, argv=argv)
    return ended.value.code


@pytest.fixture(autouse=True)
def without_launcher(monkeypatch):
    for name in ("RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("checked", [True, False], ids=["early", "late"])
def test_a_refused_command_leaves_the_outcome_of_a_finished_run_alone(tmp_path, checked):
    assert go(f"output_dir={tmp_path}/run") == 0
    before = (tmp_path / "run/outcome.json").read_bytes()
    assert json.loads(before)["status"] == 0
    assert go(f"output_dir={tmp_path}/run", "bad=true", checked=checked) == 2
    assert (tmp_path / "run/outcome.json").read_bytes() == before


def test_a_refused_command_writes_nothing_into_a_foreign_folder_and_makes_none(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    assert go(f"output_dir={tmp_path}/mine", "bad=true") == 2
    assert go(f"output_dir={tmp_path}/absent", "bad=true") == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


@pytest.mark.parametrize("variable", ["RANK", "ACCELERATE_USE_CPU"])
def test_below_a_launcher_that_hides_the_status_a_refusal_is_written_down(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    assert go(f"output_dir={tmp_path}/run", "bad=true") == 2
    assert json.loads((tmp_path / "run/outcome.json").read_text())["status"] == 2


@pytest.mark.parametrize("below", ["", "/deep/er"])
@pytest.mark.parametrize("launcher", [True, False])
def test_a_file_in_the_place_of_the_run_folder_is_refused_by_a_dry_run_too(
    tmp_path, capsys, monkeypatch, below, launcher
):
    if launcher:
        monkeypatch.setenv("RANK", "0")
    (tmp_path / "file").write_text("")
    for more in ([], ["--dry-run"]):
        assert go(f"output_dir={tmp_path}/file{below}", *more) == 2
        assert f"{tmp_path}/file is a file; give a folder" in capsys.readouterr().err


def start(folder: Path, *command: str) -> subprocess.Popen:
    """A process that Ctrl-C reaches: one started in the background would ignore it."""
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, preexec_fn=listen, start_new_session=True, **pipes)


def stop(process: subprocess.Popen, by: int, *, group: bool) -> tuple[int, str]:
    for line in process.stdout:
        if "ready" in line:
            break
    (os.killpg if group else os.kill)(process.pid, by)
    _, said = process.communicate(timeout=20)
    return process.returncode, said


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_entry_with_one_sentence_and_status_75(tmp_path, by):
    (tmp_path / "entry.py").write_text(ENTRY)
    status, said = stop(start(tmp_path, "entry.py", "output_dir=run"), by, group=False)
    assert (status, said) == (75, "entry.py: stopped; the same command goes on\n")
    assert json.loads((tmp_path / "run/outcome.json").read_text())["status"] == 75


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_chain_ends_its_step_first_and_then_the_chain(tmp_path, by):
    (tmp_path / "entry.py").write_text(ENTRY)
    chain = (
        "import sys, runpy; module = runpy.run_path(sys.argv[1]); names = module['go'].__globals__; names['ROOT'] = '.'\n"
        "from ttd.config import interruptible\n"
        "with interruptible(): module['go']('entry.py', None, 'output_dir=run')"
    )
    process = start(tmp_path, "-c", chain, str(ROOT / "launch/real.py"))
    status, said = stop(process, by, group=by == signal.SIGINT)  # the terminal sends Ctrl-C to both
    assert status == 75
    assert said.splitlines() == [
        "entry.py: stopped; the same command goes on",
        "make real: entry.py ended with status 75; the same command goes on from here",
    ]


def test_help_shows_types_as_one_would_say_them():
    text = "\n".join(describe_fields(Toy))
    assert "places: list[Near | Far], one of, by its name:" in text
    assert "light_years: float (required)" in text
    assert "metres: float | None (default None)" in text
    assert "Annotated" not in text
    assert "FieldInfo" not in text
