"""From EEG tokens to what a diffusion UNet is conditioned on: resampler, heads, conditioner."""
