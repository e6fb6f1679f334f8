"""``ttd.EEGToImagePipeline``: a fine-tuned run as a pipeline of diffusers, from EEG to pictures.

    pipe = ttd.EEGToImagePipeline.from_pretrained("runs/demo/finetune/export")
    picture = pipe(evoked, generator=0).images[0]

Same seeds, same EEG in the same batch: the very pictures of ``ttd/generate.py``, since reading, conditioning and sampling
are the same functions.

Shapes: B epochs, C channels, T time points, N pictures (B × ``n_images``), H, W their height and width.
"""

from __future__ import annotations

import logging
import operator
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ttd.bridge.conditioner import EEGConditioner, save_bridge
from ttd.config import UserError
from ttd.data.eeg_reader import EEGReader
from ttd.diffusion.attention import attention_problem, set_attention
from ttd.diffusion.base import Base, BaseConfig, find_missing, load_base
from ttd.diffusion.cross_attention import save_cross_attention
from ttd.diffusion.lora import save_lora
from ttd.diffusion.sampler import KINDS, SamplerConfig, sample
from ttd.encoders import read_encoder_facts
from ttd.experiments.pipeline import ExportFacts, read_export_facts, write_export_facts
from ttd.objectives.contrastive import Aligned, save_aligned
from ttd.objectives.finetuned import load_finetuned
from ttd.seeding import key
from ttd.untrusted.weights import split_name

log = logging.getLogger(__name__)

Seeds = torch.Generator | int | Sequence[int] | None
OUTPUT_TYPES = ("pil", "np", "pt")
MAX_SEED = 1 << 63


@dataclass
class EEGToImageOutput(BaseOutput):
    """What a call returns."""

    images: Any
    """N pictures: PIL images, an array [N, H, W, 3] or a tensor [N, 3, H, W], both float32 in [0, 1]."""
    seeds: list[int]
    """The seed of each: given as ``generator``, it draws them again."""


@dataclass
class Origin:
    """Where a pipeline comes from, as saving it needs to know."""

    facts: ExportFacts
    aligned: Aligned
    card: str


