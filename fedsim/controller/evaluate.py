"""Evaluation: the server's model on the test set and on every client, and the cumulative cost.

The scope of a metric row names the model and the samples: "server/test" is the server's model on the test set,
"clients/train" (or "clients/holdout") the same model on each client's own samples, for ALL clients, and "total" the
cumulative cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from fedsim import seeds
from fedsim.arrays import shared
from fedsim.controller.consensus import center, center_of_many
from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.model import AT_A_TIME, Model
from fedsim.engine.threads import on_copies
from fedsim.errors import ConfigError, DivergenceError
from fedsim.experiment.measures import OF_LOSS, RECORDED, Metric
from fedsim.models.losses import correct, logits_of
from fedsim.record.metrics import OF_NODES
from fedsim.tree import Samples, count, flat, mapped, pieces
from fedsim.types import Kept
from fedsim.values import Vector

if TYPE_CHECKING:
    from fedsim.controller.prepare import Prepared
    from fedsim.engine.federation import Meter
    from fedsim.engine.local_work import Shards
    from fedsim.experiment.evaluation import Evaluation
    from fedsim.messages.ledger import Ledger

MOST_OUTPUTS = 2**28
"""Most numbers that are kept for metrics that need all outputs: 1 GiB in float32."""
CHUNK = 2048
"""Samples whose outputs are held in memory at a time."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles over clients that are recorded where the clients' own values are in a separate file."""
MANY = 10_000
"""Clients, or nodes, above which their own values are written to a separate file."""
GATHERED = 2**24
"""Numbers in the clients' samples that are gathered at a time, but at least a chunk of samples."""


class Row(NamedTuple):
    """One metric value; ``node`` is None unless it belongs to one client."""

    scope: str
    node: int | None
    metric: str
    value: float


