"""A comparison as a table for papers and pages: LaTeX with booktabs, and Markdown.

The best mean of each column is bold, by the direction of the metric, or the lowest cost. The difference of the baseline
to itself counts as 0. Bold says nothing about significance: intervals may overlap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fedsim.report.compare import COSTS, Comparison, RunSummary, cells, columns_of, header, notes, title
from fedsim.report.statistics import best

BOLD = "Bold: best mean of its column."
_NUMBER = re.compile(r"([+-]?[\d,.]+)(?:e([+-]\d+))?")
_GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"},
    **{"φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "Delta"},
}
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$", "±": r"$\pm$", "–": "--"},
    **{"[": "{[}", "*": "{*}"},                            # first in a row, they would be arguments of the \\ before
    **{char: f"$\\{name}$" for char, name in _GREEK.items()},
}


def to_latex(comparison: Comparison, columns: Sequence[str] | None = None) -> str:
    """The comparison as a LaTeX ``tabular``, which needs the package booktabs; the notes and warnings are comments.

    Args:
        columns: columns to show, in order, among ``seeds``, ``final``, ``late``, ``best``, ``difference``, ``p``,
            ``round``, ``megabytes``, ``gradient_evaluations`` and ``simulated_seconds``; by default all but ``p``.

    Raises:
        ConfigError: there is no such column.
    """
    head, *rows = _grid(comparison, columns, _latex, _latex_cell)
    lines = [f"% {' '.join(line.split())}\n" for line in _remarks(comparison, columns)]
    lines += [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}\n", "\\toprule\n", _latex_row(head), "\\midrule\n"]
    return "".join([*lines, *map(_latex_row, rows), "\\bottomrule\n", "\\end{tabular}\n"])


def to_markdown(comparison: Comparison, columns: Sequence[str] | None = None) -> str:
    """The comparison as a table in GitHub's Markdown, with notes and warnings below; see `to_latex` for arguments."""
    head, *rows = _grid(comparison, columns, _markdown, _markdown_cell)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    table = [f"| {' | '.join(row)} |\n" for row in (head, ruler, *rows)]
    return "".join([*table, *(f"\n{_markdown(line)}\n" for line in _remarks(comparison, columns))])


def _remarks(comparison: Comparison, columns: Sequence[str] | None) -> list[str]:
    subject = title(comparison)
    bold = [BOLD] if len(comparison.runs) > 1 else []
    explained = " ".join([f"{subject[0].upper()}{subject[1:]}.", notes(comparison, columns), *bold])
    return [explained, *(f"Warning: {warning}" for warning in comparison.warnings)]


def _grid(
    comparison: Comparison,
    columns: Sequence[str] | None,
    escape: Callable[[str], str],
    of_cell: Callable[[str, bool], str],
) -> list[list[str]]:
    """Header and rows, escaped, the best of each column bold."""
    names = list(columns_of(comparison, columns))
    winners = [_winners(comparison, name) for name in names]
    grid = [[escape(text) for text in header(comparison, columns)]]
    for index, (label, *texts) in enumerate(cells(comparison, columns)):
        filled = [of_cell(text, index in won) for text, won in zip(texts, winners, strict=True)]
        grid.append([escape(label), *filled])
    return grid


def _winners(comparison: Comparison, column: str) -> set[int]:
    """Rows with the best mean of a column; none where there is nothing to win."""
    if column in ("seeds", "p") or len(comparison.runs) == 1:
        return set()
    means = [_mean(comparison, summary, column) for summary in comparison.runs]
    top = best(means, column in COSTS or comparison.lower)
    return {row for row, mean in enumerate(means) if mean == top}


def _mean(comparison: Comparison, summary: RunSummary, column: str) -> float:
    if column == "difference" and summary.run.label == comparison.baseline:
        return 0.0
    value = summary.cost[column] if column in COSTS else getattr(summary, column)
    return float("nan") if value is None else float(value.mean)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(row) + " \\\\\n"


def _latex_cell(text: str, bold: bool) -> str:
    """A number as mathematics, bold in digits and sign; words after it as text."""
    parts = text.split(" ±\N{NO-BREAK SPACE}")
    numbers = [match for match in map(_NUMBER.match, parts) if match]
    if not numbers:
        return rf"\textbf{{{_latex(text)}}}" if bold else _latex(text)
    words = _latex(parts[-1][numbers[-1].end() :])
    formula = r" \pm ".join(map(_formula, numbers))
    number = f"$\\mathbf{{{formula}}}$" if bold else f"${formula}$"
    return f"{number} {words}".rstrip()


def _formula(number: re.Match[str]) -> str:
    mantissa = number[1].replace(",", "{,}")
    exponent = int(number[2] or 0)
    return rf"{mantissa} \cdot 10^{{{exponent}}}" if exponent else mantissa


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", " ".join(text.split()))


def _markdown_cell(text: str, bold: bool) -> str:
    return f"**{_markdown(text)}**" if bold else _markdown(text)
