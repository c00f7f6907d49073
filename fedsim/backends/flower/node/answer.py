"""Call handlers of a node, one client of the federation, on its own data and memory.

A call specifies the memory it reads leaf by leaf: a "version" in the node's store; "zeros"; the "initial" model, which
the node derives from the seed as the server does; or a "shared" initial value, sent once and stored by its hash.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedsim import seeds
from fedsim.backends.flower.node.data import NodeSide, side_of
from fedsim.backends.flower.node.discretion import in_words, refusal, say
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.calls import Call, RefusedError
from fedsim.backends.flower.protocol.forms import (
    arguments,
    check_finite,
    compressors_of,
    dtype_of,
    fingerprint,
    function_of,
    initial_of,
    received,
)
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.protocol.versions import COPY, LARGEST_VECTORS, MESSAGE, versions
from fedsim.controller.personal import fine_tuned
from fedsim.controller.scoring import score
from fedsim.engine.dry_run import DryLocal
from fedsim.engine.federation import ClientCall, Meter
from fedsim.engine.optimizers import keeps
from fedsim.errors import FedsimError
from fedsim.feedback.linked import is_vector, moved
from fedsim.messages import wire
from fedsim.messages.mixing import mix_rows
from fedsim.messages.wire import form_of
from fedsim.robust.applied import around, holds_vectors
from fedsim.tree import count, leaves, tree_map, unpacked
from fedsim.types import Kept

OF_NEWCOMERS = ("hello", "score", "forget")
"""Verbs of the calls to a client that never trains."""


def answer(call: Call, text: str, settings: NodeSettings) -> Call:
    """Respond to a call that came with the experiment ``text``; errors become the verb "refused" with a reason."""
    try:
        started = time.perf_counter()
        store = NodeStore(settings.store, str(call.values.get("run")), settings.client)
        side = side_of(text, number(call, "seed"), settings)
        return Node(side, store, settings.client).answer(call, time.perf_counter() - started)
    except (FedsimError, ValueError) as error:
        return refusal(error)


def number(call: Call, key: str) -> int:
    """Read a nonnegative integer from a call's values; raise RefusedError for anything else."""
    value = call.values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RefusedError(f"{key} is {value!r:.40}; expected a whole number, 0 or more")
    return value


