"""Samples on disk and on their way to a model: shards, their index, the split, and the order in which they are seen."""
