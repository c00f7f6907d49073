"""The local work of a round: the samples and minibatches of every client, a function of (seed, round, node) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.checks import number, takes, whole
from fedsim.engine.augmentation import check_callable
from fedsim.engine.optimizers import SGD
from fedsim.engine.step_schedules import check_schedule, factors_of
from fedsim.errors import ConfigError, PartitionError
from fedsim.tree import Samples, mapped
from fedsim.types import Augmentation, Batch, Optimizer, StepSchedule


@dataclass(frozen=True)
class LocalWork:
    """Local work of every client of a cohort in one round.

    A client visits its shard in a new random order each epoch, ``batch_size`` samples per step. The last, smaller batch
    of an epoch is kept, so an epoch visits every sample once. ``steps`` truncates or extends the same sequence to that
    many minibatches.

    Args:
        batch_size: samples per minibatch; 0, or more than a client has, selects its whole shard.
        epochs: passes over the client's own shard.
        steps: number of minibatches, the same for every client; overrides ``epochs``.
        weight_decay: coefficient of the L2 term (weight_decay / 2) ||x||^2 in every client's objective.
        clip_norm: maximum L2 norm of a gradient, of a minibatch or a whole shard, before weight decay is added; no
            clipping by default.
        optimizer: maker of the local steps from the methods' directions; those without local steps refuse all but SGD.
        weight_decay_mode: place of the weight decay: "objective", in every gradient, or "step", added to the direction
            of each local step after clipping, so that no correction of a method scales it, as in most published code.
        clip_mode: what clip_norm limits: each "gradient", or the "direction" of a local step, which is the gradient
            with a method's corrections, as in most published code.
        augment: random change of each sample whenever a client trains on it, never in evaluation; none by default.
        step_schedule: factors of the step sizes within a round, by local step; none by default. Methods whose formulas
            suppose one step size in a round refuse it.
        micro_batch: samples in one pass of a gradient, whose sum over passes is that of the minibatch, to save memory;
            none takes the minibatch in one pass.
    """

    batch_size: int = 32
    epochs: int = 1
    steps: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    optimizer: Optimizer = field(default_factory=SGD)
    weight_decay_mode: Literal["objective", "step"] = "objective"
    clip_mode: Literal["gradient", "direction"] = "gradient"
    augment: Augmentation | None = None
    step_schedule: StepSchedule | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        whole("local.batch_size", self.batch_size, 0, "; 0 is the whole shard")
        whole("local.epochs", self.epochs, 1)
        if self.steps is not None:
            whole("local.steps", self.steps, 1, ", or none to count in epochs")
        number("local.weight_decay", self.weight_decay, lambda v: v >= 0, "a finite number, 0 or more")
        if self.clip_norm is not None:
            number("local.clip_norm", self.clip_norm, lambda v: v > 0, "a positive norm, or none for no clipping")
        verbs = ("slots", "step")
        if isinstance(self.optimizer, type) or not all(callable(getattr(self.optimizer, v, None)) for v in verbs):
            raise ConfigError(
                f"local.optimizer is {self.optimizer!r:.200}; expected an optimiser such as AdamW(), or another object"
                " with the methods slots(x) and step(y, g, eta, slots)"
            )
        takes(f"{(name := type(self.optimizer).__name__)}.slots", self.optimizer.slots, "x")
        takes(f"{name}.step", self.optimizer.step, "y", "g", "eta", "slots")
        if self.augment is not None:
            check_callable("local.augment", self.augment)
        if self.step_schedule is not None:
            check_schedule(self.step_schedule)
        if self.micro_batch is not None:
            whole("local.micro_batch", self.micro_batch, 1, ", or none for the whole minibatch in one pass")
        for name, choices in (("weight_decay_mode", ("objective", "step")), ("clip_mode", ("gradient", "direction"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"local.{name} is {getattr(self, name)!r}; expected {' or '.join(choices)}")

    def regularise(self, g: Tensor, x: Tensor) -> Tensor:
        """Clip the gradient ``g [..., d]`` and add the gradient of the weight decay at ``x [..., d]``."""
        if self.clip_mode == "gradient":
            g = self._clipped(g)
        return g + self.weight_decay * x if self.weight_decay and self.weight_decay_mode == "objective" else g

    def regularise_step(self, direction: Tensor, y: Tensor, prox: float) -> Tensor:
        """Clip the ``direction [..., d]`` of a local step, but for the term ``prox * y``, and add the weight decay at
        ``y [..., d]``, where the modes say so.
        """
        if self.clip_mode == "direction" and self.clip_norm is not None:
            direction = self._clipped(direction - prox * y) + prox * y if prox else self._clipped(direction)
        decays = self.weight_decay and self.weight_decay_mode == "step"
        return direction + self.weight_decay * y if decays else direction

    def _clipped(self, g: Tensor) -> Tensor:
        if self.clip_norm is None:
            return g
        norm = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        clipped: Tensor = g * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return clipped

    @property
    def step_settings(self) -> list[str]:
        """Settings that act in ``local.descend`` alone, as they are written in a config."""
        found = [] if self.optimizer == SGD() else [f"local.optimizer {type(self.optimizer).__name__}"]
        found += ["local.weight_decay_mode step"] * (self.weight_decay_mode == "step")
        found += ["local.clip_mode direction"] * (self.clip_mode == "direction")
        return found + ["local.step_schedule"] * (self.step_schedule is not None)

    def batch(self, size: int | np.ndarray) -> np.ndarray:
        """Minibatch size of clients with ``size`` samples."""
        return np.minimum(size, self.batch_size) if self.batch_size else np.asarray(size)

    def counts(self, sizes: np.ndarray) -> np.ndarray:
        """Number of local steps K_i of clients with ``sizes [c]`` samples."""
        if self.steps is not None:
            return np.full(len(sizes), self.steps)
        per_epoch: np.ndarray = -(-sizes // self.batch(sizes))
        return self.epochs * per_epoch

    def samples(self, sizes: np.ndarray) -> np.ndarray:
        """Number of samples in all minibatches of clients with ``sizes [c]`` samples."""
        batch = self.batch(sizes)
        epochs, rest = np.divmod(self.counts(sizes), -(-sizes // batch))
        read: np.ndarray = epochs * sizes + rest * batch
        return read

    def factors(self, steps: int) -> np.ndarray:
        """Factors ``[K]`` of the step sizes of a client with so many steps; ``[0]`` without a schedule."""
        return np.ones(0) if self.step_schedule is None else factors_of(self.step_schedule, steps)

    def order(self, sizes: np.ndarray) -> np.ndarray:
        """Execution order of clients with ``sizes [c]`` samples: most steps first, then largest minibatches."""
        return np.lexsort((-self.batch(sizes), -self.counts(sizes)))


class Shards:
    """Samples on the device, sorted by client: client ``i`` owns rows ``offsets[i]:offsets[i + 1]``."""

    in_memory = True                                       # sorted as a whole; else samples are gathered when read

    def __init__(self, x: Samples, y: Samples, offsets: np.ndarray) -> None:
        self._samples, self.offsets = (x, y), offsets
        self.sizes = np.diff(offsets)
        empty = np.flatnonzero(self.sizes == 0)
        if len(empty):
            raise PartitionError(
                f"{len(empty)} of {len(self.sizes)} clients have no samples (the first is client {empty[0]});"
                " expected at least one each. Set a minimum size in the partitioner, or use fewer clients."
            )

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.sizes)

    @property
    def x(self) -> Samples:
        """All inputs, sorted by client."""
        return self._samples[0]

    @property
    def y(self) -> Samples:
        """All targets, sorted by client."""
        return self._samples[1]

    def rows(self, node: int) -> Batch:
        """All samples of one client."""
        return self.span(int(self.offsets[node]), int(self.offsets[node + 1]))

    def span(self, start: int, stop: int) -> Batch:
        """Samples from row ``start`` to ``stop`` of the sorted data."""
        return Batch(*mapped(itemgetter(slice(start, stop)), self._samples))

    def take(self, index: Tensor, weight: Tensor | None = None, key: Tensor | None = None) -> Batch:
        """Samples at rows ``index [...]`` of the sorted data; its axes lead, of ``weight`` and ``key`` too."""
        rows, form = index.reshape(-1), index.shape

        def pick(t: Tensor) -> Tensor:
            return t.index_select(0, rows).view(*form, *t.shape[1:])

        return Batch(mapped(pick, self.x), mapped(pick, self.y), weight, key)

    def runs(self, first: np.ndarray, lengths: np.ndarray) -> Batch | None:
        """View of the samples from each row of ``first [c]`` on; None unless the runs have equal length and spacing."""
        apart = np.diff(first).tolist() or [0]
        if len({*lengths.tolist()}) > 1 or len({*apart}) > 1:
            return None

        def view(t: Tensor) -> Tensor:
            shape = len(first), int(lengths[0]), *t.shape[1:]
            return t[int(first[0]) :].as_strided(shape, (apart[0] * t.stride(0), *t.stride()))

        return Batch(*mapped(view, (self.x, self.y)))


CHUNK = 512
"""Samples per pass of a whole-shard gradient; bounds its memory. A model that mixes samples takes all in one pass."""


@dataclass(frozen=True)
class Minibatches:
    """A client's round.

    Attributes:
        index: rows of its samples ``[K_i, B_i]``; in step ``k``, those beyond the first ``lengths[k]`` are padding.
        lengths: ``[K_i]``.
        keys: ``Batch.key`` of each step, int64 ``[K_i]`` or longer.
        whole: that of each ``CHUNK`` of its shard, int64 ``[n_i / CHUNK]`` or longer.
        large: that of its large batch.
        factors: of the step sizes, ``[K_i]``; ``[0]`` without a schedule.
    """

    index: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    whole: np.ndarray
    large: np.int64
    factors: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Fraction of the round's samples in each step, ``[K_i]``."""
        shares: np.ndarray = self.lengths / self.lengths.sum()
        return shares


