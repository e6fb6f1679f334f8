"""Train the tiny lifter (picture → mesh) or the tiny describer (picture → words) on simulated scenes.

    python ttd/train_lift.py --config configs/lift/train_tiny.yaml
    python ttd/train_lift.py --config configs/lift/train_describer.yaml

Run the same command again to resume. Reads the figures on scenes of other seeds at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

from ttd.config import Plan, UserError, run, write_json
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.engine.tracking import Tracker, TrackingConfig, talk
from ttd.experiments.train_lift import TrainLiftConfig
from ttd.geometry.camera import Camera
from ttd.geometry.domain import measure
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig, load_network, save_network
from ttd.geometry.sdf_training import fit
from ttd.seeding import key, torch_rng
from ttd.simulation.lifter_figures import held_out_figures
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.render import EYE, HALF_FOV, TARGET

N_DOMAIN = 1500  # scenes whose pictures say what the lifter knows; of more its border hardly moves
FACTS = {"provenance": {"domain": "procedural-primitives", "pretrained": False, "simulated": True}}


def check(config: TrainLiftConfig) -> Plan:
    problems = check_resumable(config.output_dir, config)
    if config.component == "lifter":
        steps, batch_size = config.training.steps, config.training.batch_size
        seconds, memory = 0.3 * steps, config.n_scenes * 2 * 64 * 64 * 3 / 1e9 + 0.8
    else:
        sight, words = config.describer.sight, config.describer.words
        steps, batch_size = sight.steps + words.steps, words.batch_size
        seconds = (0.1 * sight.steps + 0.27 * words.steps) * batch_size / 32 + 0.006 * config.n_scenes
        memory = config.n_scenes * 2 * 64 * 64 * 4 / 1e9 + 1.2
        if find_spec("llguidance") is None:
            problems.append("component: describer needs the package llguidance; pip install llguidance")
        if config.describer.start is not None:
            problems += check_tuning(config)
    minutes = (seconds + 0.01 * config.n_scenes) / 60  # measured on one thread with AVX-512-bf16
    cost = f"about {minutes:.0f} minutes of one CPU thread, {memory:.1f} GB of memory, 25 MB of disk"
    return Plan(problems=problems, notes=[f"train_lift: {steps} steps of {batch_size} pictures; {cost}"])


def check_tuning(config: TrainLiftConfig) -> list[str]:
    """What keeps a vision-language model from being fine-tuned."""
    from ttd.geometry.describer import find_missing
    from ttd.geometry.vlm_tuning import read_pairs

    assert config.describer.start is not None
    problems = find_missing(config.describer.start.model)
    if config.describer.pairs is None:
        return [*problems, "describer.pairs: needed with describer.start; JSON lines of an image and its description"]
    try:
        n = len(read_pairs(config.describer.pairs))
    except UserError as error:
        return [*problems, str(error)]
    if n <= config.n_held_out:
        problems.append(f"describer.pairs: {n} pairs, of which n_held_out={config.n_held_out} leave none to train on")
    return problems


def main(config: TrainLiftConfig) -> None:
    talk()
    torch.set_num_threads(1)
    open_run_folder(config.output_dir, config)
    with Tracker(config.output_dir, TrackingConfig(), config) as tracker:
        figures = trainer_of(config)(config, tracker)
    for row, named in figures.items():
        print(f"{row:9s}" + "  ".join(f"{name} {value:.3f}" for name, value in named.items()))


def trainer_of(config: TrainLiftConfig) -> Callable[[TrainLiftConfig, Tracker], dict[str, dict[str, float]]]:
    """What trains the component; each returns figures by row."""
    if config.component == "lifter":
        return train_lifter
    return train_describer if config.describer.start is None else tune_describer


def train_lifter(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train, read the figures, and write the folder of the lifter; the figures by row."""
    torch.manual_seed(key(config.seed, "lifter-start"))
    network = SDFNetwork(SDFNetworkConfig(camera=Camera(eye=EYE, target=TARGET, half_fov=HALF_FOV)))

    @cache
    def pool() -> ScenePool:  # rendered only if a step is left to do
        return ScenePool(config.seed, "lifter-train", config.n_scenes, network.config.image_size)

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
    save_network(config.output_dir / "export", network, FACTS)
    seen = ScenePool(config.seed, "lifter-train", min(N_DOMAIN, config.n_scenes), network.config.image_size)
    pictures = torch.cat(list(seen.images.values()))
    domain = measure(load_network(config.output_dir / "export")[0], pictures, seed=config.seed)
    domain.save(config.output_dir / "export")
    shipped = SDFLifter.prepare(SDFLifterConfig(weights=config.output_dir / "export"))
    held_out = ScenePool(config.seed, "lifter-held-out", config.n_held_out, network.config.image_size)
    figures = held_out_figures(shipped, held_out, seed=config.seed)
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **FACTS})
    training = {"steps": config.training.steps, "n_scenes": config.n_scenes, "seed": config.seed}
    save_network(config.weights, network, FACTS | {"training": training, "held_out": figures})
    domain.save(config.weights)
    return figures


