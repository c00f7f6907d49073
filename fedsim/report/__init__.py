"""Reading finished runs: their series, statistics over seeds, curves and the HTML report."""
