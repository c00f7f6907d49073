"""Verify that a run directory is complete and consistent: hashes, order of rows, gaps, seeds. Nothing is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.arrays import distinct
from fedsim.clock.devices import read_devices
from fedsim.errors import FedsimError, many
from fedsim.experiment.identity import edited, hashes_of_checkpoints, settings_hash
from fedsim.messages.ledger import EDGES, edges_of, table_of
from fedsim.record import checkpoint
from fedsim.record.covered import COVERED, DEVICES, hashes_of
from fedsim.record.directory import RunDirectory, open_run, stopped_after
from fedsim.record.metrics import READ_BYTES, read_lines, read_metrics
from fedsim.record.rows import MetricRows
from fedsim.record.timeline import read_timeline


def remaining(path: Path) -> list[str]:
    """What a run without faults lacks to be complete: a sentence for each seed that has not finished."""
    directory, found = open_run(path), []
    for seed, status in directory.manifest["status"].items():
        if status["state"] != "finished":
            rows = directory.seed_path(int(seed)) / "metrics.jsonl"
            last = int(read_metrics(rows).round.max(initial=-1)) if rows.exists() else -1
            after = f"after round {last} of {directory.config.get('rounds')}" if last >= 0 else "before its first round"
            found.append(f"{path} is unfinished: seed {seed} is {status['state']}, {after}; what is there is unchanged")
    return found


def verify(path: Path) -> list[str]:
    """Faults of a run directory, each in a sentence that names the file; none if its files are as they were written.
    See `remaining` for a run that has not finished.
    """
    try:
        directory = open_run(path)
        config, manifest = directory.config, directory.manifest
    except FedsimError as error:
        return [str(error)]
    faults = list(_of_settings(directory, config, manifest))
    faults += of_seeds(directory, map(int, manifest["status"]))
    kept = {f"seed-{seed}" for seed in manifest["status"]}
    strange = sorted(folder.name for folder in path.glob("seed-*") if folder.name not in kept)
    return faults + [f"{path / name} is of no seed in manifest.json" for name in strange]


def of_seeds(directory: RunDirectory, seeds: Iterable[int]) -> Iterator[str]:
    """Faults of the files of these seeds."""
    config, manifest = directory.config, directory.manifest
    known = {"checkpoints": _known(config, manifest), "clients": manifest.get("clients")}
    for seed in seeds:
        rounds = stopped_after(manifest, seed) or config.get("rounds")
        accepted = {d for entry in manifest.get("accepted", []) for d in entry["metrics"].get(str(seed), [])}
        settings = {**config, **known, "rounds": rounds, "accepted": accepted}
        yield from _of_seed(directory, settings, seed, manifest["status"][str(seed)]["state"])


def _known(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> set[str] | None:
    """Hashes of settings that checkpoints may have; None if settings cannot be hashed, which is a fault by itself."""
    try:
        return hashes_of_checkpoints(config, manifest)
    except FedsimError:
        return None


def _of_settings(directory: RunDirectory, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    place = directory.path / "config.yaml"
    try:
        found = settings_hash(config)
    except FedsimError as error:
        yield f"{place}: {error}"
        return
    expected = manifest.get("settings_hash")
    if expected is not None and edited(config, manifest):
        yield f"{place} has other settings than the run began with (hash {found[:12]}, expected {expected[:12]})"
    if expected is not None and not isinstance(config.get("rounds"), int):
        yield f"{place}: rounds is {config.get('rounds')!r}"
    if [str(seed) for seed in manifest.get("seeds", [])] != list(manifest["status"]):
        yield f"{directory.path / 'manifest.json'} lists other seeds than it has states for"
    for seed, status in manifest["status"].items():
        if status["state"] == "finished" and seed not in manifest.get("partition_hash", {}):
            yield f"{directory.path / 'manifest.json'} has no hash of the partition of seed {seed}"


def _of_seed(directory: RunDirectory, config: Mapping[str, Any], seed: int, state: str) -> Iterator[str]:
    folder = directory.seed_path(seed)
    if not folder.is_dir():
        if state in ("running", "finished"):
            yield f"{folder} is missing, and seed {seed} is {state}"
        return
    read = None
    try:
        read = read_lines(folder / "metrics.jsonl")
    except FedsimError as error:
        yield str(error)
    others = (
        ("timing.jsonl", read_metrics), (DEVICES, read_devices), ("timeline.csv", read_timeline),
        ("exchanges.jsonl", read_metrics),
    )  # fmt: skip
    for name, read_other in others:
        if name == "timing.jsonl" or (folder / name).exists():
            try:
                read_other(folder / name)
            except FedsimError as error:
                yield str(error)
    if read is not None:
        yield from _of_rows(folder / "metrics.jsonl", *read, config, state)
        yield from _of_checkpoints(folder, config, state)


def _of_rows(path: Path, rows: MetricRows, lines: int, config: Mapping[str, Any], state: str) -> Iterator[str]:
    """Faults in the order of rounds, repeated rows, and rounds without rows that were due for evaluation."""
    if np.any(np.diff(rows.round[:lines]) < 0):            # without columns, which are by metric
        yield f"{path}: rounds are out of order"
    names = np.stack([rows.round, rows.node, rows.key])
    names = names[:, np.lexsort(names)]
    if twice := int((names[:, 1:] == names[:, :-1]).all(0).sum()):
        yield f"{path}: {many(twice, 'row')} repeated"
    evaluation, rounds = config.get("evaluation"), config.get("rounds")
    if not len(rows.round) or not isinstance(evaluation, Mapping) or not isinstance(rounds, int):
        return
    every, found = evaluation.get("every", 1), set(distinct(rows.round).tolist())
    done = rounds if state == "finished" else max(found)
    due = {*range(0, done + 1, every if isinstance(every, int) and every > 0 else 1), *({rounds} & {done})}
    if missing := sorted(due - found):
        others = f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
        yield f"{path}: no row of round {missing[0]}, which was due{others}"


def _of_checkpoints(folder: Path, config: Mapping[str, Any], state: str) -> Iterator[str]:
    metrics, newest = folder / "metrics.jsonl", True
    size = metrics.stat().st_size
    for path, found in checkpoint.each(folder / "checkpoints"):
        if isinstance(found, Exception):
            yield f"{path}: {found}"
            newest = False
            continue
        offset, expected, known = found.meta["offset"], found.meta.get("metrics_sha256"), config["checkpoints"]
        if known is not None and found.meta.get("settings_sha256", min(known)) not in known:
            yield f"{path} was made with other settings than config.yaml has"
        for name, digest in hashes_of(folder, found.round).items():
            if found.meta.get(name, digest) != digest and digest not in config["accepted"]:
                yield f"{folder / COVERED[name]} was changed after the checkpoint of round {found.round}"
        if newest and state == "finished":
            yield from _of_edges(folder / EDGES, found.tensors, config["clients"])
        if size < offset:
            yield f"{metrics} has {size:,} bytes, and had {offset:,} at the checkpoint of round {found.round}"
        elif expected is not None and _digest(metrics, offset) not in (expected, *config["accepted"]):
            yield f"{metrics} was changed after the checkpoint of round {found.round}"
        elif newest and state == "finished" and (size, found.round) != (offset, config.get("rounds")):
            yield f"{metrics} has {size:,} bytes, and {offset:,} at the last checkpoint, of round {found.round}"
        newest = False
    if newest and state == "finished":
        yield f"{folder / 'checkpoints'} has no checkpoint, and the seed is finished"


def _of_edges(path: Path, tensors: Mapping[str, Any], n: Any) -> Iterator[str]:
    """Whether the bytes of links are those of the last checkpoint."""
    if isinstance(n, int) and {"ledger.links", "ledger.link_bytes"} <= tensors.keys():
        links, link_bytes = (tensors[f"ledger.{name}"].numpy() for name in ("links", "link_bytes"))
        expected = table_of(edges_of(links, link_bytes, n))
        if (path.read_bytes() if path.exists() else b"") != expected.encode():
            yield f"{path} has other bytes of links than the last checkpoint" if path.exists() else f"{path} is missing"


def _digest(path: Path, size: int) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(min(READ_BYTES, size)):
            sha256.update(data)
            size -= len(data)
    return sha256.hexdigest()
