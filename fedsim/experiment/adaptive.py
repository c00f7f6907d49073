"""Samplings that choose clients by what these have told the server: their losses, and the seconds that they took.

The choice depends on the run, so two methods see different cohorts. Such a sampling remembers arrays, which are stored
in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from fedsim import seeds
from fedsim.checks import at_least_one, in_range, non_negative, one_of, share
from fedsim.errors import ConfigError, many
from fedsim.experiment.sampling import Bernoulli, FixedSize, Sampling

Memory: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Poll:
    """What the server knows, and may ask, when it chooses a cohort.

    Attributes:
        seed: seed of the run.
        round: number of the round.
        there: ids ``[k]`` of the clients that can be called, sorted.
        p: weights ``[n]`` of the clients in the objective.
        speed: seconds ``[n]`` that each client takes for a gradient evaluation, by the clock; None without one.
        ask: function that returns the mean losses ``[c]`` of the present model at clients ``ids [c]``, on a minibatch
            of a given size or, with None, on all of their samples. It charges the model, a third of a gradient
            evaluation for each sample, and a number back.
    """

    seed: int
    round: int
    there: np.ndarray
    p: np.ndarray
    speed: np.ndarray | None
    ask: Callable[[np.ndarray, int | None], np.ndarray]

    def draw(self, purpose: str, ids: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
        """Draw ``size`` of the clients ``ids [k]`` one after the other without replacement, in proportion to their
        weights.
        """
        race = -np.log1p(-seeds.uniform(self.seed, purpose, self.round, ids)) / weights
        drawn: np.ndarray = ids[np.argsort(race, kind="stable")[:size]]
        return drawn


class Told(NamedTuple):
    """What the clients of a round have told the server: a number each, beside their messages.

    Attributes:
        ids: the clients ``[c]`` whose messages count.
        loss: mean loss ``[c]`` of the model they were sent, on the samples of their round.
        square: mean squared loss ``[c]``.
        samples: number of these samples ``[c]``.
        seconds: simulated seconds ``[c]`` from the call to their message; NaN without a clock.
    """

    ids: np.ndarray
    loss: np.ndarray
    square: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray


class Adaptive(Protocol):
    """A sampling with a memory."""

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """A cohort that does not depend on the run, with which backends are measured; see ``Sampling``."""

    def expected(self, n: int) -> float:
        """See ``Sampling``."""

    def begin(self, n: int) -> Memory:
        """The memory before round 1."""

    def choose(self, memory: Memory, poll: Poll) -> np.ndarray:
        """Ids of the clients that take part, in any order; at least one."""

    def follow(self, memory: Memory, round: int, told: Told) -> Memory:
        """The memory after a round."""


@dataclass(frozen=True)
class PowerOfChoice:
    """Power-of-choice: Cho, Wang, Joshi, AISTATS 2022 (arXiv 2010.01243): of ``d`` candidates, drawn without
    replacement in proportion to p_k, those ``size`` (m) with the largest local losses.

    Args:
        size: m, number of clients that take part.
        d: number of candidates.
        variant: "pow-d" asks the candidates for the loss on all of their samples, "cpow-d" on a minibatch; "rpow-d"
            asks nobody and takes the losses that clients told when they last took part, infinity before.
        batch_size: size of the minibatch of cpow-d.
    """

    size: int = 10
    d: int = 20
    variant: Literal["pow-d", "cpow-d", "rpow-d"] = "pow-d"
    batch_size: int = 32

    def __post_init__(self) -> None:
        at_least_one(self, "size", "d", "batch_size")
        one_of(self, "variant", ("pow-d", "cpow-d", "rpow-d"))
        if self.d < self.size:
            raise ConfigError(f"PowerOfChoice.d is {self.d} and size {self.size}; expected at least as many candidates")

    def expected(self, n: int) -> float:
        """See ``Sampling``."""
        if self.d > n:
            raise ConfigError(f"sampling.d is {self.d}, and the run has {many(n, 'client')}; expected at most {n}")
        return float(self.size)

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """See ``Adaptive``."""
        return FixedSize(size=self.size).cohort(seed, round, n)

    def begin(self, n: int) -> Memory:
        """See ``Adaptive``."""
        return {"loss": np.full(n, np.inf)} if self.variant == "rpow-d" else {}

    def choose(self, memory: Memory, poll: Poll) -> np.ndarray:
        """See ``Adaptive``."""
        candidates = poll.draw("candidates", poll.there, poll.p[poll.there], self.d)
        if self.variant == "rpow-d":
            loss = memory["loss"][candidates]
        else:
            loss = poll.ask(candidates, self.batch_size if self.variant == "cpow-d" else None)
        best: np.ndarray = candidates[np.argsort(-loss, kind="stable")[: self.size]]
        return best

    def follow(self, memory: Memory, round: int, told: Told) -> Memory:
        """See ``Adaptive``."""
        return {name: _with(array, told.ids, told.loss) for name, array in memory.items()}


@dataclass(frozen=True)
class Oort:
    """Oort: Lai, Zhu, Madhyastha, Chowdhury, OSDI 2021 (arXiv 2010.06081), Algorithm 1.

    Utility of a client: ``|B_i| sqrt(mean of squared losses)``, capped at the quantile ``clip`` of all known, plus
    ``sqrt(0.1 log R / L(i))`` for its last round L(i), times ``(T / t_i)^alpha`` where its task took t_i > T seconds.
    Of the clients whose utility is at least ``cutoff`` times that of the last who would be taken, ``(1 - epsilon) K``
    are drawn in proportion to it. The others are drawn from clients that have not been tried, in proportion to their
    speed. T is a percentile of the known t_i, as in the authors' code, and rises when the sum of utilities over
    ``window`` rounds has fallen. Without a clock no client is slow.

    Args:
        size: K, number of clients that take part.
        epsilon: share of clients not tried before, in round 1.
        decay: factor of epsilon from one round to the next.
        least: minimum of epsilon.
        alpha: exponent of the penalty of slow clients.
        cutoff: c, share of the utility of the last client who would be taken.
        clip: quantile at which utilities are capped.
        window: W, number of rounds over which utilities are summed and compared.
        percentile: percentile of the known seconds that is T at first.
        step: increase of this percentile.
    """

    size: int = 10
    epsilon: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    alpha: float = 2.0
    cutoff: float = 0.95
    clip: float = 0.95
    window: int = 20
    percentile: float = 30.0
    step: float = 5.0

    def __post_init__(self) -> None:
        at_least_one(self, "size", "window")
        for name in ("epsilon", "least"):
            in_range(self, name, 0, 1, closed=True)
        for name in ("decay", "cutoff", "clip"):
            share(self, name)
        non_negative(self, "alpha")
        for name in ("percentile", "step"):
            in_range(self, name, 0, 100, closed=True)

    def expected(self, n: int) -> float:
        """See ``Sampling``."""
        return FixedSize(size=self.size).expected(n)

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        """See ``Adaptive``."""
        return FixedSize(size=self.size).cohort(seed, round, n)

    def begin(self, n: int) -> Memory:
        """See ``Adaptive``."""
        return {
            "utility": np.zeros(n),
            "seconds": np.zeros(n),
            "last": np.zeros(n, np.int64),                 # round in which it last took part; 0 for never
            "sums": np.zeros(2 * self.window),             # of the utilities of the last rounds
            "percentile": np.array([self.percentile]),
        }

    def choose(self, memory: Memory, poll: Poll) -> np.ndarray:
        """See ``Adaptive``."""
        tried = memory["last"][poll.there] > 0
        known, new = poll.there[tried], poll.there[~tried]
        epsilon = max(self.least, self.epsilon * self.decay ** (poll.round - 1))
        explore = min(len(new), max(round(epsilon * self.size), self.size - len(known)))
        exploit = min(len(known), self.size - explore)
        chosen = np.zeros(0, np.int64)
        if exploit:
            utility = self._utility(memory, known, poll.round)
            enough = utility >= self.cutoff * np.sort(utility)[-exploit]
            chosen = poll.draw("exploit", known[enough], utility[enough], exploit)
        weights = np.ones(len(new)) if poll.speed is None else 1 / np.maximum(poll.speed[new], TINY)
        return np.concatenate([chosen, poll.draw("explore", new, weights, explore)])

    def _utility(self, memory: Memory, ids: np.ndarray, round: int) -> np.ndarray:
        statistical, seconds = memory["utility"][ids], memory["seconds"][ids]
        utility = np.minimum(statistical, np.quantile(statistical, self.clip))
        utility = utility + np.sqrt(0.1 * np.log(round) / memory["last"][ids])
        slow = np.percentile(seconds, memory["percentile"][0])
        penalty = (slow / np.maximum(seconds, max(slow, TINY))) ** self.alpha if slow else 1.0
        weights: np.ndarray = np.maximum(utility * penalty, TINY)
        return weights

    def follow(self, memory: Memory, round: int, told: Told) -> Memory:
        """See ``Adaptive``."""
        utility = told.samples * np.sqrt(told.square)
        sums = np.append(memory["sums"][1:], utility.sum())
        percentile, before, after = memory["percentile"], *np.split(sums, 2)
        if round % self.window == 0 and round >= 2 * self.window and before.sum() > after.sum():
            percentile = np.minimum(percentile + self.step, 100.0)
        return {
            "utility": _with(memory["utility"], told.ids, utility),
            "seconds": _with(memory["seconds"], told.ids, np.nan_to_num(told.seconds)),
            "last": _with(memory["last"], told.ids, round),
            "sums": sums,
            "percentile": percentile,
        }


TINY = 1e-12
"""Smallest weight in a draw, and smallest number of seconds."""


def _with(array: np.ndarray, ids: np.ndarray, values: np.ndarray | int) -> np.ndarray:
    new = array.copy()
    new[ids] = values
    return new


SAMPLINGS: tuple[type[Sampling], ...] = (FixedSize, Bernoulli, Oort, PowerOfChoice)
