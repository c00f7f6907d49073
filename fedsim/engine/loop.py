"""The loop backend: one client after the other; it defines the semantics of every other backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.engine.augmentation import augmented
from fedsim.engine.collected import Rows, sums_of
from fedsim.engine.descent import Descent
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.local_work import CHUNK, Minibatches, draw, minibatches
from fedsim.engine.machine import large_apart
from fedsim.engine.memory import Prefetched
from fedsim.engine.model import Model
from fedsim.engine.purity import pure
from fedsim.engine.refusals import client_error, model_error, no_such_word, no_vector, other_form, refuse_other_form
from fedsim.engine.threads import check_threads, in_order, refuse_stopped
from fedsim.errors import ConfigError, DivergenceError, FedsimError, title
from fedsim.messages.stacked import Stacked
from fedsim.messages.upload import upload, upload_groups
from fedsim.tree import count, fetching, form, leaves, tree_map
from fedsim.types import Batch, Local, Messages
from fedsim.values import Vector

C = TypeVar("C")
R = TypeVar("R")


class DeviceMinibatches(NamedTuple):
    """A client's round on the device; see ``fedsim.engine.local_work.Minibatches``.

    Attributes:
        rows: ``[K_i, B_i]``, their ``index``.
        lengths: ``[K_i]``, on the host.
        shares: ``[K_i]`` fraction of the round's samples in each step, of the model's type.
        keys: ``[K_i]`` or longer.
        whole: ``[n_i / CHUNK]`` or longer.
        large: ``[]``.
        factors: of the step sizes, ``[K_i]``, or ``[0]`` without a schedule.
    """

    rows: Tensor
    lengths: list[int]
    shares: Tensor
    keys: Tensor
    whole: Tensor
    large: Tensor
    factors: Tensor


def on_device(drawn: Sequence[Minibatches], model: Model) -> list[DeviceMinibatches]:
    """The rounds of a cohort's clients on the model's device, in one copy."""
    host = [[m.index, m.shares.astype(model.numbers), m.keys, m.whole, np.asarray(m.large),
             m.factors.astype(model.numbers)] for m in drawn]
    there = upload_groups(host, model.device)
    return [DeviceMinibatches(rows, m.lengths.tolist(), *rest) for m, (rows, *rest) in zip(drawn, there, strict=True)]


class LoopLocal:
    """``Local`` of one client."""

    def __init__(
        self, federation: Federation, meter: Meter, node: int, round: int, plan: DeviceMinibatches, decay: Tensor
    ) -> None:
        self._fed, self._meter, self._node = federation, meter, node
        self._round, self._plan, self.decay = round, plan, decay
        self.descend = Descent(federation.work, federation.model.learned, federation.model.sharing)
        self.optimizer, self.step_schedule = federation.work.optimizer, federation.work.step_schedule

    @property
    def steps(self) -> Tensor:
        return self._fed.model.number(len(self._plan.lengths))

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._fed.model.shared_shapes

    @property
    def names(self) -> tuple[str, ...]:
        return self._fed.model.shared_names

    def key(self, tag: int = 0) -> Tensor:
        keys = seeds.key(self._fed.seed, f"client {tag}", self._round, np.array([self._node]))
        return keys[0].to(self._fed.model.device)

    def grad(self, x: Vector, batch: Batch | None = None) -> Vector:
        fed = self._fed
        if not isinstance(x, Tensor):
            raise no_vector(fed.model, x)
        x, whole = self.descend.whole(x), batch is None
        if batch is None:
            batch = fed.shards.rows(self._node)
            n = count(batch.y)
            g, chunk = torch.zeros_like(x), n if fed.model.mixes else CHUNK
            keys = self._plan.whole.unsqueeze(1).expand(-1, chunk)
            for i, start in enumerate(range(0, n, chunk)):
                size = min(chunk, n - start)
                part = batch if size == n else batch.part(slice(start, start + size))
                part = augmented(fed.work.augment, part._replace(key=keys[i, :size]))
                g += self._gradient(x, part) * (size / n)
        else:
            g = self._gradient(x, batch)
        self._meter.ledger.gradient_evaluations[self._node] += count(batch.y)
        return self.descend.gradient(g, x, of_minibatch=not whole)

    def _gradient(self, x: Vector, batch: Batch) -> Vector:
        try:
            return self._fed.model.gradient(x, batch, self._fed.work.micro_batch)
        except Exception as error:
            raise model_error(self._fed.model, x, batch, error) from error

    def sample(self, size: int) -> Batch:
        (rows,) = draw(self._fed.shards, self._fed.seed, self._round, np.array([self._node]), size)
        (index,) = upload([rows], self._fed.model.device)
        return self._take(index, self._plan.large.expand(len(rows)))

    def _take(self, index: Tensor, key: Tensor) -> Batch:
        return augmented(self._fed.work.augment, self._fed.shards.take(index, key=key))

    def moments(self, x: Vector, layers: Sequence[str]) -> Tensor:
        x = self.descend.whole(x)
        return self._fed.model.moments(x, self._fed.shards.rows(self._node).x, layers)

    def fold(self, step: Callable[..., C], carry: C, *consts: Any, skip: int = 0, shares: bool = False) -> C:
        refuse_captured_tensors(step)
        leaves((carry, *consts))                           # tensors only, as every backend needs them
        plan = self._plan
        self.descend.start(self._fed.model.zeros(), self.steps)
        for k in range(skip, len(plan.lengths)):
            refuse_stopped()
            length = plan.lengths[k]
            batch = self._take(plan.rows[k, :length], plan.keys[k].expand(length))
            self.descend.begin()
            self.descend.factor = None if self.step_schedule is None else plan.factors[k]
            new = step(carry, batch, *consts, *[plan.shares[k]] * shares)
            if k == skip:
                refuse_other_form(step, carry, new)
            carry = new
        self.descend.end()
        return carry

    def __getattr__(self, name: str) -> Any:
        raise no_such_word("local", name, Local)


@dataclass(frozen=True)
class Loop:
    """One client after the other: the reference for every backend.

    Args:
        threads: clients at the same time, on threads; see ``fedsim.engine.threads``.
        kernels: what computes the model; see ``fedsim.engine.kernels``.
    """

    threads: int = 0
    kernels: Kernels = REFERENCE

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def local(
        self, federation: Federation, meter: Meter, node: int, round: int, plan: DeviceMinibatches, decay: Tensor
    ) -> LoopLocal:
        """The client's ``Local``."""
        return LoopLocal(federation, meter, node, round, plan, decay)

    def results(
        self, federation: Federation, ids: np.ndarray, one: Callable[[Federation, int], R]
    ) -> Generator[R, None, None]:
        """Yield ``one(federation, i)`` of the i-th of the clients ``ids [c]``, in their order."""
        yield from in_order(federation, range(len(ids)), one, self.threads, self.kernels)

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        nodes, mine = call.ids.tolist(), call.mine
        drawn = minibatches(federation.work, federation.shards, federation.seed, call.turns, call.ids)
        plans = on_device(drawn, federation.model)
        decay = federation.factor(call.round)

        read = None if mine is None else Prefetched(
            lambda i: fetching(mine.rows.get(nodes[i], mine.default)), len(nodes)
        )

        def one(fed: Federation, i: int) -> tuple[Any, tuple[Any, ...]]:
            local = self.local(fed, meter, nodes[i], int(call.turns[i]), plans[i], decay)
            return _client(call, nodes[i], local, () if read is None else read(i))

        memory: dict[int, tuple[Any, ...]] = {}
        rows, sums = Rows[Any](len(nodes)), sums_of(self, federation, meter, call, range(len(nodes)))
        large_apart(0)
        own = [] if mine is None else [mine.default, *(mine.rows[node] for node in nodes if node in mine.rows)]
        first: Any = None                                  # result of the first client, whose form all have
        running = contextlib.closing(self.results(federation, call.ids, one))
        with torch.no_grad(), pure(title(call.fn), call.down, *own), running as done:
            for i, (node, (message, new)) in enumerate(zip(nodes, done, strict=True)):
                result = (message, new) if call.sends else new
                if first is None:
                    first, expected = result, form(result)
                elif form(result) != expected:
                    raise other_form(call.fn, nodes[0], first, node, result)
                if new:
                    memory[node] = tree_map(federation.memory.put, new)
                if call.sends:
                    row = tree_map(lambda t: t.unsqueeze(0), message)
                    if sums is None:
                        rows.put(row, [i])
                    else:
                        sums.put(sums.part(row, i), [i])
        if not call.sends:
            return None, memory
        return Stacked(rows.stacked) if sums is None else sums, memory


