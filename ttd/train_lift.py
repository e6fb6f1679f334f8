"""Train the tiny lifter (picture → signed distance → mesh) on simulated scenes.

    python ttd/train_lift.py --config configs/lift/train_tiny.yaml

Run the same command again to resume. Reads the figures on scenes of other seeds at the end.
"""

from __future__ import annotations

from functools import cache

import torch

from ttd.config import Plan, run, write_json
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.engine.tracking import Tracker, TrackingConfig, talk
from ttd.experiments.train_lift import TrainLiftConfig
from ttd.geometry.camera import Camera
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig, save_network
from ttd.geometry.sdf_training import fit
from ttd.seeding import key
from ttd.simulation.lifter_figures import held_out_figures
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.render import EYE, HALF_FOV, TARGET


def check(config: TrainLiftConfig) -> Plan:
    training = config.training
    minutes = (0.3 * training.steps + 0.01 * config.n_scenes) / 60  # measured on one thread with AVX-512-bf16
    memory = config.n_scenes * 2 * 64 * 64 * 3 / 1e9 + 0.8
    cost = f"about {minutes:.0f} minutes of one CPU thread, {memory:.1f} GB of memory, 25 MB of disk"
    return Plan(
        problems=check_resumable(config.output_dir, config),
        notes=[f"train_lift: {training.steps} steps of {training.batch_size} pictures; {cost}"],
    )


def main(config: TrainLiftConfig) -> None:
    talk()
    torch.set_num_threads(1)
    open_run_folder(config.output_dir, config)
    torch.manual_seed(key(config.seed, "lifter-start"))
    network = SDFNetwork(SDFNetworkConfig(camera=Camera(eye=EYE, target=TARGET, half_fov=HALF_FOV)))

    @cache
    def pool() -> ScenePool:  # rendered only if a step is left to do
        return ScenePool(config.seed, "lifter-train", config.n_scenes, network.config.image_size)

    with Tracker(config.output_dir, TrackingConfig(), config) as tracker:
        fit(
            network,
            lambda step: pool().batch(config.seed, step, config.training.batch_size, config.training.n_points),
            config.training,
            config.output_dir,
            seed=config.seed,
            identity={"scenes": config.n_scenes, "network": network.config.model_dump(mode="json")},
            report=lambda line: tracker.log("train", **line),
        )

    # The figures are those of the weights as they are shipped, in fp16.
    facts = {"provenance": {"domain": "procedural-primitives", "pretrained": False, "simulated": True}}
    save_network(config.output_dir / "export", network, facts)
    shipped = SDFLifter.prepare(SDFLifterConfig(weights=config.output_dir / "export"))
    held_out = ScenePool(config.seed, "lifter-held-out", config.n_held_out, network.config.image_size)
    figures = held_out_figures(shipped, held_out, seed=config.seed)
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **facts})
    training = {"steps": config.training.steps, "n_scenes": config.n_scenes, "seed": config.seed}
    save_network(config.weights, network, facts | {"training": training, "held_out": figures})
    for row, named in figures.items():
        print(f"{row:9s}" + "  ".join(f"{name} {value:.3f}" for name, value in named.items()))


if __name__ == "__main__":
    run(main, TrainLiftConfig, doc=__doc__, check=check)
