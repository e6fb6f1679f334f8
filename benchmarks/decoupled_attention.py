"""Does decoupled cross-attention (IP-Adapter: Ye et al., 2023, arXiv:2308.06721) beat tokens in the place of the text?

    python benchmarks/decoupled_attention.py runs/demo/align data/simulated/paired [steps, 300] [seeds, 2]

Two arms on the demo's study, alike but for one thing: the EEG's tokens stand where the base's text stood; or the text is empty
and every cross-attention gets keys and values of its own for the tokens, as diffusers' IPAdapterAttnProcessor2_0 has them.
Encoder and CLIP head as aligned, bridge and LoRA in training, no words of the base. Compared: the diffusion loss of each
validation sample, the same noise in both arms; and, as a control that must be worse, with the EEG of another picture.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from ttd.config import load_config
from ttd.data.stream import Stream, evaluation_batches, open_reader
from ttd.engine.accelerator import make_accelerator
from ttd.engine.loop import evaluating, train
from ttd.experiments.finetune import FinetuneConfig
from ttd.finetune import build, targets
from ttd.metrics.uncertainty import bootstrap_interval
from ttd.objectives.conditional_diffusion import ConditionalDiffusion

WORDLESS = [
    "objective={text_weight: 0.0, text_only_steps: 0, words_share: 0.0}", "lora.targets=[to_q, to_k, to_v, to_out.0]",
    "train={select: null, validate_every: 100000, checkpoint_every: 100000, log_every: 100}", "base.path=weights/tiny",
]  # fmt: skip


def decouple(objective: ConditionalDiffusion) -> None:
    """Give every cross-attention keys and values for the tokens, beside an empty text."""
    unet, processors = objective.unet, {}
    for name, processor in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = processor
        if "attn2" in name:
            own = IPAdapterAttnProcessor2_0(attention.inner_dim, objective.base.context_dim, num_tokens=(1,))
            for new, old in ((own.to_k_ip[0], attention.to_k), (own.to_v_ip[0], attention.to_v)):
                new.weight.data.copy_(old.weight.data)  # the text's own, as IP-Adapter starts
            processors[name] = own
    unet.set_attn_processor(processors)

    def text_beside(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        tokens = kwargs["encoder_hidden_states"]
        return args, kwargs | {"encoder_hidden_states": (torch.zeros_like(tokens), [tokens])}

    unet.register_forward_pre_hook(text_beside, with_kwargs=True)


def losses(objective: ConditionalDiffusion, config: FinetuneConfig, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Diffusion loss of each validation sample given the EEG of the sample ``shift`` further, and the samples' pictures."""
    data = config.data.model_copy(update={"targets": targets(config)})
    batches = list(evaluation_batches(open_reader(data, part="validation"), data, 1))
    with evaluating(objective):
        found = [
            float(objective(batch | {"eeg": batches[(i + shift) % len(batches)]["eeg"]})["diffusion"])
            for i, batch in enumerate(batches)
        ]
    return np.array(found), torch.cat([batch["image"] for batch in batches]).numpy()


def arm(config: FinetuneConfig, *, decoupled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    accelerator = make_accelerator(config.engine, global_batch_size=config.global_batch_size)
    data = config.data.model_copy(update={"targets": targets(config)})
    reader = open_reader(data, part="train")
    objective = build(config, reader.index, device=accelerator.device, checkpointing=False)
    if decoupled:
        decouple(objective)
    stream = Stream(reader, data, seed=config.seed, global_batch_size=config.global_batch_size)
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, objective, config.optim, stream, config.train, Path(folder) / "run", resolved=config,
            seed=config.seed, fingerprint=stream.fingerprint,
        )  # fmt: skip
    own, image = losses(objective, config, 0)
    wrong, _ = losses(objective, config, 7)
    return own, wrong, image


def main(run: str, shards: str, steps: int, seeds: int) -> None:
    logging.getLogger("ttd").setLevel(logging.WARNING)
    found: dict[str, list[np.ndarray]] = {"in the text's place": [], "decoupled": []}
    for seed in range(seeds):
        given = [f"start.run={run}", f"data.shards={shards}", f"train.max_steps={steps}", f"seed={seed}"]
        config = load_config(FinetuneConfig, [Path("configs/finetune/demo.yaml")], [*WORDLESS, *given])
        for name, values in found.items():
            own, wrong, image = arm(config, decoupled=name == "decoupled")
            values.append(np.stack([own, wrong - own]))
            print(
                f"seed {seed}, {name}: loss {own.mean():.4f}, with another picture's EEG {wrong.mean():.4f}", flush=True
            )
    first, second = (np.mean(values, axis=0) for values in found.values())  # [2, samples]
    for what, change in zip(("loss", "loss that the right EEG saves"), second - first, strict=True):
        by_picture = np.array([change[image == i].mean() for i in np.unique(image)])
        low, high = bootstrap_interval(by_picture, seed=0)
        print(f"{what}, decoupled minus in the text's place: {by_picture.mean():+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[3:]] + [300, 2][len(sys.argv[3:]) :]
    main(sys.argv[1], sys.argv[2], *numbers)