def _client(call: ClientCall, node: int, local: LoopLocal, mine: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Message and new memories of one client, whose exceptions name it."""
    try:
        return call.at(local, call.down, mine)
    except DivergenceError as error:                       # from a compressor, which does not know the client
        raise DivergenceError(f"client {node} in round {call.round}: {error}") from error
    except FedsimError:
        raise
    except Exception as error:
        raise client_error(node, call.fn, call.round, error) from error


def refuse_captured_tensors(step: Callable[..., Any]) -> None:
    """Raise ConfigError if ``step`` captures a tensor: in a block it would be another client's."""
    for name in _captured(step):
        raise ConfigError(
            f"the step function given to local.fold captures the tensor {name!r}; pass it as an argument instead:"
            f" local.fold(step, carry, ..., {name})"
        )


def _captured(step: Any) -> Iterator[str]:
    """Names of tensors in the closure or defaults of a function, or of functions that it captures."""
    if not isinstance(step, FunctionType | MethodType):
        return
    code = step.__code__
    held = [(name, cell.cell_contents) for name, cell in zip(code.co_freevars, step.__closure__ or (), strict=True)]
    held += [(f"default of {step.__name__}", value) for value in step.__defaults__ or ()]
    for name, value in held:
        if _holds_tensor(value):
            yield name
        elif value is not step:
            yield from _captured(value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, Tensor)
