"""All that touches accelerate, DeepSpeed and trackers: processes, the training loop, checkpoints, work by item."""
