"""The parts of Stable Diffusion XL: base, LoRA adapters, attention switch, sampler."""
