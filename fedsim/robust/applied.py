"""A rule applied to messages, with checks of what it needs and returns: at a server, or at a node to its neighbourhood,
simulated or deployed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.engine.purity import unwritten
from fedsim.errors import CodeError, DivergenceError, explained
from fedsim.robust.rule import Occasion, RobustRule, check, name_of, tolerated, with_f
from fedsim.types import Rule
from fedsim.values import Vector


def holds_vectors(rows: Tensor) -> bool:
    """Return whether a stack ``[c, ...]`` holds vectors, which rules and attacks are about, and not single numbers."""
    return rows.is_floating_point() and rows[0].numel() > 1


def applied(rule: Rule, rows: Tensor, w: Tensor, at: Occasion, where: str) -> Vector:
    """The result ``[d]`` of a rule on ``rows [n, d]`` with weights ``[n]``; ``where`` begins the errors.

    Raises:
        ConfigError: the rule needs more rows, or a function writes into them.
        CodeError: it raises an error, or does not return a tensor ``[d]`` of the rows' dtype and device.
    """
    place = f"aggregate {name_of(rule)}"
    if isinstance(rule, RobustRule):
        check(rule, len(rows), f"{where}: ")
    with explained(place), unwritten(place, (rows,)):      # the server may keep the rows, as sums of EF21's messages
        v = rule(rows, w, at) if isinstance(rule, RobustRule) else rule(rows, w.to(rows))
    like = rows[0]
    if not isinstance(v, Tensor) or _form(v) != _form(like):
        got = f"a {_form(v)}" if isinstance(v, Tensor) else f"a {type(v).__name__}"
        raise CodeError(f"{place} returned {got} of messages {list(rows.shape)}; expected a {_form(like)}")
    return v


def _form(v: Tensor) -> str:
    return f"tensor {list(v.shape)}, {str(v.dtype).removeprefix('torch.')} on {v.device}"


def certain(v: Tensor, rule: Rule | None, where: str) -> Tensor:
    """The result of a rule, which is finite, as the messages are.

    Raises:
        DivergenceError: it is not.
    """
    if not bool(torch.isfinite(v).all()):
        raise DivergenceError(
            f"{where}: aggregate {name_of(rule)} returned NaN or infinity of finite messages; expected a finite vector"
        )
    return v


def around(
    rule: Rule, rows: Tensor, weights: Sequence[float], own: int, key: Tensor, where: str, gone: int = 0
) -> Vector:
    """The result ``[d]`` of a rule at a node.

    Args:
        rule: the rule.
        rows: ``[k, d]`` messages of the node and its neighbours, in the order of their numbers.
        weights: ``[k]`` of W; a rule that treats all rows alike has equal ones.
        own: position of the node's own message.
        key: random key of the node in this round.
        where: beginning of errors.
        gone: messages besides that are lost or faulty: so many fewer are left to tolerate.
    """
    weighted = bool(getattr(rule, "weighted", True))
    p = torch.tensor([w if weighted else 1 / len(rows) for w in weights], dtype=torch.float64)
    return applied(fewer(rule, len(rows) + gone, gone), rows, p, Occasion(key, own), where)


def fewer(rule: Rule, n: int, gone: int) -> Rule:
    """The rule for ``n`` rows of which ``gone`` are left out as faulty: so many fewer are left to tolerate."""
    return with_f(rule, max(tolerated(rule, n) - gone, 0)) if gone else rule
