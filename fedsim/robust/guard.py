"""A backend whose messages pass through an attack and a rule on their way to the server, or to the neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.errors import ConfigError, DivergenceError, title
from fedsim.messages.mixing import mix_rows
from fedsim.messages.stacked import Stacked, refuse_packed
from fedsim.robust.applied import applied, around, certain, fewer, holds_vectors
from fedsim.robust.attack import Attack, Scene
from fedsim.robust.before import Jointly
from fedsim.robust.centers import Mean
from fedsim.robust.coordinates import CoordinateMedian
from fedsim.robust.rule import Occasion, check, name_of, tolerated
from fedsim.tree import StackedRows, leaves, rebuilt, tree_map, unpacked
from fedsim.types import Messages, Rule
from fedsim.values import Packed, Vector

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Settings(Protocol):
    """What a guard does: fields of ``Robust``."""

    @property
    def aggregate(self) -> Rule | None: ...
    @property
    def attack(self) -> Attack | None: ...
    @property
    def server(self) -> bool: ...
    @property
    def sums(self) -> tuple[int, ...]: ...


class Guard:
    """``Backend`` that hands a federation's calls on, and returns its messages as `Guarded`.

    Attributes:
        last: last results of a rule that remembers them, by client function.
        total: sums of the messages of all clients, for methods that add them up (``Robust.sums``).
    """

    def __init__(
        self, federation: Federation, settings: Settings, last: dict[str, Any], total: dict[str, tuple[Tensor, Tensor]]
    ) -> None:
        self.federation, self.settings, self.last, self.total = federation, settings, last, total

    def __getattr__(self, name: str) -> Any:
        return getattr(self.federation.backend, name)      # what some backends have besides: see Linked

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        messages, memory = self.federation.backend.run(self.federation, meter, call._replace(summed=False))
        return None if messages is None else Guarded(messages, self, call), memory


class Guarded:
    """``Messages`` of honest clients and attackers, aggregated by a rule."""

    def __init__(self, honest: Messages[Any], guard: Guard, call: ClientCall) -> None:
        self._honest, self._guard, self._call, self._ids, self._round = honest, guard, call, call.ids, call.round
        self._name, self._key = title(call.fn), title(call.fn).replace(".", " ")
        fed, self.rule = guard.federation, guard.settings.aggregate
        attack = guard.settings.attack
        who = np.zeros(0, np.int64) if attack is None else attack.attackers(fed.seed, fed.shards.n)
        self._bad = np.isin(call.ids, who)                 # [c]
        self._weights = torch.from_numpy(fed.shares(call.ids))

    @cached_property
    def _sent(self) -> tuple[Any, np.ndarray]:
        """The stack that is sent, and the mask ``[c]`` of the messages that are lost."""
        return self._attacked(self._honest.stacked(), 0)

    def _attacked(self, tree: Any, step: int) -> tuple[Any, np.ndarray]:
        lost = np.zeros(len(self._ids), bool)
        attack = self._guard.settings.attack
        if attack is None or not self._bad.any():
            return tree, lost
        rows, bad = joined(unpacked(tree)), torch.from_numpy(self._bad)
        fed = self._guard.federation

        def outcome(crafted: Tensor) -> Vector:
            sent = rows.clone()
            sent[bad.to(rows.device)] = crafted.to(rows)
            return self._result(sent, tree)

        key = seeds.key(fed.seed, f"attack {self._name} {step}", self._round, np.zeros(1, np.int64))[0]
        scene = Scene(rows if self._bad.all() else rows[~bad], rows[bad], key, outcome)
        crafted = attack.craft(scene)
        lost[self._bad] = attack.lost(scene)
        return self._replaced(tree, crafted), lost

    def _result(self, rows: Tensor, like: Any) -> Vector:
        """What the server would make of messages, joined to rows: the same for all vectors of a message together."""
        parts = torch.split(rows, [leaf[0].numel() for leaf in vectors(unpacked(like))], 1)
        parts = (rows,) if isinstance(self.rule, Jointly) else parts
        last = self._guard.last.get(self._key) or [None] * len(parts)
        return torch.cat(
            [self._apply(part, self._weights, Occasion(last=v)) for part, v in zip(parts, last, strict=True)]
        )

    def _replaced(self, tree: Any, crafted: Tensor) -> Any:
        """The stack with the attackers' rows replaced by ``crafted [b, D]``, compressed as their own were."""
        which, taken = np.flatnonzero(self._bad).tolist(), 0

        def replaced(branch: Any) -> Any:
            nonlocal taken
            if isinstance(branch, tuple):
                return rebuilt(branch, [replaced(part) for part in branch])
            like = branch.unpack() if isinstance(branch, Packed) else branch
            if not holds_vectors(like):
                return branch
            own = crafted[:, taken : taken + like[0].numel()]
            taken += like[0].numel()
            if isinstance(branch, Tensor):
                new = branch.clone()
                new[which] = own.reshape(len(which), *branch.shape[1:]).to(branch)
                return new
            parts = [part.clone() for part in branch.parts]
            for row, v in zip(which, own, strict=True):
                for part, mine in zip(parts, self._compressed(branch, v.to(like), row), strict=True):
                    part[row] = mine
            return Packed(branch.by, tuple(parts), branch.d)

        return replaced(tree)

    def _compressed(self, packed: Packed, v: Vector, row: int) -> tuple[Tensor, ...]:
        if not bool(torch.isfinite(v).all()):              # no compressor takes these: damage the message itself
            return tuple(part[row] * v[0] if part.is_floating_point() else part[row] for part in packed.parts)
        return packed.by.compress(v, _Attacker(self._guard.federation, int(self._ids[row]), self._round)).parts

    def sizes(self) -> np.ndarray:
        """See ``Messages``."""
        return self._honest.sizes()

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return self._honest.paper_bits()

    def finite(self) -> np.ndarray:
        """See ``Messages``: messages that the rule leaves out as faulty are no reason to stop."""
        finite = self._finite
        most = tolerated(self.rule, len(finite)) if self._guard.settings.server or self.rule is None else len(finite)
        return finite if int((~finite).sum()) > most else np.ones(len(finite), bool)

    @cached_property
    def _finite(self) -> np.ndarray:
        """Mask ``[c]`` of the messages without NaN or infinity, lost ones included."""
        if not self._bad.any():
            return self._honest.finite()
        tree, lost = self._sent
        finite: np.ndarray = Stacked(tree).finite() | lost
        return finite

    def stacked(self) -> Any:
        """See ``Messages``."""
        if self.rule is not None:
            raise ConfigError(
                f"{self._name}: the algorithm reads every message and aggregates them by itself, so aggregate"
                f" {name_of(self.rule)} has nothing to replace; leave it out"
            )
        tree, lost = self._sent
        if lost.any():
            raise ConfigError(
                f"{self._name}: the algorithm reads every message, and those of the attackers are lost; use an attack"
                " whose messages arrive"
            )
        return tree

    def only(self, positions: np.ndarray) -> Guarded:
        """See ``Messages``: the attackers among them know of these alone."""
        call = self._call._replace(ids=self._ids[positions])
        return Guarded(self._honest.only(positions), self._guard, call)

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``: the result of the rule for each vector of the messages; the median of other numbers."""
        if self.rule is None and not self._bad.any():
            return self._honest.mean(w)
        if self.rule is not None and abs(float(w.sum()) - 1) > 1e-6:
            raise ConfigError(
                f"{self._name}: the algorithm weighs its messages by factors of its own, so aggregate"
                f" {name_of(self.rule)} has no mean to replace; leave it out"
            )
        tree, lost = self._sent
        there = ~(lost | (~self._finite if self.rule is not None else False))
        if not there.any():
            raise DivergenceError(
                f"{self._name} in round {self._round}: no message is left, as all {len(there)} of the cohort were lost"
                " or not finite; expected an honest client in every cohort: larger cohorts, or an attack with a"
                " smaller share or p"
            )
        kept, whole = torch.from_numpy(np.flatnonzero(there)), bool(there.all())
        w = w if whole else w[kept] / w[kept].sum()
        tree = tree if whole else tree_map(lambda t: t[kept.to(t.device)], tree)
        if self.rule is None or type(self.rule) is Mean:
            return Stacked(tree).mean(w)
        gone = len(there) - int(there.sum())
        return self._by_rule(fewer(self.rule, len(there), gone), unpacked(tree), w, kept)

    def _by_rule(self, rule: Rule, tree: Any, w: Tensor, kept: Tensor) -> Any:
        guard, fed = self._guard, self._guard.federation
        key = seeds.key(fed.seed, f"aggregate {self._name}", self._round, np.zeros(1, np.int64))[0]
        remembers = bool(getattr(rule, "remembers", False))
        last = guard.last.get(self._key, ()) if remembers else ()
        out, new = [], []
        long = [leaf for leaf in leaves(tree) if holds_vectors(leaf)]
        blocks = [torch.cat([leaf.flatten(1) for leaf in long], 1)] if isinstance(rule, Jointly) and long else None
        for k, rows in enumerate(blocks or [leaf.flatten(1) for leaf in long]):
            at = Occasion(key + k, None, last[k] if last else None)
            if k in guard.settings.sums:
                out.append(self._of_sums(k, rule, rows, kept, at))
            else:
                out.append(certain(self._apply(rows, w, at, rule), self.rule, self._where))
            new.append(out[-1])
        if remembers:
            guard.last[self._key] = tuple(new)
        if blocks:
            out = list(torch.split(out[0], [leaf[0].numel() for leaf in long]))
        results = iter(out)
        return tree_map(lambda t: next(results).view(t.shape[1:]) if holds_vectors(t) else middle(t), tree)

    def _of_sums(self, k: int, rule: Rule, rows: Tensor, kept: Tensor, at: Occasion) -> Vector:
        """The change of the rule's result on the sums of all clients' messages, divided by the cohort's share.

        The algorithm multiplies a mean of differences by that share and adds it up: it then has the rule's result.
        """
        guard, fed = self._guard, self._guard.federation
        zero = torch.zeros(fed.shards.n, rows.shape[1], dtype=rows.dtype, device=rows.device)
        total, before = guard.total.get(str(k), (zero, zero[0]))
        ids = torch.from_numpy(self._ids)[kept].to(rows.device)
        total = total.index_add(0, ids, rows)
        after = self._apply(total, torch.from_numpy(fed.p), at, rule)
        guard.total[str(k)] = (total, after)
        return (after - before) / float(fed.p[self._ids].sum())

    def _apply(self, rows: Tensor, w: Tensor, at: Occasion, rule: Rule | None = None) -> Vector:
        rule = self.rule if rule is None else rule
        return w.to(rows) @ rows if rule is None else applied(rule, rows, w, at, self._where)

    @property
    def _where(self) -> str:
        return f"{self._name} in round {self._round}"

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[Mapping[int, Any], float | None]:
        """See ``Messages``: every node applies the rule to its own message and its neighbours'."""
        if self.rule is None and not self._bad.any():
            return self._honest.mix(w, steps, measure)
        if getattr(self._honest, "remote", False):         # the nodes of a deployment have the rule, and no attackers
            for i in range(len(self._ids)):
                check(self.rule, len({i, *row_of(w, i)}), f"{self._where}: ")
            return self._honest.mix(w, steps, False)
        refuse_packed(self._honest.stacked(), steps)
        tree, lost = self._sent
        for step in range(steps):
            tree, lost = self._attacked(tree, step) if step else (tree, lost)
            lost = lost | ~Stacked(tree).finite()
            among = without(w, lost)
            dense = tree_map(lambda t, lost=lost: blanked(t, lost), unpacked(tree))
            tree = tree_map(lambda t, among=among: self._neighbourhoods(w, among, t), dense)
        return StackedRows(np.arange(len(self._ids)), tree), None

    def _neighbourhoods(self, w: csr_array, there: csr_array, x: Tensor) -> Tensor:
        """Results of the rule around every node, on the messages ``[c, ...]`` that have weights in ``there``."""
        if self.rule is None or not holds_vectors(x):
            return mix_rows(there, x)
        rows, out, seed = x.flatten(1), [], self._guard.federation.seed
        for i in range(len(rows)):
            weights = {i: 0.0, **row_of(there, i)}
            near = sorted(weights)
            gone = len({i, *row_of(w, i)}) - len(near)
            key = seeds.key(seed, "aggregate", self._round, self._ids[i : i + 1])[0]
            p = [weights[j] for j in near]
            out.append(around(self.rule, rows[near], p, near.index(i), key, self._where, gone))
        return certain(torch.stack(out), self.rule, self._where).view_as(x)


