"""Question: how exact are compressed methods as the clients come to disagree?

Problem: the synthetic least squares of Gao, Islamov, Stich ("EControl", ICLR 2024), f_i(x) = ||A_i x - b_i||^2 / 2 with
A_i^2 = (i^2 / n) I and b_i ~ N(0, (zeta / i)^2 I), n = 10, d = 100, Top-10: zeta says how far the clients' gradients at
the minimiser are from zero. Step size 1 / (L + L_AM xi); EControl with eta = alpha = 0.1. Initial model: ones.

Run: python -m experiments.econtrol (2 minutes on two cores; --quick: seconds). Expected: with zeta = 0 all are exact;
the floors of EF14 and DCGD are proportional to zeta, those of DCGD ten times higher; EF21, EControl and EC-Ideal (which
is told the minimiser) are exact for every zeta.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from algorithms import DCGD, EF14, EF21, ECIdeal, EControl
from algorithms.theory import theory_of
from experiments.convex import read, run_all, starting_at
from fedsim.cli.output import console
from fedsim.compress import TopK
from fedsim.errors import FedsimError
from fedsim.problems import Problem, zeta_least_squares
from fedsim.record.files import create_folder

ZETAS = (0.0, 1.0, 10.0, 100.0)


def methods(problem: Problem) -> dict[str, Any]:
    """The algorithms by name, all with the same step size."""
    top = TopK(k=10)
    gamma = theory_of(EF21(compressor=top), problem).gamma["nonconvex AM"]
    assert problem.minimizer is not None
    return {
        "DCGD": DCGD(gamma, top),
        "EF14": EF14(gamma, top),
        "EF21": EF21(gamma, top),
        "EControl": EControl(gamma, top),
        "EC-Ideal": ECIdeal(gamma, top, tuple(problem.minimizer.tolist())),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="rounds of each run (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20 rounds, zeta 0 and 10")
    options = parser.parse_args(arguments)
    rounds, zetas = (20, (0.0, 10.0)) if options.quick else (options.rounds, ZETAS)
    out = Table("||grad f|| after the last round", *(f"zeta = {zeta:g}" for zeta in zetas), box=SIMPLE)
    columns: dict[str, list[str]] = {}
    try:
        root = create_folder(options.root, "econtrol")
        for zeta in zetas:
            problem = zeta_least_squares(zeta=zeta)
            problem = starting_at(problem, np.ones(problem.constants.d))
            runs = run_all(problem, methods(problem), rounds, root / f"zeta-{zeta:g}", options.quick)
            for name, run in read(runs, problem.n).items():
                columns.setdefault(name, []).append(f"{run.value[-1] ** 0.5:.1e}")
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, values in columns.items():
        out.add_row(name, *values)
    console().print(out, f"Runs: {root}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
