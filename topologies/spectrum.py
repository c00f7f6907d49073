"""Speed of consensus under repeated mixing with W: the eigenvalues of W next to 1.

For symmetric W: ``||W z - zbar|| <= lam ||z - zbar||`` with ``lam = max(|lambda_2|, |lambda_n|)``; for other W, lam
is the second largest modulus, to which the contraction per round tends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh, splu

from topologies.errors import TopologyError
from topologies.graphs import rectangle

DENSE_NODES = 512
"""Up to here all eigenvalues of a W are computed, which is done once."""
DENSE_SINGULAR_NODES = 64
"""Up to here all singular values of a W are computed, which may be done in every round."""
MANY_NODES = 10_000
"""Beyond, what has no closed form is looked for in a few iterations alone."""
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
    """The eigenvalues of a mixing matrix: exact to rounding up to 512 nodes, iterative (about 1e-12) beyond.

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
    elif n <= DENSE_NODES:
        dense = W.toarray()
        values = np.linalg.eigvalsh(dense) if symmetric else np.linalg.eigvals(dense)
        values = np.delete(values, np.argmin(abs(values - 1)))
        lam, lambda2, lambda_n = abs(values).max(), values.real.max(), values.real.min()
    elif symmetric:
        lambda2, lambda_n = _end(W, top=True), _end(W, top=False)
        lam = max(abs(lambda2), abs(lambda_n))
    else:
        lam, lambda2, lambda_n = abs(_outer(W, "LM")), _outer(W, "LR").real, _outer(W, "SR").real
    return Spectral(float(1 - lam), float(lam), float(lambda2), float(lambda_n))


def contraction_bound(W: csr_array) -> float | None:
    """The largest share of the consensus distance that an exchange by a doubly stochastic W leaves.

    It is the second largest singular value ``||W - 1 1^T / n||``, which is lam where W is symmetric. None where the
    iteration does not converge.
    """
    n, back = W.shape[0], csr_array(W.T)
    if n <= DENSE_SINGULAR_NODES:
        return float(np.linalg.norm(W.toarray() - 1 / n, 2))
    if n > MANY_NODES and (values := translated(W)) is not None:
        return float(np.sort(abs(values), axis=None)[-2])

    def there_and_back(x: np.ndarray) -> np.ndarray:
        y = back @ (W @ (x - x.mean()))
        return np.asarray(y - y.mean())

    square = LinearOperator((n, n), there_and_back, dtype=float)
    most = 100 if n <= MANY_NODES else 5
    options = {"v0": _start(n), "tol": 1e-10, "ncv": 40, "maxiter": most, "return_eigenvectors": False}
    try:
        return float(eigsh(square, 1, which="LA", **options)[0] ** 0.5)
    except ArpackNoConvergence:
        return None


def translated(W: csr_array) -> np.ndarray | None:
    """All eigenvalues of a W that is the same seen from every node: of a ring, a torus or any circulant graph.

    Nodes are the cells of a circle, or of the rectangle of `graphs.rectangle` with opposite sides joined. Such a W is
    diagonal in the discrete Fourier transform (Davis, "Circulant matrices", 1979). None for any other W.
    """
    links, n = W.tocoo(), W.shape[0]
    for shape in ((n,), rectangle(n)):
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

    return float(eigsh(W, sigma=shift, OPinv=LinearOperator((n, n), solve, dtype=float), **options)[0])


def _outer(W: csr_array, which: str) -> complex:
    """The eigenvalue of any W that is outermost by modulus (LM) or real part (LR, SR), but for the 1."""
    n = W.shape[0]
    share = {"LM": 1.0, "LR": 2.0, "SR": 0.0}[which]  # the 1 becomes 1 - share, where it is not outermost
    moved = LinearOperator((n, n), lambda x: W @ x - share * x.mean(), dtype=float)
    try:
        return complex(eigs(moved, k=1, which=which, v0=_start(n), maxiter=2000, return_eigenvectors=False)[0])
    except ArpackNoConvergence:
        raise TopologyError(
            f"the eigenvalues of this non-symmetric W of {n} nodes crowd too much to be found: "
            f"look at the same topology with {DENSE_NODES} nodes or fewer"
        ) from None
