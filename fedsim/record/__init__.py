"""Files of a run: configuration, metrics, checkpoints."""
