"""Weights are the ones that were meant: shipped ones by their list of hashes, published ones by commit and hash, or refused."""

import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ttd.config import UserError
from ttd.diffusion.base import BaseConfig, find_missing, load_base
from ttd.diffusion.targets import ClipTargets, VaeTargets, identity
from ttd.diffusion.targets import find_missing as find_missing_model
from ttd.diffusion.text_targets import TextTargets
from ttd.metrics import networks
from ttd.objectives.finetuned import load_finetuned
from ttd.simulation.judge import load_judge
from ttd.simulation.tiny_clip import load_clip
from ttd.untrusted.weights import find_tampered, split_name, write_sums

ROOT = Path(__file__).parents[2]
TINY = ROOT / "weights" / "tiny"
COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
REMEDY = (
    "list them anew: cd weights/tiny && find * -name '*.safetensors' | LC_ALL=C sort | xargs sha256sum > SHA256SUMS"
)
NO_COMMIT = {"openai/shap-e-img2img": "not known here; the cache's is told when it is asked for"}


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_every_shipped_weight_file_is_listed_with_its_hash():
    lines = [line.split("  ") for line in (TINY / "SHA256SUMS").read_text().splitlines()]
    files = {path.relative_to(TINY).as_posix() for path in TINY.rglob("*.safetensors")}
    assert {name for _, name in lines} == files, REMEDY
    wrong = [name for digest, name in lines if hashlib.sha256((TINY / name).read_bytes()).hexdigest() != digest]
    assert not wrong, REMEDY
    assert len(files) >= 10
    assert not [p for p in TINY.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy")]


READERS = {
    "unet/diffusion_pytorch_model.safetensors": lambda folder: load_base(BaseConfig(path=str(folder))),
    "vae/diffusion_pytorch_model.safetensors": lambda folder: VaeTargets(str(folder), image_size=64),
    "text_encoder_2/model.safetensors": lambda folder: TextTargets(str(folder)),
    "clip/model.safetensors": lambda folder: ClipTargets(str(folder / "clip")),
    "clip/heads.safetensors": lambda folder: load_clip(folder / "clip"),
    "judge/model.safetensors": lambda folder: load_judge(folder / "judge"),
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return shutil.copytree(TINY, tmp_path_factory.mktemp("weights") / "tiny")


@pytest.mark.parametrize("name", READERS)
def test_a_changed_bit_of_shipped_weights_is_refused_by_name(shipped, name):
    READERS[name](shipped)
    flip_last_byte(shipped / name)
    with pytest.raises(UserError, match=f"{name} has sha256 .*SHA256SUMS says .*Restore the file"):
        READERS[name](shipped)
    flip_last_byte(shipped / name)
    READERS[name](shipped)


def test_a_weight_file_beside_those_that_are_listed_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert find_tampered(tmp_path) is None  # nothing vouches for it
    write_sums(tmp_path)
    assert find_tampered(tmp_path) is None
    (tmp_path / "part").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "part" / "model-00002.safetensors")
    assert "SHA256SUMS says no hash" in find_tampered(tmp_path / "part")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  eeg.zip\n")  # a list of other things says nothing of weights
    assert find_tampered(tmp_path) is None


def test_an_export_whose_weights_were_changed_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "bridge").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "bridge" / "model.safetensors")
    write_sums(tmp_path)
    flip_last_byte(tmp_path / "bridge" / "model.safetensors")
    with pytest.raises(UserError, match=r"bridge/model\.safetensors has sha256"):
        load_finetuned(tmp_path, None)


# -------------------------------------------------------------------------------------------------- published weights


def put_into_cache(cache: Path, repository: str, commit: str, source: Path, names: list[str]) -> Path:
    """Files as the Hugging Face cache keeps them: blobs by their SHA-256, snapshots of links; returns the snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir()
    for name in names:
        content = (source / name).read_bytes()
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder / "snapshots" / commit


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a machine whose every connection fails the test."""

    def connect(*args):
        pytest.fail(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", False
    )  # what is not asked for is not fetched either
    return tmp_path / "hub"