class _Attacker:
    """``Site`` of an attacker."""

    def __init__(self, federation: Federation, node: int, round: int) -> None:
        self._fed, self._node, self._round = federation, node, round

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._fed.model.shared_shapes

    def key(self, tag: int = 0) -> Tensor:
        keys = seeds.key(self._fed.seed, f"attacker {tag}", self._round, np.array([self._node]))
        return keys[0].to(self._fed.model.device)


def vectors(tree: Any) -> list[Tensor]:
    """Stacks of vectors in a tree."""
    return [leaf for leaf in leaves(tree) if holds_vectors(leaf)]


def joined(tree: Any) -> Tensor:
    """All vectors of the messages side by side, ``[c, D]``."""
    return torch.cat([leaf.flatten(1) for leaf in vectors(tree)], 1)


def middle(rows: Tensor) -> Tensor:
    """Median of the single numbers of all messages, or of integers."""
    flat = rows.double().reshape(len(rows), -1)
    out: Tensor = CoordinateMedian()(flat).view(rows.shape[1:])
    return out.to(rows.dtype) if rows.is_floating_point() else out


def blanked(rows: Tensor, lost: np.ndarray) -> Tensor:
    """A stack with zeros for lost messages, whose weights are 0."""
    gone = torch.from_numpy(np.flatnonzero(lost)).to(rows.device)
    return rows.clone().index_fill_(0, gone, 0) if lost.any() else rows


def without(w: csr_array, lost: np.ndarray) -> csr_array:
    """W whose nodes receive nothing from ``lost`` ones: those weights are added to the node's own."""
    if not lost.any():
        return w
    from scipy.sparse import csr_array, diags_array

    links = w.tocoo()
    off = links.row != links.col
    gone = lost[links.col] & off
    back = np.bincount(links.row[gone], links.data[gone], minlength=len(lost))
    rest = csr_array((links.data[~gone], (links.row[~gone], links.col[~gone])), w.shape)
    new = csr_array(rest + diags_array(back))
    new.sort_indices()
    return new


def row_of(w: csr_array, i: int) -> dict[int, float]:
    """Weights in row ``i`` of W, by column."""
    span = slice(w.indptr[i], w.indptr[i + 1])
    return dict(zip(w.indices[span].tolist(), w.data[span].tolist(), strict=True))