class OwnScores(NamedTuple):
    """Scores of a model on clients' own samples.

    Attributes:
        nodes: ``[k]`` ids of the clients.
        loss: ``[k]`` mean loss of each.
        accuracy: ``[k]``, None for regression.
        samples: ``[k]`` number of samples.
        others: ``[k]`` values of further metrics, NaN where undefined.
    """

    nodes: Sequence[int]
    loss: np.ndarray
    accuracy: np.ndarray | None
    samples: np.ndarray
    others: Mapping[Metric, np.ndarray] = {}


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy of each sample, and the outputs, if a metric needs them."""

    loss: np.ndarray  # [N]
    accuracy: np.ndarray | None  # [N], None for regression
    outputs: np.ndarray | None = None  # [N, ...]


Scorer: TypeAlias = "Callable[[Prepared, Any, Samples, Samples], Scores]"
"""Function that scores a model, a vector ``[d]`` or ``Far``, on samples: see ``fedsim.controller.host.Host.score``."""


def server(prepared: Prepared, score: Scorer, x: Vector, round: int) -> list[Row]:
    """Loss and accuracy of the server's model on the test set; for a ``Problem`` also its objective, gradient norm and
    distance to the minimiser, and under a backdoor its success.

    Raises:
        DivergenceError: the loss is NaN or infinite.
    """
    scores = score(prepared, x, prepared.test.x, prepared.test.y)
    loss = float(scores.loss.mean())
    if not np.isfinite(loss):
        if round == 0:
            raise DivergenceError(
                f"the initial model has test loss {loss}, before any training; look at its outputs, the loss and the"
                " data"
            )
        raise DivergenceError(f"the server's model has test loss {loss} after round {round}; lower the learning rate")
    rows = [Row("server/test", None, "loss", loss)]
    if scores.accuracy is not None:
        rows.append(Row("server/test", None, "accuracy", float(scores.accuracy.mean())))
    others = values_of(prepared.metrics, scores, prepared.test.y, strict=True)
    rows += [Row("server/test", None, metric.name, value) for metric, value in others.items()]
    if prepared.triggered is not None:
        fooled = score(prepared, x, prepared.triggered.x, prepared.triggered.y).accuracy
        if fooled is not None:
            rows.append(Row("server/test", None, "attack_success", float(fooled.mean())))
    problem = prepared.problem
    if problem is not None:
        z = x.detach().cpu().double()
        rows.append(Row("server/problem", None, "objective", float(problem.value(z))))
        rows.append(Row("server/problem", None, "gradient_norm", float(problem.gradient(z).norm())))
        if problem.f_min is not None:
            rows.append(Row("server/problem", None, "suboptimality", float(problem.value(z)) - problem.f_min))
        if problem.minimizer is not None:
            rows.append(Row("server/problem", None, "distance", float((z - problem.minimizer).norm())))
    return rows


def gossip(
    prepared: Prepared,
    meter: Meter,
    score: Scorer,
    x: Kept[Vector],
    round: int,
    settings: Evaluation,
    nodes: np.ndarray,
    ids: Sequence[int],
) -> list[Row]:
    """Evaluate the average of the models of the nodes ``ids`` on the test set, and their consensus distance. The own
    models of those among ``nodes`` are evaluated too, with a holdout also on the samples that honest nodes withhold.

    "nodes consensus_distance" is the root mean square distance of the models to their average, "nodes contraction" the
    factor by which the last mixing reduced it, and "nodes contraction_bound" the upper bound of that factor, lambda^Q.
    Average and distance use the nodes' weights in the objective; the other two are reported for equal weights only.
    All of these are taken over honest nodes; "attackers/test" has the models of the others.
    """
    everybody, bad = ids, set(prepared.attackers)
    ids = [i for i in ids if i not in bad]
    p = prepared.federation.p[list(ids)]
    weights = p / p.max()
    total = float(weights.sum())                           # the number of nodes, if weights are equal
    average, squares = (center if len(ids) <= MANY else center_of_many)(x, ids, weights, total)
    of_average = server(prepared, score, average, round)
    rows = [row._replace(scope=row.scope.replace("server", "average")) for row in of_average]
    distance = float(weights @ squares) / total
    rows.append(Row("nodes", None, "consensus_distance", distance**0.5))
    for name in ("contraction", "contraction_bound"):
        value = getattr(meter, name)
        rows += [] if value is None else [Row("nodes", None, name, value)]
    if len(nodes):
        everybody = shared(np.asarray(everybody), nodes).tolist()
        rows += _of_nodes(prepared, score, x, everybody, "test", (prepared.test.x, prepared.test.y), settings)
        if (withheld := _withheld(prepared)) is not None:
            rows += _of_nodes(prepared, score, x, everybody, "holdout", withheld, settings)
    return rows


def _of_nodes(
    prepared: Prepared,
    score: Scorer,
    x: Kept[Vector],
    ids: Sequence[int],
    kind: str,
    samples: tuple[Samples, Samples],
    settings: Evaluation,
) -> list[Row]:
    """Rows of the own models of the nodes ``ids``, all on the same samples; ``kind`` names these in the scope."""
    p = prepared.federation.p[list(ids)]
    initial = None if all(i in x.rows for i in ids) else score(prepared, x.default, *samples)
    scores = [initial if initial and i not in x.rows else score(prepared, x.rows[i], *samples) for i in ids]
    losses = np.array([s.loss.mean() for s in scores])
    hits = [s.accuracy.mean() for s in scores if s.accuracy is not None]
    others = _columns([values_of(prepared.metrics, s, samples[1]) for s in scores])
    each = OwnScores(ids, losses, np.array(hits) if hits else None, p / p.max(), others)
    return of_scope("nodes", kind, prepared, each, settings)


def _withheld(prepared: Prepared) -> tuple[Samples, Samples] | None:
    """The samples that honest nodes withhold from training, all together; None where there are none."""
    own = prepared.own
    if prepared.own_kind != "holdout" or not count(own.y):  # a deployment's nodes have theirs for themselves
        return None
    honest = np.repeat(~np.isin(np.arange(own.n), prepared.attackers), own.sizes)
    rows = own.take(torch.from_numpy(np.flatnonzero(honest)).to(prepared.federation.model.device))
    return rows.x, rows.y


def scored(prepared: Prepared, settings: Evaluation) -> np.ndarray:
    """Clients that are evaluated one by one, sorted: all of them, or a sample of ``clients_at_most``."""
    n, k = prepared.federation.shards.n, settings.clients_at_most
    return np.arange(n) if n <= k else np.sort(seeds.places(prepared.federation.seed, "scored", 0, n, k))


def own_scores(prepared: Prepared, score: Scorer, x: Vector, nodes: np.ndarray) -> OwnScores:
    """Score the model ``x`` on the own samples of some clients."""
    own = prepared.own
    sizes = own.sizes[nodes]
    ends = np.cumsum(sizes)
    if own.in_memory and len(nodes) == own.n:
        scores = score(prepared, x, own.x, own.y)
    else:
        rows = np.arange(ends[-1]) + np.repeat(own.offsets[nodes] - (ends - sizes), sizes)
        size = sum(t.numel() for t in flat(own.span(0, 1).x))
        some = CHUNK * max(1, GATHERED // (CHUNK * size))
        parts = torch.from_numpy(rows).to(prepared.federation.model.device).split(some)  # type: ignore[no-untyped-call]
        scores = together([score(prepared, x, batch.x, batch.y) for batch in map(own.take, parts)])
    return by_client(prepared, scores, own, nodes)


def by_client(prepared: Prepared, scores: Scores, own: Shards, nodes: np.ndarray | None = None) -> OwnScores:
    """Scores of each client, or of the clients ``nodes``, from the scores of their samples in ``own``."""
    nodes = np.arange(own.n) if nodes is None else nodes
    sizes = own.sizes[nodes]
    ends = np.cumsum(sizes)

    def of_each(values: np.ndarray) -> np.ndarray:
        each: np.ndarray = np.add.reduceat(values, ends - sizes) / sizes
        return each

    accuracies = None if scores.accuracy is None else of_each(scores.accuracy)
    ranges = zip(nodes, pairwise([0, *ends.tolist()]), strict=True) if prepared.metrics else ()
    values = [values_of(prepared.metrics, _part(scores, a, b), own.rows(node).y) for node, (a, b) in ranges]
    return OwnScores(nodes.tolist(), of_each(scores.loss), accuracies, sizes, _columns(values))


def together(parts: Sequence[Scores]) -> Scores:
    """Join the scores of consecutive parts of the samples."""
    loss, accuracy, outputs = zip(*((part.loss, part.accuracy, part.outputs) for part in parts), strict=True)
    return Scores(
        np.concatenate(loss),
        None if accuracy[0] is None else np.concatenate(accuracy),
        None if outputs[0] is None else np.concatenate(outputs),
    )


def _columns(values: Sequence[Mapping[Metric, float]]) -> dict[Metric, np.ndarray]:
    """Values of each client as one array of each metric."""
    return {metric: np.array([found[metric] for found in values]) for metric in (values[0] if values else ())}


def values_of(
    metrics: Sequence[Metric], scores: Scores, targets: Samples, strict: bool = False
) -> dict[Metric, float]:
    """Values of further metrics of the scored samples; NaN where undefined, or an error if ``strict``."""
    found: dict[Metric, float] = {}
    outputs = None if scores.outputs is None else torch.from_numpy(scores.outputs)
    y = targets if outputs is None else mapped(torch.Tensor.cpu, targets)
    for metric in metrics:
        if metric.of_outputs and outputs is not None:
            found[metric] = metric.of(outputs, y, strict)
        elif metric.name in OF_LOSS:
            found[metric] = float(np.exp(scores.loss.mean()))
    return found


def _part(scores: Scores, start: int, stop: int) -> Scores:
    hits, outputs = scores.accuracy, scores.outputs
    return Scores(
        scores.loss[start:stop],
        None if hits is None else hits[start:stop],
        None if outputs is None else outputs[start:stop],
    )


def clients(prepared: Prepared, scores: OwnScores, settings: Evaluation) -> list[Row]:
    """Rows of the server's model on clients' own samples: each value, mean, weighted mean and mean of the worst.

    Attackers are in rows of their own, of scope "attackers/train" or "attackers/holdout".
    """
    return of_scope("clients", prepared.own_kind, prepared, scores, settings)


def of_scope(scope: str, kind: str, prepared: Prepared, scores: OwnScores, settings: Evaluation) -> list[Row]:
    """Rows of models on clients' own samples or on the test set, with separate rows for attackers; see `clients`."""
    bad = np.isin(scores.nodes, prepared.attackers)
    many = prepared.federation.shards.n > MANY
    rows = _by_node(f"{scope}/{kind}", scores if not bad.any() else _only(scores, ~bad), settings, many)
    return rows + (_by_node(f"attackers/{kind}", _only(scores, bad), settings, many) if bad.any() else [])


