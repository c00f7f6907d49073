"""Calls out to the nodes, answers in: an own push and pull loop on Flower's ``Grid``, with timeouts and retries.

Nodes are known by the client that they say they are (``partition-id``), never by Flower's node id, which changes when
they restart without a key. Every exchange looks who is there, and asks new nodes who they are without waiting for their
answer. Errors belong to the call that they answer (``reply_to_message_id``): Flower sends them in the server's name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedsim.backends.flower.protocol.calls import VERBS, Call, Encoder, RefusedError, from_records
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.errors import DeployError, how_to_install

try:
    from flwr.app import Message
    from flwr.serverapp import Grid
except ImportError as error:
    raise DeployError(f"deployment needs Flower ({error}); {how_to_install('flower')}") from error

POLL_SECONDS = 0.3
LOOK_SECONDS = 0.2
"""Between looks for nodes while some are missing."""
LIFETIME = 4.0
"""A message lives for so many timeouts: a node that was slow is known by its late answer, which is not used."""

REFUSED = "refused: "
"""How the reason begins where a node itself has refused a call."""

Accept = Callable[[int, Call], Any]
"""Makes what is wanted of a client's answer; raises DeployError to refuse it."""


class Refusal(NamedTuple):
    """Why a node may not take part, and the client that it says it is where another node is that one already."""

    reason: str
    twin: int | None


class Failure(NamedTuple):
    """Why there is no answer of a client, and whether to ask again."""

    reason: str
    again: bool


@dataclass
class Exchange:
    """What came of calling some clients.

    Attributes:
        answers: by client.
        failed: why there is none, by client.
        wall: seconds it took.
        transport: seconds of it for handing messages to Flower and taking them from it.
        seconds: where each client's time went, as it says.
    """

    answers: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    wall: float = 0.0
    transport: float = 0.0
    seconds: list[dict[str, float]] = field(default_factory=list)


