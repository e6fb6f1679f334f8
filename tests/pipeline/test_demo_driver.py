"""launch/demo.py: a step runs when something it depends on changed, a failed one is where the next start goes on."""

import importlib.util
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[2] / "launch/demo.py"
SCRIPT = """
import sys, pathlib, yaml
config = yaml.safe_load(open(sys.argv[2]))
with open("calls", "a") as calls: calls.write(config["name"] + " ")
sys.exit(config.get("status", 0))
"""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo_driver", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    (tmp_path / "step.py").write_text(SCRIPT)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n")
    (tmp_path / "runs/demo/eval").mkdir(parents=True)
    (tmp_path / "runs/demo/eval/table.md").write_text("the table\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "CHAIN", [module.Step(n, "a step", "step.py", f"{n}.yaml") for n in ("a", "b", "c")])
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.chdir(tmp_path)
    return module


def calls(folder: Path) -> str:
    return (folder / "calls").read_text().strip()


def test_a_second_demo_runs_nothing_and_shows_the_same_table(demo, tmp_path, capsys):
    assert demo.main() == 0
    assert demo.main() == 0
    assert calls(tmp_path) == "a b c"
    assert capsys.readouterr().out.count("the table") == 2


def test_a_change_runs_the_step_and_all_that_follow(demo, tmp_path):
    demo.main()
    (tmp_path / "b.yaml").write_text("name: B\n")
    demo.main()
    assert calls(tmp_path) == "a b c B c"


def test_a_failed_step_ends_with_its_status_and_the_next_start_goes_on_there(demo, tmp_path, capsys):
    (tmp_path / "b.yaml").write_text("name: b\nstatus: 75\n")
    assert demo.main() == 75
    assert "step b ended with status 75" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_text("name: b\n")
    assert demo.main() == 0
    assert calls(tmp_path) == "a b b c"


def test_the_older_paths_follow_the_chain_and_show_their_own_table(demo, tmp_path, monkeypatch, capsys):
    assert demo.main() == 0
    (tmp_path / "d.yaml").write_text("name: d\n")
    (tmp_path / "runs/demo/older/eval").mkdir(parents=True)
    (tmp_path / "runs/demo/older/eval/table.md").write_text("with more rows\n")
    monkeypatch.setattr(demo, "OLDER", [demo.Step("d", "a step", "step.py", "d.yaml")])
    monkeypatch.setattr(sys, "argv", ["demo.py", "--older"])
    assert demo.main() == 0
    assert calls(tmp_path) == "a b c d"  # what the demo did is not done again
    out = capsys.readouterr().out
    assert "with more rows" in out
    assert "report: runs/demo/older/report/index.html" in out


def test_every_step_of_the_real_chain_has_its_script_and_its_experiment():
    spec = importlib.util.spec_from_file_location("demo_driver_real", DRIVER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_driver_real"] = module
    spec.loader.exec_module(module)
    for step in module.CHAIN + module.OLDER:
        assert (module.ROOT / step.script).is_file()
        assert (module.ROOT / step.config).is_file()
