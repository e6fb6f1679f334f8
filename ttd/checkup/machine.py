"""The machine: Python, torch with its GPU and driver, attention kernels, disk and shared memory."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from pathlib import Path

from ttd import floors
from ttd.checkup.findings import Finding, first_line, ok, problem, warning

GB = 1e9
SHARED_MEMORY = Path("/dev/shm")
MIN_TEMP_GB = 1.0
"""Libraries unpack, compile and open sockets in the temporary folder."""


def python() -> Finding:
    """The running Python and the kernel below it."""
    text = f"{platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    newer = floors.newer_python()
    if not newer:
        return ok(text)
    remedy = f"Python {newer} or newer; with this one, read shards of others by this project's commands only"
    return warning(f"{text}; {floors.PYTHON_REASON}", remedy)


def nvidia_driver() -> str:
    """Version of the NVIDIA driver as nvidia-smi says it; empty where there is none."""
    from torch.utils import collect_env

    return collect_env.get_nvidia_driver_version(collect_env.run) or ""


def torch_build() -> Finding:
    """Whether torch imports, was built for what is here, reaches this rank's GPU and computes on it."""
    try:
        import torch
    except Exception as error:
        remedy = "install it again: pip install --force-reinstall 'torch>=2.10,<2.14'"
        return problem(f"cannot be imported: {first_line(error)}", remedy)
    name, driver = str(torch.__version__), nvidia_driver()
    if torch.version.cuda is None:
        if driver:
            remedy = "pip install --force-reinstall 'torch>=2.10,<2.14' from PyPI, whose builds have CUDA"
            return problem(
                f"{name} is built for CPUs, but there is an NVIDIA driver {driver}: its GPUs lie idle", remedy
            )
        return ok(f"{name}, CPU only, {torch.get_num_threads()} thread(s)")
    name += f", CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        if driver:
            try:
                torch.cuda.init()
                why = "no GPU is visible"
            except Exception as error:
                why = first_line(error)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            why += f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
            remedy = "ask Slurm for GPUs, unset CUDA_VISIBLE_DEVICES, or update the driver (CUDA 13 needs 580 or newer)"
            return problem(f"{name}, driver {driver}, but {why}", remedy)
        return warning(f"{name}, but no NVIDIA driver: all runs on the CPU", "run this on a node with GPUs")
    count, mine = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    name += f", driver {driver or 'unknown'}, {count} × {torch.cuda.get_device_name(0)}"
    if mine >= count:
        remedy = f"start {count} processes here, or ask for more GPUs (--gpus-per-node)"
        return problem(f"{name}: local rank {mine} has none of its own", remedy)
    x = torch.ones(64, 64, device=f"cuda:{mine}")
    if (x @ x)[0, 0].item() != 64:
        return problem(f"{name}: GPU {mine} computes wrongly", "take the node out of use and tell its operators")
    free, total = torch.cuda.mem_get_info(mine)
    name += f", {free / GB:.1f} of {total / GB:.1f} GB free"
    if free < total / 2:
        return warning(name, "somebody else computes on this GPU; nvidia-smi names the processes")
    return ok(name)


def attention() -> Finding:
    """Kernels of ``scaled_dot_product_attention`` that run here on a small call like SDXL's, checked against the formula."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    mine = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device, dtype = (mine, torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    x = torch.randn(1, 2, 16, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    remedy = "torch is damaged, or something turned its kernels off: install it again, unset TORCH_* variables"
    try:
        got = scaled_dot_product_attention(x, x, x)
    except RuntimeError as error:
        return problem(f"SDPA does not run on {device}: {first_line(error)}", remedy)
    expected = torch.softmax(x.double() @ x.double().transpose(-1, -2) / 8, -1) @ x.double()
    off = (got.double() - expected).abs().max().item()
    if off > (1e-4 if dtype == torch.float32 else 5e-2):  # their rounding, with a factor of ten
        return problem(f"SDPA on {device} is wrong by {off:.2g}", remedy)
    works = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # why a kernel was passed over
                scaled_dot_product_attention(x, x, x)
            works.append(name.removesuffix("_ATTENTION").lower())
        except RuntimeError:
            continue
    text = f"SDPA on {device}: {', '.join(works)}"
    if works == ["math"]:
        return warning(f"{text} alone: attention is slow and takes memory with the square of its length", remedy)
    return ok(text)


def disk(output_dir: Path, min_gb: float) -> Finding:
    """Space for runs and temporary files, and whether both take what is written."""
    there = next(path for path in [output_dir, *output_dir.absolute().parents] if path.is_dir())
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return problem(first_line(error), "set TMPDIR to a folder that may be written to")
    places = (("output_dir", output_dir, there, min_gb), ("TMPDIR", temporary, temporary, MIN_TEMP_GB))
    free = {name: shutil.disk_usage(folder).free / GB for name, _, folder, _ in places}
    text = ", ".join(f"{path}: {free[name]:.2f} GB free" for name, path, _, _ in places)
    for name, path, folder, least in places:
        if free[name] < least:
            return problem(f"{text}; {path} needs {least:g} GB", f"make room there, or give another {name}")
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 20))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return problem(f"{path}: cannot be written: {error}", f"give another {name}, or look at quota and rights")
    return ok(text)


def shared_memory(min_gb: float) -> Finding:
    """Space in /dev/shm, through which NCCL and data loaders of one host exchange tensors."""
    if not SHARED_MEMORY.is_dir():
        return ok(f"no {SHARED_MEMORY} on {platform.system()}")
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / GB:.2f} of {usage.total / GB:.2f} GB free in {SHARED_MEMORY}"
    if usage.free >= min_gb * GB:
        return ok(text)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    remedy = "delete what ended jobs left there; a container needs --shm-size=8g or --ipc=host (docker gives 64 MB)"
    if ranks > 1:
        return problem(f"{text}, {min_gb:g} GB are needed: {ranks} ranks of this host talk through it", remedy)
    return warning(f"{text}: several ranks on this host would need {min_gb:g} GB", remedy)