class StackedPlans(NamedTuple):
    """Rounds of several clients, padded.

    Attributes:
        rows: samples ``[b, K, B]``, padded by rows of the same client; anything after a client's last step.
        lengths: samples in each step ``[b, K]``, 0 where a client makes fewer steps.
        keys, whole, large: see `Minibatches`; ``[b, ...]``.
        factors: of the step sizes, ``[b, K]``, or ``[b, 0]`` without a schedule.
    """

    rows: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    whole: np.ndarray
    large: np.ndarray
    factors: np.ndarray


class Plans(Sequence[Minibatches]):
    """Rounds of a cohort's clients.

    Args:
        work: their work.
        cut: rows and lengths of each client, or of all: arrays ``[c, K, B]`` and ``[K]``.
        keys: ``[c, parts + K]``.
        parts: how many of ``keys`` come before those of the steps.
    """

    def __init__(
        self, work: LocalWork, cut: list[tuple[np.ndarray, np.ndarray]] | tuple[np.ndarray, np.ndarray],
        keys: np.ndarray, parts: int,
    ) -> None:  # fmt: skip
        self._work, self._cut, self._keys, self._parts = work, cut, keys, parts

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        index, lengths = self._cut[i] if isinstance(self._cut, list) else (self._cut[0][i], self._cut[1])
        key, parts = self._keys[i], self._parts
        return Minibatches(index, lengths, key[parts:], key[1:parts], key[0], self._work.factors(len(lengths)))

    def stacked(self, chosen: np.ndarray) -> StackedPlans:
        """The rounds of some clients."""
        keys, parts = self._keys[chosen], self._parts
        if isinstance(self._cut, list):
            index, lengths = _padded([self._cut[i] for i in chosen.tolist()])
        else:
            index, one = self._cut
            index, lengths = index[chosen], np.broadcast_to(one, (len(chosen), len(one)))
        counts = (lengths > 0).sum(1)
        factors = np.zeros(lengths.shape if self._work.step_schedule else (len(lengths), 0))
        for k in set(counts.tolist() if factors.size else ()):
            factors[counts == k, :k] = self._work.factors(k)
        return StackedPlans(index, lengths, keys[:, parts:], keys[:, 1:parts], keys[:, 0], factors)


