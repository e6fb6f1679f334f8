"""The command on this machine: true on every line as it is, and with faults planted."""

import json
import os
import resource
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import get_args

import pytest
from doctor_runs import doctor, end, found, plant, plant_version, write_shards

from ttd.doctor import Check


def test_on_this_machine_every_line_is_true(tmp_path):
    write_shards(tmp_path / "shards")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, printed = end(doctor(tmp_path / "out", f"shards={tmp_path / 'shards'}", "min_disk_gb=0"))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime < 20, "5.6 CPU seconds when written"
    lines = found(tmp_path / "out")
    assert list(lines) == [name for name in get_args(Check) if name not in ("code", "shared", "all-reduce")]
    for name, finding in lines.items():
        assert finding["text"] in printed, name
    assert status == (2 if any(finding["status"] == "problem" for finding in lines.values()) else 0)

    running = subprocess.run([sys.executable, "-V"], capture_output=True, text=True).stdout.split()[1]
    assert lines["python"]["text"].startswith(f"{running}, Linux {os.uname().release}, {os.cpu_count()} CPUs")
    for package in ("torch", "transformers", "diffusers"):
        assert f"{package} {version(package)} (at least " in lines["versions"]["text"]
    for package in ("accelerate", "transformers", "diffusers", "peft", "mne", "webdataset"):
        assert f"{package} {version(package)}" in lines["libraries"]["text"]
    disk = float(lines["disk"]["text"].split(" GB free")[0].split()[-1])
    assert disk == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.05)
    assert "SDPA on cpu: flash, math" in lines["attention"]["text"]
    assert lines["hub"]["text"].startswith("offline, ")
    assert "a sample of each of 2 shards" in lines["shards"]["text"]
    assert lines["world"]["text"] == "1 process, cpu"
    for name in ("versions", "attention", "libraries", "deepspeed", "shards", "world"):
        assert lines[name]["status"] == "ok", lines[name]


def test_each_planted_fault_has_its_line_and_its_remedy(tmp_path):
    plant(tmp_path / "planted", "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    plant(tmp_path / "planted", "xformers", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    path = plant_version(tmp_path / "planted", "diffusers", "0.37.0")
    os.truncate(write_shards(tmp_path / "shards")[1], 5000)
    faults = {"PYTHONPATH": path, "DS_ACCELERATOR": "cuda", "HF_HOME": str(tmp_path / "empty")}
    arguments = (f"shards=[{tmp_path / 'shards'}]", "min_disk_gb=1_000_000")
    status, printed = end(doctor(tmp_path / "out", *arguments, **faults))
    assert status == 2
    lines = found(tmp_path / "out")
    expected = {
        "versions": ("diffusers 0.37.0 is older than 0.38", "pip install --upgrade 'diffusers>=0.38'"),
        "xformers": ("is broken: ImportError: libcudart.so.12", "pip uninstall xformers"),
        "torchvision": ("is broken: RuntimeError: operator torchvision::nms", "pip uninstall torchvision"),
        "libraries": ("cannot be imported: ", "if torchvision is broken, see there"),
        "deepspeed": ("for cuda (DS_ACCELERATOR=cuda), but torch computes on cpu", "export DS_ACCELERATOR=cpu"),
        "disk": ("/out needs 1e+06 GB", "make room there, or give another output_dir"),
        "shards": ("000001.tar: has 5000 bytes, 7168 were written", "copy or build them again"),
    }
    for name, (text, remedy) in expected.items():
        assert lines[name]["status"] == "problem"
        assert text in lines[name]["text"]
        assert lines[name]["remedy"].startswith(remedy)
        assert f"✗ {name}" in printed
    assert {name for name, finding in lines.items() if finding["status"] == "problem"} == set(expected)
    assert lines["hub"]["status"] == "warning"
    assert "doctor.py: versions, xformers, torchvision, libraries, deepspeed, disk, shards: see above" in printed


def test_without_a_torch_that_imports_the_rest_is_still_told(tmp_path):
    path = plant(tmp_path / "planted", "torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    status, printed = end(doctor(tmp_path / "out", PYTHONPATH=path))
    assert status == 2
    lines = found(tmp_path / "out")
    assert lines["torch"]["text"] == "cannot be imported: OSError: libcudart.so.13: cannot open shared object file"
    assert list(lines) == ["python", "versions", "torch", "disk", "shm", "hub"]
    assert "Traceback" not in printed


def test_secrets_are_not_printed(tmp_path):
    path = plant(tmp_path / "planted", "torch", "import os\nraise OSError('key ' + os.environ['TOY_API_KEY'])")
    _, printed = end(doctor(tmp_path / "out", PYTHONPATH=path, TOY_API_KEY="canary-7361"))
    assert "cannot be imported: OSError: key [redacted]" in printed
    assert "canary-7361" not in printed + json.dumps(found(tmp_path / "out"))
