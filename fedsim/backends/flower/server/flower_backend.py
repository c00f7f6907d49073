"""The ``Backend`` whose clients are behind Flower: it sends names and messages, and holds handles of what clients keep.

A call that failed at some clients raises ``ClientsLostError`` after all others have answered; their answers are kept
until the next round, so that doing the round again without the lost ones asks nobody twice for the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from fedsim.backends.flower.protocol.calls import Call, RefusedError, is_count
from fedsim.backends.flower.protocol.forms import Form, check_finite, compressors_of, form_of, name_of
from fedsim.backends.flower.server.copies import Copies
from fedsim.backends.flower.server.dry_run import outcome
from fedsim.backends.flower.server.memories import Handle, Memories
from fedsim.backends.flower.server.relay import Done, Relayed, neighbours
from fedsim.backends.flower.server.transport import REFUSED, Exchange, Link
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.errors import ClientsLostError
from fedsim.feedback.linked import is_vector
from fedsim.messages import wire
from fedsim.tree import build, leaves, unpacked
from fedsim.types import Batch, Messages
from fedsim.values import Far, Vector

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FORGETTING = 30.0
"""Seconds that clients have to remove what they kept: the run has ended, and is not held up."""


class ServerIdentity(NamedTuple):
    """What tells this server's calls from others.

    Attributes:
        run: token of the run, by which nodes tell memories of runs apart.
        epoch: how often a server has started on this run; memories of an earlier one are older.
        seed: root of all randomness.
        common: what all calls say of the data.
    """

    run: str
    epoch: int
    seed: int
    common: Mapping[str, Any]


class FlowerBackend:
    """Clients behind Flower.

    Args:
        link: the nodes.
        identity: run, epoch, seed, data.
        algorithm: whose client functions are run.
        federation: its model.
        sample: one sample, to find what client functions send.
        gossip: whether messages will be mixed, so that clients keep what they sent.
    """

    def __init__(
        self, link: Link, identity: ServerIdentity, algorithm: Any, federation: Federation, sample: Batch, gossip: bool
    ) -> None:
        self.link, self.identity, self.algorithm, self.gossip = link, identity, algorithm, gossip
        self.model, self.device = federation.model, federation.model.device
        self.compressors = compressors_of(algorithm)
        self.memories = Memories(federation.model.vector(), self.fetch)
        self.copies = Copies(self.memories)
        self.note: Callable[[int, str, Exchange], None] = lambda round, verb, exchange: None
        self.sample = sample
        self._count = 0                                    # calls of this server
        self._round = -1
        self._public: tuple[str, Form] | None = None       # whose copies the next call moves, and by which message
        self._answered: dict[tuple[int, str], Done] = {}   # in this round: client and what it was asked
        self._fetched: dict[tuple[int, str], Tensor] = {}

    def publish(self, name: str, message: Any, whole: int) -> None:
        """The next call's ``down``, of ``whole`` bytes, can be made from public copies and this message to them."""
        self._public = name, form_of(message, self.compressors)
        self.copies.publish(name, wire.encode(message, self.compressors), whole)

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, dict[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``.

        Raises:
            ClientsLostError: some clients did not answer, or not properly.
        """
        down, mine, keep = call.down, call.mine, self.gossip and call.sends
        values: dict[str, Any] = {"function": name_of(self.algorithm, call.fn), "sends": call.sends, "keep": keep}
        data = {}
        if down is not None:
            values["form"] = form_of(down, self.compressors)
            data["down"] = wire.encode(down, self.compressors)
        ids = call.ids.tolist()
        memories = {i: () if mine is None else mine.rows.get(i, mine.default) for i in ids}
        message, memory = outcome(call, self.model, self.sample, memories[ids[0]])
        calls = {}
        for client, kept in memories.items():
            shipped: dict[str, bytes] = {}
            spec = self.memories.said(kept, client, shipped)
            calls[client] = Call("each", {**values, "memory": spec}, {**data, **shipped})
        public, self._public = self._public, None
        vectors = [form_of(leaf) for leaf in leaves(down) if is_vector(leaf, self.model.d)] if public else []

        def read(client: int, write: str, answer: Call) -> Done:
            found = self._read(client, write, answer, message, memory)
            if public is not None:
                self.copies.arrived(public[0], client, write, vectors)
            return found

        done = self._ask(calls, call.round, read, public)
        meter.ledger.gradient_evaluations[call.ids] += [each.evaluations for each in done]
        new = {i: each.memory for i, each in zip(ids, done, strict=True)} if memory else {}
        return Relayed(self.mix, call.ids, call.round, done) if call.sends else None, new

    def mix(self, ids: np.ndarray, round: int, w: csr_array, now: Sequence[Done], last: bool) -> list[Done]:
        """One gossip step: each client hears its neighbours' messages; the last step makes what is kept."""
        calls = {}
        for i, client in enumerate(ids.tolist()):
            order, weights, at = neighbours(w, i)
            own = now[i].message
            assert own is not None, "the clients keep what they sent where there is a topology"
            heard = {str(k): now[j].data for k, j in enumerate(j for j in order if j != i)}
            values = {"own": own.name, "weights": weights, "position": at, "last": last}
            calls[client] = Call("mix", values, heard)
        like = unpacked(now[0].tree)
        return self._ask(calls, round, lambda i, write, answer: self._read_mixed(i, write, answer, like, last))

    def scores(self, x: Vector, ids: Sequence[int], round: int) -> dict[int, tuple[float, float | None, int]]:
        """The model ``x`` on the own samples of those clients that answer: mean loss, accuracy, number of samples.

        An evaluation, which no ledger charges.
        """
        data = wire.encode(x)
        calls = {client: Call("score", self._values(client, round), {"x": data}) for client in ids}
        return self._exchange(calls, round, _read_score).answers

    def bring(self, handles: Sequence[Handle], round: int) -> list[int]:
        """Fetch values of several clients together; the clients whose values are here then."""
        wanted: dict[int, dict[str, Handle]] = {}
        for handle in handles:
            wanted.setdefault(handle.client, {})[handle.name] = handle
        ask = {i: hs for i, hs in wanted.items() if any((i, name) not in self._fetched for name in hs)}
        calls = {i: Call("value", {**self._values(i, round), "read": list(hs)}) for i, hs in ask.items()}

        def accept(client: int, answer: Call) -> None:
            for k, (name, handle) in enumerate(ask[client].items()):
                value = wire.decode(answer.data.get(str(k), b""))
                _expect(form_of(value), [str(handle.dtype).removeprefix("torch."), list(handle.shape)])
                check_finite(value, f"memory {name}")
                self._fetched[client, name] = value.to(self.device)

        lost = self._exchange(calls, round, accept).failed if calls else {}
        return sorted(wanted.keys() - lost.keys())

    def fetch(self, handle: Handle) -> Tensor:
        """The value of one handle; those that other clients made in the same call are brought along.

        Raises:
            ClientsLostError: its client does not answer.
        """
        if (handle.client, handle.name) not in self._fetched:
            self.bring(self.memories.beside(handle), self._round)
        if (handle.client, handle.name) not in self._fetched:
            raise ClientsLostError({handle.client: "did not give its memory"}, self._round)
        return self._fetched[handle.client, handle.name]

    def forget(self) -> None:
        """Have the clients that are there remove what they kept, as the run has ended."""
        if self.memories.used:
            calls = {client: Call("forget", self._values(client, self._round)) for client in self.link.nodes}
            self.link.policy = replace(self.link.policy, timeout=min(self.link.policy.timeout, FORGETTING), retries=0)
            self.link.exchange(calls, self._round, lambda client, answer: None)

    def _ask(
        self,
        calls: Mapping[int, Call],
        round: int,
        read: Callable[[int, str, Call], Done],
        public: tuple[str, Form] | None = None,
    ) -> list[Done]:
        """Answers of all clients, in order; those known from before in this round are not asked again."""
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
                held, news = self.copies.said(public[0], client, data.pop("down"))
                values["public"] = {"held": held, "form": public[1]}
                data |= news
            todo[client] = Call(verb, {**values, **self._values(client, round), "write": write}, data)
        got = self._exchange(todo, round, lambda client, answer: read(client, write, answer))
        for client, done in got.answers.items():
            self._answered[keys[client]] = done
            self.memories.arrived(client, calls[client].data.keys() - {"down"})
        for client, why in got.failed.items():
            if public is not None and why.startswith(REFUSED):
                self.copies.forget(public[0], client)
        if got.failed:
            raise ClientsLostError(got.failed, round)
        return [self._answered[key] for key in keys.values()]

    def _exchange(self, calls: Mapping[int, Call], round: int, accept: Callable[[int, Call], Any]) -> Exchange:
        def checked(client: int, answer: Call) -> Any:
            if answer.values.get("client") != client:
                raise RefusedError(f"answered as client {answer.values.get('client')!r:.40}")
            try:
                return accept(client, answer)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RefusedError(f"sent something that is not an answer: {error!r:.500}") from error

        exchange = self.link.exchange(calls, round, checked)
        if calls:
            self.note(round, next(iter(calls.values())).verb, exchange)
        return exchange

    def _values(self, client: int, round: int) -> dict[str, Any]:
        """What every call says."""
        run, _, seed, common = self.identity
        alive = self.memories.alive(client)
        return {"client": client, "run": run, "seed": seed, "common": common, "round": round, "alive": alive}

    def _read(self, client: int, write: str, answer: Call, like: Any, kept: Any) -> Done:
        """The answer to a client function, which must look like what the function gives."""
        evaluations = answer.values["evaluations"]
        if not isinstance(evaluations, int) or not 0 <= evaluations < 2**53:
            raise RefusedError(f"counts {evaluations!r:.40} gradient evaluations; expected a whole number")
        memory = self._kept(client, write, answer, kept)
        if like is None:
            if answer.data:
                raise RefusedError(f"sent {', '.join(sorted(answer.data))!r:.80}; expected no message")
            return Done(b"", None, memory, None, evaluations)
        data = answer.data["message"]
        tree = wire.decode(data, self.compressors, self.model.d)
        _expect(form_of(tree, self.compressors), form_of(like, self.compressors))
        check_finite(tree, "its message")
        message = self.memories.message(client, write, len(data)) if self.gossip else None
        return Done(data, self._as(like, tree), memory, message, evaluations)

    def _read_mixed(self, client: int, write: str, answer: Call, like: Any, last: bool) -> Done:
        """The answer to a mixing: what was kept, or the mixed value, for the next step."""
        if last:
            return Done(b"", None, self._kept(client, write, answer, like), None, 0)
        data = answer.data["message"]
        tree = wire.decode(data)
        _expect(form_of(tree), form_of(like))
        check_finite(tree, "its mixed value")
        message = self.memories.message(client, write, len(data))
        return Done(data, self._as(like, tree), None, message, 0)

    def _kept(self, client: int, write: str, answer: Call, like: Any) -> Any:
        """Handles of new memories, which must look like ``like``."""
        form = form_of(like)
        _expect(answer.values["memory"], form)
        return self._as(like, self.memories.handles(client, write, form))

    def _as(self, like: Any, tree: Any) -> Any:
        """The tree with the NamedTuples of ``like``, on the model's device."""
        return build(like, iter(t if isinstance(t, Far) else t.to(self.device) for t in leaves(tree)))


def _expect(found: object, form: object) -> None:
    if found != form:
        raise RefusedError(f"sent the form {found!s:.200}; expected {form!s:.200}")


def _read_score(client: int, answer: Call) -> tuple[float, float | None, int]:
    loss, accuracy, samples = (answer.values[key] for key in ("loss", "accuracy", "samples"))
    numbers = [loss] if accuracy is None else [loss, accuracy]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or not is_count(samples):
        raise RefusedError(f"scores {loss!r:.40}, {accuracy!r:.40} on {samples!r:.40} samples; expected numbers")
    return float(loss), None if accuracy is None else float(accuracy), samples


def _digest(call: Call) -> str:
    """What a call asks, whenever it is asked."""
    digest = hashlib.sha256(json.dumps([call.verb, call.values], sort_keys=True).encode())
    for name in sorted(name for name in call.data if not name.startswith("shared")):   # these are named by their hash
        digest.update(f"{name} {len(call.data[name])} ".encode())
        digest.update(call.data[name])
    return digest.hexdigest()
