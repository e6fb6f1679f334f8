"""Generate the pictures that held-out EEG describes.

    accelerate launch ttd/generate.py --config configs/generate/demo.yaml

Writes items/<item>/picture.png (and picture-2.png, ... where more are kept), the pictures that were shown into shown/,
sheet.png with some of both side by side, and manifest.jsonl, one line per item. Run the same command again to resume;
pictures made with other weights or settings are made again. A fine-tuned run draws, or the direct decoder as a baseline.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ttd.config import FailedItemsError, Plan, UserError, fingerprint, run, write_aside, write_lines
from ttd.data.controls import noise_like, pre_stimulus
from ttd.data.index import ShardIndex
from ttd.data.reader import ShardReader
from ttd.data.splits import open_test
from ttd.data.stream import DataConfig, evaluation_batches
from ttd.diffusion.attention import attention_problem, compile_blocks, compiler_problem, set_attention
from ttd.diffusion.base import find_missing, load_base, measured_hashes
from ttd.diffusion.sampler import sample
from ttd.diffusion.targets import ClipTargets, identity
from ttd.diffusion.targets import find_missing as find_missing_model
from ttd.encoders import read_encoder_facts
from ttd.engine.accelerator import make_accelerator
from ttd.engine.items import WAIT, Item, read_items, run_items
from ttd.engine.run_folder import check_resumable, open_run_folder
from ttd.engine.tracking import talk
from ttd.evaluation.direct_decoder import check_direct_decoder, with_direct_decoder
from ttd.experiments.generate import GenerateConfig
from ttd.experiments.pipeline import FILE, read_export_facts
from ttd.objectives.contrastive import Aligned, load_aligned
from ttd.objectives.finetuned import load_finetuned
from ttd.seeding import key

SHEET_ROWS, SHEET_COLUMNS = 8, 12
Draw = Callable[[Tensor, list[Item]], Tensor]
"""Pictures, uint8 [keep, B, 3, H, W], from the epochs [B, C, T] of B items."""
log = logging.getLogger("ttd.generate")


def check(config: GenerateConfig) -> Plan:
    """What draws and the shards must be there and belong together."""
    plan = Plan(problems=check_resumable(config.output_dir, config))
    for folder in (config.shards / config.part, config.shards / "images"):
        if not (folder / "index.json").is_file():
            plan.problems.append(f"shards: {folder} holds no shards; build them with a script of shards/")
    own = check_finetuned(config) if config.direct_decoder is None else check_direct_decoder(config)
    plan.problems += own.problems
    plan.notes += own.notes
    try:
        index = ShardIndex.read(config.shards / config.part, open_test=True)  # its facts; the samples stay closed
        unknown = sorted(set(config.subjects or []) - set(index.subjects))
        if unknown:
            plan.problems.append(f"subjects: {', '.join(unknown)} not in {', '.join(index.subjects)}")
        elif not plan.problems:
            drawn = len(choose_items(config, index)) * config.candidates
            updates = drawn * config.sampler.steps * (1 if config.sampler.guidance == 1 else 2)
            evaluations = f", {updates} evaluations of the UNet" if config.direct_decoder is None else ""
            plan.notes.append(f"generation: {drawn} pictures{evaluations}")
    except UserError as error:
        plan.problems += [] if plan.problems else [f"shards: {error}"]
    return plan


def check_finetuned(config: GenerateConfig) -> Plan:
    """The fine-tuned run and the base must be there and fit each other, the shards and the choice among candidates."""
    wrong = (find_missing(config.base), attention_problem(config.base.attention), compiler_problem(config.base.compile))
    plan = Plan(problems=[problem for problem in wrong if problem])
    try:
        plan.problems += [] if plan.problems else other_base(config)
        encoder = read_encoder_facts(config.export / "encoder")
        index = ShardIndex.read(config.shards / config.part, open_test=True)
        for name in ("sfreq", "n_times", "ch_names"):
            if encoder[name] != getattr(index, name):
                plan.problems.append(f"finetune: {name} of {config.export / 'encoder'} is not that of {index.folder}")
    except UserError as error:
        plan.problems.append(f"finetune or shards: {error}")
    if config.keep > config.candidates:
        plan.problems.append(
            f"keep={config.keep}: only candidates={config.candidates} are drawn; draw as many, or keep fewer"
        )
    if config.keep < config.candidates and config.clip is None:
        plan.problems.append("clip: needed to choose among candidates; name it, or keep all (keep=…)")
    elif config.candidates > 1 and config.clip is not None:
        missing = find_missing_model(config.clip)
        plan.problems += [f"clip: {missing}"] if missing else []
        if not plan.problems:
            plan.problems += other_clip(config)
    return plan


def other_base(config: GenerateConfig) -> list[str]:
    """Adapters and bridge speak to the base they were trained on: where the export knows its bytes, they must be the same."""
    if not (config.export / FILE).is_file():
        return []
    pins = read_export_facts(config.export)[0].base.sha256
    own = measured_hashes(config.base)
    wrong = [name for name in own if pins and own[name] != pins.get(name)]
    return [
        f"base={config.base.path}: {config.export} was trained on another {name}; give that base, with its variant"
        for name in wrong
    ]


def other_clip(config: GenerateConfig) -> list[str]:
    """Cosines between the embeddings of two models mean nothing: ``clip`` must be what the EEG was aligned with."""
    assert config.clip is not None
    made = config.shards / "targets" / load_aligned(config.export).target
    model = ShardIndex.read(made).facts.source.get("model") if made.is_dir() else None
    if model in (None, identity(config.clip)):
        return []
    return [f"clip={config.clip}: the EEG was aligned with {made}, which another model made; name that one"]


def main(config: GenerateConfig) -> None:
    talk()
    accelerator = make_accelerator(timeout=WAIT)
    open_run_folder(config.output_dir, config, main=accelerator.is_main_process, world_size=accelerator.num_processes)
    if config.part == "test" and accelerator.is_main_process:
        opened = open_test(config.shards, who="generate", config_hash=fingerprint(config))
        log.info("the test part is open; it has been opened %d times", opened)
    reader = ShardReader.open(config.shards / config.part, open_test=True)
    draw, own = (with_finetuned if config.direct_decoder is None else with_direct_decoder)(config, accelerator)
    names = ["picture.png", *(f"picture-{n}.png" for n in range(2, config.keep + 1))]

    def work(items: list[Item], folders: list[Path]) -> list[dict[str, Any]]:
        pictures = draw(read_eeg(config, items, reader).to(accelerator.device), items).cpu()
        for name, images in zip(names, pictures, strict=True):
            for folder, image in zip(folders, images, strict=True):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
        return [describe(config, item, reader.index) for item in items]

    items = choose_items(config, reader.index)
    inputs = own | {"shards": reader.index.fingerprint, "n_repetitions": config.n_repetitions}
    folder = config.output_dir / "items"
    result = run_items(
        items, work, folder, inputs=inputs, config=config.items, accelerator=accelerator, desc="generate"
    )
    if accelerator.is_main_process:
        write_manifest(config, read_items(folder, result.done))
        print(f"{config.output_dir / 'manifest.jsonl'}: {len(result.done)} pictures; {config.output_dir / 'sheet.png'}")
    if result.failed:
        raise FailedItemsError(result.summary())


def choose_items(config: GenerateConfig, index: ShardIndex) -> list[Item]:
    """What to draw: ``n_items`` pictures per subject in an order keyed by the picture, then the controls.

    The shuffled control gives each picture the EEG of the next one in that order, so never its own; the other controls have its
    own epoch, of which ``blind`` leaves nothing that knows the picture. Where trials are paired by class, a picture has several
    samples: first one of each picture, then the second of each.
    """
    subjects, shas, names = (index.column(name) for name in ("subject", "image_sha256", "image_id"))
    items: list[Item] = []
    for subject in config.subjects or index.subjects:
        rows = [row for row in range(index.n_samples) if subjects[row] == subject]
        met: Counter[str] = Counter()
        again = {}  # row → how many samples of its picture came before
        for row in rows:
            again[row] = met[shas[row]]
            met[shas[row]] += 1
        rows.sort(key=lambda row: (again[row], key(config.seed, "item", str(shas[row]))))
        rows = rows[: config.n_items]
        for control in (None, *config.controls):
            if control == "shuffled" and len(rows) < 2:
                raise UserError(f"controls: subject {subject} has {len(rows)} picture; a shuffled control needs 2")
            for place, row in enumerate(rows):
                name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{subject}_{names[row]}") + f"_{again[row]}" * (again[row] > 0)
                inputs = {
                    "row": row,
                    "eeg_row": rows[(place + 1) % len(rows)] if control == "shuffled" else row,
                    "seed": key(config.seed, "picture", subject, str(shas[row])),
                    "control": control,
                }
                items.append(Item(f"{name}_{control}" if control else name, inputs, inputs))
    return items


class Chooser:
    """Of several pictures drawn for one EEG, those nearest what the EEG says, in the space that alignment compared in.

    Args:
        clip: folder or repository of the CLIP of the alignment's targets.
        aligned: the alignment that fine-tuning exported.
    """

    def __init__(self, clip: str, aligned: Aligned, *, device: torch.device):
        self.path, self.clip, self.aligned = clip, ClipTargets(clip, device=device), aligned

    @torch.no_grad()
    def __call__(self, candidates: Tensor, eeg: Tensor, keep: int) -> Tensor:
        """Choose ``keep`` of K candidates, uint8 [K, B, 3, H, W], by the EEG [B, C, T]: [keep, B, 3, H, W], nearest first."""
        seen = torch.stack([self.aligned.space(self.clip.embed(list(images))) for images in candidates])  # [K, B, F]
        nearest = (seen * self.aligned(eeg)).sum(-1).argsort(dim=0, descending=True, stable=True)[:keep]  # [keep, B]
        return candidates[nearest.to(candidates.device), torch.arange(nearest.shape[1])]


def with_finetuned(config: GenerateConfig, accelerator: Accelerator) -> tuple[Draw, dict[str, Any]]:
    """What draws by the fine-tuned run, and what its pictures depend on beside the EEG."""
    base = load_base(config.base, device=accelerator.device, with_vae=True)
    conditioner, aligned = load_finetuned(config.export, base)
    conditioner.to(accelerator.device)
    set_attention(base.unet, config.base.attention)
    if config.base.compile:
        compile_blocks(base.unet)
    chooser = None
    if config.candidates > 1 and config.clip is not None:
        chooser = Chooser(config.clip, aligned.to(accelerator.device), device=accelerator.device)
    known = (config.export / FILE).is_file()  # else the base's own size
    size = read_export_facts(config.export)[0].picture_size if known else None

    def draw(eeg: Tensor, items: list[Item]) -> Tensor:
        seeds = [item.payload["seed"] for item in items]
        with torch.no_grad():
            condition = conditioner(eeg)
        informed = torch.tensor([item.payload["control"] != "unconditional" for item in items], device=eeg.device)
        context = condition.context * informed[:, None, None]  # zero is what condition dropout trains
        pooled = condition.pooled * informed[:, None]
        candidates = []
        for number in range(config.candidates):  # the first is what is drawn without a choice
            own = [key(seed, "candidate", number) for seed in seeds] if number else seeds
            images = sample(base, context, pooled, seeds=own, config=config.sampler, picture_size=size)
            candidates.append((images * 255).round().byte())
        drawn = torch.stack(candidates)
        return drawn if chooser is None else chooser(drawn, eeg, config.keep)

    return draw, {
        "weights": [hash_of(config.export), hash_of(Path(config.base.path)), config.base.revision],
        "candidates": [config.candidates, config.keep, identity(chooser.path) if chooser else None],
        "sampler": config.sampler.model_dump(),
        "picture_size": size,
    }


def read_eeg(config: GenerateConfig, items: list[Item], reader: ShardReader) -> Tensor:
    """The epochs [B, C, T] that B items are drawn from, without what their controls forbid."""
    rows, seeds, controls = ([item.payload[name] for item in items] for name in ("eeg_row", "seed", "control"))
    data = DataConfig(shards=config.shards, part=config.part)
    (epochs,) = evaluation_batches(reader, data, len(rows), n_repetitions=config.n_repetitions, indices=rows)
    return blind(epochs["eeg"], controls, seeds, reader.index)


def blind(eeg: Tensor, controls: list[str | None], seeds: list[int], index: ShardIndex) -> Tensor:
    """Epochs [B, C, T] without what the item's control forbids: all of the EEG for noise and without a condition (so that the
    choice among candidates knows nothing either), what follows the onset for the pre-stimulus window."""
    before = pre_stimulus(eeg, tmin=index.tmin, sfreq=index.sfreq)
    noise = noise_like(eeg, seeds)
    by_control = {"pre_stimulus": before, "noise": noise, "unconditional": noise}
    return torch.stack([by_control.get(control or "", eeg)[row] for row, control in enumerate(controls)])


def hash_of(folder: Path) -> str:
    """sha256 of all weights in a folder; of nothing where there is no folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(hashlib.file_digest(path.open("rb"), "sha256").digest())
    return digest.hexdigest()


