"""A run directory: the resolved config, the manifest and the metrics of every seed of one experiment.

    NAME/config.yaml                 the experiment, as plain YAML
    NAME/manifest.json               versions, git commit, platform, hashes, seeds, status of every seed
    NAME/seed-0/metrics.jsonl        metrics: the same bytes for a repeated or resumed run
    NAME/seed-0/partition.csv        samples of each client, of each class; of up to 100,000 clients
    NAME/seed-0/devices.npz          devices of the clients, of an experiment with a clock
    NAME/seed-0/timeline.csv         what each client does in the first rounds, of an experiment with a clock
    NAME/seed-0/timing.jsonl         machine-dependent rows: host seconds, skipped clients
    NAME/seed-0/edges.csv            bytes over each directed link of a finished run without a server
    NAME/seed-0/checkpoints/         see `fedsim.record.checkpoint`

POSIX only: advisory locks keep a second process out of a seed that is being written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from fedsim.checks import plain_name
from fedsim.errors import ConfigError, MissingRunError, RunError
from fedsim.record.columns import columns_hash, drop_columns, write_columns
from fedsim.record.covered import COVERED, DEVICES, digest_of, hashes_of
from fedsim.record.environment import environment
from fedsim.record.files import damaged, fits, lock, numbered, parse_yaml, read_mapping, sync, write_atomic
from fedsim.record.metrics import RowWriter
from fedsim.record.places import refusal

State = Literal["waiting", "running", "finished", "failed", "interrupted"]
SWEEP = "sweep.json"
"""File of a folder whose runs are the points of a sweep; see `fedsim.sweeps`."""
FORM: dict[Any, Any] = {
    "accepted": [{"metrics": {...: [str]}, "settings": [str]}],
    "code": {...: str},
    "backend": {...: {"backend": str, "block_size": int, "kernels": [str], "in_loop": dict, "eager": dict}},
    "data_hash": str, "graph_hash": str, "layers_hash": str,
    "device": str,
    "extended": [{"from": int, "to": int}],
    "more_seeds": [{"from": int, "to": int}],
    "larger_is_better": dict,
    "partition_hash": {...: str},
    "seeds": [int],
    "status": {...: {"state": str, "detail": str}},
    "stopped": {...: {"round": int, "reason": str}},
    "threads": int,
    "versions": {...: str},
}
"""Form of the entries that this version reads from ``manifest.json``; see `fedsim.record.files.fits`."""
NEEDED = {
    "status": ("state",), "extended": ("from", "to"), "more_seeds": ("from", "to"), "accepted": ("metrics",),
    "backend": ("backend",), "stopped": ("round", "reason"),
}  # fmt: skip
"""Names that have to be in every element of some of these lists and mappings."""
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""Errors of renaming a folder to a name that another process has taken."""