def _only(scores: OwnScores, chosen: np.ndarray) -> OwnScores:
    nodes = np.asarray(scores.nodes)[chosen].tolist()
    hits = None if scores.accuracy is None else scores.accuracy[chosen]
    others = {metric: values[chosen] for metric, values in scores.others.items()}
    return OwnScores(nodes, scores.loss[chosen], hits, scores.samples[chosen], others)


def _by_node(scope: str, scores: OwnScores, settings: Evaluation, many: bool) -> list[Row]:
    """Number of scored nodes, each node's value, the mean, the mean weighted by ``scores.samples``, the mean of the
    worst nodes and, for ``many`` nodes, quantiles. Nodes where a metric is undefined are left out, and counted; if none
    is left, the means are NaN.
    """
    rows = [Row(scope, None, "scored", float(len(scores.nodes)))]
    others = [(metric.name, values, metric.larger_is_better) for metric, values in scores.others.items()]
    for metric, every, larger in (("loss", scores.loss, False), ("accuracy", scores.accuracy, True), *others):
        if every is None:
            continue
        rows += [Row(scope, node, metric, float(value)) for node, value in zip(scores.nodes, every, strict=True)]
        defined = ~np.isnan(every) if metric not in RECORDED else np.ones(len(every), bool)
        each, samples = every[defined], scores.samples[defined]
        if not defined.all():
            rows.append(Row(scope, None, f"{metric}_undefined", float((~defined).sum())))
        worst = f"{metric}_worst{settings.worst * 100:g}"
        if not len(each):
            rows += [Row(scope, None, name, math.nan) for name in (f"{metric}_mean", f"{metric}_weighted_mean", worst)]
            continue
        if many:
            cuts = zip(QUANTILES, np.quantile(each, QUANTILES), strict=True)
            rows += [Row(scope, None, f"{metric}_q{share * 100:g}", float(value)) for share, value in cuts]
        count = max(1, round(settings.worst * len(each)))
        ordered = np.sort(each) if larger else np.sort(each)[::-1]
        rows.append(Row(scope, None, f"{metric}_mean", float(each.mean())))
        rows.append(Row(scope, None, f"{metric}_weighted_mean", float(np.average(each, weights=samples))))
        rows.append(Row(scope, None, worst, float(ordered[:count].mean())))
    return rows


