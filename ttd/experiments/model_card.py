"""The model card of a fine-tuned run: what was trained on what, how it was chosen, what it cannot do.

Mitchell et al., 2019, arXiv:1810.03993; the front matter is that of the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path

from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.engine.loop import TrainResult
from ttd.experiments.finetune import FinetuneConfig


def model_card(config: FinetuneConfig, index: ShardIndex, result: TrainResult) -> str:
    """What this export is, from what, and what it cannot do."""
    simulated = (
        "The study is a simulation: nothing here says anything about real EEG.\n" if index.facts.simulated else ""
    )
    at = f" at {config.base.revision}" if config.base.revision else ""
    licence = ShardReader(index).meta(0).get("licence") or "not stated by the study"
    hub = "" if Path(config.base.path).exists() else f"base_model: {config.base.path}\n"
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in result.metrics.items())
    part = "the base's cross-attention" if config.cross_attention else "no adapters"
    part = f"LoRA adapters of rank {config.lora.rank}" if config.lora.rank else part
    reader = "StableDiffusionXLPipeline" if config.base.name == "sdxl" else "StableDiffusionPipeline"
    alone = f"; `unet_lora/` alone is read\nby `{reader}.load_lora_weights`" if config.lora.rank else ""
    return f"""---
license: other
library_name: diffusers
{hub}tags: [eeg, image-generation{", lora" if config.lora.rank else ""}]
---

# EEG to image: conditioning bridge and {part}

Study {index.facts.study}: {index.n_samples} training samples of {len(index.subjects)} subjects,
{index.n_chans} channels at {index.sfreq:g} Hz. Base: {config.base.path}{at}.
Licence of the recordings: {licence}. Weights that were trained on them, and pictures drawn with them, stand under it and
under that of the base.
Step {result.best_step} of {config.train.max_steps}, selected by: {config.train.select or "the last"}.
{simulated}
| validation | value |
|---|---|
{figures}

`ttd.EEGToImagePipeline.from_pretrained(folder)` draws from EEG with all of it (docs/pipeline.md){alone}.
The EEG must have the electrodes, rate and preprocessing of the study; another person's EEG needs training of its own.
"""
