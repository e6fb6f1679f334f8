"""Recordings, and how they become clean windows and epochs: MNE and NumPy, no torch."""