def minibatches(
    work: LocalWork, shards: Shards, seed: int, round: int | np.ndarray, ids: np.ndarray
) -> Plans:
    """Minibatches of clients ``ids [c]`` in a round, or in round ``[c]`` of each."""
    sizes = shards.sizes[ids]
    batch, counts = work.batch(sizes), work.counts(sizes)
    whole = batch == sizes  # one batch holds the shard: its order does not matter
    per_epoch = -(-sizes // batch)
    epochs = np.where(whole, 0, -(-counts // per_epoch))
    parts = 1 + -(-int(sizes.max(initial=0)) // CHUNK)
    numbers = np.concatenate([np.arange(-1, -1 - parts, -1), np.arange(counts.max(initial=0))])
    keys = seeds.split(seeds.root(seed, "batch", round, ids)[:, None], numbers)
    first = shards.offsets[ids]
    if len(ids) > 1 and (sizes == sizes[0]).all():         # one array, as all have one plan but for the order
        orders = seeds.equal_shuffles(seed, "minibatch", round, ids, int(sizes[0]), int(epochs[0]))
        one = int(sizes[0]), int(batch[0]), int(counts[0])
        return Plans(work, _cut(orders, first[:, None, None], *one), keys, parts)
    each = zip(sizes.tolist(), batch.tolist(), counts.tolist(), strict=True)
    shuffled = zip(seeds.shuffles(seed, "minibatch", round, ids, sizes, epochs), first.tolist(), each, strict=True)
    return Plans(work, [_cut(order, start, *some) for order, start, some in shuffled], keys, parts)


def _padded(cut: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sample rows of all clients and steps ``[c, K, B]``, padded by rows of the same client; lengths ``[c, K]``."""
    steps, width = max(len(lengths) for _, lengths in cut), max(rows.shape[1] for rows, _ in cut)
    index, lengths = np.empty((len(cut), steps, width), np.int64), np.zeros((len(cut), steps), np.int64)
    for i, (rows, own) in enumerate(cut):
        k, b = rows.shape
        index[i, :k, :b], index[i, :k, b:] = rows, rows[:, :1]
        lengths[i, :k] = own
    return index, lengths


def _cut(order: np.ndarray, first: Any, n: int, b: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``[..., k, b]`` of the first ``k`` minibatches in each of ``order [..., epochs, n]``, in a shard from row
    ``first`` on, and their lengths ``[k]``; without epochs every minibatch is the whole shard.
    """
    if b == n:
        rows = np.arange(n) + first
        return np.broadcast_to(rows, (*rows.shape[:-2], k, n)).copy(), np.full(k, n)   # PyTorch wants it writable
    order, padding = order + first, -n % b
    if padding:
        order = np.concatenate([order, np.repeat(order[..., -1:], padding, -1)], -1)
    per_epoch = order.shape[-1] // b
    lengths = np.full(order.shape[-2] * per_epoch, b)
    lengths[per_epoch - 1 :: per_epoch] = b - padding
    return order.reshape(*order.shape[:-2], -1, b)[..., :k, :], lengths[:k]


def draw(shards: Shards, seed: int, round: int | np.ndarray, ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Large batch of each client: ``min(size, n_i)`` of its rows, without replacement."""
    sizes = shards.sizes[ids]
    orders = seeds.shuffles(seed, "large batch", round, ids, sizes, np.ones(len(ids), np.int64))
    return [order[0, :size] + shards.offsets[node] for order, node in zip(orders, ids, strict=True)]
