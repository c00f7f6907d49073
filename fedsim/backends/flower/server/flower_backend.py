"""``Backend`` with clients behind Flower: it sends function names and messages, and holds handles of client memories.

If a call fails at some clients, ``ClientsLostError`` is raised after all others have responded; their responses are
retained until the next round, so that a retry without the lost clients repeats no call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from fedsim.backends.flower.protocol.calls import MOST_COUNTED, Call, RefusedError, is_count
from fedsim.backends.flower.protocol.forms import compressors_of, initial_of, most, name_of, received
from fedsim.backends.flower.protocol.versions import COPY
from fedsim.backends.flower.server.copies import Copies
from fedsim.backends.flower.server.known import Known
from fedsim.backends.flower.server.memories import Handle, Memories
from fedsim.backends.flower.server.relay import Done, Relayed, neighbours
from fedsim.backends.flower.server.transport import REFUSED, Exchange, Link
from fedsim.engine.dry_run import DryLocal, outcome
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.errors import ClientsLostError
from fedsim.feedback.linked import is_vector
from fedsim.messages import wire
from fedsim.messages.rebuilt import Rebuilt
from fedsim.messages.wire import Form, form_of
from fedsim.tree import build, leaves, unpacked
from fedsim.types import Batch, Kept, Messages
from fedsim.values import Far, Vector

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FORGETTING = 30.0
"""Seconds to wait for clients to delete their memories after the run."""


LARGEST_LOSS = 1e39
"""Largest mean loss that a client may report: above the floats of 32 bits, and means of such do not overflow."""


class ServerIdentity(NamedTuple):
    """Identity of a server, part of its calls.

    Attributes:
        run: token of the run, which separates memories of different runs on a node.
        epoch: number of server starts in this run; versions of an earlier epoch are older.
        seed: root of all randomness.
    """

    run: str
    epoch: int
    seed: int


class FlowerBackend:
    """Clients behind Flower.

    Args:
        link: connection to the nodes.
        identity: run, epoch, seed.
        algorithm: whose client functions nodes run.
        federation: provides the model.
        sample: one sample, for dry runs of client functions.
        gossip: True if messages will be mixed, so that clients retain what they sent.
    """

    def __init__(
        self, link: Link, identity: ServerIdentity, algorithm: Any, federation: Federation, sample: Batch, gossip: bool
    ) -> None:
        self.link, self.identity, self.algorithm, self.gossip = link, identity, algorithm, gossip
        self.model, self.device = federation.model, federation.model.device
        self.compressors = compressors_of(algorithm)
        self.memories = Memories(initial_of(federation.model, federation.model.vector()), self.fetch)
        self.copies, self.known = Copies(self.memories), Known()
        self.note: Callable[[int, str, Exchange], None] = lambda round, verb, exchange: None
        self.sample = sample
        self._count = 0                                    # number of the last call
        self._round = -1
        self._public: tuple[str, Form] | None = None       # client function and form of the message of `publish`
        self._answered: dict[tuple[int, str], Done] = {}   # in this round, by client and digest of the call
        self._fetched: dict[tuple[int, str], Tensor] = {}

    def publish(self, name: str, message: Any, whole: int) -> None:
        """Update the public copies by a message, which then stands for the next call's ``down`` of ``whole`` bytes."""
        self._public = name, form_of(message, self.compressors)
        self.copies.publish(name, wire.encode(message, self.compressors), whole)

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, dict[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``.

        Raises:
            ClientsLostError: clients did not respond, or not validly.
        """
        down, mine, keep = call.down, call.mine, self.gossip and call.sends
        values: dict[str, Any] = {"function": name_of(self.algorithm, call.fn), "sends": call.sends, "keep": keep}
        data = {}
        if down is not None:
            values["form"] = form_of(down, self.compressors)
            data["down"] = wire.encode(down, self.compressors)
        ids = call.ids.tolist()
        memories = {i: () if mine is None else mine.rows.get(i, mine.default) for i in ids}
        message, memory = outcome(call, DryLocal(self.model, federation.work, self.sample), memories[ids[0]])
        calls = {}
        for at, (client, kept) in enumerate(memories.items()):
            shipped: dict[str, bytes] = {}
            spec = self.memories.spec(kept, client, shipped)
            told, sent = (values, data) if call.rebuilt is None else self._told(call.rebuilt, at, client, values, data)
            calls[client] = Call("each", {**told, "memory": spec}, {**sent, **shipped})
        public, self._public = self._public, None
        vectors = [form_of(leaf) for leaf in leaves(down) if is_vector(leaf, self.model.seen)] if public else []

        def read(client: int, write: str, answer: Call) -> Done:
            found = self._read(client, write, answer, message, memory)
            if public is not None:
                self.copies.arrived(public[0], client, write, vectors)
            if call.rebuilt is not None:
                found = found._replace(known=self.memories.handle(client, f"{write}.{COPY}", form_of(down)))
            return found

        largest = 0 if message is None else most(form_of(message, self.compressors))
        done = self._ask(calls, call.round, read, largest, public)
        meter.ledger.gradient_evaluations[call.ids] += [each.evaluations for each in done]
        for client, each in zip(ids, done, strict=True):
            if each.known is not None:
                self.known.arrived(client, each.known)
        new = {i: each.memory for i, each in zip(ids, done, strict=True)} if memory else {}
        return Relayed(self.mix, call.ids, call.round, done) if call.sends else None, new

    def _told(
        self, rebuilt: Rebuilt, at: int, client: int, values: dict[str, Any], data: dict[str, bytes]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Values and data of a call with the message from which a client computes the value, if it has the one before;
        else with the value.
        """
        if (version := self.known.version(client)) is None:
            return {**values, "rebuilt": {}}, data
        message, by = rebuilt.messages[at], name_of(self.algorithm, rebuilt.by[at])
        told = {"form": form_of(message), "rebuilt": {"known": version, "by": by}}
        return {**values, **told}, {"down": wire.encode(message)}

    def mix(self, ids: np.ndarray, round: int, w: csr_array, now: Sequence[Done], last: bool) -> list[Done]:
        """Gossip step: send each client its neighbours' messages; the last step writes the new memory."""
        calls = {}
        for i, client in enumerate(ids.tolist()):
            order, weights, at = neighbours(w, i)
            own = now[i].message
            assert own is not None, "clients retain their messages with a topology"
            received = {str(k): now[j].data for k, j in enumerate(j for j in order if j != i)}
            values = {"own": own.name, "weights": weights, "position": at, "last": last}
            calls[client] = Call("mix", values, received)
        like = unpacked(now[0].tree)
        largest = 0 if last else most(form_of(like))
        return self._ask(calls, round, lambda i, write, answer: self._read_mixed(i, write, answer, like, last), largest)

    def scores(
        self, x: Vector, ids: Sequence[int], round: int, tuned: bool = False
    ) -> dict[int, tuple[float, float | None, int]]:
        """Evaluate the model ``x`` on the clients' own samples: mean loss, accuracy, number of samples by client; with
        ``tuned``, after they have fine-tuned it.

        Clients that do not respond are left out. The ledger does not charge evaluations.
        """
        data = wire.encode(x)
        calls = {i: Call("score", {**self._values(i, round), "tuned": tuned}, {"x": data}) for i in ids}
        return self._exchange(calls, round, _read_score).answers

    def personal_scores(
        self, x: Vector, own: Kept[Any], round: int, tuned: bool = False
    ) -> dict[int, tuple[float, float | None, int]]:
        """Evaluate every client's own model: see `scores`. What it keeps of it, ``own``, stays where it is: some layers
        ``[p]``, to which it is sent the shared part ``x [s]``, or the model ``[d]``.
        """
        sharing = self.model.sharing
        sent, first = ({}, own.default) if sharing is None else ({"x": wire.encode(x)}, self.model.whole(x))
        calls = {}
        for client in range(own.n):
            part, values = own.rows.get(client), {**self._values(client, round), "tuned": tuned}
            if isinstance(part, Handle):
                calls[client] = Call("score", {**values, "own": part.name}, sent)
            else:                                          # as it was at first
                calls[client] = Call("score", values, {"x": wire.encode(first)})
        return self._exchange(calls, round, _read_score).answers

    def bring(self, handles: Sequence[Handle], round: int) -> list[int]:
        """Fetch values of several clients together; return the clients whose values are available."""
        wanted: dict[int, dict[str, Handle]] = {}
        for handle in handles:
            wanted.setdefault(handle.client, {})[handle.name] = handle
        ask = {i: hs for i, hs in wanted.items() if any((i, name) not in self._fetched for name in hs)}
        calls = {i: Call("value", {**self._values(i, round), "read": list(hs)}) for i, hs in ask.items()}

        def accept(client: int, answer: Call) -> None:
            values = {
                name: received(answer.data.get(str(k), b""), form_of(handle), f"memory {name}").to(self.device)
                for k, (name, handle) in enumerate(ask[client].items())
            }
            self._fetched |= {(client, name): value for name, value in values.items()}

        largest = max((sum(most(form_of(handle)) for handle in hs.values()) for hs in ask.values()), default=0)
        lost = self._exchange(calls, round, accept, largest).failed if calls else {}
        return sorted(wanted.keys() - lost.keys())

    def fetch(self, handle: Handle) -> Tensor:
        """Fetch the value of a handle, together with those that other clients wrote in the same call.

        Raises:
            ClientsLostError: its client does not respond.
        """
        if (handle.client, handle.name) not in self._fetched:
            self.bring(self.memories.beside(handle), self._round)
        if (handle.client, handle.name) not in self._fetched:
            raise ClientsLostError({handle.client: "did not send its memory"}, self._round)
        return self._fetched[handle.client, handle.name]

    def forget(self) -> None:
        """Make connected clients delete their memories at the end of the run."""
        if self.memories.used:
            calls = {client: Call("forget", self._values(client, self._round)) for client in self.link.nodes}
            given = self.link.policy.timeout
            seconds = FORGETTING if isinstance(given, str) else min(given, FORGETTING)
            self.link.policy = replace(self.link.policy, timeout=seconds, retries=0)
            self.link.exchange(calls, self._round, lambda client, answer: None)

    def _ask(
        self,
        calls: Mapping[int, Call],
        round: int,
        read: Callable[[int, str, Call], Done],
        largest: int,
        public: tuple[str, Form] | None = None,
    ) -> list[Done]:
        """Responses of all clients, in order; those retained from an earlier attempt at the round are reused."""
        if round != self._round:
            self._round = round
            self._answered.clear()
        self._fetched.clear()
        self._count += 1
        keys = {client: (client, _digest(call)) for client, call in calls.items()}
        write = f"{self.identity.epoch}.{self._count}"
        todo = {}
        for client in (client for client in calls if keys[client] not in self._answered):
            verb, values, data = calls[client].verb, dict(calls[client].values), dict(calls[client].data)
            if public is not None:
                held, news = self.copies.update(public[0], client, data.pop("down"))
                values["public"] = {"held": held, "form": public[1]}
                data |= news
            todo[client] = Call(verb, {**values, **self._values(client, round), "write": write}, data)
        got = self._exchange(todo, round, lambda client, answer: read(client, write, answer), largest)
        for client, done in got.answers.items():
            self._answered[keys[client]] = done
            self.memories.arrived(client, calls[client].data.keys() - {"down"})
        for client, why in got.failed.items():
            if public is not None and why.startswith(REFUSED):
                self.copies.forget(public[0], client)
            if "rebuilt" in calls[client].values and why.startswith(REFUSED):
                self.known.forget(client)
        if got.failed:
            raise ClientsLostError(got.failed, round, calls)
        return [self._answered[key] for key in keys.values()]

    def _exchange(
        self, calls: Mapping[int, Call], round: int, accept: Callable[[int, Call], Any], largest: int = 0
    ) -> Exchange:
        def checked(client: int, answer: Call) -> Any:
            if answer.values.get("client") != client:
                raise RefusedError(f"answered as client {answer.values.get('client')!r:.40}")
            return accept(client, answer)

        exchange = self.link.exchange(calls, round, checked, largest)
        if calls:
            self.note(round, next(iter(calls.values())).verb, exchange)
        return exchange

    def _values(self, client: int, round: int) -> dict[str, Any]:
        """Values common to all calls."""
        run, _, seed = self.identity
        alive = self.memories.alive(client)
        return {"client": client, "run": run, "seed": seed, "round": round, "alive": alive}

    def _read(self, client: int, write: str, answer: Call, like: Any, kept: Any) -> Done:
        """Validate the response to a client function against the forms of its dry run."""
        evaluations = answer.values["evaluations"]
        if not isinstance(evaluations, int) or not 0 <= evaluations <= MOST_COUNTED:
            raise RefusedError(f"counts {evaluations!r:.40} gradient evaluations; expected a whole number")
        memory = self._kept(client, write, answer, kept)
        if like is None:
            if answer.data:
                raise RefusedError(f"sent {', '.join(sorted(answer.data))!r:.80}; expected no message")
            return Done(b"", None, memory, None, evaluations)
        data = answer.data["message"]
        form = form_of(like, self.compressors)
        tree = received(data, form, "its message", self.compressors, self.model.seen)
        message = self.memories.message(client, write, len(data)) if self.gossip else None
        return Done(data, self._as(like, tree), memory, message, evaluations)

    def _read_mixed(self, client: int, write: str, answer: Call, like: Any, last: bool) -> Done:
        """Validate the response to a gossip step: the new memory, or the mixed value for the next step."""
        if last:
            return Done(b"", None, self._kept(client, write, answer, like), None, 0)
        data = answer.data["message"]
        tree = received(data, form_of(like), "its mixed value")
        message = self.memories.message(client, write, len(data))
        return Done(data, self._as(like, tree), None, message, 0)

    def _kept(self, client: int, write: str, answer: Call, like: Any) -> Any:
        """Handles of new memories, whose form must be that of ``like``."""
        form = form_of(like)
        if answer.values["memory"] != form:
            raise RefusedError(f"its memory has the form {answer.values['memory']!s:.200}; expected {form!s:.200}")
        return self._as(like, self.memories.handles(client, write, form))

    def _as(self, like: Any, tree: Any) -> Any:
        """Convert a tree to the NamedTuples of ``like``, on the model's device."""
        return build(like, iter(t if isinstance(t, Far) else t.to(self.device) for t in leaves(tree)))


def _read_score(client: int, answer: Call) -> tuple[float, float | None, int]:
    loss, accuracy, samples = (answer.values[key] for key in ("loss", "accuracy", "samples"))
    numbers = [(loss, LARGEST_LOSS)] if accuracy is None else [(loss, LARGEST_LOSS), (accuracy, 1)]
    if not all(isinstance(n, int | float) and abs(n) <= top for n, top in numbers) or not is_count(samples):
        raise RefusedError(f"scores {loss!r:.40}, {accuracy!r:.40} on {samples!r:.40} samples; expected numbers")
    return float(loss), None if accuracy is None else float(accuracy), samples


def _digest(call: Call) -> str:
    """SHA-256 of a call's verb, values and messages, which identifies it within a round."""
    digest = hashlib.sha256(json.dumps([call.verb, call.values], sort_keys=True).encode())
    for name in sorted(name for name in call.data if not name.startswith("shared")):   # shared: named by hash
        digest.update(f"{name} {len(call.data[name])} ".encode())
        digest.update(call.data[name])
    return digest.hexdigest()
