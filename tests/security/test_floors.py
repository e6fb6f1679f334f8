"""S9: a package below its floor keeps every command from starting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("package", "old"), [("torch", "2.9.1"), ("transformers", "5.2.0"), ("diffusers", "0.37.0")])
def test_a_package_with_known_holes_is_refused_with_the_remedy(tmp_path, package, old):
    folder = tmp_path / f"{package}-{old}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {old}\n")
    command = [sys.executable, "shards/verify.py", "shards=weights/tiny", "--dry-run"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{package} {old} is older than" in done.stderr
    assert "pip install --upgrade" in done.stderr
