"""Linear classifiers that every encoder stands beside: shrinkage LDA, ridge, and logistic regression on band power.

Shrinkage LDA: Blankertz, Lemm, Treder, Haufe & Müller, 2011, NeuroImage 56:814 (means of short time bins, covariance
shrunk by Ledoit & Wolf). On the Muse P300 recordings, left out one by one, it reads an AUC of 0.773 (1-20 Hz, -0.1 to
0.8 s, 31 ms bins, epochs above 75 µV dropped).

Each is a Pipeline of scikit-learn on epochs [n, C, T]; where a configuration lists several values of a parameter, one is
chosen inside the training groups.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ttd.baselines.features import BandPower, TimeBins
from ttd.config import Config

Grid = dict[str, list[Any]]
"""Parameters of a Pipeline → candidates, as GridSearchCV takes them; empty where nothing is chosen."""


class LDAConfig(Config):
    name: Literal["lda"] = "lda"
    bin_ms: float = Field(default=31.0, gt=0)
    start: float | None = None
    """Seconds from which bins are cut; the whole epoch where null."""
    stop: float | None = None


class RidgeConfig(Config):
    """One regression per class on standardised bins (Hoerl & Kennard, 1970, Technometrics 12:55)."""

    name: Literal["ridge"] = "ridge"
    bin_ms: float = Field(default=24.0, gt=0)
    start: float | None = None
    stop: float | None = None
    penalties: tuple[float, ...] = Field(default=(1e1, 1e2, 1e3, 1e4, 1e5), min_length=1)


class BandPowerConfig(Config):
    """Logistic regression on the logarithm of band power, standardised."""

    name: Literal["band_power"] = "band_power"
    bands: tuple[tuple[float, float], ...] = ((4.0, 8.0), (8.0, 13.0), (13.0, 30.0))
    """Theta, alpha, beta in Hz."""
    strengths: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Inverse strength C of the penalty."""


BaselineConfig = LDAConfig | RidgeConfig | BandPowerConfig


def build_baseline(config: BaselineConfig, *, sfreq: float, tmin: float) -> tuple[Pipeline, Grid]:
    """The Pipeline that ``config`` names for epochs at ``sfreq`` Hz from ``tmin`` seconds on, and what is to be chosen."""
    if isinstance(config, BandPowerConfig):
        steps = (BandPower(sfreq=sfreq, bands=config.bands), StandardScaler())
        return choosing(
            make_pipeline(*steps, LogisticRegression(max_iter=2000)), "logisticregression__C", config.strengths
        )
    span: dict[str, Any] = {"start": config.start, "stop": config.stop, "width_s": config.bin_ms / 1000}
    bins = TimeBins(sfreq=sfreq, tmin=tmin, **span)
    if isinstance(config, LDAConfig):
        return make_pipeline(bins, LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")), {}
    ridge = make_pipeline(bins, StandardScaler(), RidgeClassifier())
    return choosing(ridge, "ridgeclassifier__alpha", config.penalties)


def choosing(pipeline: Pipeline, parameter: str, values: tuple[Any, ...]) -> tuple[Pipeline, Grid]:
    """Set a parameter that has one value; leave one that has several to be chosen."""
    if len(values) == 1:
        return pipeline.set_params(**{parameter: values[0]}), {}
    return pipeline, {parameter: list(values)}
