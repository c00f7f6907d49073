"""Speed of consensus under repeated mixing with W: the eigenvalues of W next to 1.

For symmetric W: ``||W z - zbar|| <= lam ||z - zbar||`` with ``lam = max(|lambda_2|, |lambda_n|)``; for other W, lam
is the second largest modulus, to which the contraction per round tends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn, idctn
from scipy.linalg import eigvalsh_tridiagonal
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh, splu

from topologies.errors import TopologyError
from topologies.graphs import rectangle

DENSE_NODES = 512
"""Up to here all eigenvalues of a W are computed, which is done once."""
DENSE_SINGULAR_NODES = 64
"""Up to here all singular values of a W are computed, which may be done in every round."""
MANY_NODES = 10_000
"""Above this, singular values without a closed form are only bounded."""
ERROR, DOUBT = 0.01, 1e-9
"""Relative error of a bound of squared singular values, and the probability that it does not hold."""
SHIFT = 1e-6


class Spectral(NamedTuple):
    """Eigenvalues of W that matter; all but the gap are 0 for a single node.

    Attributes:
        gap: spectral gap, ``1 - lam``.
        lam: largest modulus of an eigenvalue, not counting the 1 of the all-ones vector.
        lambda2: second largest eigenvalue (second largest real part if W is not symmetric).
        lambda_n: smallest eigenvalue (smallest real part if W is not symmetric).
    """

    gap: float
    lam: float
    lambda2: float
    lambda_n: float


def spectral(W: csr_array | np.ndarray) -> Spectral:
    """The eigenvalues of a mixing matrix: exact to rounding up to 512 nodes or where they have a closed form, iterative
    (about 1e-12) otherwise.

    Args:
        W: ``[n, n]``, sparse or dense, whose rows or columns sum to 1.

    Raises:
        TopologyError: neither rows nor columns sum to 1, or the iteration did not converge.
    """
    W = csr_array(W, dtype=float)
    n = W.shape[0]
    if min(abs(W.sum(axis=axis) - 1).max() for axis in (0, 1)) > 1e-6:
        raise TopologyError("neither the rows nor the columns of W sum to 1: check(W) says which does not")
    symmetric = abs(W - W.T).max() < 1e-12
    if n == 1:
        lam = lambda2 = lambda_n = 0.0
    elif (values := _dense(W, symmetric) if n <= DENSE_NODES else closed_form(W)) is not None:
        values = np.delete(values, np.argmin(abs(values - 1)))
        lam, lambda2, lambda_n = abs(values).max(), values.real.max(), values.real.min()
    elif symmetric:
        lambda2, lambda_n = _end(W, top=True), _end(W, top=False)
        lam = max(abs(lambda2), abs(lambda_n))
    else:
        lam, lambda2, lambda_n = abs(_outer(W, "LM")), _outer(W, "LR").real, _outer(W, "SR").real
    return Spectral(float(1 - lam), float(lam), float(lambda2), float(lambda_n))


def _dense(W: csr_array, symmetric: bool) -> np.ndarray:
    """All eigenvalues of a small W."""
    dense = W.toarray()
    return np.asarray(np.linalg.eigvalsh(dense) if symmetric else np.linalg.eigvals(dense))


def contraction_bound(W: csr_array) -> float | None:
    """The largest share of the consensus distance that an exchange by a doubly stochastic W leaves.

    It is the second largest singular value ``||W - 1 1^T / n||``, which is lam where W is symmetric: exact where it has
    a closed form, else iterative. Where the iteration does not converge, or for more than 10,000 nodes, it is at most
    1 % above (see `_at_most`); None if no bound below 1 is known.
    """
    n, back = W.shape[0], csr_array(W.T)
    if n <= DENSE_SINGULAR_NODES:
        return float(np.linalg.norm(W.toarray() - 1 / n, 2))
    if (values := closed_form(W)) is not None:
        return float(np.sort(abs(values), axis=None)[-2])

    def there_and_back(x: np.ndarray) -> np.ndarray:
        y = back @ (W @ (x - x.mean()))
        return np.asarray(y - y.mean())

    if n <= MANY_NODES:
        square = LinearOperator((n, n), there_and_back, dtype=float)
        options = {"v0": _start(n), "tol": 1e-10, "ncv": 40, "maxiter": 100, "return_eigenvectors": False}
        with suppress(ArpackNoConvergence):
            return float(eigsh(square, 1, which="LA", **options)[0] ** 0.5)
    bound = _at_most(there_and_back, n) ** 0.5
    return bound if bound < 1 else None


def _at_most(apply: Callable[[np.ndarray], np.ndarray], n: int) -> float:
    """An upper bound on the largest eigenvalue of a symmetric positive semidefinite matrix, by Lanczos' iteration.

    For a random start, k steps leave the largest eigenvalue above ``1 / (1 - e)`` times what they find with probability
    at most ``1.648 sqrt(n) exp(-sqrt(e) (2k - 1))`` (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992,
    Theorem 4.2), which is set to 1e-9. Steps that are added until e is 0.01 need no convergence.
    """
    steps = 2 + int(np.log(1.648 * n**0.5 / DOUBT) / (2 * ERROR**0.5))
    v, before, beta = _start(n), np.zeros(n), 0.0
    v -= v.mean()
    v /= np.linalg.norm(v)
    diagonal, off = [], list[float]()
    for _ in range(min(steps, n - 1)):
        y = apply(v) - beta * before
        diagonal.append(float(v @ y))
        y -= diagonal[-1] * v
        beta = float(np.linalg.norm(y))
        if beta < 1e-14:                                   # an invariant space: nothing else was in the start
            break
        before, v = v, y / beta
        off.append(beta)
    found = eigvalsh_tridiagonal(diagonal, off[: len(diagonal) - 1], select="i", select_range=[len(diagonal) - 1] * 2)
    return float(found[0]) / (1 - ERROR)


def closed_form(W: csr_array) -> np.ndarray | None:
    """All eigenvalues of a W that is diagonal in a Fourier or cosine transform; None for any other W.

    The first are the `translated`; the others symmetric on paths, and on rectangles where the weights of links do not
    depend on a node's degree, as those of the weighting max_degree (Strang, "The discrete cosine transform", SIAM
    Review 41, 1999).
    """
    if (values := translated(W)) is not None:
        return values
    n, symmetric = W.shape[0], abs(W - W.T).max() < 1e-12
    for shape in ((n,), rectangle(n)) if symmetric else ():
        first = np.zeros(n)
        first[W.indices[: W.indptr[1]]] = W.data[: W.indptr[1]]
        at_zero = np.zeros(shape)
        at_zero.flat[0] = 1.0
        found = dctn(first.reshape(shape)) / dctn(at_zero)
        probe = _start(n).reshape(shape)
        if np.allclose((W @ probe.ravel()).reshape(shape), idctn(found * dctn(probe)), rtol=0, atol=1e-8):
            return np.asarray(found)
    return None


def translated(W: csr_array) -> np.ndarray | None:
    """All eigenvalues of a W that is the same seen from every node: of a ring, a torus, a hypercube or any circulant.

    Nodes are the cells of a circle, of the rectangle of `graphs.rectangle` with opposite sides joined, or the corners
    of a cube. Such a W is diagonal in the discrete Fourier transform (Davis, "Circulant matrices", 1979), on the cube
    that of Walsh and Hadamard. None for any other W.
    """
    links, n = W.tocoo(), W.shape[0]
    cube = [(2,) * (n.bit_length() - 1)] if n > 2 and not n & (n - 1) else []
    for shape in ((n,), rectangle(n), *cube):
        to, by = (np.unravel_index(ids, shape) for ids in links.coords)
        step = np.ravel_multi_index([(i - j) % side for i, j, side in zip(to, by, shape, strict=True)], shape)
        first = links.row == 0
        weight = np.zeros(n)
        weight[step[first]] = links.data[first]
        times = np.bincount(step, minlength=n)
        if np.isin(times, (0, n)).all() and np.allclose(links.data, weight[step], rtol=0, atol=1e-12):
            return np.fft.fftn(weight.reshape(shape))
    return None


def _start(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n)


def _end(W: csr_array, top: bool) -> float:
    """The largest eigenvalue of symmetric W but for the all-ones vector's, or the smallest.

    Lanczos first, which finds well separated eigenvalues. Where eigenvalues crowd, as on rings and grids, W falls apart
    into pieces by few cuts, so a factorisation of ``W - shift I`` is sparse and finds them at once.
    """
    n = W.shape[0]
    away, deflate = (1, 2) if top else (-1, 0)  # tolerances are relative, so eigenvalues are kept away from 0
    moved = LinearOperator((n, n), lambda x: W @ x + away * x - deflate * x.mean(), dtype=float)
    options = {"k": 1, "v0": _start(n), "return_eigenvectors": False}
    try:
        found = eigsh(moved, which="LA" if top else "SA", tol=1e-12, ncv=40, maxiter=50, **options)
        return float(found[0]) - away
    except ArpackNoConvergence:
        pass
    shift = 1 + SHIFT if top else (2 * W.diagonal() - 1).min() - SHIFT  # Gershgorin's lower bound
    factors = splu(csc_array(W - diags_array(np.full(n, shift))), permc_spec="MMD_AT_PLUS_A")

    def solve(x: np.ndarray) -> np.ndarray:
        y = factors.solve(x)
        return np.asarray(y - y.mean())

    try:
        return float(eigsh(W, sigma=shift, OPinv=LinearOperator((n, n), solve, dtype=float), **options)[0])
    except ArpackNoConvergence:
        raise _crowded("symmetric", n) from None


def _outer(W: csr_array, which: str) -> complex:
    """The eigenvalue of any W that is outermost by modulus (LM) or real part (LR, SR), but for the 1."""
    n = W.shape[0]
    share = {"LM": 1.0, "LR": 2.0, "SR": 0.0}[which]  # the 1 becomes 1 - share, where it is not outermost
    moved = LinearOperator((n, n), lambda x: W @ x - share * x.mean(), dtype=float)
    try:
        return complex(eigs(moved, k=1, which=which, v0=_start(n), maxiter=2000, return_eigenvectors=False)[0])
    except ArpackNoConvergence:
        raise _crowded("non-symmetric", n) from None


def _crowded(kind: str, n: int) -> TopologyError:
    return TopologyError(
        f"the eigenvalues of this {kind} W of {n} nodes crowd too much to be found: "
        f"look at the same topology with {DENSE_NODES} nodes or fewer"
    )
