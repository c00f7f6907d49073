"""The central controller: sample a cohort, run a round, evaluate, record, checkpoint; and go on after an interruption.

A run continues bit for bit: everything random is a function of (seed, round, node), a checkpoint holds the algorithm's
state, the ledger and the length of the metrics file, and resuming cuts the metrics back to that length before it goes
on.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fedsim import checkpoint, evaluate
from fedsim.backends.blocks import Blocks
from fedsim.backends.loop import Loop
from fedsim.config import from_config, to_config
from fedsim.errors import CheckpointError, ConfigError, RunError, StateLostError
from fedsim.experiment import Experiment
from fedsim.host import Host, host_of
from fedsim.interrupt import terminate_as_interrupt
from fedsim.progress import RunProgress
from fedsim.record import RunDirectory, SeedRecord, create_run, open_run, write_atomic
from fedsim.rows import read_metrics
from fedsim.setup import Prepared, data_hash
from fedsim.state import flatten, restore
from fedsim.tune import choose
from fedsim.types import Kept
from fedsim.wire import Ledger

MOST_RETURNS = 10
"""Times that a run goes back to a checkpoint because machines died, before it gives up."""


def run(
    experiment: Experiment,
    *,
    output: Path | str | None = None,
    root: Path | str = Path("runs"),
    progress: bool = True,
    host: Host | None = None,
) -> RunDirectory:
    """Run an experiment with all its seeds in a new run directory.

    Args:
        experiment: what to run.
        output: exactly this directory, which must not exist; by default a new one below ``root``.
        root: folder of runs.
        progress: show a progress bar on stderr.
        host: where the clients are; in this process by default.

    Raises:
        ConfigError: the experiment cannot be set up, or a setting is refused before anything was measured (nothing is
            left behind).
        FedsimError: it failed in mid-run (resume from its last checkpoint).
        KeyboardInterrupt: after a checkpoint of the last completed round.
    """
    with host or host_of(experiment, progress) as there:
        return _run_new(experiment, None if output is None else Path(output), Path(root), progress, there)


def _run_new(experiment: Experiment, output: Path | None, root: Path, progress: bool, host: Host) -> RunDirectory:
    first = host.prepare(experiment, experiment.seed)  # before anything is written: a bad experiment leaves no trace
    manifest = {
        "seeds": experiment.seed_list,
        "device": str(first.federation.model.device),
        "threads": torch.get_num_threads(),
        "parameters": first.federation.model.d,
        "clients": first.partition.n,
        "data_hash": data_hash(first.dataset),
        "data_notes": first.dataset.notes,
        "partition_hash": {str(experiment.seed): first.partition.hash},
        "backend": {},
    }
    directory = create_run(root, experiment.title, to_config(experiment), manifest, output)
    try:
        _run_seeds(experiment, directory, experiment.seed_list, first, progress, host)
    except ConfigError:
        made = checkpoint.load_latest(directory.seed_path(experiment.seed) / "checkpoints")
        if made is None or made.round < experiment.evaluation.every:   # nothing was measured, and no resume would help
            shutil.rmtree(directory.path)
        raise
    return directory


def resume(
    path: Path | str, experiment: Experiment | None = None, *, progress: bool = True, host: Host | None = None
) -> RunDirectory:
    """Continue a run that was interrupted or failed, to the same final metrics as if it had not been.

    Args:
        path: the run directory.
        experiment: the experiment, where its ``config.yaml`` cannot express it (a model or data set given as a Python
            object).
        progress: show a progress bar on stderr.
        host: where the clients are; in this process by default.

    Raises:
        FedsimError: no run there, its data set has changed, no valid checkpoint, or the run failed again.
    """
    directory = open_run(Path(path))
    experiment = experiment or from_config(directory.config)
    status = directory.manifest["status"]
    todo = [seed for seed in experiment.seed_list if status.get(str(seed), {}).get("state") != "finished"]
    if not todo:
        return directory
    with host or host_of(experiment, progress) as there:
        first = there.prepare(experiment, todo[0])
        found, expected = data_hash(first.dataset), directory.manifest["data_hash"]
        if found != expected:
            raise RunError(
                f"{path} was run on data with hash {expected[:12]}, the data found now has {found[:12]}; restore the"
                " data files"
            )
        _run_seeds(experiment, directory, todo, first, progress, there)
    return directory


def _run_seeds(
    experiment: Experiment, directory: RunDirectory, todo: list[int], first: Prepared, progress: bool, host: Host
) -> None:
    with RunProgress(directory.path.name, experiment.rounds, progress) as bar, terminate_as_interrupt():
        for seed in todo:
            prepared = first if seed == todo[0] else host.prepare(experiment, seed)
            _note_partition(directory, seed, prepared)
            directory.mark(seed, "running")
            try:
                _Seed(experiment, directory, seed, prepared, bar, host).run()
            except KeyboardInterrupt:
                directory.mark(seed, "interrupted")
                raise KeyboardInterrupt(f"continue with: fedsim resume {directory.path}") from None
            except Exception as error:
                with contextlib.suppress(RunError):        # on a full disk the first error is the one to read
                    directory.mark(seed, "failed", f"{type(error).__name__}: {error}")
                raise
            directory.mark(seed, "finished")


def _note_partition(directory: RunDirectory, seed: int, prepared: Prepared) -> None:
    hashes = dict(directory.manifest["partition_hash"])
    if hashes.setdefault(str(seed), prepared.partition.hash) != prepared.partition.hash:
        raise RunError(
            f"seed {seed} of {directory.path} was partitioned with hash {hashes[str(seed)][:12]}, now it is"
            f" {prepared.partition.hash[:12]};"
            " run it with the versions that manifest.json names"
        )
    directory.update_manifest(partition_hash=hashes)


class _Seed:
    """One seed of a run in progress."""

    def __init__(
        self, experiment: Experiment, directory: RunDirectory, seed: int, prepared: Prepared, bar: RunProgress,
        host: Host,
    ) -> None:  # fmt: skip
        self.experiment, self.directory, self.seed, self.prepared, self.bar = experiment, directory, seed, prepared, bar
        self.federation, self.host = prepared.federation, host

    def run(self) -> None:
        """From the latest checkpoint, or from the beginning, to the last round."""
        x = self.federation.model.vector()                 # the initial model, before anything trains it
        with self.directory.open_seed(self.seed) as record:
            for attempt in count(1):
                try:
                    self._run(record, x)
                    break
                except StateLostError as lost:
                    if attempt == MOST_RETURNS:
                        raise
                    self.host.say(f"{lost}; going back to the last checkpoint")
            self._write_edges()

    def _run(self, record: SeedRecord, x: torch.Tensor) -> None:
        loaded = checkpoint.load_latest(record.checkpoints)
        algorithm, fed = self.experiment.method, self.federation
        backend = self._backend(loaded.meta["backend"] if loaded else None)
        fed.ledger.restore(Ledger(fed.shards.n).state())
        state = self.host.init(algorithm, x, fed, template=loaded is not None)
        if not hasattr(state, "x"):
            name = f"{type(algorithm).__name__}.init"
            raise ConfigError(f"{name} returned a {type(state).__name__}; expected a NamedTuple with the model as x")
        done = 0
        if loaded:
            state, done = self._restore(state, loaded), loaded.round
            record.truncate(loaded.meta["offset"], done)
        else:
            record.truncate(0, -1)
        before = read_metrics(record.timing.path).series("host", "seconds")
        clock = time.perf_counter() - max(before.values(), default=0.0)
        self.bar.start(self.seed, done)
        if loaded is None:                                 # a checkpoint of round 0 has its measurements
            self._evaluate(record, 0, state, clock)
        self._rounds(record, state, done, backend, clock)

    def _write_edges(self) -> None:
        """What travelled over every link, for methods in which nodes speak to each other."""
        edges = self.federation.ledger.edges()
        if len(edges):
            lines = [f"{by},{to},{size}\n" for by, to, size in edges.tolist()]
            write_atomic(self.directory.seed_path(self.seed) / "edges.csv", "".join(["from,to,bytes\n", *lines]))

    def _rounds(self, record: SeedRecord, state: Any, done: int, backend: dict[str, Any], clock: float) -> None:
        experiment, fed, method = self.experiment, self.federation, self.experiment.method
        offset, ledger = record.offset(), _copy(fed.ledger.state())

        def save() -> None:  # the last completed round, whatever came after it
            costs = {f"ledger.{name}": t for name, t in ledger.items()}
            meta = {"offset": offset, "backend": backend}
            checkpoint.save(record.checkpoints, done, {**flatten(state), **costs}, meta)
            self.host.saved(state)

        try:
            for round in range(done + 1, experiment.rounds + 1):
                ids = experiment.participation.cohort(self.seed, round, fed.shards.n)
                last = round == experiment.rounds
                due = fed.measure = last or round % experiment.evaluation.every == 0 or self._clients_due(round)
                new = self.host.round(method, state, fed, round, ids)
                for node in self.host.skipped:
                    record.timing.add(round, "round", "skipped", 1, node)
                if due:
                    self._evaluate(record, round, new, clock)
                else:
                    self.bar.update(round)
                state, done, ledger, offset = new, round, _copy(fed.ledger.state()), record.offset()
                if last or round % experiment.checkpoint_every == 0:
                    save()
        except (KeyboardInterrupt, Exception) as error:        # also a bug in an algorithm: what came before it is kept
            if not isinstance(error, CheckpointError | RunError):  # those two mean that the disk refuses
                save()
            raise

    def _clients_due(self, round: int) -> bool:
        every = self.experiment.evaluation.clients_every
        return round == self.experiment.rounds or bool(every and round % every == 0)

    def _evaluate(self, record: SeedRecord, round: int, state: Any, clock: float) -> None:
        seconds = time.perf_counter() - clock  # before the evaluation, which is not the algorithm's cost
        settings, due = self.experiment.evaluation, self._clients_due(round)
        if isinstance(state.x, Kept):
            there = self.host.present(state.x)
            rows = evaluate.gossip(self.prepared, self.host.score, state.x, round, settings, due, there)
        else:
            rows = evaluate.server(self.prepared, self.host.score, state.x, round)
            if due:
                rows += evaluate.clients(self.prepared, self.host.own_scores(self.prepared, state.x), settings)
        costs = evaluate.cost(self.prepared, due)
        for row in rows + costs:
            record.metrics.add(round, row.scope, row.metric, row.value, row.node)
        record.timing.add(round, "host", "seconds", seconds)
        values = {row.metric: row.value for row in rows if row.scope in ("server/test", "average/test")}
        self.bar.update(round, values.get("accuracy"), values["loss"], sum(row.value for row in costs[:2]) / 1e6)

    def _backend(self, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """Set the federation's backend: that of the host, or one of this process."""
        chosen = self.host.connect(self.experiment, self.prepared, self.directory, chosen) or self._here(chosen)
        self.directory.update_manifest(backend={**self.directory.manifest["backend"], str(self.seed): chosen})
        return chosen

    def _here(self, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """Set a backend of this process: as a checkpoint says, as asked for, or as measured."""
        fed, experiment = self.federation, self.experiment
        if chosen is None:
            ids = experiment.participation.cohort(self.seed, 1, fed.shards.n)
            if experiment.backend == "loop":
                chosen = {"backend": "loop", "reason": "asked for"}
            elif experiment.backend == "blocks" and experiment.block_size:
                chosen = {"backend": "blocks", "block_size": experiment.block_size, "reason": "asked for"}
            else:
                chosen = choose(fed, experiment.method, ids, blocks_only=experiment.backend == "blocks")
        if chosen["backend"] == "flower":
            raise RunError(
                f"{self.directory.path} was deployed, and its clients hold their own memories; continue with: fedsim"
                f" deploy --resume {self.directory.path}"
            )
        size = chosen.get("block_size", 0)                 # 0: one after the other
        fed.backend = Blocks(size) if size else Loop()
        return chosen

    def _restore(self, template: Any, loaded: checkpoint.Loaded) -> Any:
        ledger = self.federation.ledger
        try:
            ledger.restore({name: loaded.tensors[f"ledger.{name}"] for name in ledger.state()})
            return restore(template, loaded.tensors, self.federation.memory.put)
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint of round {loaded.round} in {self.directory.path} lacks {error}; it belongs to"
                " another algorithm or version"
            ) from error


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in tensors.items()}
