"""EEG that comes from outside the shards, made into what an exported encoder was trained on.

``EEGFacts`` is what an export says about its EEG; ``EEGReader`` takes arrays in µV or MNE's epochs and averages, finds the
electrodes by name and the window by time, and scales exactly as the shards' batches do. What does not fit is refused: an
encoder answers anything with a picture. MNE objects are known by their attributes.

Shapes: B batch, C channels of the encoder, K channels given, T time points, S subjects.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import mne
import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from ttd.config import Config, UserError
from ttd.data.index import ShardIndex
from ttd.data.schema import Statistics
from ttd.data.transforms import scale
from ttd.data.whitening import SubjectNormaliser
from ttd.eeg.montage import normalise_name

log = logging.getLogger(__name__)

PLAUSIBLE_UV = (1e-3, 1e4)
"""Median absolute value of EEG, with room for three orders of magnitude on either side: channels of real recordings vary by 8 to
53 µV (``ttd.eeg.channels``). Volts taken for µV are a millionth of that, µV taken for volts a million times as much."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EEGFacts(Config):
    """The EEG that an export reads: that of its training part."""

    study: str
    simulated: bool
    sfreq: Positive
    """Hz."""
    tmin: FiniteFloat
    """Seconds from the event to the first time point."""
    n_times: int = Field(ge=1)
    ch_names: list[str]
    mean: list[FiniteFloat]
    """µV, per channel, like std: the z-score's."""
    std: list[Positive]
    normalise: Literal["channel", "subject"] = "channel"
    """subject: whitened per subject after the z-score (``ttd.data.whitening``)."""
    subjects: list[str] = Field(default_factory=list)
    """Whose whitening is exported, in its order; none where EEG is normalised per channel alone."""
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    """What was done to the recordings; nothing of it is done again here, so the EEG must have gone through it."""

    @model_validator(mode="after")
    def _consistent(self) -> EEGFacts:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != len(self.ch_names):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, ch_names {len(self.ch_names)} names")
        if (self.normalise == "subject") != bool(self.subjects):
            raise ValueError(f"normalise is {self.normalise}, but subjects are {self.subjects}")
        return self

    @classmethod
    def of(cls, index: ShardIndex, normaliser: SubjectNormaliser | None = None) -> EEGFacts:
        """The facts of the shards of the training part; ``normaliser`` where they ask for one."""
        facts, statistics = index.facts, index.facts.statistics[index.cap]
        return cls(
            study=facts.study,
            simulated=facts.simulated,
            sfreq=index.sfreq,
            tmin=index.tmin,
            n_times=index.n_times,
            ch_names=index.ch_names,
            mean=statistics.mean,
            std=statistics.std,
            normalise=facts.normalise,
            subjects=normaliser.subjects if normaliser else [],
            preprocessing={name: value for name, value in facts.preprocessing.items() if name != "interpolated"},
        )

    @property
    def window(self) -> str:
        """The time points in words."""
        last = self.tmin + (self.n_times - 1) / self.sfreq
        return f"{self.n_times} time points at {self.sfreq:g} Hz, from {self.tmin:g} s to {last:g} s, both included"


