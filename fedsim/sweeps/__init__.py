"""Grids of runs: their points, and running several at a time."""
