"""The way to real recordings, for the tests of this folder."""

from bids_study import real_data

__all__ = ["real_data"]