class EEGReader:
    """EEG from arrays or MNE objects → the encoder's input.

    Args:
        facts: what the encoder was trained on.
        normaliser: for ``facts.normalise: subject``.
    """

    def __init__(self, facts: EEGFacts, normaliser: SubjectNormaliser | None = None):
        if (facts.normalise == "subject") != (normaliser is not None):
            raise ValueError(f"normalise={facts.normalise}, but normaliser={normaliser}")
        self.facts, self.normaliser = facts, normaliser

    def __call__(
        self,
        eeg: Any,
        *,
        ch_names: Sequence[str] | None = None,
        sfreq: float | None = None,
        subject: str | Sequence[str] | None = None,
    ) -> np.ndarray:
        """Scaled float32 [B, C, T], as the batches of the shards are.

        Args:
            eeg: array [K, T] or [B, K, T] in µV; or ``mne.Epochs`` or ``mne.Evoked`` (in volts, as MNE has it), resampled
                where their rate is another.
            ch_names: the K channels of an array, in any order.
            sfreq: rate of an array in Hz.
            subject: whose EEG it is, one name or B, where the export is normalised per subject.

        Raises:
            UserError: an electrode is missing or there twice, rate, length or window do not fit, the values cannot be in
                µV, or a subject is unknown.
        """
        if hasattr(eeg, "info"):
            if ch_names is not None or sfreq is not None:
                raise UserError("ch_names, sfreq: an MNE object has its own; leave them out")
            uv = self._from_mne(eeg)
        else:
            uv = self._from_array(eeg, ch_names, sfreq)
        if not np.isfinite(uv).all():
            raise UserError("eeg: holds NaN or infinite values; leave those epochs out, or interpolate those channels")
        _check_amplitude(uv, volts=hasattr(eeg, "info"))
        scale(uv, Statistics(mean=self.facts.mean, std=self.facts.std))
        codes = self._codes(subject, len(uv))
        return uv if self.normaliser is None else self.normaliser.apply(uv, codes)

    def _from_array(self, eeg: Any, ch_names: Sequence[str] | None, sfreq: float | None) -> np.ndarray:
        """µV float32 [B, C, T] of an array."""
        facts, array = self.facts, np.asarray(eeg)
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "fiu":
            raise UserError(
                f"eeg: an array of {array.dtype} of shape {list(array.shape)}; give real numbers [channels, times] or "
                "[epochs, channels, times] in µV"
            )
        if ch_names is None or sfreq is None:
            absent = " and ".join(n for n, value in (("ch_names", ch_names), ("sfreq", sfreq)) if value is None)
            raise UserError(f"{absent}: an array does not tell; give {absent}, or give an MNE object")
        if abs(sfreq - facts.sfreq) > 1e-6:
            raise UserError(
                f"sfreq={sfreq:g}: the encoder reads {facts.sfreq:g} Hz; resample with an anti-aliasing filter "
                "(mne.filter.resample), or give the MNE object, which is resampled here"
            )
        array = array[None] if array.ndim == 2 else array
        if array.shape[1] != len(ch_names):
            raise UserError(f"ch_names: {len(ch_names)} names, but eeg has {array.shape[1]} channels; name every one")
        if array.shape[2] != facts.n_times:
            raise UserError(f"eeg: has {array.shape[2]} time points, the encoder reads {facts.window}; cut that window")
        return np.ascontiguousarray(array[:, self._rows(ch_names)], np.float32)

    def _from_mne(self, inst: Any) -> np.ndarray:
        """µV float32 [B, C, T] of epochs (B of them) or of an average (B = 1)."""
        facts = self.facts
        if not hasattr(inst, "baseline"):
            raise UserError(
                f"eeg: a {type(inst).__name__} is not time-locked to a picture; cut it with mne.Epochs first"
            )
        rows = self._rows(inst.ch_names)
        bad = [inst.ch_names[row] for row in rows if inst.ch_names[row] in inst.info["bads"]]
        if bad:
            log.warning("eeg: %s are marked bad and read all the same; interpolate them first", ", ".join(bad))
        volts, times = inst.get_data()[..., rows, :], inst.times
        if not volts.size:
            raise UserError("eeg: holds no epoch; were all of them dropped?")
        rate = float(inst.info["sfreq"])
        if abs(rate - facts.sfreq) > 1e-6:
            volts, times = _resampled(volts, times, rate, facts)
            log.info("eeg: resampled from %g to %g Hz", rate, facts.sfreq)
        first = int(np.abs(times - facts.tmin).argmin())
        away = abs(times[first] - facts.tmin) * facts.sfreq  # in samples; a grid may lie half a sample aside
        if away > 0.5 + 1e-6 or first + facts.n_times > len(times):
            raise UserError(
                f"eeg: covers {inst.times[0]:g} s to {inst.times[-1]:g} s, the encoder reads {facts.window}; cut longer epochs"
            )
        uv = volts[..., first : first + facts.n_times] * 1e6
        return np.ascontiguousarray(uv[None] if uv.ndim == 2 else uv, np.float32)

    def _rows(self, ch_names: Sequence[str]) -> list[int]:
        """Where the encoder's electrodes stand among the given channels, known by their 10-05 names."""
        names = [normalise_name(str(name)) for name in ch_names]
        given = {name: row for row, name in enumerate(names)}
        wanted = [normalise_name(name) for name in self.facts.ch_names]
        twice = [name for name in wanted if names.count(name) > 1]
        if twice:
            raise UserError(f"eeg: several channels are called {', '.join(twice)}; drop or rename all but one")
        missing = [name for name in wanted if name not in given]
        if missing:
            raise UserError(
                f"eeg: has no electrode {', '.join(missing)}, which the encoder reads; rename the channels if they are there "
                "under other names, or interpolate them (in MNE: add them as bad channels, interpolate_bads)"
            )
        extra = sorted(set(given) - set(wanted))
        if extra:
            log.info("eeg: %d channels that the encoder does not read are left out: %s", len(extra), ", ".join(extra))
        return [given[name] for name in wanted]

    def _codes(self, subject: str | Sequence[str] | None, n: int) -> np.ndarray:
        """The place [B] of each epoch's subject in the normaliser; nothing where there is none."""
        if self.normaliser is None:
            if subject is not None:
                raise UserError(f"subject={subject}: this export treats all subjects alike; leave it out")
            return np.zeros(0, np.int64)
        known = ", ".join(self.facts.subjects)
        if subject is None:
            raise UserError(f"subject: this export whitens each subject's EEG by its own matrix; give one of {known}")
        names = [subject] * n if isinstance(subject, str) else [str(name) for name in subject]
        if len(names) != n:
            raise UserError(f"subject: {len(names)} names for {n} epochs; give one name, or one per epoch")
        unknown = sorted(set(names) - set(self.facts.subjects))
        if unknown:
            raise UserError(
                f"subject={', '.join(unknown)}: not among {known}; another person's EEG needs training of its own"
            )
        return np.array([self.facts.subjects.index(name) for name in names], np.int64)


