"""Licences of lifters: open ones are used as they are, a restricted one must be accepted by its name."""

from __future__ import annotations

from ttd.config import UserError

OPEN = frozenset(
    {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "MPL-2.0", "Unlicense"}
)
"""SPDX names of licences that restrict neither purpose nor place of use."""


def problems(licence: str, accepted: str | None, what: str) -> list[str]:
    """A sentence if ``licence`` is restricted, or unknown, and ``accepted`` is not its name."""
    if licence in OPEN or licence == accepted:
        return []
    said = "" if accepted is None else f" (it says {accepted!r})"
    return [
        f"lifter.accept_license{said}: {what} comes under {licence!r}, which is not an open licence known here. "
        f"Read it (purpose, territory, use of outputs); if you may and will keep to it, set "
        f"lifter.accept_license: {licence}"
    ]


def require(licence: str, accepted: str | None, what: str) -> None:
    """Go on only under an open licence, or under one that the configuration names.

    Raises:
        UserError: it is neither.
    """
    for sentence in problems(licence, accepted, what):
        raise UserError(sentence)
