"""The seam of diffusers that training leans on: which scheduler adds the noise it says."""

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMES = torch.tensor([0, 10, 500, 990, 999])


def signal_factors(scheduler):
    return scheduler.add_noise(torch.ones(5, 1), torch.zeros(5, 1), TIMES)[:, 0]


def test_ddpm_keeps_less_signal_the_later_the_time():
    factors = signal_factors(DDPMScheduler(**BETAS))
    expected = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).sqrt()[TIMES]
    assert torch.allclose(factors, expected, atol=1e-5)
    assert (factors.diff() < 0).all()


def test_dpm_solver_still_applies_the_levels_in_reverse_before_set_timesteps():
    """Why DPM++ never trains here. When diffusers mends it, this fails and the note in the docs can go."""
    factors = signal_factors(DPMSolverMultistepScheduler(**BETAS))
    assert factors[0] < 0.1
    assert factors[-1] > 0.99
