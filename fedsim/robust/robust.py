"""Any algorithm with a rule in place of its means, under an attack, without a change to its code.

``Robust`` calls the algorithm's own ``round`` with a backend whose messages pass through both: ``Clients.mean`` returns
the rule's result for each vector of the messages, ``Clients.mix`` that of every node on its neighbours' messages. It is
outside of ``Compressed``: attackers send compressed messages too, and the rule reads what the server decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from fedsim.algorithm import Algorithm, has_server
from fedsim.checks import takes
from fedsim.clients import Clients
from fedsim.engine.federation import ClientCall
from fedsim.engine.refusals import check_finite
from fedsim.errors import ConfigError
from fedsim.robust.attack import Attack
from fedsim.robust.before import Jointly
from fedsim.robust.guard import Guard, Guarded
from fedsim.robust.rule import RobustRule, name_of
from fedsim.types import Rule, Sent
from fedsim.values import Vector


class RobustState(NamedTuple):
    inner: Any                                   # the algorithm's own state
    last: Mapping[str, tuple[Tensor, ...]]       # last results of a rule that remembers them, by client function
    total: Mapping[str, tuple[Tensor, Tensor]]   # of messages that are added up: sums [n, d], and the rule's result

    @property
    def x(self) -> Any:
        """The model in the algorithm's state."""
        return self.inner.x


@dataclass(frozen=True)
class Robust:
    """An algorithm with a rule and an attack; itself an algorithm.

    A method that adds up differences of its clients' memories, as EF21 does, names their positions in its messages in
    its class: ``sums = (0,)``. The rule is then applied to the sums, which the server keeps for every client (Byz-EF21,
    Rammal et al., AISTATS 2024, arXiv 2310.09804), and not to the differences: their errors would add up too.

    Args:
        algorithm: the algorithm to run.
        aggregate: the rule.
        attack: the attack.

    Raises:
        ConfigError: the rule does not suit the algorithm.
    """

    algorithm: Algorithm[Any]
    aggregate: Rule | None = None
    attack: Attack | None = None

    def __post_init__(self) -> None:
        inner, rule = innermost(self.algorithm), self.aggregate
        if rule is not None and (isinstance(rule, type) or not callable(rule)):
            raise ConfigError(f"aggregate is {rule!r:.80}; expected a rule of fedsim.robust, such as TrimmedMean(f=2)")
        if self.attack is not None and not isinstance(self.attack, Attack):
            raise ConfigError(
                f"attack is {self.attack!r:.80}; expected one of fedsim.robust, such as ALIE(share=0.2), or a class of"
                " your own derived from fedsim.robust.Attack, with its settings"
            )
        if rule is None:
            return
        if not isinstance(rule, RobustRule):
            takes(f"aggregate {name_of(rule)}", rule, "rows", "weights")
        name = type(inner).__name__
        if reason := getattr(inner, "no_rule", ""):
            raise ConfigError(
                f"aggregate {name_of(rule)} does not suit {name}, as {reason}; leave it out, or use another algorithm"
            )
        if self.server and getattr(rule, "local", False):
            raise ConfigError(
                f"aggregate {name_of(rule)} needs a node's own message, and {name} has a server; expected a rule that"
                " needs none, or a method without a server such as DFedAvg"
            )
        if isinstance(rule, Jointly) and any(self.sums):
            raise ConfigError(f"aggregate Jointly does not suit {name}, which adds up one of its vectors; leave it out")
        link = getattr(self.algorithm, "uplink", None)
        if link is not None and not getattr(link, "individual", not getattr(link, "fixed", False)):
            raise ConfigError(
                f"uplink {type(link).__name__} adds up differences of memories, so aggregate {name_of(rule)} would be"
                " applied to differences; expected EF14 or Plain, or an algorithm such as EF21"
            )

    @property
    def server(self) -> bool:
        """True if the algorithm has a server; otherwise nodes send to their neighbours."""
        return has_server(self.algorithm)

    @property
    def sums(self) -> tuple[int, ...]:
        """Positions of the vectors in a message that the algorithm adds up."""
        return getattr(innermost(self.algorithm), "sums", ())

    def init(self, x: Vector, clients: Clients) -> RobustState:
        """See ``Algorithm``."""
        return self._guarded(clients, {}, {}, lambda guarded: self.algorithm.init(x, guarded))

    def round(self, s: RobustState, clients: Clients) -> RobustState:
        """See ``Algorithm``."""
        return self._guarded(clients, s.last, s.total, lambda guarded: self.algorithm.round(s.inner, guarded))

    @property
    def buffer(self) -> int:
        """Messages in a server step of an asynchronous method."""
        return self.algorithm.buffer  # type: ignore[attr-defined,no-any-return]

    def dispatch(self, s: RobustState, clients: Clients) -> tuple[Sent[Any], RobustState]:
        """Of an asynchronous method: attackers say what they send when they know what arrives with it."""
        sent, inner = self.algorithm.dispatch(s.inner, clients)  # type: ignore[attr-defined]
        return sent, s._replace(inner=inner)

    def arrive(self, s: RobustState, sent: Sent[Any], clients: Clients) -> RobustState:
        """A server step of an asynchronous method: the rule is applied to its messages."""
        guard = Guard(clients._federation, self, dict(s.last), dict(s.total))
        fn = innermost(self.algorithm).arrive
        messages = Guarded(sent.messages, guard, ClientCall(fn, sent.ids, clients.round, None, None))
        check_finite(sent.ids, messages, fn, clients.round)
        inner = self.algorithm.arrive(s.inner, Sent(sent.ids, messages), clients)  # type: ignore[attr-defined]
        return RobustState(inner, guard.last, guard.total)

    def finish(self, s: RobustState, clients: Clients) -> RobustState:
        """See ``Algorithm``."""
        end = getattr(self.algorithm, "finish", None)
        return s if end is None else self._guarded(clients, s.last, s.total, lambda guarded: end(s.inner, guarded))

    def _guarded(
        self, clients: Clients, last: Mapping[str, Any], total: Mapping[str, Any], run: Callable[[Clients], Any]
    ) -> RobustState:
        guard = Guard(clients._federation, self, dict(last), dict(total))
        federation = replace(clients._federation, backend=guard)
        inner = run(Clients(federation, clients._meter, clients.ids, clients.round))
        return RobustState(inner, guard.last, guard.total)


def innermost(algorithm: Any) -> Any:
    """The algorithm itself, without its links."""
    return innermost(algorithm.algorithm) if hasattr(algorithm, "algorithm") else algorithm
