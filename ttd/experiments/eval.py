"""Configuration of the evaluation (``ttd/eval.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ttd.config import Config


class RetrievalConfig(Config):
    """EEG → image retrieval by an aligned encoder, beside the linear baseline."""

    run: Path | tuple[Path, ...] | None = None
    """Run folder of an alignment, or several that differ in their seed: scored as their mean, with its spread over seeds. Without
    it no retrieval is scored."""
    ways: tuple[int, ...] = (50, 200)
    """Sizes of the gallery; a size beyond the number of test pictures becomes that number."""
    repetitions: tuple[int, ...] = (20, 4, 1)
    """How many test repetitions are averaged, one set of rows each."""
    ridge: bool = True
    """Fit the pooled half-whitened ridge on the same split and score it beside the encoder."""
    occlusion: bool = True
    """Hide times and electrodes one after the other and see what retrieval loses (occlusion.json); about 80 passes of the encoder
    over the test part."""

    @field_validator("run")
    @classmethod
    def _once(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        folders = _folders(value)
        if len(set(folders)) < len(folders):
            raise ValueError("names a folder twice; give one of each training seed")
        return value

    @property
    def runs(self) -> tuple[Path, ...]:
        """The run folders, one for each seed."""
        return _folders(self.run)


def _folders(value: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return () if value is None else (value,) if isinstance(value, Path) else value


class BinsConfig(Config):
    """What the ridge looks at: means over successive bins."""

    start: float = 0.0
    """Seconds after the picture's onset."""
    stop: float = 0.6
    width_s: float = 0.024


class PicturesConfig(Config):
    """Generated pictures against those shown."""

    runs: dict[str, Path | tuple[Path, ...]] = Field(default_factory=dict)
    """Generation runs by the name they get in the table; several of one name differ in their training seed and are scored as
    their mean, with its spread. ``{NAME: null}`` takes one out that a file above names."""
    samples: Literal["first", "all"] = "first"
    """Where several pictures of an item were kept: the first alone, or all of them, each item's score their mean."""
    compare: list[tuple[str, str]] = Field(default_factory=list)
    """Pairs of these names: the first minus the second, picture by picture, with its interval."""
    clip: Path = Path("weights/tiny/clip")
    """CLIP of the two-way identification and of the retrieval of pictures."""
    judge: Path | None = Path("weights/tiny/judge")
    """Independent classifier of kind and colour; null where there is none for these pictures."""
    networks: tuple[
        Literal[
            "alexnet_2", "alexnet_5", "inception", "clip", "efficientnet", "swav", "vit_h_14", "lpips", "fid_inception"
        ],
        ...,
    ] = ()
    """Networks of the published tables (``ttd.metrics.network_table``), for photographs; they need the extra ttd[metrics] and
    their weights. "clip" is ViT-L/14 as those tables read it, beside ``clip`` above."""
    network_weights: Path | None = None
    """Folder with their weights; without it the caches of torch hub and Hugging Face."""
    pairwise: bool = False
    """DreamDiffusion's pair-wise scores: every drawn picture beside every shown one, so items × pictures comparisons."""
    ways: int = Field(default=50, ge=2)
    """Gallery of the retrieval of pictures."""
    pixel_size: int = Field(default=425, ge=16)
    """Both sides are brought to this size for PixCorr and SSIM; 425 is that of published figures."""

    @property
    def folders(self) -> dict[str, tuple[Path, ...]]:
        """The generation runs of each name, one for each seed."""
        return {name: _folders(value) for name, value in self.runs.items()}

    @field_validator("runs", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: run for name, run in value.items() if run is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _named(self) -> PicturesConfig:
        for name, folders in self.folders.items():
            if len(set(folders)) < len(folders):
                raise ValueError(f"runs: {name} names a folder twice; give one of each training seed")
        for first, second in self.compare:
            if first == second:
                raise ValueError(f"compare: {first!r} with itself says nothing; name two runs")
        for name in (name for pair in self.compare for name in pair):
            if name not in self.runs:
                raise ValueError(f"compare: {name!r} is none of the runs {', '.join(self.runs) or '(none)'}")
        return self


class EvalConfig(Config):
    output_dir: Path
    """Receives ``metrics.json``, ``table.md``, ``table.tex``, ``items.jsonl``, ``retrieval.jsonl`` and ``occlusion.json``."""
    seed: int = 0
    """Of the bootstrap and of the re-paired controls."""
    shards: Path
    """Folder of one study's shards; its test part is opened, which its ledger counts."""
    study: Path | None = None
    """The simulated study, whose ``stimuli/scenes.json`` knows kind and colour; null for recordings of people."""
    retrieval: RetrievalConfig = RetrievalConfig()
    bins: BinsConfig = BinsConfig()
    pictures: PicturesConfig = PicturesConfig()
    n_resamples: int = Field(default=2000, ge=100)
    """Draws of the bootstrap over pictures."""
    n_draws: int = Field(default=5, ge=1)
    """Re-pairings that each control is the mean of; one alone strays (measured)."""
    batch_size: int = Field(default=100, ge=1)
