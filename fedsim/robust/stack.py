"""The rows that a rule aggregates, or linear combinations of them, with one stack in memory.

Distances, norms and combinations are computed in the Gram matrix: ``O(n^2 d)`` for ``n`` rows of length ``d``, in one
pass over the stack. A step such as nearest-neighbour mixing replaces rows by combinations of rows, ``M X``: only the
matrix M is kept, so that no second stack is made.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from fedsim.messages.sums import weighted_sum
from fedsim.values import Vector

T = TypeVar("T")

COLUMNS = {"cpu": 2**14, "cuda": 2**20}
"""Columns processed at a time: few enough for the processor's cache."""
CANCELLED = 1e-3
"""Share of a squared norm below which a squared distance is computed again in float64."""

LOST = 1e-10
"""Share of a squared norm below which a squared distance of float64 rows is computed from their difference."""


class RowStack:
    """Rows ``M X`` for ``X [k, d]`` and a mixture ``M [n, k]``; X itself by default.

    Attributes:
        rows: X, finite.
        mixture: M, float64 on the CPU; None for the identity.
    """

    def __init__(self, rows: Tensor, mixture: Tensor | None = None) -> None:
        self.rows = rows if rows.is_floating_point() else rows.double()
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.rows) if self.mixture is None else len(self.mixture)

    def mixed(self, m: Tensor) -> RowStack:
        """The rows ``m M X``, for ``m [n', n]``; a Gram matrix that is known already is not computed again."""
        new = RowStack(self.rows, m if self.mixture is None else m @ self.mixture)
        if "gram" in self.__dict__:
            new.__dict__["gram"] = m @ self.gram @ m.T
        return new

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the rows, float64 ``[n, n]`` on the CPU, exact enough for the distances among them.

        float32 rows are multiplied in float32 by blocks of columns, which are summed in float64. If the square of a
        distance is too small a part of the norms for that, or a product overflows, all is computed in float64.
        """
        g = self._products(None)
        norms = g.diagonal()
        squares = (norms[:, None] + norms - 2 * g).fill_diagonal_(torch.inf)
        exact = squares > CANCELLED * torch.maximum(norms, norms[:, None])   # false for NaN too
        if self.rows.dtype != torch.float64 and not bool(exact.all()):
            g = self._products(torch.float64)
        return g if self.mixture is None else self.mixture @ g @ self.mixture.T

    @cached_property
    def cosines(self) -> Tensor:
        """Inner products of the rows divided by their norms, float64 ``[n, n]``; 0 for rows that are zero."""
        g = self.__dict__["gram"] if "gram" in self.__dict__ or self.mixture is not None else self._products(None)
        if not bool(torch.isfinite(g).all() & (g.diagonal() > 0).all()):   # squares beyond the range of float32
            g = self.gram
        norms = g.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(norms > 0, 1 / norms, 0.0)
        self.__dict__.setdefault("norms", norms)
        return inverse[:, None] * g * inverse

    def _products(self, dtype: torch.dtype | None) -> Tensor:
        """``X X^T``, float64 ``[k, k]`` on the CPU, from products in ``dtype``, by default that of the rows."""
        x, width = self.rows, self._width
        g = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
        for start in range(0, x.shape[1], width):
            part = x[:, start : start + width].to(dtype or x.dtype)
            g += part @ part.T
        return g.cpu()

    @property
    def _width(self) -> int:
        return COLUMNS.get(self.rows.device.type, COLUMNS["cuda"])

    @cached_property
    def norms(self) -> Tensor:
        """Norms of the rows, float64 ``[n]`` on the CPU."""
        if "gram" in self.__dict__ or self.mixture is not None:
            return self.gram.diagonal().clamp(min=0).sqrt()
        return self.distances(None)

    @cached_property
    def squares(self) -> Tensor:
        """Squared distances between the rows, float64 ``[n, n]`` on the CPU."""
        norms = self.gram.diagonal()
        found = (norms[:, None] + norms - 2 * self.gram).clamp(min=0)
        lost = (found.fill_diagonal_(torch.inf) < LOST * torch.maximum(norms, norms[:, None])).any()
        if self.rows.dtype == torch.float64 and self.mixture is None and bool(lost):
            found = torch.stack([self.distances(row) for row in self.rows]).square()
            found = torch.maximum(found, found.T)          # of a row from another as of that from it
        return found.fill_diagonal_(0)

    def distances(self, center: Vector | None) -> Tensor:
        """Distances of the rows to ``center [d]`` (0 if None), float64 ``[n]`` on the CPU."""

        def squares(columns: slice) -> Tensor:
            off = self.block(columns) - (0.0 if center is None else center[columns])
            largest = off.abs().amax().clamp(min=torch.finfo(off.dtype).tiny)   # squares stay in range
            norms: Tensor = torch.linalg.vector_norm(off.div_(largest), dim=1)
            return norms.double().mul_(largest.double()).square_()

        total = torch.zeros(len(self), dtype=torch.float64, device=self.rows.device)
        for part in self.each_block(squares):
            total += part
        return total.sqrt().cpu()

    def each_block(self, work: Callable[[slice], T]) -> list[T]:
        """Results of ``work`` on each block of columns, in order; on a CPU by as many threads as PyTorch has."""
        blocks = [slice(start, start + self._width) for start in range(0, self.rows.shape[1], self._width)]
        threads = min(torch.get_num_threads(), len(blocks)) if self.rows.device.type == "cpu" else 1
        if threads < 2:
            return list(map(work, blocks))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, blocks))

    def block(self, columns: slice) -> Tensor:
        """Some columns of the rows, ``[n, w]``: memory of the stack itself if they are not mixed."""
        part = self.rows[:, columns]
        mixed: Tensor = part if self.mixture is None else self.mixture.to(self.rows) @ part
        return mixed

    def transposed(self, columns: slice, chosen: list[int] | None = None) -> Tensor:
        """Some columns of the rows, or of the rows ``chosen``: new, ``[w, n]``, a coordinate side by side."""
        part = self.rows[:, columns]
        index = None if chosen is None else torch.tensor(chosen, device=part.device)
        if self.mixture is not None:
            mixture = self.mixture.to(self.rows)
            return part.T @ (mixture if index is None else mixture[index]).T   # mixes and transposes at once
        part = part.contiguous() if index is None else part.index_select(0, index)
        return part.T.clone(memory_format=torch.contiguous_format)

    def combine(self, w: Tensor) -> Vector:
        """``sum_i w_i x_i``, for weights ``[n]``."""
        w = w.double().cpu()
        w = w if self.mixture is None else self.mixture.T @ w
        if int((w != 0).sum()) == 1 and float(w.sum()) == 1:   # a selected row, bit for bit
            return self.rows[int(w.argmax())].clone()
        return w.to(self.rows) @ self.rows

    def mean(self, w: Tensor) -> Vector:
        """``sum_i w_i x_i``, with the bits of ``Clients.mean`` if the rows are not mixed."""
        return weighted_sum(self.rows, w.to(self.rows)) if self.mixture is None else self.combine(w)
