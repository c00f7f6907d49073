"""Attackers of a run: who they are, what they do to their data, and whether the rule has enough rows."""

from __future__ import annotations

import numpy as np
import torch

from fedsim import seeds
from fedsim.algorithm import has_server
from fedsim.data import Split
from fedsim.engine.local_work import Shards
from fedsim.errors import ConfigError, many
from fedsim.experiment.asynchronous import buffer_of
from fedsim.experiment.experiment import Experiment
from fedsim.gossip import mixing_matrix
from fedsim.robust.attack import Attack
from fedsim.robust.poisoning import Backdoor
from fedsim.robust.robust import innermost
from fedsim.robust.rule import RobustRule, check, name_of, tolerated

LOOKED_AT = 1000
"""Rounds whose cohorts are searched for attackers."""


def attackers(experiment: Experiment, seed: int, sizes: np.ndarray) -> tuple[list[int], list[str]]:
    """Byzantine clients of one seed, and remarks on attacks that the rule does not tolerate.

    Args:
        experiment: the experiment.
        seed: the seed.
        sizes: ``[n]`` training samples of the clients.

    Raises:
        ConfigError: there are no attackers, none is ever sampled, or the rule needs more rows or equal weights.
    """
    n, attack, rule = len(sizes), experiment.attack, experiment.aggregate
    if attack is None and rule is None:
        return [], []
    _check_rule(experiment, seed, sizes)
    remarks = []
    if getattr(rule, "remembers", False) and experiment.participation.expected(n) < n:
        remarks.append(f"aggregate {name_of(rule)} starts from its last result, which is of another cohort")
    if attack is None:
        return [], remarks
    found = attack.attackers(seed, n)
    if experiment.concurrency is not None:                 # who arrives when is not known yet
        return found.tolist(), remarks + _in_a_buffer(experiment, len(found))
    most = [0, 1]                                          # attackers, and the round with as many
    for round in range(1, min(experiment.rounds, LOOKED_AT) + 1):
        count = int(np.isin(experiment.participation.cohort(seed, round, n), found).sum())
        most = [count, round] if count > most[0] else most
        if most[0] == min(len(found), experiment.participation.expected(n)):
            break
    if not most[0]:
        raise ConfigError(
            f"attack {type(attack).__name__}: none of its {many(len(found), 'client')} is sampled in"
            f" {many(experiment.rounds, 'round')}; expected a larger share, more rounds or larger cohorts"
        )
    if remark := attack.remark(int(experiment.participation.expected(n)), most[0]):
        remarks.append(remark)
    if has_server(experiment.algorithm) and isinstance(rule, RobustRule):
        rows = n if getattr(innermost(experiment.algorithm), "sums", ()) else int(experiment.participation.expected(n))
        count = len(found) if rows == n else most[0]
        if count > tolerated(rule, rows):
            remarks.append(
                f"round {most[1]} has {many(count, 'attacker')} of {many(rows, 'client')}, and aggregate"
                f" {name_of(rule)} tolerates {tolerated(rule, rows)}"
            )
    return found.tolist(), remarks


def _in_a_buffer(experiment: Experiment, bad: int) -> list[str]:
    """Remarks on the attackers among the messages of a server step."""
    rows, rule = buffer_of(experiment.algorithm), experiment.aggregate
    assert experiment.attack is not None
    remarks = [remark] if (remark := experiment.attack.remark(rows, min(bad, rows))) else []
    if isinstance(rule, RobustRule) and min(bad, rows) > (most := tolerated(rule, rows)):
        remarks.append(
            f"a server step of {many(rows, 'message')} can hold {min(bad, rows)} of attackers, and aggregate"
            f" {name_of(rule)} tolerates {most}"
        )
    return remarks


def _check_rule(experiment: Experiment, seed: int, sizes: np.ndarray) -> None:
    """Check that the rule has enough rows, and equal weights if it needs them."""
    rule, n = experiment.aggregate, len(sizes)
    if rule is None:
        return
    if has_server(experiment.algorithm):
        unequal = experiment.weights == "samples" and len(set(sizes.tolist())) > 1
        if unequal and not getattr(rule, "weighted", True):
            raise ConfigError(
                f"aggregate {name_of(rule)} treats all clients alike, but weights are those of their samples; set"
                " weights to uniform, or use Mean, NormMean, GeometricMedian or CenteredClipping"
            )
        count = n if getattr(innermost(experiment.algorithm), "sums", ()) else experiment.participation.expected(n)
        check(rule, int(count), f"aggregate: in a {'server step' if experiment.concurrency else 'round'}, ")
        return
    w = mixing_matrix(experiment.topology, 1, seed, n).tolil()   # type: ignore[arg-type]
    w.setdiag(1.0)
    near = np.diff(w.tocsr().indptr)
    node = int(near.argmin())
    check(rule, int(near[node]), f"aggregate: with its neighbours, node {node} has {many(near[node], 'message')}; ")


def poison(attack: Attack | None, who: list[int], shards: Shards, classes: int, seed: int) -> None:
    """Change the attackers' training samples, in place."""
    if attack is None or type(attack).poison is Attack.poison:
        return
    for node in who:
        rows = shards.rows(node)
        if not isinstance(rows.x, torch.Tensor) or not isinstance(rows.y, torch.Tensor):
            raise ConfigError(
                f"attack {type(attack).__name__} changes inputs and targets that are one tensor each, and these samples"
                " have several; expected an attack on messages"
            )
        key = seeds.key(seed, "poison", 0, np.array([node]))[0]
        x, y = attack.poison(rows.x, rows.y, classes, key)
        rows.x.copy_(x)
        rows.y.copy_(y)


def triggered(attack: Attack | None, test: Split) -> Split | None:
    """Test samples of other classes with the pattern of a backdoor, and its target as their class."""
    if not isinstance(attack, Backdoor) or not isinstance(test.x, torch.Tensor) or not isinstance(test.y, torch.Tensor):
        return None
    other = test.y != attack.target
    return Split(attack.mark(test.x)[other], torch.full_like(test.y[other], attack.target))