class EEGToImagePipeline(DiffusionPipeline):
    """Draw what a fine-tuned run sees in EEG.

    Inherited from diffusers are ``components``, ``device`` and moving with ``to``; loading, saving and drawing are its own,
    because the parts that read EEG are no models of diffusers. Number formats are not chosen by the call: the UNet has the
    base's ``dtype`` on a GPU and float32 on a CPU, all else float32, as in every command of TTD.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        noise_scheduler: DDPMScheduler,
        conditioner: EEGConditioner,
        reader: EEGReader,
        origin: Origin,
    ):
        super().__init__()
        self.register_modules(
            unet=unet, vae=vae, noise_scheduler=noise_scheduler, conditioner=conditioner, reader=reader, origin=origin
        )

    @classmethod
    def from_pretrained(cls, export: str | os.PathLike, base: str | os.PathLike | None = None) -> EEGToImagePipeline:
        """Load the ``export`` folder of a run of ``ttd/finetune.py``, or what ``save_pretrained`` wrote, on the CPU.

        Nothing is downloaded or unpickled: weights are safetensors, all else is JSON.

        Args:
            export: the folder.
            base: folder of the base or downloaded repository at its commit, ``owner/name@commit``, where it is no longer at the
                place that the run named.

        Raises:
            UserError: something is missing, damaged, or does not belong together.
        """
        folder = Path(export)
        facts, normaliser = read_export_facts(folder)
        _check_belonging(folder, facts)
        place = facts.base
        if base is not None:
            name, commit = split_name(os.fspath(base))
            place = place.model_copy(update={"path": name, "revision": commit})
        missing = find_missing(place)
        if missing:
            advice = "" if base is not None else f" ({folder / 'pipeline.json'} names it; elsewhere? pass base=)"
            raise UserError(missing + advice)
        loaded = load_base(place, with_vae=True)
        conditioner, aligned = load_finetuned(folder, loaded)
        set_attention(loaded.unet, _attention(place))
        card = folder / "README.md"
        origin = Origin(facts.model_copy(update={"base": place}), aligned, card.read_text() if card.is_file() else "")
        reader = EEGReader(facts.eeg, normaliser)
        return cls(loaded.unet, loaded.vae, loaded.noise_scheduler, conditioner, reader, origin)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write what ``from_pretrained`` reads: everything but the base. The folder is whole or absent.

        Raises:
            UserError: there is something of that name already.
        """
        target = Path(folder)
        if target.exists():
            raise UserError(f"{target}: exists; give a new folder, or remove it first")
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            save_aligned(aside, self.origin.aligned.as_objective())
            save_bridge(aside / "bridge", self.conditioner.bridge)
            if self.origin.facts.adapters:
                save_lora(self.unet, aside / "unet_lora")
            if self.origin.facts.cross_attention:
                save_cross_attention(self.unet, aside / "cross_attention")
            write_export_facts(aside, self.origin.facts, self.reader.normaliser)
            (aside / "README.md").write_text(self.origin.card)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def to(self, device: str | torch.device, **more: Any) -> EEGToImagePipeline:
        """Move all parts to ``device``; see the class for their number formats.

        Raises:
            UserError: a number format is asked for.
        """
        if isinstance(device, torch.dtype) or more.get("dtype") or more.get("torch_dtype"):
            raise UserError("dtype: follows the device and base.dtype of the experiment; give a device alone")
        super().to(torch.device(device), **more)
        wanted = "float32" if torch.device(device).type == "cpu" else self.origin.facts.base.dtype
        self.unet.to(dtype=getattr(torch, wanted))
        return self

    @property
    def base(self) -> Base:
        """The base's parts, as TTD's sampler takes them."""
        return Base(self.unet, self.noise_scheduler, dict(self.vae.config), self.vae)

    @torch.no_grad()
    def __call__(
        self,
        eeg: Any,
        ch_names: Sequence[str] | None = None,
        sfreq: float | None = None,
        *,
        subject: str | Sequence[str] | None = None,
        num_inference_steps: int = SamplerConfig().steps,
        guidance_scale: float = SamplerConfig().guidance,
        sampler: str = SamplerConfig().name,
        generator: Seeds = None,
        n_images: int = 1,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> EEGToImageOutput:
        """Draw ``n_images`` pictures for each epoch, those of the first epoch first.

        Args:
            eeg: ``mne.Evoked`` (one epoch) or ``mne.Epochs``; or an array [C, T] or [B, C, T] in µV. Channels may be more
                and in another order. It must have gone through the study's preprocessing (``reader.facts``).
            ch_names, sfreq: of an array; an MNE object has its own.
            subject: whose EEG, one name or B, where the run was trained on shards that are whitened per subject.
            num_inference_steps, guidance_scale: as everywhere in diffusers; guidance 1 is none and costs half.
            sampler: dpmpp_2m_karras, ddim, plms, euler or unipc.
            generator: one seed per picture. Or one seed for all: the first picture has it, the others one keyed by it
                (those of one epoch are the candidates of ``ttd/generate.py``). Or a generator that seeds are drawn from.
                None: new ones each time.
            output_type: see ``EEGToImageOutput.images``.

        Raises:
            UserError: the EEG does not fit (see ``EEGReader``), or another argument is not what it should be.
        """
        for name, value in (("n_images", n_images), ("num_inference_steps", num_inference_steps)):
            if type(value) is not int or value < 1:
                raise UserError(f"{name}={value!r}: give a whole number, at least 1")
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: give one of {', '.join(OUTPUT_TYPES)}")
        if sampler not in KINDS:
            raise UserError(f"sampler={sampler!r}: give one of {', '.join(KINDS)}")
        epochs = self.reader(eeg, ch_names=ch_names, sfreq=sfreq, subject=subject)  # [B, C, T]
        seeds = _seeds(generator, len(epochs) * n_images)
        condition = self.conditioner(torch.from_numpy(epochs).to(self.unet.device))
        context, pooled = (x.repeat_interleave(n_images, 0) for x in (condition.context, condition.pooled))
        config = SamplerConfig.model_validate(
            {"name": sampler, "steps": num_inference_steps, "guidance": guidance_scale}
        )
        size = self.origin.facts.picture_size
        images = sample(self.base, context, pooled, seeds=seeds, config=config, picture_size=size)  # [N, 3, H, W]
        return EEGToImageOutput(images=_as(output_type, images), seeds=seeds)


def _check_belonging(folder: Path, facts: ExportFacts) -> None:
    """Refuse an export whose parts are of different runs.

    Raises:
        UserError: encoder and ``pipeline.json`` differ in what they read, or adapters are missing or too many.
    """
    encoder = read_encoder_facts(folder / "encoder")
    for name in ("sfreq", "n_times", "ch_names"):
        stated = getattr(facts.eeg, name)
        if encoder[name] != stated:
            raise UserError(
                f"{folder / 'pipeline.json'}: eeg.{name} is {stated}, that of encoder/config.json {encoder[name]}; "
                "export the run again"
            )
    for name, wanted in (("unet_lora", facts.adapters), ("cross_attention", facts.cross_attention)):
        if (folder / name).is_dir() != wanted:
            problem = "is missing" if wanted else "was not there when it was exported"
            raise UserError(f"{folder / name}: {problem}; copy the whole export, or export the run again")


def _attention(base: BaseConfig) -> Literal["auto", "sdpa", "math", "xformers"]:
    problem = attention_problem(base.attention)
    if problem is None:
        return base.attention
    log.warning("the run was trained with other attention kernels (%s): PyTorch's own are used", problem)
    return "auto"


def _seeds(generator: Seeds, n: int) -> list[int]:
    """One seed for each of ``n`` pictures; see ``EEGToImagePipeline.__call__``.

    Raises:
        UserError: another number of seeds, or one that is no integer from 0 to 2⁶³ − 1.
    """
    if generator is None:
        return [secrets.randbelow(MAX_SEED) for _ in range(n)]
    if isinstance(generator, torch.Generator):
        return torch.randint(MAX_SEED - 1, (n,), generator=generator, device=generator.device).tolist()
    try:
        given = [operator.index(seed) for seed in (generator if isinstance(generator, Sequence) else [generator])]
    except TypeError as error:
        raise UserError(
            f"generator: {error}; give a torch.Generator, an integer, or one integer per picture"
        ) from error
    outside = [seed for seed in given if not 0 <= seed < MAX_SEED]
    if outside:
        raise UserError(f"generator: {outside[0]} is no seed; give integers from 0 to 2**63 - 1")
    if not isinstance(generator, Sequence):
        return [key(given[0], "candidate", i) if i else given[0] for i in range(n)]
    if len(given) != n:
        raise UserError(f"generator: {len(given)} seeds for {n} pictures; give one per picture, or a single one")
    return given


def _as(output_type: str, images: Tensor) -> list[Image.Image] | np.ndarray | Tensor:
    """Pictures [N, 3, H, W] in [0, 1] as asked for."""
    if output_type == "pt":
        return images
    rows = images.permute(0, 2, 3, 1)  # [N, H, W, 3]
    if output_type == "np":
        return rows.numpy()
    return [Image.fromarray(picture) for picture in (rows * 255).round().byte().numpy()]
