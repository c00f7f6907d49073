"""Score models on samples: loss and accuracy of each sample, and the same for each client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.model import AT_A_TIME, Model
from fedsim.engine.threads import on_copies
from fedsim.errors import ConfigError
from fedsim.experiment.measures import OF_LOSS, Metric
from fedsim.models.losses import correct, logits_of
from fedsim.tree import Samples, count, flat, mapped, pieces
from fedsim.values import Vector

if TYPE_CHECKING:
    from fedsim.controller.prepare import Prepared
    from fedsim.engine.local_work import Shards

MOST_OUTPUTS = 2**28
"""Most numbers that are kept for metrics that need all outputs: 1 GiB in float32."""
CHUNK = 2048
"""Samples whose outputs are held in memory at a time."""
GATHERED = 2**24
"""Numbers in the clients' samples that are gathered at a time, but at least a chunk of samples."""


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy of each sample, and the outputs, if a metric needs them."""

    loss: np.ndarray  # [N]
    accuracy: np.ndarray | None  # [N], None for regression
    outputs: np.ndarray | None = None  # [N, ...]

    def part(self, start: int, stop: int) -> Scores:
        """The scores of some consecutive samples."""
        hits, outputs = self.accuracy, self.outputs
        return Scores(
            self.loss[start:stop],
            None if hits is None else hits[start:stop],
            None if outputs is None else outputs[start:stop],
        )


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

    def only(self, chosen: np.ndarray) -> OwnScores:
        """The scores of the chosen clients, given by a mask ``[k]``."""
        nodes = np.asarray(self.nodes)[chosen].tolist()
        hits = None if self.accuracy is None else self.accuracy[chosen]
        others = {metric: values[chosen] for metric, values in self.others.items()}
        return OwnScores(nodes, self.loss[chosen], hits, self.samples[chosen], others)


Scorer: TypeAlias = "Callable[[Prepared, Any, Samples, Samples], Scores]"
"""Function that scores a model, a vector ``[d]`` or ``Far``, on samples: see ``fedsim.controller.host.Host.score``."""


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
    values = [values_of(prepared.metrics, scores.part(a, b), own.rows(node).y) for node, (a, b) in ranges]
    return OwnScores(nodes.tolist(), of_each(scores.loss), accuracies, sizes, columns_of(values))


def together(parts: Sequence[Scores]) -> Scores:
    """Join the scores of consecutive parts of the samples."""
    loss, accuracy, outputs = zip(*((part.loss, part.accuracy, part.outputs) for part in parts), strict=True)
    return Scores(
        np.concatenate(loss),
        None if accuracy[0] is None else np.concatenate(accuracy),
        None if outputs[0] is None else np.concatenate(outputs),
    )


def columns_of(values: Sequence[Mapping[Metric, float]]) -> dict[Metric, np.ndarray]:
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
