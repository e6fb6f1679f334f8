"""The base model: UNet, VAE and noise schedule of SDXL or of Stable Diffusion 1.5, from a folder or from the Hugging Face cache.

Podell et al., 2023, arXiv:2307.01952; Rombach et al., 2022, arXiv:2112.10752. Both read conditioning tokens by cross-attention.
Beside them SDXL's UNet takes a pooled vector and the picture's sizes, embedded by its own weights; Stable Diffusion 1.5 has no
such input, and what is pooled is added to its time-step embedding, as eLDM does (MinD-Vis, Chen et al., 2023,
arXiv:2211.06956; DreamDiffusion, Bai et al., 2023, arXiv:2306.16934). Nothing is downloaded here: a job of many ranks that
starts with a download of gigabytes is a job that fails late, so ``find_missing`` says beforehand what to download and how.
All widths come from the UNet's own configuration, the prediction type from the scheduler's. Training noise is drawn by
``DDPMScheduler``: ``DPMSolverMultistepScheduler.add_noise`` applies the levels in reverse before ``set_timesteps``
(diffusers 0.42).

Shapes: B batch, h, w latent height and width, H, W image height and width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ttd.config import Config, UserError
from ttd.diffusion.attention import Attention
from ttd.untrusted.weights import find_tampered, sha256_of, unpinned

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

logger = logging.getLogger(__name__)


class BaseConfig(Config):
    name: Literal["sdxl", "sd15"] = "sdxl"
    """Stable Diffusion XL, or 1.5, whose pooled condition is added to the time-step embedding."""
    path: str = "weights/tiny"
    """A folder in the format of diffusers, or a repository that was downloaded before (``hf download``)."""
    revision: str | None = None
    """Commit of the repository (40 hex digits), which a repository must have: its files may change, a commit's do not."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Hash of each weight file by its path in the base. Given, all are compared, and a base of other bytes is refused."""
    variant: str | None = None
    """File variant of the UNet's weights, such as fp16; the VAE is always read in full precision."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the frozen UNet on a GPU. On a CPU it is float32 whatever stands here, and so is the VAE."""
    attention: Attention = "auto"
    """auto and sdpa: PyTorch's fused attention; math: unfused; xformers: needs a GPU and the extra ttd[xformers]."""
    channels_last: bool | None = None
    """Keep the channels of each pixel together, as tensor cores take them. Null: on a GPU."""
    compile: bool = False
    """Compile the UNet's transformer blocks (70 in SDXL, of two widths: each is compiled once) by torch.compile. Needs a C
    compiler, and a minute or so at the start."""


