"""The central controller: an experiment from its first round to its last."""
