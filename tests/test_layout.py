"""What the folders promise: no module hides a package, every experiment loads, imports point downward."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ENTRIES = sorted(p for p in (ROOT / "ttd").glob("*.py") if "def main" in p.read_text())


def names_directly_inside(folder: str) -> set[str]:
    return {
        p.stem for p in (ROOT / folder).iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())
    }


@pytest.mark.parametrize("folder", ["ttd", "shards"])
def test_no_module_hides_an_importable_package(folder):
    taken = (set(sys.stdlib_module_names) | set(packages_distributions()) | {"datasets", "evaluate"}) - {"ttd"}
    assert not (names_directly_inside(folder) - {"__init__"}) & taken


def test_no_file_is_longer_than_a_newcomer_reads_at_once():
    long = {
        str(p.relative_to(ROOT)): n for p in ROOT.glob("ttd/**/*.py") if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_an_experiment_says_what_it_is_and_is_valid_yaml(path):
    assert path.read_text().startswith("# "), "a config opens with what it is and where its numbers come from"
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_fast_commands_import_no_torch():
    code = "import sys, ttd.config, runpy; runpy.run_path('launch/demo.py', run_name='x'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_machine_path_stands_in_the_sources():
    for path in [*ROOT.glob("ttd/**/*.py"), *ROOT.glob("docs/*.md"), *CONFIGS, ROOT / "README.md"]:
        assert "/work/" not in path.read_text(), path