class Link:
    """The nodes of a federation, by client.

    Args:
        grid: Flower's side of it.
        experiment: as JSON; every call carries it.
        hello: the question to new nodes.
        policy: timeouts and retries.
        largest: bytes of an answer's messages that are accepted.
        greet: told which client has come and what it says of itself; raises DeployError to refuse it.
        say: where events of interest to a person go.
    """

    def __init__(
        self,
        grid: Grid,
        experiment: str,
        hello: Call,
        policy: Policy,
        largest: int,
        greet: Callable[[Call], int],
        say: Callable[[str], None] = print,
    ) -> None:
        self.policy, self.largest = policy, largest
        self.nodes: dict[int, int] = {}                    # client: Flower's node id
        self._grid, self._hello, self._greet, self._say = grid, hello, greet, say
        self._encoder = Encoder(experiment)
        self._asked: dict[str, int] = {}                   # questions to new nodes: message and node id
        self._late: dict[str, int] = {}                    # calls that timed out
        self._refused: dict[int, Refusal] = {}             # by node id
        self._failed: dict[int, str] = {}                  # client: why it did not answer when last asked

    def exchange(self, calls: Mapping[int, Call], round: int, accept: Accept) -> Exchange:
        """Make a call to each client, and wait for the answers, or until the policy gives up on those that lack."""
        done, started, todo = Exchange(), time.monotonic(), dict(calls)
        for _ in range(self.policy.retries + 1):
            self.look()
            done.failed |= {client: "is not connected" for client in todo if client not in self.nodes}
            there = {client: call for client, call in todo.items() if client in self.nodes}
            failures = self._attempt(there, round, accept, done)
            done.failed |= {client: failure.reason for client, failure in failures.items()}
            todo = {client: calls[client] for client, failure in failures.items() if failure.again}
            if not todo:
                break
        done.failed = {client: reason for client, reason in done.failed.items() if client not in done.answers}
        for client, reason in sorted(done.failed.items()):
            if self._failed.get(client) != reason:         # who stays away is told once, not in every round
                self._say(f"round {round}: client {client} {reason}")
        self._failed = {client: self._failed[client] for client in self._failed.keys() - done.answers.keys()}
        self._failed |= done.failed
        self._encoder.forget()
        done.wall = time.monotonic() - started
        return done

    def gather(self, need: Callable[[set[int]], bool], patience: float) -> bool:
        """Wait until ``need`` says that those clients are enough which are there; False when patience has ended.

        Whoever was asked is looked for once more, even if there is no patience or asking took longer than that.
        """
        end = time.monotonic() + patience
        while True:
            asked = set(self._asked)
            self.look()
            if need(set(self.nodes)):
                return True
            if time.monotonic() >= end and self._asked.keys() <= asked:
                return False
            time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))

    @property
    def refusals(self) -> list[str]:
        """Why nodes that are there were refused."""
        return [refusal.reason for refusal in self._refused.values()]

    def look(self) -> None:
        """See who is there; ask those who are new, and read what they said."""
        online = set(self._grid.get_node_ids())
        for client in [client for client, node in self.nodes.items() if node not in online]:
            self._say(f"client {client} has gone")
            self._leave(client)
        self._refused = {node: why for node, why in self._refused.items() if node in online}
        for waiting in (self._asked, self._late):
            for asked in [asked for asked, node in waiting.items() if node not in online]:
                del waiting[asked]
        for message in self._pull([*self._asked, *self._late]):
            asked = message.metadata.reply_to_message_id
            if self._late.pop(asked, None) is None:        # one that was slow is asked who it is again
                self._welcome(self._asked.pop(asked), message)
        known = {*self.nodes.values(), *self._asked.values(), *self._late.values(), *self._refused}
        if new := sorted(online - known):
            self._asked |= self._push(dict.fromkeys(new, self._hello), 0)

    def _welcome(self, node: int, message: Message) -> None:
        twin = None
        try:
            answer = self._answer(message, "hello")
            client = self._greet(answer)
            if client in self.nodes:
                twin = client
                raise RefusedError(f"says it is client {client}, which another node is: give each its own partition-id")
        except DeployError as refused:
            self._refused[node] = Refusal(str(refused), twin)
            self._say(f"node {node} is refused: {refused}")
            return
        self.nodes[client] = node
        self._say(f"client {client} has come")

    def _leave(self, client: int) -> int:
        """Forget which node a client was; one that was refused for being the same, after a restart, is asked again."""
        self._refused = {node: refusal for node, refusal in self._refused.items() if refusal.twin != client}
        return self.nodes.pop(client)

    def _attempt(self, calls: Mapping[int, Call], round: int, accept: Accept, done: Exchange) -> dict[int, Failure]:
        """Call clients that are connected, once; answers go into ``done``."""
        by_node = {self.nodes[client]: client for client in calls}
        started = time.monotonic()
        pushed = self._push({self.nodes[client]: call for client, call in calls.items()}, round)
        done.transport += time.monotonic() - started
        waiting = {asked: by_node[node] for asked, node in pushed.items()}
        failures = {client: Failure("is not there any more", True) for client in calls.keys() - set(waiting.values())}
        end = started + self.policy.timeout
        while waiting:                                     # at least once, however long the push took
            before = time.monotonic()
            found = self._pull(waiting)
            done.transport += time.monotonic() - before if found else 0.0
            for message in found:
                client = waiting.pop(message.metadata.reply_to_message_id)
                try:
                    answer = self._answer(message, calls[client].verb)
                    done.answers[client] = accept(client, answer)
                    done.seconds.append(_seconds(answer))
                except DeployError as refused:
                    failures[client] = Failure(str(refused), message.has_error())
            if time.monotonic() >= end:
                break
            if waiting and not found:
                time.sleep(POLL_SECONDS)
        for asked, client in waiting.items():
            self._late[asked] = self._leave(client)
            failures[client] = Failure(f"did not answer within {self.policy.timeout:g} s", False)
        return failures

    def _answer(self, message: Message, verb: str) -> Call:
        """The answer in a message; RefusedError for errors of Flower or of the node, and for nonsense."""
        if message.has_error():
            raise RefusedError(f"failed (Flower's error {message.error.code}): {message.error.reason or 'no reason'}")
        answer = from_records(message.content, self.largest)
        if answer.verb == "refused":
            raise RefusedError(f"{REFUSED}{answer.values.get('error', 'no reason given')!s:.500}")
        if answer.verb != verb:
            raise RefusedError(f"answered {answer.verb!r} when asked {verb!r}")
        return answer

    def _push(self, calls: Mapping[int, Call], round: int) -> dict[str, int]:
        """Hand calls to Flower: which message asks which node; those that it did not take are left out."""
        messages = [
            Message(self._encoder.records(call), node, VERBS[call.verb], ttl=LIFETIME * self.policy.timeout,
                    group_id=str(round))
            for node, call in calls.items()
        ]  # fmt: skip
        ids = list(self._grid.push_messages(messages)) if messages else []
        return {asked: node for asked, node in zip(ids, calls, strict=False) if asked}

    def _pull(self, messages: Iterable[str]) -> list[Message]:
        wanted = set(messages)
        if not wanted:
            return []
        return [m for m in self._grid.pull_messages(wanted) if m.metadata.reply_to_message_id in wanted]


def _seconds(answer: Call) -> dict[str, float]:
    said = answer.values.get("seconds")
    numbers = said.items() if isinstance(said, dict) else ()
    return {str(what): float(s) for what, s in numbers if isinstance(s, int | float) and 0 <= s < math.inf}
