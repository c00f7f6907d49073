"""Question: what is the arithmetic mean of the clients' smoothness constants worth as they spread?

EF21's step size in theory is 1 / (L + L_QM xi) with the quadratic mean of the L_i; Richtarik, Gasanov, Burlachenko
("Error Feedback Reloaded", ICLR 2024) prove it with the arithmetic mean L_AM, without a change of the algorithm where
the compressor is homogeneous, and with weights (EF21-W) else.

Problem: quadratics f_i with Hessian L_i H_i, H_i with eigenvalues from 0.1 to 1 in random directions, minimisers apart,
d = 20, Top-1; clients with L_i drawn uniformly from [1, 2], with L = (1, 1, 1, 100), and 99 with L_i = 1 beside one of
1000. Rounds until ||grad f||^2 is 1e-6 of its first value.

Run: python -m experiments.mean_smoothness (5 minutes on two cores; --quick: few rounds). Expected: step size and speed
gain by L_QM / L_AM (for strong compression): 1.01, 1.9 and 9; EF21 and EF21-W with the same step are one method.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from algorithms import EF21, EF21W, with_theory
from experiments.convex import Curve, read, run_all
from fedsim.cli.output import console
from fedsim.compress import TopK
from fedsim.errors import FedsimError
from fedsim.problems import Problem, quadratic_from
from fedsim.record.files import create_folder
from fedsim.report.layout import PALETTE

SPREADS: dict[str, tuple[np.ndarray, int]] = {
    "uniform [1, 2]": (np.random.default_rng(1).uniform(1, 2, 20), 800),
    "1, 1, 1, 100": (np.array([1.0, 1, 1, 100]), 3000),
    "99 x 1, 1000": (np.array([1.0] * 99 + [1000]), 13000),
}
"""The L_i, and rounds enough for either step size."""
TARGET = 1e-6


def quadratics(L: np.ndarray, d: int = 20) -> Problem:
    """Clients with the smoothness constants ``L [n]``, in dimension ``d``."""
    rng = np.random.default_rng(0)
    hessians = []
    for L_i in L:
        directions, _ = np.linalg.qr(rng.standard_normal((d, d)))
        hessians.append(L_i * (directions * np.geomspace(0.1, 1, d)) @ directions.T)
    minimisers = rng.standard_normal((len(L), d))
    return quadratic_from(np.array(hessians), np.einsum("nij,nj->ni", np.array(hessians), minimisers))


def methods(problem: Problem) -> dict[str, Any]:
    """EF21 with either step size, and EF21-W."""
    top = TopK(k=1)
    return {
        "EF21, quadratic mean": with_theory(EF21(compressor=top), problem),
        "EF21, arithmetic mean": with_theory(EF21(compressor=top), problem, regime="nonconvex AM"),
        "EF21-W": with_theory(EF21W(compressor=top, smoothness=problem.constants.L_i), problem),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison, print its table and draw its figure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20 rounds, without the large federation")
    options = parser.parse_args(arguments)
    spreads = list(SPREADS)[:2] if options.quick else list(SPREADS)
    out = Table("L_i", "L_var", "L_QM / L_AM", "step AM / QM", *["rounds QM", "AM", "W"], box=SIMPLE)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    try:
        root = create_folder(options.root, "mean-smoothness")
        panels = np.atleast_1d(figure.subplots(1, len(spreads)))
        for axes, name in zip(panels, spreads, strict=True):
            L, rounds = SPREADS[name]
            problem = quadratics(L)
            algorithms = methods(problem)
            rounds = 20 if options.quick else rounds
            runs = read(run_all(problem, algorithms, rounds, root / str(problem.n), options.quick), problem.n)
            c = problem.constants
            steps = [algorithm.lr for algorithm in algorithms.values()]
            needed = [run.to_reach(TARGET * run.value[0]) for run in runs.values()]
            ratios = [f"{c.L_QM / c.L_AM:.3f}", f"{steps[1] / steps[0]:.3f}"]
            out.add_row(name, f"{c.L_var:.3g}", *ratios, *(f"{r:g}" for r in needed))
            _draw(axes, runs, name)
        figure.savefig(root / "mean-smoothness.png", dpi=150)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(out, f"Runs and figure: {root}", highlight=False)
    return 0


def _draw(axes: Any, runs: dict[str, Curve], title: str) -> None:
    for k, (name, run) in enumerate(runs.items()):
        axes.plot(run.round, run.value, color=PALETTE[k], ls="--" if k == 2 else "-", lw=1.6, label=name)
    axes.set(yscale="log", xlabel="rounds", ylabel="||∇f(x)||²", title=f"L_i: {title}")
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
