"""TTD: from the EEG of a person looking at pictures back to the picture, and on to a 3D object."""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# An installed xformers that cannot load its kernels (as on a CPU) says so in five lines at the first diffusers import;
# `python ttd/doctor.py` reports its state instead.
logging.getLogger("xformers").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """``ttd.EEGToImagePipeline``, loaded when it is asked for: importing ``ttd`` imports neither torch nor diffusers."""
    if name == "EEGToImagePipeline":
        return importlib.import_module("ttd.pipeline").EEGToImagePipeline
    raise AttributeError(f"module 'ttd' has no attribute {name!r}")
