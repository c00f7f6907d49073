"""Central controller: runs an experiment from the first round to the last."""
