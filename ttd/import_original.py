"""Turn a checkpoint of TTD-net or DreamDiffusion into a run folder of this project, executing nothing of what is in it.

    python ttd/import_original.py --config configs/import_original/pretraining.yaml checkpoint=checkpoint_best.pth
    python ttd/import_original.py --config configs/import_original/dreamdiffusion.yaml checkpoint=checkpoint.pth

From ``checkpoint_best.pth``, and from the ``checkpoint.pth`` of DreamDiffusion's pretraining, export/ holds encoder and decoder:
the ``pretrained`` of alignment and fine-tuning. From ``latest.pth`` it holds encoder, clip_head, bridge and unet_lora: the
``finetune`` of generation, the ``start.run`` of further fine-tuning. Outputs are those of the originals
(tests/encoders/test_original_outputs.py, test_original_mae.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ttd.bridge.conditioner import save_bridge
from ttd.bridge.original import original_bridge, original_head
from ttd.config import Plan, UserError, run, write_json
from ttd.diffusion.original import save_original_lora
from ttd.encoders import save_encoder
from ttd.encoders.base import Encoder
from ttd.encoders.decoder import MaskTokenDecoder, ReconstructionDecoder
from ttd.encoders.original import POOL, original_decoder, original_encoder, size, tensors_of
from ttd.encoders.original_mae import MARK, original_mae_decoder, original_mae_encoder
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.experiments.import_original import ImportOriginalConfig
from ttd.objectives.contrastive import Contrastive, ContrastiveConfig, TargetSpace, save_aligned
from ttd.pages.card import intended_use_markdown
from ttd.untrusted import Inert, RefusedError, read_torch

TTDNET_DECODER_HEADS = 8
"""TTD-net's configuration does not name them; they are fixed in its code."""


def check(config: ImportOriginalConfig) -> Plan:
    """The checkpoint must be there."""
    problems = check_resumable(config.output_dir, config)
    if not config.checkpoint.is_file():
        problems.append(f"checkpoint: no file {config.checkpoint}")
    return Plan(problems)


