"""Tools that show the metrics of runs: they follow the files of a run, which knows nothing of them."""
