"""The libraries: versions that are safe, imports that work, xformers, torchvision, DeepSpeed, and Hugging Face's cache."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ttd import floors
from ttd.checkup.findings import Finding, first_line, ok, problem, warning, within

IMPORTED = {
    "accelerate": "accelerate",
    "transformers": "transformers.models.clip.modeling_clip",
    "diffusers": "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "peft": "peft",
    "mne": "mne",
    "webdataset": "webdataset",
}
"""Distribution → the module that the commands import of it: that of diffusers and transformers alone loads nothing."""
OPS = ("cpu_adam", "fused_adam")
"""DeepSpeed's ops whose own probe starts no compiler."""
HUB_TIMEOUT_S = 4.0
"""A hub that takes longer to answer is not there; name look-ups without a network take their time."""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def versions() -> Finding:
    """Whether the packages that read files of others are new enough to do so safely."""
    old = floors.too_old()
    if old:
        return problem("; ".join(text for text, _ in old), "; ".join(remedy for _, remedy in old))
    return ok(", ".join(f"{f.package} {_version(f.package)} (at least {f.oldest})" for f in floors.FLOORS))


def libraries() -> Finding:
    """Whether what the commands import can be imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what it does without torchvision
    works, broken = [], {}
    for package, module in IMPORTED.items():
        try:
            importlib.import_module(module)
            works.append(f"{package} {_version(package)}")
        except Exception as error:
            broken[package] = first_line(error)
    if broken:
        text = "; ".join(f"{package}: {error}" for package, error in broken.items())
        remedy = f"if torchvision is broken, see there; else pip install --force-reinstall {' '.join(broken)}"
        return problem(f"cannot be imported: {text}", remedy)
    return ok(", ".join(works))


def torchvision() -> Finding:
    """Whether torchvision, which nothing needs, is whole: libraries that find a broken one fail with it."""
    if importlib.util.find_spec("torchvision") is None:
        return ok("not installed, not needed")
    remedy = (
        "pip uninstall torchvision: nothing needs it, and diffusers, transformers and peft fail beside a broken one"
    )
    try:
        import torch

        module = importlib.import_module("torchvision")
        ops = importlib.import_module("torchvision.ops")
        kept = ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([1.0, 0.5]), 0.5)
    except Exception as error:
        return problem(f"{_version('torchvision')} is broken: {first_line(error)}", remedy)
    if kept.tolist() != [0]:
        return problem(f"{module.__version__} computes wrongly", remedy)
    return ok(f"{module.__version__} works")


def xformers() -> Finding:
    """Whether xformers' kernels run here; attention is SDPA's unless an experiment asks for them."""
    import torch

    logging.getLogger("xformers").setLevel(logging.CRITICAL)  # says in five lines what is told here in one
    if importlib.util.find_spec("xformers") is None:
        return ok("not installed; attention uses SDPA")
    cuda = torch.cuda.is_available()
    try:
        ops = importlib.import_module("xformers.ops")
    except Exception as error:
        text = f"{_version('xformers')} is broken: {first_line(error)}"
        return problem(text, "pip uninstall xformers: diffusers imports it wherever it is installed")
    device, dtype = (f"cuda:{os.environ.get('LOCAL_RANK', '0')}", torch.bfloat16) if cuda else ("cpu", torch.float32)
    x = torch.ones(1, 16, 2, 64, device=device, dtype=dtype)
    try:
        ops.memory_efficient_attention(x, x, x)
    except Exception as error:
        text = f"{_version('xformers')}, its kernels do not run on {device}; attention uses SDPA"
        if not cuda:
            return ok(text)
        remedy = "keep attention: sdpa, or install the wheel built for this torch and CUDA from PyTorch's index"
        return warning(f"{text} ({first_line(error)})", remedy)
    return ok(f"{_version('xformers')}, its kernels run on {device}")


def deepspeed() -> Finding:
    """Whether DeepSpeed imports and drives the device that torch has; which of its ops could be built (none is needed)."""
    import torch

    if importlib.util.find_spec("deepspeed") is None:
        remedy = "pip install 'deepspeed>=0.19.8,<0.20', or start with launch/ddp.yaml"
        return warning("not installed: launch/zero2.yaml, zero3.yaml and multi_node.yaml do not start", remedy)
    logging.disable(logging.WARNING)  # which device it chose, told here in one line
    try:
        chosen = importlib.import_module("deepspeed.accelerator").get_accelerator()._name
        importlib.import_module("deepspeed")
        ops = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
    except Exception as error:
        remedy = (
            "pip install --force-reinstall 'deepspeed>=0.19.8,<0.20', or uninstall it and start with launch/ddp.yaml"
        )
        return problem(f"{_version('deepspeed')} is broken: {first_line(error)}", remedy)
    finally:
        logging.disable(logging.NOTSET)
    text, wanted = f"{_version('deepspeed')} for {chosen}", "cuda" if torch.cuda.is_available() else "cpu"
    if chosen != wanted:
        asked = os.environ.get("DS_ACCELERATOR")
        text += f" (DS_ACCELERATOR={asked})" if asked else ""
        return problem(f"{text}, but torch computes on {wanted}", f"export DS_ACCELERATOR={wanted}")
    return ok(f"{text}; its ops are not needed, {_buildable(ops)}")


def _buildable(ops: dict) -> str:
    from torch.utils.cpp_extension import is_ninja_available

    missing = [] if is_ninja_available() else ["ninja"]
    missing += [] if shutil.which(os.environ.get("CXX", "c++")) else ["a C++ compiler"]
    if missing:
        return f"none could be built ({' and '.join(missing)} missing)"
    able = [name for name in OPS if name in ops and _is_compatible(ops[name])]
    return f"{' and '.join(able)} could be built" if able else "none could be built"


def _is_compatible(builder) -> bool:  # type: ignore[no-untyped-def]  # OpBuilder: deepspeed is optional
    try:
        return builder.is_compatible(verbose=False)
    except Exception:  # MissingCUDAException: a GPU, but no CUDA toolkit
        return False


def hub() -> Finding:
    """Where models named instead of given as folders come from: the cache, and the hub unless offline."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound
    from huggingface_hub.utils import get_session

    cache, offline = Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE
    try:
        found = scan_cache_dir(cache)
        n, size, damaged = len(found.repos), found.size_on_disk, [str(warning) for warning in found.warnings]
    except CacheNotFound:
        n, size, damaged = 0, 0, []
    text = f"{'offline' if offline else 'online'}, {n} repositories ({size / 1e9:.1f} GB) in {cache}"
    if damaged:
        remedy = "delete that folder and download again"
        return warning(f"{text}, {len(damaged)} damaged: {damaged[0].splitlines()[0]}", remedy)
    if offline:
        if n:
            return ok(text)
        remedy = "give folders (weights/tiny), or where there is a network: HF_HUB_OFFLINE=0 hf download ORG/NAME"
        return warning(f"{text}: no model can be loaded by name", remedy)
    try:
        answer = within(HUB_TIMEOUT_S, lambda: get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S))
    except Exception as error:
        remedy = "export HF_HUB_OFFLINE=1 where there is no network: loading by name tries for a minute otherwise"
        return warning(f"{text}, but {constants.ENDPOINT} does not answer: {first_line(error)}", remedy)
    return ok(f"{text}; {constants.ENDPOINT} answers ({answer.status_code})")
