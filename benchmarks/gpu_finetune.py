"""G1 to G6: fine-tuning, sampling and precomputing with SDXL on one GPU, beside the way others do it.

    python benchmarks/gpu_finetune.py [G1 G2 G3 G4 G5 G6] > figures.md     # all of them without a name; minutes each
    python benchmarks/gpu_finetune.py tiny                                 # the same code on the tiny base and any device

SDXL is built from its configuration with random values: times do not depend on them, and nothing is downloaded. Batches of 32
at 512 pixels, bfloat16, LoRA of rank 16, 16 conditioning tokens. ``tiny`` shows that the code runs; its figures mean nothing.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from gpu_steps import DEVICE, GPU, How, Size, base, eager_peer, example_peer, trainer

from ttd.diffusion.attention import attention_problem, compile_blocks
from ttd.diffusion.lora import LoRAConfig
from ttd.diffusion.memory import BESIDE, GIB, count
from ttd.diffusion.sampler import SamplerConfig, sample

PEAK = 788e12
"""Dense bfloat16 FLOP/s that products of 8192 x 8192 matrices reach on an H200 (990e12 by its data sheet). It has not been
measured here, and shares of another card need its own."""


def seconds(work: Callable[[], Any]) -> float:
    """Time of one call, the device's work included."""
    if GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rate(update: Callable[[int], None], size: Size) -> float:
    """Samples per second: the median of single updates, after three to warm up."""
    for _ in range(3):
        update(size.batch)
    return size.batch / statistics.median(seconds(lambda: update(size.batch)) for _ in range(size.steps))


def say(text: str) -> None:
    print(text, flush=True)


def free() -> None:
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def g1(size: Size) -> None:
    found = {}
    peers = {"diffusers and peft, eager": eager_peer, "diffusers' example": example_peer}
    for name, make in ({"TTD": lambda s: trainer(s, How())} | peers).items():
        free()
        found[name] = rate(make(size), size)
    ours = found["TTD"]
    share = ours * size.flop_per_sample / PEAK
    say(f"| G1 | TTD | {ours:.1f} samples/s ({share:.0%} of {PEAK / 1e12:.0f} TFLOP/s) | >= 100, stretch 127 |")
    for (name, value), goal in zip([*found.items()][1:], (1.3, 3.0), strict=True):
        say(f"| G1 | {name} | {value:.1f} samples/s; TTD {ours / value:.2f} x | >= {goal} x |")


def g2(size: Size) -> None:
    full = How()
    free()
    best = rate(trainer(size, full), size)
    without = {
        "gradient checkpointing on": replace(full, checkpointing=True),
        "channels_last off": replace(full, channels_last=False),
        "compiled blocks off": replace(full, compiled=False),
        "fused AdamW off": replace(full, fused_adamw=False),
        "loss read after each step": replace(full, wait=True),
        "VAE (float32) in the loop": replace(full, vae_in_loop=True),
        "xformers": replace(full, attention="xformers", compiled=False),
    }
    for name, how in without.items():
        if how.attention == "xformers" and attention_problem("xformers"):
            say(f"| G2 | {name} | not run: {attention_problem('xformers')} | |")
            continue
        free()
        say(f"| G2 | {name} | all switches are {best / rate(trainer(size, how), size):.2f} x as fast | >= 1.00 x |")


def g3(size: Size) -> None:
    times = {}
    for name, how in {"blocks": How(), "whole UNet": How(whole=True)}.items():
        torch._dynamo.reset()
        free()
        update = trainer(size, how)
        times[name] = seconds(lambda update=update: update(size.batch))
        if name == "blocks":
            update(size.batch - 1)  # a last, smaller batch makes the size a variable, once
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            for step in range(10 * size.steps):
                update(size.batch - (step % 7 == 6))
            again = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    ratio = times["whole UNet"] / times["blocks"]
    say(
        f"| G3 | first step, blocks compiled | {times['blocks']:.1f} s; whole UNet {ratio:.1f} x that | <= 60 s, >= 5 x |"
    )
    say(f"| G3 | compiled again in {10 * size.steps} steps | {again} times | 0 |")