def main(config: ImportOriginalConfig) -> None:
    try:
        content = read_torch(config.checkpoint, unknown="inert")
    except RefusedError as error:
        raise UserError(f"checkpoint: {error}") from error
    open_run_folder(config.output_dir, config)
    aside, folder = config.output_dir / ".export", config.output_dir / "export"
    shutil.rmtree(aside, ignore_errors=True)
    source, export = kind_of(content)
    counts = export(config, content, aside)
    (aside / "README.md").write_text(
        f"# Imported from {config.checkpoint.name} of {source}\n\n{len(config.ch_names)} channels at {config.sfreq:g} Hz. "
        f"Parameters: {', '.join(f'{name} {n:,}' for name, n in counts.items())}.\n"
        "Expects EEG scaled as in its own training: at another scale it computes something else.\n\n"
        f"{intended_use_markdown()}\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    print(f"{folder}: {', '.join(f'{name} {n:,} parameters' for name, n in counts.items())}")


def kind_of(content: Any) -> tuple[str, Callable[[ImportOriginalConfig, Any, Path], dict[str, int]]]:
    """Whose checkpoint it is, and what writes its parts."""
    if isinstance(content, Mapping) and "cond_model" in content:
        return "TTD-net", export_finetuning
    model = content.get("model") if isinstance(content, Mapping) else None
    if isinstance(model, Mapping) and MARK in model:
        return "DreamDiffusion", export_mae
    return "TTD-net", export_pretraining


def heads(config: ImportOriginalConfig, content: Mapping[str, Any]) -> int:
    """Heads of the encoder: given, or in the configuration that the checkpoint holds as an inert record.

    Raises:
        UserError: neither says.
    """
    return told(config.n_heads, content, "num_heads", field="n_heads", part="encoder")


def told(given: int | None, content: Mapping[str, Any], name: str, *, field: str, part: str) -> int:
    """A number of heads: given, or told by the configuration in the checkpoint.

    Raises:
        UserError: neither says.
    """
    stored = content.get("config")
    state = stored.state if isinstance(stored, Inert) else None
    n_heads = given or (state.get(name) if isinstance(state, dict) else None)
    if type(n_heads) is not int or n_heads < 1:
        raise UserError(f"{field}: the checkpoint does not tell the {part}'s number of heads; give {field}")
    return n_heads


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def export_pretraining(config: ImportOriginalConfig, content: Any, folder: Path) -> dict[str, int]:
    """Write encoder/ and decoder/ below ``folder``; returns their numbers of parameters."""
    weights, everything = tensors_of(content, "model"), tensors_of(content, "full_model")
    n_times = POOL * size(everything, "decoder_pos", 1)
    if config.n_times not in (None, n_times):
        raise UserError(f"n_times={config.n_times}: the checkpoint was trained on epochs of {n_times} samples")
    encoder = original_encoder(
        weights, n_heads=heads(config, content), n_times=n_times, sfreq=config.sfreq, ch_names=config.ch_names
    )
    n_heads = config.decoder_heads or TTDNET_DECODER_HEADS
    decoder = original_decoder(everything, n_heads=n_heads, n_chans=len(config.ch_names))
    return save_pretraining(folder, encoder, decoder)


def export_mae(config: ImportOriginalConfig, content: Any, folder: Path) -> dict[str, int]:
    """Write the masked autoencoder's encoder/ and decoder/ below ``folder``; returns their numbers of parameters."""
    weights = tensors_of(content, "model")
    encoder = original_mae_encoder(
        weights, n_heads=heads(config, content), sfreq=config.sfreq, ch_names=config.ch_names
    )
    if config.n_times not in (None, encoder.n_times):
        raise UserError(f"n_times={config.n_times}: the checkpoint was trained on epochs of {encoder.n_times} samples")
    n_heads = told(config.decoder_heads, content, "decoder_num_heads", field="decoder_heads", part="decoder")
    return save_pretraining(folder, encoder, original_mae_decoder(weights, encoder, n_heads=n_heads))


def save_pretraining(
    folder: Path, encoder: Encoder, decoder: ReconstructionDecoder | MaskTokenDecoder
) -> dict[str, int]:
    """Write what a pretraining exports below ``folder``; returns the numbers of parameters."""
    save_encoder(folder / "encoder", encoder)
    (folder / "decoder").mkdir()
    save_file({n: t.contiguous() for n, t in decoder.state_dict().items()}, folder / "decoder" / "model.safetensors")
    write_json(folder / "decoder" / "config.json", decoder.config.model_dump(mode="json"))
    return {"encoder": n_parameters(encoder), "decoder": n_parameters(decoder)}


def export_finetuning(config: ImportOriginalConfig, content: Any, folder: Path) -> dict[str, int]:
    """Write encoder/, clip_head/, bridge/ and unet_lora/ below ``folder``; returns their numbers of parameters."""
    if config.n_times is None:
        raise UserError("n_times: a fine-tuning checkpoint does not tell its epochs' length; give n_times")
    encoder = original_encoder(
        tensors_of(content, "cond_model", "eeg_encoder."),
        n_heads=heads(config, content),
        n_times=config.n_times,
        sfreq=config.sfreq,
        ch_names=config.ch_names,
    )
    weights = tensors_of(content, "cond_model", "bridge.")
    head = original_head(weights, n_tokens=encoder.n_tokens)
    bridge = original_bridge(
        weights, tensors_of(content, "pool_proj"), clip_dim=head.clip_dim, n_heads=config.resampler_heads
    )
    # The original compares with embeddings as they are: nothing is subtracted and no direction is scaled.
    space = TargetSpace(torch.zeros(head.clip_dim), torch.eye(head.clip_dim))
    aligned = ContrastiveConfig(head=head.config, target=config.target, target_space="centred")
    save_aligned(folder, Contrastive(aligned, encoder=encoder, head=head, space=space))
    save_bridge(folder / "bridge", bridge)
    counts = {
        name: n_parameters(part) for name, part in (("encoder", encoder), ("clip_head", head), ("bridge", bridge))
    }
    adapters = tensors_of(content, "unet_lora")
    if adapters:
        counts["unet_lora"] = save_original_lora(adapters, folder / "unet_lora")
    return counts


if __name__ == "__main__":
    run(main, ImportOriginalConfig, doc=__doc__, check=check)