def test_a_repository_is_read_from_the_cache_at_its_commit_alone_and_without_a_network(cache, base_folder):
    names = [path.relative_to(base_folder).as_posix() for path in base_folder.rglob("*") if path.is_file()]
    snapshot = put_into_cache(cache, "owner/base", COMMIT, base_folder, names)
    assert load_base(BaseConfig(path="owner/base", revision=COMMIT)).context_dim == 16
    for revision in (None, "main"):
        problem = find_missing(BaseConfig(path="owner/base", revision=revision))
        assert problem.startswith("base.revision: 'owner/base'")
        assert problem.endswith(f"name its commit; the one in the cache is {COMMIT}")
    with pytest.raises(UserError, match="download it with: hf download owner/base .*--revision " + "0" * 40):
        load_base(BaseConfig(path="owner/base", revision="0" * 40))
    flip_last_byte((snapshot / "unet" / "diffusion_pytorch_model.safetensors").resolve())
    with pytest.raises(UserError, match="the name that the Hugging Face cache gave it says"):
        load_base(BaseConfig(path="owner/base", revision=COMMIT))


def test_a_model_is_named_with_its_commit_where_there_is_no_field_for_one(cache):
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    snapshot = put_into_cache(cache, "owner/clip", COMMIT, TINY / "clip", names)
    assert ClipTargets(f"owner/clip@{COMMIT}").size == 64
    assert identity(f"owner/clip@{COMMIT}") == identity(str(snapshot))
    said = find_missing_model("owner/clip")
    assert said.endswith(f"the one in the cache is {COMMIT}: write owner/clip@{COMMIT}")
    assert f"hf download owner/clip --revision {'0' * 40}" in find_missing_model(f"owner/clip@{'0' * 40}")
    flip_last_byte((snapshot / "model.safetensors").resolve())
    with pytest.raises(UserError, match="the Hugging Face cache gave it"):
        ClipTargets(f"owner/clip@{COMMIT}")


def test_folders_are_no_repositories():
    assert split_name("weights/tiny") == ("weights/tiny", None)
    assert split_name(f"a/b@{COMMIT}") == ("a/b", COMMIT)
    assert split_name("/data/user@host/clip") == ("/data/user@host/clip", None)


def test_the_evaluation_clip_is_the_published_file(tmp_path):
    (tmp_path / "clip-vit-large-patch14").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "clip-vit-large-patch14" / "model.safetensors")
    with pytest.raises(UserError, match="CLIP ViT-L/14's is a2bf730a"):
        networks.load_extractor("clip", tmp_path)


def test_no_pickled_weights_are_read_where_safetensors_are_missing(tmp_path):
    """Neither as pytorch_model.bin nor as diffusion_pytorch_model.bin; nothing in them runs."""
    mark = tmp_path / "executed"

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    folder = shutil.copytree(TINY, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors", "SHA256SUMS"))
    for part in ("clip", "unet", "vae", "text_encoder", "text_encoder_2"):
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            torch.save({"a": Canary()}, folder / part / name)
    for name, read in READERS.items():
        with pytest.raises((UserError, OSError)):
            read(folder)
        assert not mark.exists(), name
    torch.load(folder / "vae" / "pytorch_model.bin", weights_only=False)  # the canary is alive
    assert mark.exists()


def repositories(tree, found=()):
    """(repository, whether a commit stands with it) of every text in a configuration that names one."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else []):
        if isinstance(value, dict | list):
            yield from repositories(value)
        elif key in ("path", "model", "clip", "base", "start") and isinstance(value, str):
            name, commit = split_name(value)
            if name.count("/") == 1 and not (ROOT / name).exists() and name.split("/")[0] not in ("data", "runs"):
                stated = commit or (tree.get("revision") if isinstance(tree, dict) else None)
                yield name, bool(stated) and len(stated) == 40


def test_every_repository_in_a_shipped_experiment_has_its_commit():
    found = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for name, pinned in repositories(yaml.safe_load(path.read_text()) or {}):
            found[name] = found.get(name, True) and pinned
    assert len(found) >= 4
    assert {name for name, pinned in found.items() if not pinned} == set(NO_COMMIT)


def test_a_tokenizer_or_configuration_asks_for_no_code(tmp_path):
    """``auto_map`` names a class in a file of the folder; nothing of TTD trusts it."""
    folder = shutil.copytree(TINY / "clip", tmp_path / "clip")
    mark = tmp_path / "executed"
    (folder / "hostile.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {kind: "hostile.Hostile" for kind in ("AutoConfig", "AutoModel", "AutoTokenizer")}
        (folder / name).write_text(json.dumps(content))
    ClipTargets(str(folder))
    load_clip(folder)
    assert not mark.exists()