class SeedRecord:
    """The files of one seed, open for writing. A context manager, which flushes unless an error occurred.

    Write the rows of a round before its checkpoint, and store `position` in the checkpoint: a resumed run calls
    `truncate` with it, and then writes the same bytes as an uninterrupted run.

    Attributes:
        metrics: writer of reproducible rows.
        timing: writer of machine-dependent rows.
        checkpoints: directory for `fedsim.record.checkpoint`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.checkpoints = directory / "checkpoints"
        self.metrics = RowWriter(directory / "metrics.jsonl")
        self.timing = RowWriter(directory / "timing.jsonl")
        self._columns, self._devices = columns_hash(directory), digest_of(directory / DEVICES)

    def add(self, round: int, rows: Iterable[tuple[str, int | None, str, float]], apart: bool) -> None:
        """Add metrics of a round, as rows of scope, client, metric and value.

        Values of single clients are written to a separate file of columns if ``apart``.
        """
        rows = list(rows)
        if apart:
            of_clients = [(at, i, name, v) for at, i, name, v in rows if i is not None]
            write_columns(self.directory, round, of_clients, self._columns)
        for scope, node, metric, value in rows:
            if node is None or not apart:
                self.metrics.add(round, scope, metric, value, node)

    def flush(self) -> None:
        """Write both files; call it once a round.

        Raises:
            RunError: writing failed; names the last safe round, and how to continue.
        """
        try:
            self.metrics.flush()
            self.timing.flush()
        except RunError as error:
            raise RunError(f"{error}. Free some space, then: fedsim resume {self.directory.parent}") from error

    def sync(self) -> None:
        """Wait until all rows are on disk. Call this before a checkpoint is written, as it refers to them.

        Raises:
            RunError: the system could not write it.
        """
        self.metrics.sync()
        self.timing.sync()

    def position(self) -> dict[str, Any]:
        """Flush, and return the size of ``metrics.jsonl`` and the hashes of all metrics, for a checkpoint."""
        self.flush()
        others = {"columns_sha256": self._columns.hexdigest(), "devices_sha256": self._devices}
        return {"offset": self.metrics.size, "metrics_sha256": self.metrics.digest(), **others}

    def changed(self, meta: Mapping[str, Any], round: int) -> dict[str, str]:
        """Files that have changed since the checkpoint of a round was made, with their present hashes.

        Earlier versions recorded fewer hashes.
        """
        offset = meta["offset"]
        found = {
            "metrics_sha256": self.metrics.digest(offset) if self.metrics.ends_at(offset) else "",
            **hashes_of(self.directory, round),
        }
        return {COVERED[name]: found[name] for name in COVERED if meta.get(name, found[name]) != found[name]}

    def misfit(
        self, meta: Mapping[str, Any], round: int, accepted: Collection[str] = (), apart_from: Collection[str] = ()
    ) -> str | None:
        """Why the checkpoint of a round does not fit the files; None if it does.

        Args:
            meta: the ``meta`` of the checkpoint.
            round: its round.
            accepted: hashes that count like the recorded ones.
            apart_from: names of files that are not checked.
        """
        offset, size = meta["offset"], self.metrics.size
        if not self.metrics.ends_at(offset):
            return f"no row of metrics.jsonl, now {size:,} bytes, ends at {offset:,}, where it was made; restore it"
        changed = [
            name
            for name, digest in self.changed(meta, round).items()
            if digest not in accepted and name not in apart_from
        ]
        if not changed:
            return None
        return (
            f"{changed[0]} was changed after it was made; restore the file, or continue with it as it is: fedsim resume"
            f" {self.directory.parent} --accept-changes"
        )

    def keep_devices(self, content: bytes) -> None:
        """Write the devices of the clients, which are drawn once."""
        write_atomic(self.directory / DEVICES, content)
        self._devices = digest_of(self.directory / DEVICES)

    def truncate(self, offset: int, round: int) -> None:
        """Go back to the checkpoint of ``round`` that was made at ``offset``; ``(0, -1)`` empties the record.

        Raises:
            RunError: the metrics have been modified since.
        """
        self.metrics.truncate(offset)
        drop_columns(self.directory, after=round)
        self._columns = columns_hash(self.directory)
        self.timing.truncate_after(round)  # its size is machine-dependent; a checkpoint must not be

    def shorten(self, round: int, kept: Callable[[str, int | None], bool]) -> None:
        """Remove the metrics of later rounds, and those of ``round`` of which ``kept(scope, node)`` is False.

        The file is replaced at once, so that this can be repeated after a kill.
        """
        drop_columns(self.directory, after=round if kept("", 0) else round - 1)
        self._columns = columns_hash(self.directory)
        path, lines = self.metrics.path, []
        for line in path.read_bytes().splitlines(keepends=True):
            row = json.loads(line)
            if row["round"] < round or (row["round"] == round and kept(row["scope"], row["node"])):
                lines.append(line)
        self.metrics.close()                               # the lock on the timing file keeps others out
        write_atomic(path, b"".join(lines))
        self.metrics = RowWriter(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
                self.sync()
        finally:
            self.metrics.close()
            self.timing.close()


@dataclass(frozen=True)
class RunDirectory:
    """One experiment on disk.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved experiment.

        Raises:
            RunError: the file is damaged; see `read_mapping`.
        """
        path = self.path / "config.yaml"
        config = read_mapping(path, parse_yaml)
        if not isinstance(found := config.get("execution", {}), dict):
            raise damaged(path, f"execution is {found!r:.80}")
        return config

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, hashes, seeds and status, as last written.

        Raises:
            RunError: the file is damaged; see `read_mapping`.
        """
        path = self.path / "manifest.json"
        manifest = read_mapping(path, json.loads, ("status", "versions"))
        if wrong := [name for name, value in manifest.items() if name in FORM and not _is_whole(name, value)]:
            raise damaged(path, f"{wrong[0]} is {json.dumps(manifest[wrong[0]]):.80}")
        return manifest

    def seed_path(self, seed: int) -> Path:
        """Directory of one seed."""
        return self.path / f"seed-{seed}"

    def open_seed(self, seed: int) -> SeedRecord:
        """Open the files of one seed for appending.

        Raises:
            BusyError: another process is writing them.
        """
        return SeedRecord(self.seed_path(seed))

    def update_manifest(self, **entries: Any) -> None:
        """Replace entries of the manifest, atomically."""
        with self._edit_manifest() as manifest:
            manifest.update(entries)

    def mark(self, seed: int, state: State, detail: str = "") -> None:
        """Set the status of one seed; ``detail`` is, for example, its error."""
        with self._edit_manifest() as manifest:
            manifest["status"][str(seed)] = {"state": state, "detail": detail}

    @contextlib.contextmanager
    def _edit_manifest(self) -> Iterator[dict[str, Any]]:
        """Edit the manifest under a lock, since seeds may run in separate processes."""
        try:
            with lock(self.path):
                manifest = self.manifest
                yield manifest
                write_atomic(self.path / "manifest.json", _json(manifest))
        except OSError as error:
            raise RunError(f"cannot update {self.path / 'manifest.json'}: {error.strerror}; it is unchanged") from error


