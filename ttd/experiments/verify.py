"""Configuration of ``shards/verify.py``."""

from __future__ import annotations

from pathlib import Path

from ttd.config import Config


class VerifyConfig(Config):
    shards: Path
    """Folder of one study's shards, or one part of it."""
    quarantine: bool = False
    """Write damaged samples into ``quarantine.json`` beside their index: later starts leave them out."""
