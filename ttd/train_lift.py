"""Train the tiny lifter (picture → mesh), the tiny describer (picture → words), or both at once, on simulated scenes.

    python ttd/train_lift.py --config configs/lift/train_tiny.yaml
    python ttd/train_lift.py --config configs/lift/train_tiny_decoded.yaml     # goes on from the first
    python ttd/train_lift.py --config configs/lift/train_describer.yaml
    python ttd/train_lift.py --config configs/lift/train_joint.yaml

Run the same command again to resume. Reads the figures on scenes of other seeds at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttd.config import Plan, UserError, fingerprint, run, write_json
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.engine.tracking import Tracker, TrackingConfig, talk
from ttd.experiments.train_lift import TrainLiftConfig
from ttd.geometry.camera import Camera
from ttd.geometry.domain import measure
from ttd.geometry.sdf_lifter import SDFLifter, SDFLifterConfig
from ttd.geometry.sdf_network import SDFNetwork, SDFNetworkConfig, load_network, save_network
from ttd.geometry.sdf_training import fit
from ttd.seeding import key, torch_rng
from ttd.simulation import lifter_figures
from ttd.simulation.base_report import load_vae
from ttd.simulation.lifter_scenes import ScenePool
from ttd.simulation.render import EYE, HALF_FOV, TARGET
from ttd.simulation.tiny_vae import reconstruct
from ttd.untrusted.weights import sha256_of

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
N_DOMAIN = 1500  # scenes whose pictures say what the lifter knows; of more its border hardly moves
FACTS = {"provenance": {"domain": "procedural-primitives", "pretrained": False, "simulated": True}}


def check(config: TrainLiftConfig) -> Plan:
    problems = check_resumable(config.output_dir, config)
    sight, words = config.describer.sight, config.describer.words
    rays = config.training.n_rays if config.loss_terms.get("image") else 0
    lifting = 0.3 + 0.01 * rays  # seconds for 32 pictures
    if config.component == "lifter":
        steps, batch_size = config.training.steps, config.training.batch_size
        seconds, memory = lifting * steps, config.n_scenes * 2 * 64 * 64 * 3 / 1e9 + 0.8
    else:
        steps, batch_size = sight.steps + words.steps, words.batch_size
        more = lifting if config.component == "joint" else 0.0
        seconds = ((0.1 + more) * sight.steps + (0.27 + more) * words.steps) * batch_size / 32 + 0.006 * config.n_scenes
        memory = config.n_scenes * 2 * 64 * 64 * 4 / 1e9 + 1.2
        if find_spec("llguidance") is None:
            problems.append(f"component: {config.component} needs the package llguidance; pip install llguidance")
        if config.describer.start is not None:
            problems += check_tuning(config)
    if config.start is not None:
        missing = SDFLifterConfig(weights=config.start).problems()
        problems += [f"start: {config.start} holds no lifter; train it first, or take start out"] if missing else []
    if config.vae is not None:
        seconds += 0.07 * steps
        if not (config.vae / VAE_WEIGHTS).is_file():
            problems.append(f"vae: {config.vae} holds no {VAE_WEIGHTS}, so it is no autoencoder's folder")
    minutes = (seconds + 0.01 * config.n_scenes) / 60  # measured on one thread with AVX-512-bf16
    cost = f"about {minutes:.0f} minutes of one CPU thread, {memory:.1f} GB of memory, 25 MB of disk"
    return Plan(problems=problems, notes=[f"train_lift: {steps} steps of {batch_size} pictures; {cost}"])


def check_tuning(config: TrainLiftConfig) -> list[str]:
    """What keeps a vision-language model from being fine-tuned."""
    from ttd.geometry.describer import find_missing
    from ttd.geometry.vlm_tuning import read_pairs

    assert config.describer.start is not None
    problems = find_missing(config.describer.start.model, config.describer.start.revision)
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
        print(f"{row:21s}" + "  ".join(f"{name} {value:.3f}" for name, value in named.items()))


def trainer_of(config: TrainLiftConfig) -> Callable[[TrainLiftConfig, Tracker], dict[str, dict[str, float]]]:
    """What trains the component; each returns figures by row."""
    if config.component == "describer" and config.describer.start is not None:
        return tune_describer
    return {"lifter": train_lifter, "describer": train_describer, "joint": train_joint}[config.component]


def train_lifter(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train, read the figures, and write the folder of the lifter; the figures by row."""
    torch.manual_seed(key(config.seed, "lifter-start"))
    if config.start is None:
        network = SDFNetwork(SDFNetworkConfig(camera=Camera(eye=EYE, target=TARGET, half_fov=HALF_FOV)))
    else:
        network = load_network(config.start)[0].requires_grad_(True)
    settings, terms, round_trip = config.training, config.loss_terms, round_trip_of(config)
    n_rays = settings.n_rays if terms["image"] else 0

    @cache
    def pool() -> ScenePool:  # rendered only if a step is left to do
        return ScenePool(config.seed, "lifter-train", config.n_scenes, network.config.image_size)

    fit(
        network,
        lambda step: pool().batch(config.seed, step, settings.batch_size, settings.n_points, n_rays),
        settings,
        config.output_dir,
        seed=config.seed,
        identity={**identity_of(config), "network": network.config.model_dump(mode="json")},
        terms=terms,
        round_trip=round_trip,
        report=lambda line: tracker.log("train", **line),
    )
    figures = export_lifter(config, network, config.weights, steps=settings.steps)
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **FACTS})
    return figures


