"""Controller host with clients behind Flower: it waits for nodes, and retries rounds without lost clients."""

from __future__ import annotations

import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedsim.algorithm import Algorithm
from fedsim.backends.flower.protocol import versions
from fedsim.backends.flower.protocol.calls import Call, is_count
from fedsim.backends.flower.protocol.common import Common, as_text
from fedsim.backends.flower.protocol.deployable import check_deployable
from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.server.flower_backend import FlowerBackend, ServerIdentity
from fedsim.backends.flower.server.memories import Handle
from fedsim.backends.flower.server.remote_data import common_of, of_own_data, without_samples
from fedsim.backends.flower.server.roster import Roster
from fedsim.backends.flower.server.transport import PARTS, Exchange, Link
from fedsim.clients import cohort
from fedsim.controller.host import Host
from fedsim.controller.personal import kept_of_models
from fedsim.controller.prepare import Prepared
from fedsim.controller.scoring import OwnScores
from fedsim.engine.dry_run import Dry
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.memory import OnDevice
from fedsim.errors import ClientsLostError, ConfigError, DeployError
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.measures import OF_LOSS
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import RowWriter
from fedsim.tree import leaves
from fedsim.types import Batch, Kept
from fedsim.values import Vector

CHECKPOINTS = 2
"""Checkpoints retained on disk; clients must keep the memories they refer to."""
NO_RUN = "0" * 32


