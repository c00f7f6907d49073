"""Blocks of clients in one call: the client function under ``torch.vmap``, its local loop on plain stacked tensors.

``local.fold``, ``local.grad`` and ``local.sample`` leave the transform through an operation with its own batching rule,
so that the local loop and the gradient operate on tensors ``[c, ...]``, with batched matrix products. Clients are
sorted by their number of steps and leave the block when they finish, so unequal numbers of steps cost nothing extra.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.compress.stacks import unbatched
from fedsim.engine.augmentation import augmented
from fedsim.engine.block_graphs import replayed
from fedsim.engine.captured import Graphs
from fedsim.engine.collected import Rows, sums_of
from fedsim.engine.dense_fold import DenseFold, dense_fold
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.fused import StackDescent
from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.local_work import CHUNK, Plans, draw, minibatches
from fedsim.engine.loop import Loop, refuse_captured_tensors
from fedsim.engine.machine import large_apart, out_of_memory
from fedsim.engine.memory import Prefetched, placed, stays
from fedsim.engine.plans import BlockPlan, Once, StepBatches, block_plan, padded
from fedsim.engine.purity import pure, unwritten
from fedsim.engine.refusals import block_error, model_error, no_such_word, no_vector
from fedsim.engine.step import LocalStep
from fedsim.engine.tape import Tape
from fedsim.engine.threads import check_threads, in_order, refuse_stopped
from fedsim.errors import ConfigError, title
from fedsim.messages.stacked import Stacked
from fedsim.messages.upload import upload, upload_groups
from fedsim.tree import StackedRows, build, flat, leaves, mapped, shaped, structure, tree_map
from fedsim.types import Batch, Local, Messages
from fedsim.values import Vector


@dataclass(frozen=True)
class Blocks:
    """Backend that runs ``size`` clients at a time as one stack of tensors.

    Args:
        size: clients per block, ideally few enough for their models to fit in the processor's cache.
        threads: blocks at the same time, on threads; see ``fedsim.engine.threads``.
        kernels: what computes the model; see ``fedsim.engine.kernels``.
        graphs: on a GPU, local steps as CUDA graphs; see ``fedsim.engine.block_graphs``.
    """

    size: int = 25
    threads: int = 0
    kernels: Kernels = REFERENCE
    graphs: Graphs | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"block size is {self.size}; expected 1 or more")
        check_threads(self.threads)

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        ids, work, shards = call.ids, federation.work, federation.shards
        plans = Once(lambda: minibatches(work, shards, federation.seed, call.turns, ids))
        order = work.order(shards.sizes[ids]).tolist()
        starts = range(0, len(order), self.size)
        blocks = [order[start : start + self.size] for start in starts]
        sums, mine = sums_of(self, federation, meter, call, order), call.mine
        own = None if mine is None else Prefetched(lambda k: mine.stacking(ids[blocks[k]].tolist()), len(blocks))

        def one(fed: Federation, start: int) -> tuple[Any, tuple[Any, ...], Tensor]:
            chosen = np.array(order[start : start + self.size])
            block = _Block(fed, meter, ids, chosen, call.round, call.turns[chosen], plans, self.graphs)
            try:
                message, new = block.run(call, None if own is None else own(start // self.size))
                return message if sums is None else sums.part(message, start), new, block.places
            except Exception as error:                     # raises the loop's error, if there is one
                if out_of_memory(error):
                    raise
                Loop().run(fed, Meter(fed), call._replace(ids=np.sort(block.ids)))
                raise block_error(call.fn, call.round, error) from error

        memory = dict[int, tuple[Any, ...]]()
        rows, kept = Rows[Any](len(ids)), Rows[Any](len(ids))
        every = len(ids) == shards.n and stays(federation.memory)   # then their memories stay one stack
        running = contextlib.closing(in_order(federation, starts, one, self.threads, self.kernels))
        large_apart(federation.model.d * federation.model.dtype.itemsize)
        with torch.no_grad(), pure(title(call.fn), call.down), running as done:
            for chosen, (message, new, places) in zip(blocks, done, strict=True):
                if sums is not None:
                    sums.put(message, chosen)
                elif call.sends:
                    rows.put(message, chosen, places)
                if new and every:
                    kept.put(tree_map(Tensor.clone, new) if len(chosen) == len(ids) else new, chosen, places)
                elif new:
                    memory |= placed(federation.memory, ids[chosen].tolist(), new)
        new_rows = memory if kept.stacked is None else StackedRows(ids, kept.stacked)
        if sums is not None or not call.sends:
            return sums, new_rows
        positions = np.array(order)
        return Stacked(rows.stacked, None if (np.diff(positions) == 1).all() else positions), new_rows


def _stacked(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Call ``run(c, own, tensors)`` on the tensors of the whole block, below ``torch.vmap``."""

    def plain(*tensors: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("no argument belongs to a client: local.grad and local.fold need one inside clients.each")

    return unbatched(run, plain, *tensors)


class _Chunk(NamedTuple):
    """A pass over a part of some clients' shards.

    Attributes:
        start: number of samples before it in each shard.
        first, lengths: ``[b]`` first row of each client's part, and number of its rows.
        arrays: places of the clients in the block, shares of their samples, and, if the parts are no view of the
            samples, rows and perhaps weights ``[b, B]``.
    """

    start: int
    first: np.ndarray
    lengths: np.ndarray
    arrays: list[np.ndarray]


class _Block:
    """A block of clients in one round, and the ``Local`` that they share: its tensors are stacked."""

    def __init__(
        self, federation: Federation, meter: Meter, cohort: np.ndarray, chosen: np.ndarray, round: int,
        turns: np.ndarray, plans: Once[Plans], graphs: Graphs | None,
    ) -> None:  # fmt: skip
        self.fed, self.meter, self.ids, self.round, self.turns = federation, meter, cohort[chosen], round, turns
        self._chosen, self._plans, self._graphs, model = chosen, plans, graphs, federation.model
        self._samples = federation.shards.sizes[self.ids]       # of each client's minibatch in this step
        self.counts = federation.work.counts(self._samples)
        if model.device.type == "cpu":
            self.places, self._counts = map(torch.from_numpy, (chosen, self.counts.astype(model.numbers)))
        else:                                              # all in one copy, even if some will not be read
            self.places, self._counts = self.plan.places, self.plan.counts
        self.descend = StackDescent(federation.work, self, federation.model.learned, federation.model.sharing)
        self.optimizer, self.step_schedule = federation.work.optimizer, federation.work.step_schedule
        self.tape: Tape | None = None  # while a step is being recorded
        self.met: list[Batch] | None = None                # whose gradients a step takes that is being captured
        self._drawn: dict[int, tuple[Tensor, np.ndarray]] = {}   # large batches by address, and their sizes
        self._in_fold = self._padded = False               # a step is made, of minibatches with rows of padding
        self._slot: Tensor | None = None                   # batched over clients under vmap
        self._steps: Tensor | None = None

    @cached_property
    def plan(self) -> BlockPlan:
        """The clients' rounds, brought to the device; on a CPU when they are first read."""
        return block_plan(self._plans().stacked(self._chosen), self._chosen, self.counts, self.fed.model)

    @cached_property
    def active(self) -> list[int]:
        """Number of clients with more than ``k`` steps, for each ``k``; they come first."""
        active: list[int] = np.searchsorted(-self.counts, -np.arange(self.counts[0])).tolist()
        return active

    def run(self, call: ClientCall, mine: tuple[Any, ...] | None) -> tuple[Any, tuple[Any, ...]]:
        """Messages and new memories of the block, stacked, given its memories ``mine``, stacked too."""
        model, steps = self.fed.model, self._counts
        slots = torch.arange(len(self.ids), device=model.device)
        shape: list[Any] = []                              # structure of the result, set while it is computed

        def one(slot: Tensor, steps: Tensor, *own: Tensor) -> tuple[Tensor, ...]:
            self._slot, self._steps = slot, steps
            message, new = call.at(self, call.down, () if mine is None else build(mine, iter(own)))
            shape.append((message, new) if call.sends else (new,))
            return tuple(leaves(shape[0]))

        own: list[Tensor] = [] if mine is None else leaves(mine)
        with unwritten(title(call.fn), tuple(own)):
            stacked = torch.vmap(one)(slots, steps, *own)
        out = build(shape[0], iter(stacked))
        return out if call.sends else (None, *out)

    @property
    def steps(self) -> Tensor:
        """See ``fedsim.types.Local``."""
        self._outside("local.steps")
        assert self._steps is not None
        return self._steps

    @property
    def decay(self) -> Tensor:
        """See ``fedsim.types.Local``."""
        self._outside("local.decay")
        return self.fed.factor(self.round)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """See ``fedsim.values.Site``."""
        return self.fed.model.shared_shapes

    @property
    def names(self) -> tuple[str, ...]:
        """See ``fedsim.types.Local``."""
        return self.fed.model.shared_names

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        self._outside("local.key")
        keys = seeds.key(self.fed.seed, f"client {tag}", self.turns, self.ids).to(self.fed.model.device)
        return _stacked(lambda c, own, _: (keys,), self._slot)[0]

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        """See ``fedsim.types.Local``."""
        if not isinstance(x, Tensor):
            raise no_vector(self.fed.model, x)
        x = self.descend.whole(x)
        if batch is None:
            self._outside("local.grad(x) on the whole shard")
            (g,) = _stacked(self._whole, x, self._slot)
        else:
            (g,) = _stacked(partial(self._minibatch, structure(batch)), x, *flat(batch))
        return self.descend.gradient(g, x, of_minibatch=batch is not None)

    def sample(self, size: int) -> Batch:
        """See ``fedsim.types.Local``."""
        self._outside("local.sample")
        sizes = np.minimum(size, self.fed.shards.sizes[self.ids])
        rows = draw(self.fed.shards, self.fed.seed, self.turns, self.ids, size)
        index, weight = padded(rows, sizes)
        masks = [] if weight is None else [weight.astype(self.fed.model.numbers)]
        there = upload([index, *masks], self.fed.model.device)
        batch = self.take(there[0], there[1] if masks else None, self.plan.large_keys.expand(-1, int(sizes.max())))
        y, *_ = flat(batch.y)
        self._drawn[y.data_ptr()] = y, sizes
        drawn: Batch = shaped(batch, iter(_stacked(lambda c, own, _: tuple(flat(batch)), self._slot)))
        return drawn

    def moments(self, x: Vector, layers: Sequence[str]) -> Tensor:
        """See ``fedsim.types.Local``."""
        self._outside("local.moments")
        batches = map(self.fed.shards.rows, self.ids.tolist())
        each = partial(self.fed.model.all_moments, batches=batches, layers=layers)
        return _stacked(lambda c, own, tensors: (each(tensors[0].expand(c, -1)),), self.descend.whole(x), self._slot)[0]

    def fold(self, step: Callable[..., Any], carry: Any, *consts: Any, skip: int = 0, shares: bool = False) -> Any:
        """See ``fedsim.types.Local``."""
        refuse_captured_tensors(step)
        self._outside("local.fold")
        self.descend.start(self.fed.model.zeros(), self.steps)
        state = carry, self.descend.carry
        n_carry = len(leaves(state))
        scheduled = self.step_schedule is not None
        like = (state, *consts, *[self._slot] * (shares + scheduled))

        def run(c: int, own: list[bool], tensors: list[Tensor]) -> tuple[Tensor, ...]:
            own, tensors = own[1:], tensors[1:]            # the first is the slot
            stacks = [t if o else t.expand(c, *t.shape) for t, o in zip(tensors[:n_carry], own, strict=False)]
            return self._loop(step, like, stacks, tensors[n_carry:], own[n_carry:], skip, shares)

        given = leaves((state, *consts))
        carry, self.descend.carry = build(state, iter(_stacked(run, self._slot, *given)))
        return carry

    def _loop(
        self, step: Callable[..., Any], like: Any, state: list[Tensor], consts: list[Tensor], own: list[bool],
        skip: int, shares: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Run the local steps from ``skip`` on. Rows are sorted by number of steps, so the active ones come first."""
        step = LocalStep(step, like, self.fed.model, self.fed.work, self)
        plan, outer_samples = self.plan, self._samples
        done: list[list[Tensor]] = []  # final rows of clients that have finished, last ones first
        active, self._in_fold = len(self.ids), True
        try:
            by_step = [plan.shares] * shares + [plan.factors] * (self.step_schedule is not None)
            batches = StepBatches(plan, self.active, self.fed.shards)
            dense: DenseFold | None = None
            if self._graphs is not None:
                state, skip = replayed(self._graphs, self, step, state, consts, own, skip, by_step, shares)
            elif self.fed.work.micro_batch is None and skip < self.counts[0]:
                steps, last = int(self.counts[0]) - skip, [of[skip] for of in by_step]
                dense = dense_fold(step, steps, batches.firsts, state, consts, own, last)
            if dense is None:
                state = [t.clone(memory_format=torch.contiguous_format) for t in state]  # the step may overwrite it
            else:
                state, consts, own = dense.state, dense.consts, dense.own
            for k in range(skip, int(self.counts[0])):
                refuse_stopped()
                if (still := self.active[k]) < active:
                    done.insert(0, [t[still:] for t in state])
                    state = [t[:still] for t in state]
                    consts = [t[:still] if o else t for t, o in zip(consts, own, strict=True)]
                    active = still
                self._samples, self._padded = plan.lengths[:active, k], plan.ragged[k]
                batch, last = augmented(self.fed.work.augment, batches(k)), [of[k, :active] for of in by_step]
                if dense is None:
                    state = step(batch, state, consts + last, own + [True] * len(last))
                else:
                    state = dense(batch, state, consts, last)
        finally:
            self._in_fold, self._padded, self._samples = False, False, outer_samples
            self.descend.end()
        if dense is not None:
            charged = dense.step.gradients * plan.lengths[:, skip:].sum(1)
            self.meter.ledger.gradient_evaluations[self.ids] += charged
        ended = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(state, *done, strict=True)]
        return tuple(ended) if dense is None else dense.join(ended)

    def take(self, index: Tensor, weight: Tensor | None, key: Tensor) -> Batch:
        return augmented(self.fed.work.augment, self.fed.shards.take(index, weight, key))

    def _minibatch(self, like: Batch, c: int, own: list[bool], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        x, *batch = (t if o else t.expand(c, *t.shape) for t, o in zip(tensors, own, strict=True))
        return (self.gradients(x, *batch, like=like) if self.tape is None else self.tape.gradient(x, batch, like),)

    def gradients(self, x: Tensor, *batch: Tensor, like: Batch) -> Tensor:
        """``Model.gradients`` of the first ``len(x)`` clients, charged to them."""
        at = self._charged(len(x), shaped(like, iter(batch)))
        try:
            return self.fed.model.gradients(x, at, self.fed.work.micro_batch)
        except Exception as error:
            raise self._model_error(x, at, error) from error

    def gradient_parts(self, x: Tensor, *batch: Tensor, like: Batch) -> Iterator[tuple[int, Tensor]]:
        """``Model.gradient_parts`` of the first ``len(x)`` clients, charged to them."""
        at = self._charged(len(x), shaped(like, iter(batch)))
        try:
            yield from self.fed.model.gradient_parts(x, at, self.fed.work.micro_batch)
        except Exception as error:
            raise self._model_error(x, at, error) from error

    def _model_error(self, x: Tensor, batch: Batch, error: Exception) -> Exception:
        return model_error(self.fed.model, x[0], mapped(itemgetter(0), batch), error)

    def _charged(self, c: int, batch: Batch) -> Batch:
        if self.met is not None:
            self.met.append(batch)
            return batch
        targets, *_ = flat(batch.y)
        drawn, samples = self._drawn.get(targets.data_ptr(), (None, self._samples))
        if batch.weight is None and self._padded and drawn is None:
            raise RuntimeError("a minibatch made in a step lacks weights: write batch._replace(x=...) for Batch(...)")
        width = targets.shape[1]
        if width != samples.max():                         # the step uses part of its minibatch
            samples = np.full(c, width) if batch.weight is None else (batch.weight > 0).sum(1).cpu().numpy()
        self.meter.ledger.gradient_evaluations[self.ids[:c]] += samples[:c]
        return batch

    def _whole(self, c: int, own: list[bool], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        x = tensors[0] if own[0] else tensors[0].expand(c, -1)
        model, micro = self.fed.model, self.fed.work.micro_batch
        shards, sizes = self.fed.shards, self.fed.shards.sizes[self.ids]
        g, size = torch.zeros_like(x), int(sizes.max()) if model.mixes else CHUNK
        chunks = [self._chunk(start, size) for start in range(0, int(sizes.max()), size)]
        there = upload_groups([chunk.arrays for chunk in chunks], model.device)
        for chunk, (some, share, *taken) in zip(chunks, there, strict=True):
            key = self.plan.whole_keys[some, chunk.start // CHUNK].expand(-1, int(chunk.lengths.max()))
            if (batch := shards.runs(chunk.first, chunk.lengths)) is None:
                batch = self.take(taken[0], taken[1] if len(taken) > 1 else None, key)
            else:
                batch = augmented(self.fed.work.augment, batch._replace(key=key))
            try:
                g[some] += model.gradients(x[some], batch, micro) * share.to(x).unsqueeze(1)
            except Exception as error:
                raise self._model_error(x, batch, error) from error
        self.meter.ledger.gradient_evaluations[self.ids] += sizes
        return (g,)

    def _chunk(self, start: int, size: int) -> _Chunk:
        """Samples ``start`` up to ``start + size`` of every client's shard."""
        shards, sizes = self.fed.shards, self.fed.shards.sizes[self.ids]
        here = np.clip(sizes - start, 0, size)
        some = np.flatnonzero(here)                        # clients with samples left
        some = some[np.argsort(self.ids[some])]            # in memory order
        first, here = shards.offsets[self.ids[some]] + start, here[some]
        arrays = [some, here / sizes[some]]
        if shards.runs(first, here) is None:
            index, weight = padded([np.arange(f, f + h) for f, h in zip(first, here, strict=True)], here)
            arrays += [index] if weight is None else [index, weight.astype(self.fed.model.numbers)]
        return _Chunk(start, first, here, arrays)

    def __getattr__(self, name: str) -> Any:
        raise no_such_word("local", name, Local)

    def _outside(self, what: str) -> None:
        if self._in_fold:
            raise ConfigError(
                f"{what} was read inside a step of local.fold; read it before and pass it on:"
                " local.fold(step, carry, value)"
            )