def _resampled(x: np.ndarray, times: np.ndarray, rate: float, facts: EEGFacts) -> tuple[np.ndarray, np.ndarray]:
    """Bring x [..., T] from ``rate`` to the encoder's rate, with nothing above half of it left to alias, and its times.

    MNE stretches time where the lengths are not in the ratio of the rates (by half a sample over an epoch, measured): the
    end is padded until they are. It begins at the sample from which on the new ones fall on the window's own, or nearest.
    """
    ratio = Fraction(facts.sfreq / rate).limit_denominator(10_000)
    phase = (facts.tmin - times[: math.ceil(rate / facts.sfreq)]) * facts.sfreq
    start = int(np.abs(phase - phase.round()).round(6).argmin())
    n = len(times) - start
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -n % ratio.denominator)]
    padded = np.pad(x[..., start:], padding, mode="edge")
    new = mne.filter.resample(padded, ratio.numerator, ratio.denominator, method="polyphase", verbose="ERROR")
    new_times = times[start] + np.arange(new.shape[-1]) / facts.sfreq
    kept = new_times <= times[-1] + 1e-6
    return new[..., kept], new_times[kept]


def _check_amplitude(uv: np.ndarray, *, volts: bool) -> None:
    """Refuse EEG [B, C, T] that cannot be in µV.

    Raises:
        UserError: its median absolute value is beyond ``PLAUSIBLE_UV``.
    """
    median, (low, high) = float(np.median(np.abs(uv))), PLAUSIBLE_UV
    if median < low:
        cause = "flat, or scaled down twice" if volts else "flat, or in volts: multiply by 1e6"
        raise UserError(f"eeg: half of its values are below {median:.2g} µV, which no EEG is; it is {cause}")
    if median > high:
        cause = "in µV, but MNE objects are in volts: multiply by 1e-6" if volts else "not in µV"
        raise UserError(f"eeg: half of its values are above {median:.2g} µV, which no EEG is; it is {cause}")