def create_run(
    root: Path, name: str, config: Mapping[str, Any], manifest: Mapping[str, Any], output: Path | None = None
) -> RunDirectory:
    """Create ``root/name``, or ``name-2``, ``name-3``, ... if it exists; it appears with all its files, or not at all.

    Args:
        root: folder of runs, created if missing.
        name: name of the experiment, one path component.
        config: the resolved experiment; plain YAML values only.
        manifest: seeds, device, backend, ``data_hash``, ``partition_hash``; `environment` is added to it.
        output: path to create instead.

    Raises:
        ConfigError: the name is not a directory name, or ``output`` exists.
        PlaceError: no run can be made there.
        RunError: the config is not plain, or it cannot be written.
    """
    plain_name(name)
    try:
        config_text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise RunError(f"the config holds a value that YAML cannot hold: {error}; make it a plain value") from error
    status = {str(seed): {"state": "waiting", "detail": ""} for seed in manifest.get("seeds", ())}
    files = {"config.yaml": config_text, "manifest.json": _json({**environment(), **manifest, "status": status})}
    try:
        for target in numbered(root, name) if output is None else (output,):
            if _create(target, files):
                return RunDirectory(target)
    except OSError as error:
        raise refusal(output or root / name, error, f"choose another --{'output' if output else 'root'}") from error
    raise ConfigError(f"{output} exists; a run never overwrites another. Choose another --output, or remove it first")


def _create(target: Path, files: Mapping[str, str]) -> bool:
    """Make the directory with its files in one rename, which fails if another process was first."""
    if target.exists():
        return False
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        for name, text in files.items():
            write_atomic(temporary / name, text)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary)
        if error.errno in TAKEN:
            return False
        raise
    sync(target.parent)
    return True


def open_run(path: Path) -> RunDirectory:
    """Open an existing run.

    Raises:
        RunError: the path is not a run directory.
    """
    for name in ("config.yaml", "manifest.json"):
        if not (path / name).is_file():
            raise MissingRunError(f"{path} is not a run: {name} is missing; expected a directory made by `fedsim run`")
    return RunDirectory(path)


def stopped_after(manifest: Mapping[str, Any], seed: int) -> int | None:
    """The round after which a seed stopped by the criterion of its experiment; None if it did not."""
    found: int | None = manifest.get("stopped", {}).get(str(seed), {}).get("round")
    return found


def describe_stops(manifest: Mapping[str, Any]) -> str:
    """Say which seeds were stopped by the criterion of their experiment, when and why; empty if none was."""
    stopped = manifest.get("stopped", {})
    return "; ".join(f"seed {seed} after round {stop['round']}, as {stop['reason']}" for seed, stop in stopped.items())


def _is_whole(name: str, value: Any) -> bool:
    """Whether an entry of the manifest has the form in which fedsim writes it."""
    if not fits(value, FORM[name]):
        return False
    if name == "status" and not all(seed.isdecimal() for seed in value):
        return False
    if name == "versions":
        return "fedsim" in value
    entries = value.values() if isinstance(value, dict) else value
    return all(needed in entry for needed in NEEDED.get(name, ()) for entry in entries)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
