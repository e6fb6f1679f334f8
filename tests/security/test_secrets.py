"""No byte of a secret is left by a training run, whether it ends well or not: every file and every word of it is searched."""

import base64
import gzip
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from ttd.data.writer import ShardWriter
from ttd.redaction import redact

ROOT = Path(__file__).parents[2]
CAP = ["O1", "Oz", "O2", "Pz"]
SECRETS = {
    "WANDB_API_KEY": "0ca4a47beef" * 3 + "0ca4a47",
    "HF_TOKEN": "hf_cAnArYinTheEnvironmentAbcdefghi",
    "AWS_SECRET_ACCESS_KEY": "cAnArY/aws+secret/0123456789",
    "SITE_PASSWORD": "cAnArY pass word",
    "PGPASSWORD": "cAnArY-of-a-database",
}
ENVIRONMENT = {**SECRETS, "HTTPS_PROXY": "http://me:cAnArY-of-the-proxy@localhost:9"}
CANARIES = [*SECRETS.values(), "cAnArY"]


def shards(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, n in (("train", 24), ("validation", 8)):
        with ShardWriter(folder / part, kind="window") as writer:
            for i in range(n):
                about = {"study": "Simulated", "subject": "01", "cap": "cap", "sessions": ["1"], "runs": [part]}
                eeg = (10 * rng.standard_normal((1, 4, 128))).astype(np.float16)
                writer.write(f"{part}{i}", {"eeg.npy": eeg, "meta.json": {**about, "onsets": [float(i)]}})
            facts = {"study": "Simulated", "part": part, "sfreq": 128.0, "tmin": 0.0, "n_times": 128, "simulated": True}
            statistics = {"cap": {"mean": [0.0] * 4, "std": [10.0] * 4}}
            writer.finish({**facts, "caps": {"cap": CAP}, "statistics": statistics})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home with a key in .netrc, a checkout with a password in its remote, and shards whose path holds a token."""
    root = tmp_path_factory.mktemp("secrets")
    for name in ("home", "temporary", "checkout"):
        (root / name).mkdir()
    (root / "home" / ".netrc").write_text("machine api.wandb.ai login user password cAnArY-of-netrc\n")
    remote = ["remote", "add", "origin", "https://me:cAnArY-of-the-remote@example.org/x.git"]
    for command in (["init", "-q"], remote):
        subprocess.run(["git", *command], cwd=root / "checkout", check=True, capture_output=True)
    shards(root / "token=cAnArY-of-an-argument")
    experiment = {
        "global_batch_size": 8,
        "encoder": {"embed_dim": 16, "depth": 1, "n_heads": 2},
        "objective": {"masking": {"span": 8}, "decoder": {"width": 16, "depth": 1, "n_heads": 2}},
        "report": {"n_wiener": 4},
        "train": {
            "max_steps": 4, "log_every": 2, "checkpoint_every": 2,
            "tracking": {"to": ["wandb", "tensorboard"], "project": f"mine-{SECRETS['HF_TOKEN']}"},
        },
    }  # fmt: skip
    (root / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return root


def train(place: Path, run: Path, *overrides: str) -> subprocess.CompletedProcess:
    """``ttd/pretrain.py`` in a process of its own, with secrets wherever it can know them from."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RANK", "WORLD", "TTD_"))}
    env |= {**ENVIRONMENT, "HOME": str(place / "home"), "TMPDIR": str(place / "temporary")}
    env |= {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "ttd" / "pretrain.py"), "--config", str(place / "experiment.yaml")]
    command += [f"output_dir={run}", *overrides]
    return subprocess.run(command, cwd=place / "checkout", env=env, capture_output=True, text=True, timeout=120)


