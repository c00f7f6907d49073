"""Calls to nodes and their responses: a push and pull loop on Flower's ``Grid``, with timeouts and retries.

Nodes are identified by the client number that they report (``partition-id``), never by Flower's node id, which changes
when they restart without a key. Every exchange looks for new nodes and starts a handshake, without waiting for its
response. Errors are matched to calls by ``reply_to_message_id``, since Flower sends them under the server's node id.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from fedsim.backends.flower.protocol.calls import LARGEST_RESPONSE, VERBS, Call, Encoder, RefusedError, from_records
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.roster import Roster
from fedsim.errors import DeployError, how_to_install

try:
    from flwr.app import Message
    from flwr.serverapp import Grid
except ImportError as error:
    raise DeployError(f"deployment needs Flower ({error}); {how_to_install('flower')}") from error

T = TypeVar("T")
POLL_SECONDS = 0.3
LOOK_SECONDS = 0.2
"""Interval between looks for nodes while some are missing."""
LIFETIME = 4.0
"""Lifetime of a message in timeouts: a late response shows that a slow node is back, and is discarded."""

LONGEST = 1e9
"""Seconds from which what a node reports is no duration."""
REFUSED = "refused: "
"""Prefix of the failure reason if the node itself refused the call."""

PARTS = ("load", "compute", "encode", "memory")
"""Parts of a client's time: startup and loading data, local work, encoding and decoding, disk."""
Accept = Callable[[int, Call], Any]
"""Converter of a client's response to a result; raises RefusedError to refuse it."""


class Refusal(NamedTuple):
    """Reason to exclude a node, and the client number that it claims if another node has it already."""

    reason: str
    twin: int | None


class Failure(NamedTuple):
    """Reason for a missing response, and True if the call may be retried."""

    reason: str
    retry: bool


@dataclass
class Exchange:
    """Result of calling some clients.

    Attributes:
        answers: accepted responses, by client.
        failed: reasons for missing responses, by client.
        wall: duration in seconds.
        transport: seconds of it spent pushing messages to Flower and pulling them.
        seconds: time by part, as reported by each client.
    """

    answers: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    wall: float = 0.0
    transport: float = 0.0
    seconds: list[dict[str, float]] = field(default_factory=list)