_POOLED: dict[str, dict[str, str]] = {"sdxl": {}, "sd15": {"class_embed_type": "identity"}}
"""How a UNet is built so that it takes a pooled condition; the identity has no weights."""
_COMMON = {"in_channels": 4, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim_type": None}
"""What UNets of other tasks (inpainting, upscaling, image variations) have otherwise."""


@dataclass
class Base:
    """What a diffusion base consists of and what its configuration files say."""

    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    vae_config: dict[str, Any]
    vae: AutoencoderKL | None = None

    @property
    def context_dim(self) -> int:
        """Width D of the UNet's cross-attention."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def pooled_dim(self) -> int:
        """Width P of the pooled condition: SDXL's beside the six sizes, otherwise the time-step embedding's."""
        return pooled_dim(self.unet.config)

    @property
    def vae_factor(self) -> int:
        """Pixels of the image per pixel of the latents, along one side."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def latent_size(self) -> int:
        """Native height and width of the latents."""
        return int(self.unet.config.sample_size)

    @property
    def image_size(self) -> int:
        """Native height and width of the images."""
        return self.latent_size * self.vae_factor

    def predict(self, noisy: Tensor, t: Tensor, context: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        """The UNet's prediction, float32 [B, 4, h, w], for latents [B, 4, h, w] at the levels ``t`` [B] or one level for all.

        Args:
            context: conditioning tokens [B, Q, D].
            pooled: pooled condition [B, P].
            sizes: [B, 6], as ``time_ids``; not read where the base has no such input.
        """
        device, dtype = self.unet.device, self.unet.conv_in.weight.dtype
        noisy, context, pooled, sizes = (x.to(device, dtype) for x in (noisy, context, pooled, sizes))
        more = more_inputs(self.unet.config, pooled, sizes)
        return self.unet(noisy, t, encoder_hidden_states=context, **more).sample.float()

    def scale(self, z: Tensor) -> Tensor:
        """VAE latents z [B, 4, h, w] in the units the UNet was trained in."""
        mean, std = self._statistics(z)
        return (z - mean) / std * self.vae_config["scaling_factor"]

    def unscale(self, latents: Tensor) -> Tensor:
        """Undo ``scale``, before the VAE decodes."""
        mean, std = self._statistics(latents)
        return latents / self.vae_config["scaling_factor"] * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        mean, std = self.vae_config.get("latents_mean"), self.vae_config.get("latents_std")
        if mean is None or std is None:
            return 0.0, 1.0
        return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)


def pooled_dim(unet_config: Mapping[str, Any]) -> int:
    """Width P of the pooled condition of a UNet."""
    if unet_config["addition_embed_type"] == "text_time":
        return int(unet_config["projection_class_embeddings_input_dim"] - 6 * unet_config["addition_time_embed_dim"])
    return int(
        unet_config["time_embedding_dim"] or 4 * unet_config["block_out_channels"][0]
    )  # 4: as diffusers builds it


def more_inputs(unet_config: Mapping[str, Any], pooled: Tensor, sizes: Tensor) -> dict[str, Any]:
    """Pooled condition [B, P] and sizes [B, 6] as arguments of a UNet."""
    if unet_config["addition_embed_type"] == "text_time":
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    return {"class_labels": pooled}  # with class_embed_type "identity" they are added to the time-step embedding


def time_ids(batch: int, height: int, width: int) -> Tensor:
    """SDXL's size conditioning [B, 6]: original size, crop corner (0, 0), target size."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(batch, 1)


def find_folder(config: BaseConfig) -> Path | None:
    """The local folder behind ``path``: itself, or its snapshot in the Hugging Face cache; None if neither exists."""
    if Path(config.path).is_dir():
        return Path(config.path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.path, revision=config.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None


def weight_files(config: BaseConfig) -> list[str]:
    """The files of a base that are read."""
    variant = f".{config.variant}" if config.variant else ""
    return [
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/diffusion_pytorch_model{variant}.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def find_missing(config: BaseConfig) -> str | None:
    """One sentence that says what is missing of the base and how to get it, or None when all of it is here as pinned."""
    folder = find_folder(config)
    files = weight_files(config)
    if folder is not None:
        absent = [name for name in files if not (folder / name).is_file()]
        if not absent:
            return _find_other(config, folder) or _find_unpinned(config, folder) or find_changed(config)
        files, what = absent, f"{folder} lacks {', '.join(absent)}"
    else:
        what = f"{config.path!r} is neither a folder here nor in the Hugging Face cache"
    path = Path(config.path)
    if len(path.parts) != 2 or path.is_absolute() or (folder is not None and path.is_dir()):
        return f"base.path: {what}; give a folder in the format of diffusers, or the name of a downloaded repository"
    revision = f" --revision {config.revision}" if config.revision else ""
    return f"base.path: {what}; download it with: hf download {config.path} {' '.join(files)}{revision}"


def measured_hashes(config: BaseConfig) -> dict[str, str]:
    """The hash of each weight file of a base that is here, as ``BaseConfig.sha256`` holds them."""
    folder = find_folder(config)
    assert folder is not None
    files = {name: folder / name for name in weight_files(config) if name.endswith(".safetensors")}
    return {name: sha256_of(path) for name, path in files.items()}


def _find_other(config: BaseConfig, folder: Path) -> str | None:
    """One sentence if the UNet in ``folder`` has not the interface that ``config.name`` says."""
    try:
        stated = json.loads((folder / "unet/config.json").read_bytes())
        odd = {name: stated[name] for name in _COMMON if stated.get(name, _COMMON[name]) != _COMMON[name]}
        kind = stated.get("addition_embed_type")
    except (ValueError, AttributeError, RecursionError) as error:
        return f"base.path: {folder / 'unet/config.json'} is damaged ({error}); download or export the base again"
    if odd or kind not in (None, "text_time"):
        told = ", ".join(f"{name}={value!r}" for name, value in (odd | {"addition_embed_type": kind}).items())
        return f"base.path: the UNet of {folder} has {told}: neither SDXL's interface nor Stable Diffusion 1.5's"
    found = "sd15" if kind is None else "sdxl"
    if found != config.name:
        return (
            f"base.name={config.name}: the UNet of {folder} has the interface of {found}; give "
            f"base={{name: {found}, path: …}} whole, for a new name replaces the section"
        )
    return None


def _find_unpinned(config: BaseConfig, folder: Path) -> str | None:
    problem = None if Path(config.path).is_dir() else unpinned(config.path, config.revision, folder)
    return problem and f"base.revision: {problem}"


def find_changed(config: BaseConfig) -> str | None:
    """One sentence that names the weight files which are not those of ``config.sha256``, of the folder's own list of hashes or of
    the cache, or None."""
    folder = find_folder(config)
    assert folder is not None
    weights = [folder / name for name in weight_files(config) if name.endswith(".safetensors")]
    tampered = find_tampered(folder, weights)
    if tampered or not config.sha256:
        return tampered and f"base.path: {tampered}"
    found, pinned = measured_hashes(config), config.sha256
    unpinned = [name for name in found if name not in pinned]
    if unpinned:
        return f"base.sha256: has no hash of {', '.join(unpinned)}; name every weight file, or leave base.sha256 out"
    wrong = [f"{name} is {found[name]}, not {pinned[name]}" for name in found if found[name] != pinned[name]]
    if not wrong:
        return None
    return (
        f"base.sha256: {config.path} has other weights than the ones named: {'; '.join(wrong)}. Take the base that is meant "
        "(download it again?), or give another one its own hashes"
    )


def load_unet_config(config: BaseConfig) -> dict[str, Any]:
    """The UNet's configuration, without its weights.

    Raises:
        UserError: the base is not here.
    """
    from diffusers import UNet2DConditionModel

    missing = find_missing(config)
    if missing:
        raise UserError(missing)
    return dict(UNet2DConditionModel.load_config(find_folder(config), subfolder="unet")) | _POOLED[config.name]


def load_base(config: BaseConfig, *, device: torch.device | str = "cpu", with_vae: bool = False) -> Base:
    """Load the frozen base onto ``device``; the VAE (float32) only where pictures are decoded.

    Raises:
        UserError: something is missing; the message is ``find_missing``'s.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    missing = find_missing(config)
    if missing:
        raise UserError(missing)
    folder = find_folder(config)
    device = torch.device(device)
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, config.dtype)
    if str(dtype) != f"torch.{config.dtype}":
        logger.info("base: float32 on the CPU instead of %s", config.dtype)
    unet = UNet2DConditionModel.from_pretrained(
        folder,
        subfolder="unet",
        torch_dtype=dtype,
        variant=config.variant,
        use_safetensors=True,
        **_POOLED[config.name],
    )
    if config.channels_last or (config.channels_last is None and device.type == "cuda"):
        unet.to(memory_format=torch.channels_last)
    vae = None
    if with_vae:
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True)
        vae = vae.requires_grad_(False).eval().to(device)
    return Base(
        unet=unet.requires_grad_(False).eval().to(device),
        noise_scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        vae_config=dict(AutoencoderKL.load_config(folder, subfolder="vae")),
        vae=vae,
    )