def updates(meter: Meter, x: Vector, before: Vector | None) -> list[Row]:
    """Norm of the last update of the server's model, and the drift of its clients, where they are measured."""
    norm = [] if before is None else [Row("server", None, "update_norm", float((x - before).norm()))]
    return norm + ([] if meter.drift is None else [Row("clients", None, "drift", meter.drift)])


def cost(ledger: Ledger, nodes: np.ndarray, simulated: Mapping[str, float]) -> list[Row]:
    """Cumulative bytes and gradient evaluations, in total and of each of ``nodes``, and what the clock has
    ``simulated``.
    """
    of_clock = [Row("simulated", None, name, float(value)) for name, value in simulated.items()]
    rows = [Row("total", None, name, float(value)) for name, value in ledger.totals().items()]
    for name, each in ledger.by_node().items():
        rows += [Row("total", node, name, float(each[node])) for node in nodes.tolist()]
    return rows + of_clock


def of_clients(scope: str, node: int | None) -> bool:
    """Return whether a row is written only when clients, or nodes, are evaluated one by one."""
    return node is not None or scope.startswith(OF_NODES)


@torch.no_grad()
def score(
    model: Model, x: Vector, inputs: Samples, targets: Samples, classification: bool, keep: bool = False,
    threads: int = 0, kernels: Kernels = REFERENCE,
) -> Scores:  # fmt: skip
    """Loss and accuracy of the model ``x`` on each sample.

    Args:
        model: the network.
        x: its vector.
        inputs: of the samples.
        targets: of the samples.
        classification: whether targets are classes.
        keep: return the outputs too.
        threads: chunks at the same time, on threads (see ``fedsim.engine.threads``); results do not depend on it.
        kernels: what computes the outputs.

    Raises:
        ConfigError: the outputs are too many to keep, or not one tensor.
    """

    def one(model: Model, part: tuple[Samples, Samples]) -> Scores:
        given, y = part
        with model.evaluating():
            outputs = model.outputs(x, given)
            loss = model.loss(outputs, y).double().cpu().numpy()
        logits = logits_of(outputs) if classification else None
        hits = None if logits is None else correct(logits, y).double().cpu().numpy()
        return Scores(loss, hits, _kept(outputs, count(inputs)).numpy() if keep else None)

    # in chunks, since a sample of text has as many outputs as the vocabulary for each of its tokens
    parts = list(pieces((inputs, targets), AT_A_TIME["cpu"] if threads else CHUNK))
    return together(list(on_copies(model, parts, one, threads, kernels)))


def _kept(outputs: Any, samples: int) -> torch.Tensor:
    """The outputs of a chunk, on the CPU, if those of all samples can be kept."""
    if (tensor := logits_of(outputs)) is None:
        raise ConfigError(
            f"metrics need one tensor of outputs, or an entry logits, and the model returns a"
            f" {type(outputs).__name__}; leave metrics out, but for perplexity"
        )
    if (numbers := tensor[0].numel() * samples) > MOST_OUTPUTS:
        raise ConfigError(
            f"metrics need all {numbers:,} outputs of {samples:,} samples at once, more than {MOST_OUTPUTS:,}; leave"
            " them out, but for perplexity, or evaluate on fewer samples"
        )
    return tensor.cpu()