def describe(config: GenerateConfig, item: Item, index: ShardIndex) -> dict[str, Any]:
    """What the manifest says of an item: whose EEG, of which picture, beside which picture it is to be held."""
    row, eeg_row = item.payload["row"], item.payload["eeg_row"]
    repetitions = int(index.n_repetitions[eeg_row])
    return {
        "subject": str(index.column("subject")[row]),
        "image_id": str(index.column("image_id")[row]),
        "image_sha256": str(index.column("image_sha256")[row]),
        "concept": str(index.column("concept")[row]) or None,
        "path": f"items/{item.key}/picture.png",
        "more_paths": [f"items/{item.key}/picture-{n}.png" for n in range(2, config.keep + 1)],
        "seed": item.payload["seed"],
        "n_repetitions": min(repetitions, config.n_repetitions or repetitions),
        "candidates": config.candidates,
        "control": item.payload["control"],
        "eeg_of": str(index.column("image_id")[eeg_row]),
        "study": index.facts.study,
        "simulated": index.facts.simulated,
    }


def draw_sheet(folder: Path, records: list[dict[str, Any]]) -> None:
    """``sheet.png``: pictures of all subjects, to the right of what was shown; controls are left out."""
    own = [record for record in records if record["control"] is None]
    if not own:
        return
    group = 2 + len(own[0]["more_paths"])
    groups = max(1, SHEET_COLUMNS // group)  # side by side
    chosen = own[:: -(-len(own) // (SHEET_ROWS * groups))]
    paths = [path for r in chosen for path in (r["shown_path"], r["path"], *r["more_paths"])]
    pictures = [Image.open(folder / path) for path in paths]
    size = pictures[1].size  # of what is drawn
    columns = group * min(groups, len(chosen))
    sheet = Image.new("RGB", (columns * size[0], -(-len(pictures) // columns) * size[1]), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB").resize(size), (i % columns * size[0], i // columns * size[1]))
    sheet.save(folder / "sheet.png")


def write_manifest(config: GenerateConfig, records: list[dict[str, Any]]) -> None:
    """Copy the shown pictures and write one line per item; the manifest appears when everything else is there."""
    shown = ShardReader.open(config.shards / "images")
    (config.output_dir / "shown").mkdir(exist_ok=True)
    for record in records:
        content = shown.image(shown.index.find(record["image_sha256"]))
        suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
        record["shown_path"] = f"shown/{record['image_sha256'][:16]}.{suffix}"
        if not (config.output_dir / record["shown_path"]).exists():  # another job of the array may be reading it
            write_aside(config.output_dir / record["shown_path"], content)
    draw_sheet(config.output_dir, records)
    write_lines(config.output_dir / "manifest.jsonl", records)


if __name__ == "__main__":
    run(main, GenerateConfig, doc=__doc__, check=check)
