"""The rounds of one seed: sample a cohort, run a round, evaluate, record, checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np

from fedsim.algorithm import Algorithm, has_server
from fedsim.clock.barrier import Barrier
from fedsim.clock.devices import Devices, read_devices
from fedsim.clock.lazy import LazyClock
from fedsim.clock.virtual import VirtualClock
from fedsim.clock.waiting import Waiting
from fedsim.controller import evaluate
from fedsim.controller.asynchronous import Driver
from fedsim.controller.changes import misfit
from fedsim.controller.checkpoints import Checkpoints
from fedsim.controller.extend import was_end
from fedsim.controller.host import Host
from fedsim.controller.in_process import backend_of, requested
from fedsim.controller.keeping import method_of
from fedsim.controller.meetings import Meetings
from fedsim.controller.personal import rows_of_models
from fedsim.controller.prepare import Prepared
from fedsim.controller.progress import RunProgress
from fedsim.controller.scaling import growth, unscaled
from fedsim.controller.selection import Selection
from fedsim.controller.stopping import Criterion
from fedsim.controller.stopwatch import Stopwatch
from fedsim.controller.watching import RoundView, Watchers
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.purity import pure
from fedsim.errors import CheckpointError, FedsimError, RoundSkipped, RunError, StateLostError, explained, many
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.identity import settings_hash
from fedsim.gossip import alike
from fedsim.messages.ledger import EDGES, table_of
from fedsim.record import checkpoint
from fedsim.record.absences import Absence, absent, summary
from fedsim.record.covered import DEVICES
from fedsim.record.directory import RunDirectory, SeedRecord, stopped_after
from fedsim.record.files import write_atomic
from fedsim.record.metrics import read_metrics
from fedsim.record.state import check
from fedsim.record.timeline import Timeline
from fedsim.types import Kept
from fedsim.values import Vector

MOST_ATTEMPTS = 10
"""Attempts at a seed, each from its last checkpoint, before lost machines end the run."""


class SeedRun:
    """One seed of a run in progress.

    Attributes:
        prepared, federation: those of the seed, with the backend once it is connected.
        clock: simulated seconds; None for an experiment without a clock.
        barrier: who is waited for; None for everybody.
        timeline: what each client does by the clock.
        method: the algorithm to run.
        selection: the cohorts, of the present attempt; so are `meter` and `checkpoints`.
    """

    method: Algorithm[Any]
    selection: Selection
    checkpoints: Checkpoints

    def __init__(
        self, experiment: Experiment, directory: RunDirectory, seed: int, prepared: Prepared, bar: RunProgress,
        host: Host, watchers: Watchers,
    ) -> None:  # fmt: skip
        self.experiment, self.directory, self.seed, self.prepared, self.bar = experiment, directory, seed, prepared, bar
        self.host, self.watchers = host, watchers
        self.federation, self.meter = prepared.federation, Meter(prepared.federation)
        self.clock: LazyClock | Driver | None = None
        self.barrier: Barrier | None = None
        self.timeline: Timeline | None = None
        self._name = type(experiment.algorithm).__name__
        self._metrics = {metric.name for metric in experiment.measures}
        self._last = experiment.rounds                     # number of the last round, which a criterion may lower
        self._measured: dict[tuple[str, str], float] = {}  # in this round
        self._first_loss: float | None = None              # test loss of the initial model, if it was measured here
        self._stopwatch = Stopwatch()

    def run(self) -> None:
        """Run from the latest checkpoint, or from the beginning, to the last round."""
        x = self.federation.model.shared()                 # the initial model, before anything trains it
        with self.directory.open_seed(self.seed) as record:
            devices = self._devices(record)
            for attempt in count(1):
                try:
                    self._attempt(record, x, devices)
                    break
                except StateLostError as lost:
                    if attempt == MOST_ATTEMPTS:
                        raise
                    self.host.say(f"{lost}; going back to the last checkpoint")
            self._write_edges()
            self._report_absences(record)

    def _devices(self, record: SeedRecord) -> Devices | None:
        """The devices with which the seed began, from the run directory; they are drawn once."""
        path, drawn = record.directory / DEVICES, self.prepared.devices
        if drawn is not None and path.exists():
            return read_devices(path)
        if drawn is not None:
            record.keep_devices(drawn.to_bytes())
        return drawn

    def _write_edges(self) -> None:
        """Write the bytes sent over each link, for methods whose nodes communicate directly."""
        if text := table_of(self.meter.ledger.edges()):
            write_atomic(self.directory.seed_path(self.seed) / EDGES, text)

    def _report_absences(self, record: SeedRecord) -> None:
        if missing := absent(read_metrics(record.timing.path)):       # including rounds before a resume
            self.host.say(f"seed {self.seed}: {summary(missing, self._last)}")
        if self.barrier is not None and self.barrier.clock.skipped:
            skipped = f"{many(self.barrier.clock.skipped, 'round')} of {self._last}"
            self.host.say(f"seed {self.seed}: {skipped} had too few messages for a step, see waiting")

    def _attempt(self, record: SeedRecord, x: Vector, devices: Devices | None) -> None:
        """Run from the latest checkpoint, or from the initial model ``x``, until the seed ends or machines are lost."""
        loaded = checkpoint.load_latest(
            record.checkpoints, misfit(self.directory, self.seed, record, self._extended_from)
        )
        backend = self._connect(loaded.meta["backend"] if loaded else None)
        self.meter, self.method = Meter(self.federation), method_of(self.experiment, self.federation.model)
        self._set_clock(record, devices, loaded)
        meta = {"settings_sha256": settings_hash(self.directory.config), "backend": backend}
        self.checkpoints = Checkpoints(record, self.meter.ledger, self.selection, self.clock, meta)
        state, done, extended = self._initial(x, loaded), 0, False
        if loaded:
            state = self.checkpoints.restore(loaded, state, self.federation.memory.put_rows, self.directory.path)
            done, extended = loaded.round, self._extended_from(loaded.round)
            if extended:
                record.shorten(done, self._kept(done))
            record.truncate(record.metrics.size if extended else loaded.meta["offset"], done)
        else:
            record.truncate(0, -1)
        self._criterion = Criterion(self.experiment, read_metrics(record.metrics.path))
        self._absence = Absence(self.host.say)
        before = read_metrics(record.timing.path).series("host", "seconds")
        self._stopwatch = Stopwatch(max(before.values(), default=0.0))
        self.bar.start(self.seed, done)
        if loaded is None:                                 # otherwise round 0 has been evaluated already
            self._evaluate(record, 0, state)
            self._tell(record, 0, state)
        if done != stopped_after(self.directory.manifest, self.seed):
            self._rounds(record, state, done, extended)

    def _extended_from(self, round: int) -> bool:
        return round < self.experiment.rounds and was_end(self.directory.manifest, round)

    def _set_clock(self, record: SeedRecord, devices: Devices | None, loaded: checkpoint.Loaded | None) -> None:
        """Set what depends on simulated time: clock, timeline, barrier, and the sampling that may look at them."""
        concurrency, waiting = self.experiment.concurrency, self.experiment.waiting
        times = VirtualClock(devices) if devices is not None and concurrency is None else None
        if times is not None and waiting != Waiting():
            self.barrier = Barrier(waiting, times, self.seed)
        sampling = self.experiment.participation
        self.selection = Selection(sampling, self.prepared, self.meter, times, self.barrier, self.host)
        if devices is None:
            return
        self.meter.trace = []
        self.timeline = Timeline(record.directory / "timeline.csv", loaded.round if loaded else -1)
        if times is not None:
            self.clock = LazyClock(times, lazy=not self.selection.looks_at_clock)
        elif concurrency is not None:
            driver = Driver if has_server(self.method) else Meetings
            self.clock = driver(self.method, self.federation, self.meter, devices, concurrency, self.host)

    def _initial(self, x: Vector, loaded: checkpoint.Loaded | None) -> Any:
        """The state before round 1; with a checkpoint, a template of its layout."""
        if self.clock is not None and loaded is None:      # otherwise the timeline has the initialisation already
            self.clock.timeline = self.timeline
        name = f"{self._name}.init"
        with pure(name, x), explained(name):
            state = self.host.init(self.method, x, self.federation, self.meter, template=loaded is not None)
        check(name, state, server=has_server(self.method))
        self._tick(0)
        if self.clock is not None:
            self.clock.timeline = self.timeline
        return state

    def _tick(self, round: int) -> None:
        """Let the clock, if there is one, follow what happened in a round."""
        if isinstance(self.clock, LazyClock) and self.meter.trace is not None:
            self.clock.advance(self.meter.trace, round)
            self.meter.trace.clear()

    def _simulated(self) -> dict[str, float]:
        """What the clock says, by metric."""
        if self.clock is None:
            return {}
        if self.barrier is None:
            return {"seconds": self.clock.now}
        return {"seconds": self.clock.now, "late": self.barrier.clock.late, "skipped": self.barrier.clock.skipped}

    def _rounds(self, record: SeedRecord, state: Any, done: int, extended: bool) -> None:
        """Run the rounds after ``done``, and leave a checkpoint of the last completed one whatever happens."""
        self.checkpoints.note(done, state)
        try:
            if extended:                                   # as it is before more rounds, with another offset
                self._save()
            for round in range(done + 1, self.experiment.rounds + 1):
                due = round == self._last or self.experiment.evaluation.due(round)
                new = self._round(record, state, round, due)
                if due:
                    new = self._evaluate(record, round, new, state if "update_norm" in self._metrics else None)
                else:
                    self._measured = {}
                    self.bar.update(round)
                state = new
                self.checkpoints.note(round, state)
                if round == self._last or round % self.experiment.execution.checkpoint_every == 0:
                    self._save()
                self._tell(record, round, state)
                if round == self._last:
                    break
        except StateLostError:                             # the state that a checkpoint would save is lost too
            raise
        except (CheckpointError, RunError):                # the disk may be full
            with contextlib.suppress(FedsimError):
                self._save()
            raise
        except (KeyboardInterrupt, Exception):             # also a bug in an algorithm: keep the rounds before it
            self._save()
            raise

    def _save(self) -> None:
        """Write a checkpoint of the last completed round."""
        with self._stopwatch.paused():
            if self.timeline is not None:
                self.timeline.write()
            self.checkpoints.save()
            self.host.saved(self.checkpoints.completed.state)

    def _round(self, record: SeedRecord, state: Any, round: int, due: bool) -> Any:
        """Run a round with a cohort, and return the new state; ``due`` says whether it will be evaluated."""
        ids = self.selection.cohort(round, state)
        self.meter.measures = due and alike(self.federation.p)
        self.meter.follows_drift, self.meter.drift = due and "drift" in self._metrics, None
        name = f"{self._name}.round"
        with pure(name, state), explained(f"{name} in round {round}"):
            new, counted = self._step(self.method, state, round, ids)
        check(name, new, state)
        if round == self._last:
            new = self._finished(new, round)
        self._tick(round)
        self.selection.follow(round, state, counted)
        self._absence.note(round, ids.tolist(), self.host.skipped)
        for node in self.host.skipped:
            record.timing.add(round, "round", "skipped", 1, node)
        return new

    def _step(self, method: Any, state: Any, round: int, ids: np.ndarray) -> tuple[Any, np.ndarray]:
        """The state after a round and the clients whose messages counted, or the state after a server step."""
        if isinstance(self.clock, Driver):
            return self.clock.step(state), ids[:0]
        if self.barrier is not None:
            self.barrier.cohort, self.meter.barrier = ids, self.barrier
        try:
            new = self.host.round(method, state, self.federation, self.meter, round, ids)
            gone = np.flatnonzero(self.meter.gone) if self.meter.gone is not None else ids[:0]
            return new, np.setdiff1d(ids, [*gone, *self.host.skipped]) if len(gone) or self.host.skipped else ids
        except RoundSkipped:
            return state, ids[:0]
        finally:
            self.meter.barrier = self.meter.gone = None

    def _finished(self, state: Any, round: int) -> Any:
        """The state after the last round, with what the method still has under way."""
        name = f"{self._name}.finish"
        with pure(name, state), explained(name):
            ended = self.host.finish(self.method, state, self.federation, self.meter, round)
        check(name, ended, state)
        return ended

    def _clients_due(self, round: int) -> bool:
        settings = self.experiment.evaluation
        return settings.clients_due(round) or (round == self._last and settings.clients_every is not None)

    def _kept(self, round: int) -> Callable[[str, int | None], bool]:
        """Whether a row of this round, by scope and node, stays when the round is no longer the last one."""
        due, clients = self.experiment.evaluation.due(round), self._clients_due(round)
        return lambda scope, node: due and (clients or not evaluate.of_clients(scope, node))

    def _evaluate(self, record: SeedRecord, round: int, state: Any, before: Any = None) -> Any:
        """Measure and record a round, and return its state: after the last one, perhaps this, that of `_finished`."""
        record.timing.add(round, "host", "seconds", self._stopwatch.seconds)
        with self._stopwatch.paused():
            rows = self._measure(round, state, before)
        if why := self._criterion.reason(round, rows):
            self._note_stop(round, why)
            if round != self._last:                        # from here on, it is
                self._last = round
                state = self._finished(state, round)
                self._tick(round)
                with self._stopwatch.paused():
                    rows = self._measure(round, state, before)
        self._measured = {(row.scope, row.metric): row.value for row in rows if row.node is None}
        record.add(round, rows, apart=self.federation.shards.n > evaluate.MANY)
        values = {row.metric: row.value for row in rows if row.scope in ("server/test", "average/test")}
        if round == 0:
            self._first_loss = values["loss"]
        elif why := growth(self._first_loss, values["loss"], round):
            cause = unscaled(self.experiment, self.prepared.dataset)
            self.host.say(f"seed {self.seed}: {why}{cause and '; '}{cause}")
            self._first_loss = None                        # once is enough
        sent = self._measured["total", "bytes_down"] + self._measured["total", "bytes_up"]
        self.bar.update(round, values.get("accuracy"), values["loss"], sent)
        return state

    def _tell(self, record: SeedRecord, round: int, state: Any) -> None:
        """Show a round to those who watch the run."""
        record.flush()
        seen = MappingProxyType(self._measured)
        with self._stopwatch.paused():
            last = round == self._last
            self.watchers.tell(RoundView(self.directory, self.seed, round, last, seen, self.prepared, state))

    def _measure(self, round: int, state: Any, before: Any) -> list[evaluate.Row]:
        settings, due = self.experiment.evaluation, self._clients_due(round)
        nodes = evaluate.scored(self.prepared, settings) if due else np.zeros(0, np.int64)
        if isinstance(state.x, Kept):
            there = self.host.present(state.x)
            rows = evaluate.gossip(self.prepared, self.meter, self.host.score, state.x, round, settings, nodes, there)
        else:
            x = self.federation.model.whole(state.x)
            rows = evaluate.server(self.prepared, self.host.score, x, round)
            if due:
                rows += evaluate.clients(self.prepared, self.host.own_scores(self.prepared, x, nodes), settings)
                rows += rows_of_models(self.experiment, self.prepared, state, self.host.model_scores)
            rows += evaluate.updates(self.meter, state.x, None if before is None else before.x)
        return rows + evaluate.cost(self.meter.ledger, nodes, self._simulated())

    def _note_stop(self, round: int, reason: str) -> None:
        """Write down why the seed ends with this round, and say so."""
        known = self.directory.manifest.get("stopped", {})
        self.directory.update_manifest(stopped={**known, str(self.seed): {"round": round, "reason": reason}})
        self.host.say(f"seed {self.seed} stops after round {round} of {self.experiment.rounds}: {reason}")

    def _connect(self, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """Set the federation's backend: that of the host, or one in this process. All seeds share that of the first."""
        known = self.directory.manifest["backend"]
        chosen = chosen or next(iter(known.values()), None)
        connected = self.host.connect(self.experiment, self.prepared, self.directory, chosen)
        self.federation, chosen = connected or self._here(chosen)
        self.prepared = replace(self.prepared, federation=self.federation)
        self._note_backend(chosen)
        return chosen

    def _note_backend(self, chosen: dict[str, Any]) -> None:
        known = self.directory.manifest["backend"]
        self.directory.update_manifest(backend={**known, str(self.seed): chosen})

    def _here(self, chosen: dict[str, Any] | None) -> tuple[Federation, dict[str, Any]]:
        """The federation with a backend in this process: as recorded, as requested, or as measured."""
        if chosen is None:
            chosen = requested(self.experiment, self.federation, self.seed, self.host.say)
        if chosen["backend"] == "flower":
            raise RunError(
                f"{self.directory.path} was deployed, and its clients hold their own memories; continue with: fedsim"
                f" deploy --resume {self.directory.path}"
            )

        def note(text: str) -> None:
            self.host.say(text)
            self._note_backend(chosen)

        backend = backend_of(chosen, note, may_fall=self.experiment.execution.backend == "auto")
        return replace(self.federation, backend=backend), chosen