def train_describer(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train, read the figures, and write the folder of the describer; the figures by row."""
    from ttd.geometry.describer import Describer, DescriberConfig
    from ttd.simulation import describer_figures
    from ttd.simulation.describer_training import DescriberPool, train
    from ttd.simulation.tiny_vlm import save_vlm

    model = train(
        config.describer, config.output_dir, seed=config.seed, n_scenes=config.n_scenes,
        log=lambda line: tracker.log("train", **line),
    )  # fmt: skip
    export = config.output_dir / "export"
    save_vlm(export, model, FACTS)
    constrained, free = (
        Describer.prepare(DescriberConfig(model=str(export), constrained=how, max_new_tokens=256))
        for how in (True, False)  # a description takes at most 90 tokens
    )
    held_out = DescriberPool(config.seed, "describer-held-out", config.n_held_out)
    figures = describer_figures.held_out_figures(constrained, free, held_out, seed=config.seed)
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **FACTS})
    stages = {name: getattr(config.describer, name).steps for name in ("sight", "words")}
    training = {"steps": stages, "n_scenes": config.n_scenes, "seed": config.seed}
    save_vlm(config.weights, model, FACTS | {"training": training, "n": config.n_held_out, "held_out": figures})
    return figures


def tune_describer(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Fine-tune a vision-language model by LoRA and write the folder of the whole model; figures on pairs held out."""
    from ttd.geometry.describer import Describer
    from ttd.geometry.vlm_tuning import PairObjective, check_tokens, read_pairs, save_tuned
    from ttd.metrics.description import mean_scores
    from ttd.metrics.uncertainty import derangement
    from ttd.simulation.fit import fit as fit_steps

    settings = config.describer
    assert settings.start is not None and settings.pairs is not None  # noqa: PT018
    pairs = read_pairs(settings.pairs)
    train, held_out = pairs[: -config.n_held_out], pairs[-config.n_held_out :]
    torch.manual_seed(key(config.seed, "describer-lora"))
    describer = Describer.prepare(settings.start, "cuda" if torch.cuda.is_available() else "cpu")
    check_tokens(describer, pairs)
    objective = PairObjective(describer, rank=settings.lora_rank)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(train), (settings.words.batch_size,), generator=torch_rng(config.seed, "pairs", step))
        return objective([train[i] for i in rows]), {}

    fit_steps("lora", objective, loss_at, settings.words, config.output_dir, log=lambda x: tracker.log("train", **x))
    objective.merge()
    save_tuned(describer, config.weights)
    described = describer.describe([pair.pixels() for pair in held_out], seeds=list(range(len(held_out))))
    said, true = [d.description for d in described], [pair.description for pair in held_out]
    shuffled = [true[i] for i in derangement(len(true), seed=config.seed)]
    figures = {"held_out": mean_scores(said, true), "shuffled": mean_scores(said, shuffled)}
    write_json(config.output_dir / "metrics.json", {"n": len(held_out), "rows": figures, "start": describer.info()})
    return figures


if __name__ == "__main__":
    run(main, TrainLiftConfig, doc=__doc__, check=check)
