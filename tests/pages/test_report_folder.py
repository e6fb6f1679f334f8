"""The report appears whole or not at all, and in nobody else's place."""

import json

import pytest

from ttd.config import UserError
from ttd.pages import report_folder


def write(folder, text: str) -> None:
    with report_folder.replaced(folder, {"title": text}) as aside:
        (aside / "index.html").write_text(text)
        (aside / "pictures").mkdir()
        (aside / f"pictures/{text}.png").write_text(text)


def test_a_report_takes_the_place_of_an_earlier_one_and_what_else_lies_there_stays(tmp_path):
    folder = tmp_path / "report"
    write(folder, "first")
    (folder / "outcome.json").write_text("{}")
    (folder / "logs").mkdir()
    (folder / "logs/slurm.out").write_text("log")
    write(folder, "second")
    assert (folder / "index.html").read_text() == "second"
    assert [path.name for path in (folder / "pictures").iterdir()] == ["second.png"]
    assert json.loads((folder / "report.json").read_text()) == {"title": "second"}
    assert (folder / "logs/slurm.out").read_text() == "log"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_report_that_fails_leaves_the_earlier_one_untouched(tmp_path):
    folder = tmp_path / "report"
    write(folder, "first")
    with pytest.raises(TypeError):
        write(folder, None)  # which cannot be written
    assert (folder / "index.html").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_is_no_report_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/index.html").write_text("mine")
    with pytest.raises(UserError, match="thesis: holds something that is no report; give a new folder"):
        write(tmp_path / "thesis", "first")
    assert (tmp_path / "thesis/index.html").read_text() == "mine"


def test_an_empty_folder_and_the_report_of_an_earlier_version_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "first")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/index.html").write_text("one file")
    (tmp_path / "old/outcome.json").write_text('{"status": 0, "entry": "report.py"}')
    write(tmp_path / "old", "first")
    assert (tmp_path / "old/index.html").read_text() == "first"
    assert json.loads((tmp_path / "old/outcome.json").read_text())["entry"] == "report.py"


def test_what_a_killed_run_left_is_taken_up(tmp_path):
    folder = tmp_path / "report"
    write(folder, "first")
    folder.rename(tmp_path / ".report.old")  # killed between the two renames
    (tmp_path / ".report.new").mkdir()
    (tmp_path / ".report.new/report.json").write_text("{}")
    with pytest.raises(TypeError):
        write(folder, None)
    assert (folder / "index.html").read_text() == "first"
    write(folder, "second")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