class Link:
    """Connection to the nodes of a federation, by client.

    Args:
        grid: Flower's connection to the nodes.
        experiment: and its metadata, as JSON; part of every call.
        hello: handshake call to new nodes.
        policy: timeouts and retries.
        greet: returns the client number from a handshake response; raises DeployError to refuse the node.
        say: receives events for the user, a line each.
        roster: is told what is seen of the nodes.
    """

    def __init__(
        self,
        grid: Grid,
        experiment: str,
        hello: Call,
        policy: Policy,
        greet: Callable[[Call], int],
        say: Callable[[str], None] = print,
        roster: Roster | None = None,
    ) -> None:
        self.policy, self._roster = policy, roster or Roster()
        self.nodes: dict[int, int] = {}                    # client: Flower's node id
        self._grid, self._hello, self._greet, self._say = grid, _marked(hello), greet, say
        self._encoder = Encoder(experiment)
        self._asked: dict[str, int] = {}                   # pending handshakes: message id to node id
        self._late: dict[str, int] = {}                    # timed-out calls: message id to node id
        self._refused: dict[int, Refusal] = {}             # by node id
        self._failed: dict[int, str] = {}                  # client: reason of its last failure

    def exchange(self, calls: Mapping[int, Call], round: int, accept: Accept, largest: int = 0) -> Exchange:
        """Call each client, and wait for the responses until the policy's timeout.

        Args:
            calls: by client.
            round: its number.
            accept: converts a response to a result.
            largest: size limit of a response's messages in bytes.
        """
        calls = {client: _marked(call) for client, call in calls.items()}
        done, started, todo = Exchange(), time.monotonic(), dict(calls)
        for _ in range(self.policy.retries + 1):
            self.look()
            done.failed |= {client: "is not connected" for client in todo if client not in self.nodes}
            there = {client: call for client, call in todo.items() if client in self.nodes}
            failures = self._attempt(there, round, accept, largest, done)
            done.failed |= {client: failure.reason for client, failure in failures.items()}
            todo = {client: calls[client] for client, failure in failures.items() if failure.retry}
            if not todo:
                break
        done.failed = {client: reason for client, reason in done.failed.items() if client not in done.answers}
        for client, reason in sorted(done.failed.items()):
            self._roster.failed(client, reason)
            if self._failed.get(client) != reason:         # report an absent client once, not every round
                self._say(f"round {round}: client {client} {reason}")
        self._failed = {client: self._failed[client] for client in self._failed.keys() - done.answers.keys()}
        self._failed |= done.failed
        self._encoder.forget()
        self._roster.save()
        done.wall = time.monotonic() - started
        return done

    def gather(self, need: Callable[[set[int]], bool], patience: float) -> bool:
        """Wait until ``need`` is true of the connected clients; return False after ``patience`` seconds.

        Nodes with a pending handshake get one more look, even without patience or if the handshake took longer.
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
        """Reasons for refusing nodes that are online."""
        return [refusal.reason for refusal in self._refused.values()]

    def look(self) -> None:
        """Update the connected nodes: read handshake responses, and start handshakes with new nodes."""
        online = set(self._grid.get_node_ids())
        for client in [client for client, node in self.nodes.items() if node not in online]:
            self._say(f"client {client} disconnected")
            self._leave(client)
        self._refused = {node: why for node, why in self._refused.items() if node in online}
        for waiting in (self._asked, self._late):
            for asked in [asked for asked, node in waiting.items() if node not in online]:
                del waiting[asked]
        for message in self._pull([*self._asked, *self._late]):
            asked = message.metadata.reply_to_message_id
            if self._late.pop(asked, None) is None:        # a slow node needs a new handshake
                self._welcome(self._asked.pop(asked), message)
        known = {*self.nodes.values(), *self._asked.values(), *self._late.values(), *self._refused}
        if new := sorted(online - known):
            self._asked |= self._push(dict.fromkeys(new, self._hello), 0)

    def _welcome(self, node: int, message: Message) -> None:
        twin = None
        try:
            client = self._result(message, self._hello, 0, self._greet)
            if client in self.nodes:
                twin = client
                raise RefusedError(f"claims to be client {client}, as another node does: set different partition-ids")
        except RefusedError as refused:
            self._refused[node] = Refusal(str(refused), twin)
            self._say(f"node {node} is refused: {refused}")
            return
        self.nodes[client] = node
        self._say(f"client {client} connected")

    def _leave(self, client: int) -> int:
        """Disconnect a client; a node refused for claiming its number, as after a restart, gets a new handshake."""
        self._refused = {node: refusal for node, refusal in self._refused.items() if refusal.twin != client}
        self._roster.left(client)
        return self.nodes.pop(client)

    def _attempt(
        self, calls: Mapping[int, Call], round: int, accept: Accept, largest: int, done: Exchange
    ) -> dict[int, Failure]:
        """Call connected clients once; add responses to ``done`` and return failures."""
        by_node = {self.nodes[client]: client for client in calls}
        started = time.monotonic()
        pushed = self._push({self.nodes[client]: call for client, call in calls.items()}, round)
        done.transport += time.monotonic() - started
        waiting = {asked: by_node[node] for asked, node in pushed.items()}
        failures = {client: Failure("disconnected", True) for client in calls.keys() - set(waiting.values())}
        limit = self._limit(calls)
        end = started + limit
        while waiting:                                     # at least once, however long the push took
            before = time.monotonic()
            found = self._pull(waiting)
            done.transport += time.monotonic() - before if found else 0.0
            for message in found:
                client = waiting.pop(message.metadata.reply_to_message_id)
                try:
                    call = calls[client]
                    result, seconds, size = self._result(message, call, largest, _all(client, accept))
                    done.answers[client] = result
                    done.seconds.append(seconds)
                    took, work, sizes = time.monotonic() - started, sum(seconds.values()), (call.nbytes(), size)
                    self._roster.answered(client, round, call.verb, took, work, sizes)
                except RefusedError as refused:
                    failures[client] = Failure(str(refused), message.has_error())
            if time.monotonic() >= end:
                break
            if waiting and not found:
                time.sleep(POLL_SECONDS)
        for asked, client in waiting.items():
            self._late[asked] = self._leave(client)
            failures[client] = Failure(f"did not answer within {limit:g} s", False)
        return failures

    def _result(self, message: Message, call: Call, largest: int, convert: Callable[[Call], T]) -> T:
        """Convert the response in a message to a result.

        This is the one place where what a node sent becomes a value: whatever is wrong with it is a RefusedError, which
        names the node's fault, and the policy says what becomes of the round.
        """
        if message.has_error():
            reason = message.error.reason or "no reason"
            raise RefusedError(f"failed (Flower's error {message.error.code}): {_printable(reason)}")
        try:
            answer = from_records(message.content, largest, LARGEST_RESPONSE)
            if answer.verb == "refused":
                raise NodeRefusedError(f"{REFUSED}{_printable(answer.values.get('error', 'no reason given'))}")
            if answer.verb != call.verb or answer.values.get("id") != call.values["id"]:
                raise RefusedError(f"it answers another call, with the verb {answer.verb!r}")
            return convert(answer)
        except NodeRefusedError:
            raise
        except RefusedError as error:
            raise RefusedError(f"sent an invalid response: {error}") from error
        except DeployError as error:                       # a node that does not fit, such as by its version
            raise RefusedError(str(error)) from error
        except Exception as error:                         # a MemoryError too: of a sender who wants it
            raise RefusedError(f"sent an invalid response: {error!r:.200}") from error

    def _push(self, calls: Mapping[int, Call], round: int) -> dict[str, int]:
        """Push calls to Flower; return the ids of the messages that Flower accepted, with their nodes."""
        lifetime = LIFETIME * self._limit(calls)
        messages = [
            Message(self._encoder.records(call), node, VERBS[call.verb], ttl=lifetime,
                    group_id=str(round))
            for node, call in calls.items()
        ]  # fmt: skip
        ids = list(self._grid.push_messages(messages)) if messages else []
        return {asked: node for asked, node in zip(ids, calls, strict=False) if asked}

    def _limit(self, calls: Mapping[int, Call]) -> float:
        """Seconds to wait for the answers to some calls, which have one verb."""
        return self._roster.limit(self.policy, next((call.verb for call in calls.values()), ""))

    def _pull(self, messages: Iterable[str]) -> list[Message]:
        wanted = set(messages)
        if not wanted:
            return []
        return [m for m in self._grid.pull_messages(wanted) if m.metadata.reply_to_message_id in wanted]


class NodeRefusedError(RefusedError):
    """The node refused the call."""


def _marked(call: Call) -> Call:
    """A call with an identifier of its own, which its response repeats: an older response is none to it."""
    return Call(call.verb, {**call.values, "id": secrets.token_hex(8)}, call.data)


def _all(client: int, accept: Accept) -> Callable[[Call], tuple[Any, dict[str, float], int]]:
    """Converter to a result, the client's seconds, and bytes, of which a fault of any leaves nothing."""
    return lambda answer: (accept(client, answer), _seconds(answer), answer.nbytes())


def _printable(text: object) -> str:
    """Text of a node for the log and the terminal, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in f"{text!s:.500}")


def _seconds(answer: Call) -> dict[str, float]:
    reported = answer.values.get("seconds")
    numbers = reported if isinstance(reported, dict) else {}
    found = {what: numbers[what] for what in PARTS if isinstance(numbers.get(what), int | float)}
    return {what: float(seconds) for what, seconds in found.items() if 0 <= seconds < LONGEST}
