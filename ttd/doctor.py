"""Say what this installation can do: torch, CUDA, attention, xformers, DeepSpeed, torchvision, the world of a launch.

    python ttd/doctor.py
    accelerate launch --config_file launch/zero2.yaml ttd/doctor.py

Exit status 0; 2 when the processes of a launch did not find each other.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ttd.config import Config, run, write_json


class DoctorConfig(Config):
    output_dir: Path | None = None
    """Where to leave ``doctor.json``; None only prints."""


def torch_state() -> str:
    if not torch.cuda.is_available():
        return f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{torch.__version__}, CUDA {torch.version.cuda}: {names}"


def attention_state() -> str:
    """Kernels of ``scaled_dot_product_attention`` that run here on a small SDXL-like call."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    x = torch.randn(1, 2, 16, 64, device=device, dtype=dtype)
    works = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # why a kernel was passed over
                torch.nn.functional.scaled_dot_product_attention(x, x, x)
            works.append(name.removesuffix("_ATTENTION").lower())
        except RuntimeError:
            continue
    return f"sdpa on {device}: {', '.join(works)}"


def package_state(name: str, check: str | None = None) -> str:
    """Version of a package and whether importing it (or its part ``check``) works."""
    try:
        number = version(name)
    except PackageNotFoundError:
        return "not installed"
    try:
        importlib.import_module(check or name)
    except Exception as error:
        return f"{number}, BROKEN: {type(error).__name__}: {str(error).splitlines()[0]}"
    return number


def xformers_state() -> str:
    logging.getLogger("xformers").setLevel(logging.CRITICAL)
    state = package_state("xformers", "xformers.ops")
    if "installed" in state or "BROKEN" in state:
        return f"{state}; attention uses sdpa"
    x = torch.randn(1, 16, 2, 64, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        sys.modules["xformers.ops"].memory_efficient_attention(x, x, x)
    except (NotImplementedError, RuntimeError):
        return f"{state}, its kernels do not run here; attention uses sdpa"
    return f"{state}, runs"


def torchvision_state() -> str:
    state = package_state("torchvision")
    if "BROKEN" in state:
        return f"{state}; uninstall it: diffusers, peft and transformers fail beside a broken one"
    return state


def world_state() -> str:
    """Processes the launcher started and processes accelerate sees.

    Raises:
        UserError: they differ.
    """
    from ttd.engine.accelerator import make_accelerator

    accelerator = make_accelerator()
    started = os.environ.get("WORLD_SIZE", "1")
    kind = accelerator.distributed_type.value
    return f"{accelerator.num_processes} of {started} processes, {kind}, {accelerator.device}"


def main(config: DoctorConfig) -> None:
    found = {"world": world_state()}
    if int(os.environ.get("RANK", "0")):
        return
    found |= {
        "python": sys.version.split()[0],
        "torch": torch_state(),
        "attention": attention_state(),
        "xformers": xformers_state(),
        "torchvision": torchvision_state(),
    }
    found |= {
        name: package_state(name) for name in ("accelerate", "deepspeed", "diffusers", "transformers", "peft", "mne")
    }
    for name, state in found.items():
        print(f"{name:12s} {state}")
    if config.output_dir:
        write_json(config.output_dir / "doctor.json", found)


if __name__ == "__main__":
    run(main, DoctorConfig, doc=__doc__)