class FlowerHost(Host):
    """Clients behind Flower.

    Args:
        grid: Flower's connection to the nodes.
        policy: reaction to nodes that do not respond.
        nodes: number of nodes that bring their own data; 0 to partition the experiment's data set.
        say: receives events for the user, a line each.
    """

    def __init__(self, grid: Grid, policy: Policy, nodes: int = 0, say: Callable[[str], None] = print) -> None:
        super().__init__()
        self.grid, self.policy, self.nodes, self.say = grid, policy, nodes, say
        self._pinned: deque[list[Handle]] = deque(maxlen=CHECKPOINTS)
        self._samples: dict[int, int] = {}                 # client: number of training samples
        self._roster = Roster()
        self._round = 0
        self._told = False                                 # which metrics clients do not report

    def __exit__(self, *raised: object) -> None:
        """See ``Host``; clients keep the memories of a failed run, to resume it."""
        if not any(raised) and hasattr(self, "backend"):
            try:
                self.backend.forget()
            except Exception as error:                     # the run has succeeded
                self.say(f"the clients could not delete their memories of the run: {error!r}")

    def prepare(self, experiment: Experiment, seed: int) -> Prepared:
        """Prepare the federation of one seed, and wait for enough nodes.

        Raises:
            ConfigError: the experiment is for simulations alone.
            DeployError: too few nodes connect.
        """
        check_deployable(experiment)
        if not self.nodes:
            prepared = super().prepare(experiment, seed)
            self._meet(experiment, common_of(prepared), seed)
            return without_samples(prepared)

        def sizes(common: Common) -> np.ndarray:
            self._meet(experiment, common, seed)
            return np.array([self._samples[client] for client in range(common.n)])

        return of_own_data(experiment, seed, self.nodes, sizes)

    def check_other_seeds(self, experiment: Experiment, first: Prepared, others: Sequence[int]) -> None:
        """See ``Host``; the nodes have the samples."""

    def connect(
        self, experiment: Experiment, prepared: Prepared, directory: RunDirectory, before: dict[str, Any] | None
    ) -> tuple[Federation, dict[str, Any]]:
        """See ``Host``."""
        fed = prepared.federation
        known = directory.manifest.get("deployment", {})
        token, epoch = known.get("run", uuid.uuid4().hex), known.get("epoch", 0) + 1
        directory.update_manifest(deployment={"run": token, "epoch": epoch, "policy": asdict(self.policy)})
        identity = ServerIdentity(token, epoch, fed.seed)
        sample = Batch(prepared.test.x, prepared.test.y).part(slice(1))
        gossip = experiment.topology is not None
        self.backend = FlowerBackend(self.link, identity, experiment.linked, fed, sample, gossip)
        self._pinned.clear()
        self._roster.folder = directory.path
        self._roster.save()
        path = directory.seed_path(fed.seed) / "exchanges.jsonl"
        self.backend.note = lambda round, verb, exchange: _note(path, round, verb, exchange)
        connected = replace(fed, backend=self.backend, memory=self.backend.memories)
        return connected, {"backend": "flower", "reason": "deployed"}

    def init(
        self, algorithm: Algorithm[Any], x: Vector, federation: Federation, meter: Meter, template: bool
    ) -> Any:
        """See ``Host``; initialisation needs every client, and a template none."""
        if template:
            dry = replace(federation, backend=Dry(self.backend.sample), memory=OnDevice())
            return algorithm.init(x, cohort(dry, 0))
        self.backend.known.begun = True
        try:
            return algorithm.init(x, cohort(federation, 0, meter=meter))
        except ClientsLostError as lost:
            raise DeployError(f"{type(algorithm).__name__} begins with a message from every client; {lost}") from lost

    def round(
        self, algorithm: Algorithm[Any], state: Any, federation: Federation, meter: Meter, round: int, ids: np.ndarray
    ) -> Any:
        """See ``Host``. A round that loses clients is retried without them if the policy allows it.

        Raises:
            DeployError: too few clients are left, or the algorithm needs the lost ones.
        """
        before = meter.snapshot()
        copies, known = self.backend.copies.snapshot(), self.backend.known.snapshot()
        absent, lost, losses, self._round = set[int](), None, Counter[int](), round
        while True:
            meter.gone = np.isin(np.arange(federation.shards.n), list(absent)) if absent else None
            try:
                left = np.setdiff1d(ids, list(absent)) if absent else ids
                new = algorithm.round(state, cohort(federation, round, left, meter))
                self.skipped, meter.gone = sorted(absent), None
                return new
            except ClientsLostError as error:
                meter.restore(before)
                self.backend.copies.restore(copies)
                self.backend.known.restore(known)
                lost = error
                asked = {*ids.tolist(), *absent, *lost.asked}    # the cohort, or `Clients.population`
                absent = self._without(asked, absent, lost, losses)
            except ConfigError as error:
                if lost is None:
                    raise
                raise DeployError(f"{lost}; without {'it' if len(lost.reasons) == 1 else 'them'}: {error}") from error

    def saved(self, state: Any) -> None:
        """See ``Host``: clients keep the memories that checkpoints refer to."""
        self._pinned.append(list(_handles(state)))

    def present(self, x: Kept[Vector]) -> Sequence[int]:
        """See ``Host``."""
        handles = [row for row in x.rows.values() if isinstance(row, Handle)]
        here = set(self.backend.bring(handles, self._round))
        elsewhere = {handle.client for handle in handles} - here
        if not (found := [i for i in range(x.n) if i not in elsewhere]):
            raise DeployError(f"after round {self._round} no client sent its model; see the log of the SuperLink")
        return found

    def own_scores(self, prepared: Prepared, x: Vector, nodes: np.ndarray) -> OwnScores:
        """See ``Host``: the clients evaluate the model."""
        return self._told_by(self.backend.scores(x, range(self.common.n), self._round), prepared)

    def model_scores(self, experiment: Experiment, prepared: Prepared, state: Any, scope: str) -> OwnScores:
        """See ``Host``: the clients fine-tune and evaluate models; what they keep of theirs does not travel for it."""
        tuned, own = scope.endswith("tuned"), kept_of_models(prepared, state)
        if not scope.startswith("unseen") and own is not None:
            return self._told_by(self.backend.personal_scores(state.x, own, self._round, tuned), prepared)
        n, total = self.common.n, self.common.total
        ids = range(n, total) if scope.startswith("unseen") else range(n)
        x = prepared.federation.model.whole(state.x)
        scores = self.backend.scores(x, ids, self._round, tuned)
        return self._told_by({client - ids.start: found for client, found in scores.items()}, prepared)

    def _told_by(self, scores: Mapping[int, tuple[float, float | None, int]], prepared: Prepared) -> OwnScores:
        """Scores by client as those of all that are there."""
        if not scores:
            raise DeployError(f"after round {self._round} no client evaluated the model; see the log of the SuperLink")
        if (others := [metric.name for metric in prepared.metrics if metric.of_outputs]) and not self._told:
            self._told = True
            self.say(f"clients report loss and accuracy of their samples; {', '.join(others)} is of the test set alone")
        told = sorted(scores)
        loss, samples = (np.array([scores[i][k] for i in told]) for k in (0, 2))
        hits = [scores[i][1] for i in told]
        of_loss = {metric: np.exp(loss) for metric in prepared.metrics if metric.name in OF_LOSS}
        return OwnScores(told, loss, None if None in hits else np.array(hits, np.float64), samples, of_loss)

    def _meet(self, experiment: Experiment, common: Common, seed: int) -> None:
        """Connect to the nodes of a new seed."""
        self.common, self._samples = common, {}
        hello = Call("hello", {"run": NO_RUN, "seed": seed})
        text = as_text(experiment, common)
        self.link = Link(self.grid, text, hello, self.policy, self._greet, self.say, self._roster)
        patience, n, clients = self.policy.patience, common.n, range(common.total)
        if self.link.gather(lambda there: len(there) == len(clients), patience):
            return
        there, enough = [i for i in clients[:n] if i in self.link.nodes], n if self.nodes else self.policy.enough(n)
        missing = ", ".join(str(i) for i in clients if i not in self.link.nodes)
        if len(there) < enough:
            why = "".join(f"; a node was refused: {reason}" for reason in self.link.refusals)
            raise DeployError(
                f"{len(there)} of {n} clients connected within {patience:g} s, and {enough} are needed; missing:"
                f" {missing}{why}. Start their SuperNodes, or wait longer with --patience"
            )
        self.say(f"starting without client {missing}")

    def _greet(self, answer: Call) -> int:
        """Client number of a new node, from its handshake; raise DeployError if it cannot participate."""
        client, samples = answer.values.get("client"), answer.values.get("samples")
        if not is_count(samples) or not (client == 0 or is_count(client)) or client >= self.common.total:
            raise DeployError(f"it reports client {client!r:.40} with {samples!r:.40} samples")
        if warning := versions.check(answer.values.get("versions"), versions.versions()):
            self.say(f"client {client}: {warning}")
        self._samples[client] = samples
        self._roster.joined(client, samples)
        return client

    def _without(
        self, asked: set[int], absent: set[int], lost: ClientsLostError, losses: Counter[int]
    ) -> set[int]:
        """Clients without which a round is retried: the lost ones but, if too few of those ``asked`` are left, for
        those that reconnect.

        ``losses`` counts how often the round has lost each client. A client lost twice is given up: one that is too
        slow would reconnect late every time.
        """
        gone = set(lost.reasons)
        losses.update(gone)
        unable = gone & set(self.link.nodes)               # connected, but failed the call
        left, enough = asked - absent - gone, self.policy.enough(len(asked))
        back = {client for client in gone - unable if losses[client] == 1}
        if len(left) < enough and self.policy.patience and len(left | back) >= enough:
            self.say(f"round {lost.round}: waiting {self.policy.patience:g} s for clients to reconnect")
            self.link.gather(lambda there: len(left | (back & there)) >= enough, self.policy.patience)
            gone -= back & set(self.link.nodes)
        left = asked - absent - gone
        if len(left) < enough:
            raise DeployError(f"{lost}; {len(left)} of {len(asked)} clients are left, and the policy needs {enough}")
        return absent | gone


def _handles(state: Any) -> Iterator[Handle]:
    """Yield every handle in a state."""
    if isinstance(state, Kept):
        for row in state.rows.values():
            yield from (leaf for leaf in leaves(row) if isinstance(leaf, Handle))
    elif isinstance(state, tuple | Mapping):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from _handles(part)


def _note(path: Path, round: int, verb: str, exchange: Exchange) -> None:
    """Record the time of an exchange: at the slowest client, in transport, and in Flower."""
    slowest = max((sum(seconds.values()) for seconds in exchange.seconds), default=0.0)
    values = {what: max(seconds.get(what, 0.0) for seconds in exchange.seconds) for what in PARTS if exchange.seconds}
    values |= {"transport": exchange.transport, "wall": exchange.wall, "failed": float(len(exchange.failed))}
    values["flower"] = max(0.0, exchange.wall - exchange.transport - slowest)
    rows = RowWriter(path)
    try:
        for what, value in values.items():
            rows.add(round, f"exchange/{verb}", what, value)
        rows.flush()
        rows.sync()
    finally:
        rows.close()