def g4(size: Size) -> None:
    parts = base(size)
    pipe = StableDiffusionXLPipeline(
        vae=parts.vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=parts.unet,
        scheduler=parts.noise_scheduler, add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pixels, dtype = size.latent * parts.vae_factor, parts.unet.conv_in.weight.dtype
    cases = [(n, guidance) for n in (1, min(16, size.batch)) for guidance in (1.0, 5.0)]
    times: dict[tuple[int, float], list[float]] = {case: [] for case in cases}
    for ours in (False, True):
        if ours:
            parts.unet.to(memory_format=torch.channels_last)
            compile_blocks(parts.unet)
        for n, guidance in cases:
            context = torch.randn(n, size.n_tokens, parts.context_dim, device=DEVICE, dtype=dtype)
            pooled = torch.randn(n, parts.pooled_dim, device=DEVICE, dtype=dtype)
            config = SamplerConfig(steps=size.sampling_steps, guidance=guidance)

            def draw(n=n, context=context, pooled=pooled, config=config, ours=ours) -> None:
                if ours:
                    sample(parts, context, pooled, seeds=range(n), config=config, picture_size=pixels)
                    return
                pipe(
                    prompt_embeds=context, pooled_prompt_embeds=pooled, negative_prompt_embeds=context * 0,
                    negative_pooled_prompt_embeds=pooled * 0, num_inference_steps=config.steps,
                    guidance_scale=config.guidance, height=pixels, width=pixels,
                )  # fmt: skip

            draw()
            times[n, guidance].append(statistics.median(seconds(draw) for _ in range(3)))
    for (n, guidance), (peer, mine) in times.items():
        goal = 1.5 if n == 1 else 1.3
        each = f"{1000 * mine / n:.0f} ms per picture"
        say(f"| G4 | batch {n}, guidance {guidance:g} | {each}, {peer / mine:.2f} x diffusers eager | >= {goal} x |")


def g5(size: Size) -> None:
    parts = base(size)
    assert parts.vae is not None
    pixels = size.latent * parts.vae_factor
    x = torch.rand(size.batch, 3, pixels, pixels, device=DEVICE) * 2 - 1
    with torch.no_grad():
        speed = size.batch / statistics.median(seconds(lambda: parts.vae.encode(x)) for _ in range(size.steps))
    say(f"| G5 | VAE moments, float32 as shards/precompute_targets.py has it | {speed:.0f} pictures/s | >= 300 |")


def g6(size: Size) -> None:
    if not GPU:
        say("| G6 | memory | not run: needs a GPU | |")
        return
    config = dict(base(size).unet.config)
    rng, shortages, wrong = np.random.default_rng(0), 0, []
    total = torch.cuda.get_device_properties(0).total_memory
    for _ in range(20):
        drawn = replace(size, latent=int(rng.choice([32, 48, 64, 96, 128])), batch=int(rng.choice([2, 4, 8, 16, 32])))
        model = count(
            config, LoRAConfig(rank=16), dtype=torch.bfloat16, size=drawn.latent, n_tokens=size.n_tokens, beside=BESIDE
        )
        fitted = model.fit(int(total * rng.uniform(0.15, 0.9)), share=drawn.batch, micro=None, checkpointing=None)
        free()
        try:
            trainer(drawn, How(checkpointing=fitted.checkpointing, compiled=False))(fitted.micro)
            used = torch.cuda.max_memory_allocated() / GIB
            wrong.append(model.needed(fitted.micro, checkpointing=fitted.checkpointing) / GIB / used)
        except torch.cuda.OutOfMemoryError:
            shortages += 1
    say(f"| G6 | counted / used, 20 random settings | {min(wrong):.2f} to {max(wrong):.2f} | 0.9 to 1.1 |")
    say(f"| G6 | out of memory | {shortages} of 20 | 0 |")


FIGURES = {"G1": g1, "G2": g2, "G3": g3, "G4": g4, "G5": g5, "G6": g6}


def main(wanted: list[str]) -> None:
    logging.disable(logging.WARNING)
    tiny = "tiny" in wanted
    if not (GPU or tiny):
        sys.exit("no GPU here: run it where there is one, or with the word tiny to see that the code works")
    size = (
        Size(tiny=True, latent=16, batch=4, steps=2, sampling_steps=2, flop_per_sample=0) if tiny else Size(tiny=False)
    )
    say(f"{torch.cuda.get_device_name(0) if GPU else 'CPU'}, torch {torch.__version__}, {size}\n")
    say("| | what | figure | goal |\n|---|---|---|---|")
    for name in [w for w in wanted if w in FIGURES] or FIGURES:
        FIGURES[name](size)


if __name__ == "__main__":
    main(sys.argv[1:])