def unpacked(content: bytes) -> list[bytes]:
    """What is compressed is searched too."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [content, *(archive.read(name) for name in archive.namelist())]
    return [content, gzip.decompress(content)] if content[:2] == b"\x1f\x8b" else [content]


def leaks(*contents: bytes) -> list[str]:
    """Canaries in any of these, as they are, in other case, as base64 or as JSON writes them."""
    found = []
    for canary in CANARIES:
        forms = {canary, json.dumps(canary)[1:-1]}
        if len(canary) > 12:  # at each of the three places that it may have among base64's groups of three bytes
            forms |= {base64.b64encode(b"x" * n + canary.encode()).decode()[4:-4] for n in range(3)}
        for form in forms:
            found += [
                form for content in contents for part in unpacked(content) if form.lower().encode() in part.lower()
            ]
    return found


def left_by(place: Path, *folders: Path) -> dict[Path, bytes]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path != place / "home" / ".netrc"}


@pytest.mark.filterwarnings("ignore")
def test_no_byte_of_a_secret_is_left_by_a_training_run(place):
    done = train(place, place / "run", f"data.shards={place / 'token=cAnArY-of-an-argument'}")
    assert done.returncode == 0, done.stderr[-3000:]
    files = left_by(place, place / "run", place / "home", place / "temporary")
    names = {path.name for path in files}
    assert {
        "config.yaml",
        "environment.json",
        "log.jsonl",
        "weights.safetensors",
        "outcome.json",
        "model.safetensors",
    } <= names
    assert [path for path in files if path.suffix == ".wandb" and len(files[path]) > 1000]
    assert [path for path in files if path.name.startswith("events.out.tfevents")]
    assert {str(path): found for path, content in files.items() if (found := leaks(content))} == {}
    assert leaks(done.stdout.encode(), done.stderr.encode()) == []
    written = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert written["train"]["tracking"]["project"] == "mine-[redacted]"


FAILURES = {
    "an address that does not answer": (
        ["data.remote.url=http://reader:cAnArY-x@127.0.0.1:9/data"],
        "127.0.0.1:9/data",
    ),
    "a value that is none": (["train.max_steps=https://me:cAnArY-x@example.org"], "train.max_steps"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_that_fails_says_why_without_its_secrets(place, name):
    overrides, words = FAILURES[name]
    done = train(place, place / "failed", f"data.shards={place / 'token=cAnArY-of-an-argument'}", *overrides)
    assert done.returncode == 2
    assert words in done.stderr
    said = left_by(place, place / "home", place / "temporary", place / "failed").values()
    assert leaks(*said, done.stdout.encode(), done.stderr.encode()) == []


def test_a_password_of_netrc_is_known(place):
    code = "from ttd.redaction import redact; print(redact('the key is cAnArY-of-netrc, and PWD stays'))"
    env = {**os.environ, "HOME": str(place / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "the key is [redacted], and PWD stays\n"


def test_the_search_finds_what_is_there():
    for canary in CANARIES:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", f"x{canary}y" * 9)
        forms = [b"before " + canary.upper().encode(), packed.getvalue(), gzip.compress(canary.encode())]
        if len(canary) > 12:
            forms += [base64.b64encode(f"{'x' * n}:{canary}:more".encode()) for n in range(3)]
        assert all(leaks(form) for form in forms)
    assert leaks(b"nothing of it") == []


def test_an_exception_that_nobody_expected_is_shown_without_its_secrets():
    code = """
        import threading
        from ttd.redaction import redact_tracebacks
        redact_tracebacks()
        def thread():
            raise OSError("in a thread: https://me:cAnArY@example.org")
        one = threading.Thread(target=thread)
        one.start()
        one.join()
        try:
            raise ValueError("the cause: token=cAnArY-1")
        except ValueError as error:
            raise RuntimeError("https://me:cAnArY-2@example.org/?signature=cAnArY-3 and cAnArY pass word") from error
    """
    env = {**os.environ, **ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert leaks(done.stderr.encode()) == []
    for word in (
        "the cause: token=[redacted]",
        "RuntimeError: https://[redacted]@example.org/",
        "in a thread",
        "line 13",
    ):
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "aB3" * 11, "ghp_" + "aB3" * 12, "github_pat_" + "aB3_" * 12, "glpat-" + "aB3-" * 5, "AKIA" + "A1B2" * 4,
        "sk-proj-" + "aB3" * 12, "xoxb-123456789012-" + "aB3" * 8, "wandb_v1_" + "aB3" * 12, "eyJhbGci.eyJzdWIiOiIx.SflKxwRJSM",
    ],
)  # fmt: skip
def test_tokens_are_known_by_their_shape_wherever_they_stand(token):
    for text in (token, f"project mine-{token}", f"see ({token})."):
        assert token not in redact(text)
        assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub", "sk-learn", "weights a6d4ced64ea5e6b6ea8753d44ae34fb5a1239f020db5f18e089accadab3bf444", "step-0000010",
        "stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b", "task-things_run-01_eeg.vhdr",
    ],
)  # fmt: skip
def test_hashes_commits_and_names_are_no_tokens(text):
    assert redact(text) == text


PRINTS = (
    r"set\s+-\w*x", r"\bprintenv\b", r"\bexport\s+-p", r"\bdeclare\s+-\w*[px]", r"(^|[;|&(]\s*)env\s*($|[|>;])",
    r"(?i)\$\{?\w*(token|password|secret|api_key)",
)  # fmt: skip


def test_the_templates_print_no_environment_and_pass_no_secret_as_an_argument():
    scripts = sorted((ROOT / "slurm").glob("*.sh"))
    assert len(scripts) >= 4
    for path in scripts:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("# "))
        assert [pattern for pattern in PRINTS if re.search(pattern, code, re.MULTILINE)] == [], path.name


def test_the_header_of_a_job_says_where_and_what_without_a_secret(place, tmp_path):
    """``scontrol`` is the only word of Slurm's that it needs."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node-a\n")
    (tmp_path / "scontrol").chmod(0o755)
    env = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(place / "home")}
    env |= {
        "TTD_ROOT": str(place / "checkout"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-a",
    }
    code = f". {ROOT}/slurm/env.sh; ttd_header; declare -F | wc -l"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "job 7" in done.stdout
    assert "node-a" in done.stdout
    assert leaks(done.stdout.encode(), done.stderr.encode()) == []