def export_lifter(
    config: TrainLiftConfig, network: SDFNetwork, folder: Path, *, steps: int | dict[str, int]
) -> dict[str, dict[str, float]]:
    """Write the folder of a lifter, what it knows as its domain and its figures in it; the figures by row."""
    # The figures are those of the weights as they are shipped, in fp16.
    export, size, round_trip = config.output_dir / "export", network.config.image_size, round_trip_of(config)
    save_network(export, network, FACTS | {"training": trained(config, steps)})
    seen = ScenePool(config.seed, "lifter-train", min(N_DOMAIN, config.n_scenes), size)
    pictures = torch.cat(list(seen.images.values()))
    domain = measure(load_network(export)[0], pictures, seed=config.seed, round_trip=round_trip)
    domain.save(export)
    shipped = SDFLifter.prepare(SDFLifterConfig(weights=export))
    held_out = ScenePool(config.seed, "lifter-held-out", config.n_held_out, size)
    figures = lifter_figures.held_out_figures(shipped, held_out, seed=config.seed, round_trip=round_trip)
    save_network(folder, network, FACTS | {"training": trained(config, steps), "held_out": figures})
    domain.save(folder)
    return figures


def trained(config: TrainLiftConfig, steps: int | dict[str, int]) -> dict[str, Any]:
    """How a model was trained, for its folder."""
    more = {"n_scenes": config.n_scenes, "seed": config.seed, "terms": config.loss_terms, "vae": config.vae is not None}
    before = {} if config.start is None else {"start": load_network(config.start)[1].get("training")}
    return {"component": config.component, "steps": steps, **more, **before}


def round_trip_of(config: TrainLiftConfig) -> Callable[[Tensor], Tensor] | None:
    """The autoencoder that is among the spoiling, there and back."""
    return None if config.vae is None else partial(reconstruct, load_vae(config.vae))


def identity_of(config: TrainLiftConfig) -> dict[str, Any]:
    """What decides the result beside the network and the steps; a state of another identity is not resumed."""
    vae = None if config.vae is None else config.vae / VAE_WEIGHTS
    start = None if config.start is None else config.start / "model.safetensors"
    return {"scenes": config.n_scenes, "vae": vae and sha256_of(vae), "start": start and sha256_of(start)}


def train_describer(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train, read the figures, and write the folder of the describer; the figures by row."""
    from ttd.simulation.describer_training import train

    model = train(
        config.describer, config.output_dir, seed=config.seed, n_scenes=config.n_scenes,
        weight=config.loss_terms["description"], round_trip=round_trip_of(config), identity=fingerprint(staged(config)),
        log=lambda line: tracker.log("train", **line),
    )  # fmt: skip
    figures = export_describer(config, model, config.weights)
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **FACTS})
    return figures


def export_describer(config: TrainLiftConfig, model: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Write the folder of a describer and its figures in it; the figures by row."""
    from ttd.geometry.describer import Describer, DescriberConfig
    from ttd.simulation import describer_figures
    from ttd.simulation.describer_training import DescriberPool
    from ttd.simulation.tiny_vlm import save_vlm

    export = config.output_dir / "export-describer"
    save_vlm(export, model, FACTS)
    constrained, free = (
        Describer.prepare(DescriberConfig(model=str(export), constrained=how, max_new_tokens=256))
        for how in (True, False)  # a description takes at most 90 tokens
    )
    held_out = DescriberPool(config.seed, "describer-held-out", config.n_held_out)
    figures = describer_figures.held_out_figures(
        constrained, free, held_out, seed=config.seed, round_trip=round_trip_of(config)
    )
    training = trained(config, steps_of(config))
    save_vlm(folder, model, FACTS | {"training": training, "n": config.n_held_out, "held_out": figures})
    return figures


def train_joint(config: TrainLiftConfig, tracker: Tracker) -> dict[str, dict[str, float]]:
    """Train both on one vision tower, read the figures, and write a folder of each; the figures by row."""
    from ttd.simulation import joint_training

    model, network = joint_training.train_joint(
        config.describer, config.training, config.output_dir, terms=config.loss_terms, seed=config.seed,
        n_scenes=config.n_scenes, round_trip=round_trip_of(config), identity=fingerprint(staged(config)),
        log=lambda line: tracker.log("train", **line),
    )  # fmt: skip
    lifted = export_lifter(config, network.eval(), config.weights / "lifter", steps=steps_of(config))
    described = export_describer(config, model.eval(), config.weights / "describer")
    figures = {
        f"{half} {row}": v for half, rows in (("lifter", lifted), ("describer", described)) for row, v in rows.items()
    }
    write_json(config.output_dir / "metrics.json", {"n": config.n_held_out, "rows": figures, **FACTS})
    return figures


def staged(config: TrainLiftConfig) -> dict[str, Any]:
    """What decides the result of a training in stages."""
    parts = {"describer": config.describer, "training": config.training if config.component == "joint" else None}
    dumped = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
    return {**identity_of(config), **dumped, "seed": config.seed, "terms": config.loss_terms}


def steps_of(config: TrainLiftConfig) -> dict[str, int]:
    """Steps of each stage."""
    return {name: getattr(config.describer, name).steps for name in ("sight", "words")}


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
        return config.loss_terms["description"] * objective([train[i] for i in rows]), {}

    fit_steps(
        "lora", objective, loss_at, settings.words, config.output_dir, identity=fingerprint(staged(config)),
        log=lambda line: tracker.log("train", **line),
    )  # fmt: skip
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
