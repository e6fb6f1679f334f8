"""Two steps of training that tell everything they know to W&B, offline: for the tests that no secret is kept, and that times of
several ranks come together. Every rank waits for its data as many tenths of a second as its number.

python tracked_steps.py OUTPUT_DIR [whatever else]
"""

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ttd.config import Config
from ttd.engine.accelerator import make_accelerator
from ttd.engine.timing import Timing
from ttd.engine.tracking import Meter, Tracker, TrackingConfig, talk


class Experiment(Config):
    output_dir: Path
    api_key: str = "canary-in-a-secret-field"
    mirror: str = "https://reader:canary-in-a-url@example.org/data?access_token=canary-in-a-query"
    notes: tuple[str, ...] = ("canary-in-the-environment was pasted here", "harmless note")


def slow_batches(seconds: float) -> Iterator[torch.Tensor]:
    for _ in range(2):
        time.sleep(seconds)
        yield torch.ones(2, 4)


def main(output_dir: Path) -> None:
    talk()
    logging.getLogger("ttd.data").warning(
        "cannot read https://canary-in-a-message@example.org: token=canary-in-an-error"
    )
    accelerator, meter, timing = make_accelerator(), Meter(), Timing()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = TrackingConfig(to=("wandb",), wandb_mode="offline")
    batches = timing.waiting(slow_batches(accelerator.process_index / 10))
    with Tracker(output_dir, config, Experiment(output_dir=output_dir)) as tracker:
        tracker.log("started", step=0, command=sys.argv, mirror="https://canary-in-a-log-line@example.org")
        for step, batch in enumerate(batches, start=1):
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            meter.add({"loss": loss})
            timing.step()
            print("canary-that-is-printed")
            tracker.log("train", step=step, **meter.reduce(accelerator), **timing.reduce(accelerator))
            tracker.log_node(step=step, **timing.own)
        tracker.images("validation", 2, {"grid": np.zeros((8, 8, 3), dtype=np.uint8)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
