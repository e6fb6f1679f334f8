"""The tiny BIDS study and the way to real recordings, for the tests of this folder."""

from bids_study import real_data, tiny_study, write_bids

__all__ = ["real_data", "tiny_study", "write_bids"]