class Node:
    """Handlers of the calls to one client.

    Args:
        side: its data, and the experiment.
        store: its memory.
        client: its number.
    """

    def __init__(self, side: NodeSide, store: NodeStore, client: int) -> None:
        self.side, self.store, self.client = side, store, client
        self.federation = side.federation
        self.compressors = compressors_of(side.experiment.linked)
        self.initial = {fingerprint(part): part for part in initial_of(self.federation.model, side.initial)}

    def answer(self, call: Call, load: float = 0.0) -> Call:
        """Validate a call and run its handler.

        Raises:
            FedsimError: the call is refused.
        """
        verbs = {
            "hello": self.hello, "each": self.each, "mix": self.mix, "value": self.value, "score": self.score,
            "forget": self.forget,
        }  # fmt: skip
        if call.verb != "hello" and number(call, "client") != self.client:
            raise RefusedError(f"a call for client {call.values['client']} came to client {self.client}")
        if self.side.newcomer and call.verb not in OF_NEWCOMERS:
            raise RefusedError(f"client {self.client} is one of evaluation.unseen, which evaluate and do not train")
        most = (LARGEST_VECTORS + self.federation.shards.n) * 8 * self.federation.model.d + 2**20
        if call.nbytes() > most:
            raise RefusedError(f"a call with {call.nbytes():,} bytes of messages; refused as oversized above {most:,}")
        self.seconds = {"load": load, "compute": 0.0, "encode": 0.0, "memory": 0.0}
        with torch.no_grad():
            made = verbs[call.verb](call)
        say(in_words(call, made, self.seconds, type(self.side.experiment.algorithm).__name__))
        told = {"client": self.client, "id": call.values.get("id")}
        return Call(call.verb, {**made.values, **told, "seconds": self.seconds}, made.data)

    def hello(self, call: Call) -> Call:
        """Handshake: report client number, number of samples, and versions."""
        rows = self.federation.shards.rows(self.side.place)
        return Call("hello", {"samples": count(rows.y), "own": count(self.side.own.y), "versions": versions()})

    def each(self, call: Call) -> Call:
        """Run a client function."""
        values, fed = call.values, self.federation
        fn = function_of(self.side.experiment.linked, values.get("function"))
        clock = time.perf_counter()
        down = self._down(call)
        clock = self._spent("encode", clock)
        spec = values.get("memory")
        if not isinstance(spec, list):
            raise RefusedError(f"memory is {spec!r:.80}; expected a list")
        memories, sends = self._memory(spec, call), bool(values.get("sends"))
        if sends or down is not None:
            down, *memories = arguments(fn, down, *memories)
        else:
            memories = arguments(fn, *memories)
        mine = Kept(fed.shards.n, tuple(memories), {self.client: tuple(memories)}) if memories else None
        self.store.drop(values.get("alive", ()), self._now(call))
        clock = self._spent("memory", clock)
        meter = Meter(fed)
        ids, keep = np.array([self.client]), keeps(fed.work.optimizer) or fed.model.sharing is not None
        work = ClientCall(fn, ids, number(call, "round"), down, mine, sends, keep)
        sent, kept = fed.backend.run(fed, meter, work)
        clock = self._spent("compute", clock)
        what, data = f"in round {values['round']} the {{}} of client {self.client}", {}
        if sent is not None:
            message = tree_map(lambda t: t[0], sent.stacked())
            check_finite(message, what.format("message"))
            data["message"] = wire.encode(message, self.compressors)
        clock = self._spent("encode", clock)
        new = kept.get(self.client, ())
        check_finite(new, what.format("new memory"))
        form = self._keep(call, new)
        if "public" in values or "rebuilt" in values:
            for k, leaf in enumerate(leaf for leaf in leaves(down) if is_vector(leaf, fed.model.seen)):
                self.store.write(f"{values['write']}.{COPY + k}", leaf)
        if values.get("keep"):
            self._keep_message(call, data["message"])
        self._spent("memory", clock)
        evaluations = int(meter.ledger.gradient_evaluations[self.client])
        return Call("each", {"memory": form, "evaluations": evaluations}, data)

    def mix(self, call: Call) -> Call:
        """Gossip step: weighted sum of the neighbours' messages and the own one, in the order of client numbers, or the
        result of the experiment's rule on them.
        """
        values, clock = call.values, time.perf_counter()
        own = self.store.read(str(values.get("own"))).numpy().tobytes()
        weights, at = values.get("weights"), number(call, "position")
        if not isinstance(weights, list) or at >= len(weights) or len(call.data) != len(weights) - 1:
            raise RefusedError(f"{len(call.data)} messages to mix with the weights {weights!r:.80}; expected one each")
        clock = self._spent("memory", clock)
        form = form_of(wire.decode(own, self.compressors, self.federation.model.d), self.compressors)
        order = [call.data[str(k)] for k in range(len(call.data))]
        order.insert(at, own)
        trees = [unpacked(self._received(data, form, "neighbour's")) for data in order]
        clock = self._spent("encode", clock)
        mixed = tree_map(lambda *rows: self._mixed(torch.stack(rows), weights, at, number(call, "round")), *trees)
        check_finite(mixed, f"in round {values.get('round')} the mixed value of client {self.client}")
        self.store.drop(values.get("alive", ()), self._now(call))
        clock = self._spent("compute", clock)
        if values.get("last"):
            kept = self._keep(call, mixed)
            self._spent("memory", clock)
            return Call("mix", {"memory": kept})
        data = wire.encode(mixed)
        self._keep_message(call, data)
        self._spent("memory", clock)
        return Call("mix", {"memory": None}, {"message": data})

    def _mixed(self, rows: Tensor, weights: list[float], at: int, round: int) -> Tensor:
        """What this client makes of the messages ``[k, ...]`` of its neighbourhood, its own at position ``at``."""
        rule = self.side.experiment.aggregate
        if rule is None or not holds_vectors(rows):
            w = csr_array((np.array(weights, np.float64), np.arange(len(weights)), _only_row(at, len(weights))))
            return mix_rows(w, rows)[at]
        key = seeds.key(self.federation.seed, "aggregate", round, np.array([self.client]))[0]
        return around(rule, rows.flatten(1), weights, at, key, f"in round {round}").view_as(rows[0])

    def value(self, call: Call) -> Call:
        """Send memories to the server, which evaluates the nodes' models."""
        names = call.values.get("read")
        if self.federation.model.sharing is not None or getattr(self.side.experiment.algorithm, "personal", False):
            raise RefusedError("a model or layers of it stay with this client, and the server asks for a memory")
        if not isinstance(names, list):
            raise RefusedError(f"read is {names!r:.40}; expected names of versions")
        return Call("value", {}, {str(k): wire.encode(self.store.read(str(name))) for k, name in enumerate(names)})

    def forget(self, call: Call) -> Call:
        """Delete this client's memory of a finished run."""
        self.store.forget()
        return Call("forget")

    def score(self, call: Call) -> Call:
        """Evaluate a model on this client's own samples, perhaps after fine-tuning it: mean loss and accuracy."""
        model, own = self.federation.model, self.side.own
        x = self._model(call)
        clock = time.perf_counter()
        if call.values.get("tuned"):
            at = self.side.place
            x = fine_tuned(self.side.experiment, self.federation, lambda _: x, [at])[at]
        scores = score(model, x, own.x, own.y, self.side.classification)
        self._spent("compute", clock)
        hits = None if scores.accuracy is None else float(scores.accuracy.mean())
        return Call("score", {"loss": float(scores.loss.mean()), "accuracy": hits, "samples": count(own.y)})

    def _model(self, call: Call) -> Tensor:
        """The model ``[d]`` to evaluate: the one sent, or this client's own, of which it keeps some layers or all."""
        model, part = self.federation.model, call.values.get("own")
        dtype = str(model.dtype).removeprefix("torch.")
        if part is None:
            whole: Tensor = self._received(call.data["x"], [dtype, [model.d]], "down")
            return whole
        kept = self.store.read(str(part)).to(model.device)
        if model.sharing is not None:
            return model.sharing.whole(self._received(call.data["x"], [dtype, [model.seen]], "down"), kept)
        if kept.shape != (model.d,):
            raise RefusedError(f"the memory {part!r:.40} is no model: it has the shape {[*kept.shape]}")
        return kept

    def _received(self, data: bytes, form: Any, whose: str) -> Any:
        """Decode a message; refuse another form than ``form``, and NaN or infinity."""
        tree = received(data, form, f"the {whose} message", self.compressors, self.federation.model.d)
        return tree_map(lambda t: t.to(self.federation.model.device), tree)

    def _down(self, call: Call) -> Any:
        """Decode the broadcast, or reconstruct it from the local public copies and the messages since, or by a function
        of the method.
        """
        values, data, model = call.values, call.data, self.federation.model
        if values.get("rebuilt"):
            return self._rebuilt(call)
        if "public" not in values or "down" in data:
            return self._received(data["down"], values.get("form"), "down") if "down" in data else None
        match values["public"]:
            case {"held": [*names], "form": form} if "news-0" in data:
                copies = [self.store.read(str(name)).to(model.device) for name in names]
            case public:
                raise RefusedError(f"public is {public!r:.80}; expected versions, form and messages of the copies")
        for k in range(len(data)):
            if f"news-{k}" in data:
                down = moved(copies, self._received(data[f"news-{k}"], form, "down"))
                copies = [leaf for leaf in leaves(down) if is_vector(leaf, model.seen)]
        return down

    def _rebuilt(self, call: Call) -> Tensor:
        """Compute the broadcast from the last one, at first the initial model, and a message."""
        side, model = self.side, self.federation.model
        match call.values["rebuilt"]:
            case {"known": str(name), "by": str(by)}:
                fn = function_of(side.experiment.linked, by)
            case rebuilt:
                raise RefusedError(f"rebuilt is {rebuilt!r:.80}; expected a version and a client function")
        first = initial_of(model, side.initial)[0 if model.sharing is None else 1]
        known = self.store.read(name).to(model.device) if name else first
        message = self._received(call.data["down"], call.values.get("form"), "down")
        sample = self.federation.shards.rows(side.place).part(slice(1))
        try:
            value = fn(DryLocal(model, self.federation.work, sample), known, message)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise RefusedError(f"{by:.80} does not compute a model from its message", error) from error
        if not isinstance(value, Tensor) or value.shape != first.shape:
            raise RefusedError(f"{by:.80} does not compute a model from its message", form_of(value))
        return value

    def _memory(self, spec: Any, call: Call) -> Any:
        """Resolve the memory that a call specifies, leaf by leaf."""
        if isinstance(spec, list):
            return tuple(self._memory(branch, call) for branch in spec)
        if not isinstance(spec, dict) or len(spec) != 1:
            raise RefusedError(f"a memory is {spec!r:.80}; expected one of version, zeros, initial, shared")
        ((kind, what),) = spec.items()
        return self._leaf(kind, what, call).to(self.federation.model.device)

    def _leaf(self, kind: str, what: Any, call: Call) -> Tensor:
        if kind == "version":
            return self.store.read(str(what))
        if kind == "zeros":
            return torch.zeros(what[1], dtype=dtype_of(what[0]))
        if kind == "initial":
            if what not in self.initial:
                raise RefusedError("the initial model differs from the server's; install the same PyTorch")
            return self.initial[what]
        if kind == "shared" and str(what) in call.data:
            try:
                value = wire.decode(call.data[what])
            except ValueError as error:
                raise RefusedError(f"a shared initial memory is malformed: {error}") from error
            if fingerprint(value) != what:
                raise RefusedError(f"a shared initial memory does not have the checksum {what}")
            self.store.write(what, value)
        return self.store.read(str(what))

    def _keep(self, call: Call, memory: Any) -> Any:
        """Store a new memory; return its form."""
        for k, leaf in enumerate(leaves(memory)):
            self.store.write(f"{call.values['write']}.{k}", leaf)
        return form_of(memory)

    def _keep_message(self, call: Call, data: bytes) -> None:
        self.store.write(f"{call.values['write']}.{MESSAGE}", torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def _now(self, call: Call) -> tuple[int, int]:
        epoch, _, count = str(call.values.get("write")).partition(".")
        if not (epoch.isdecimal() and count.isdecimal()):
            raise RefusedError(f"write is {call.values.get('write')!r:.40}; expected epoch and number of the call")
        return int(epoch), int(count)

    def _spent(self, what: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[what] += now - since
        return now


def _only_row(at: int, k: int) -> np.ndarray:
    """Row pointers of a ``[k, k]`` matrix with a single nonempty row."""
    return np.where(np.arange(k + 1) > at, k, 0)
