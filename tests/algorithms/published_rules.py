"""The rules of FL-Simulator (github.com/woodenchild95/FL-Simulator), from which published tables arose, in plain numpy.

Every local step is ``w <- w - lr (clip(G + lamb q) + (wd + lamb) w)``: torch's clipping of a method's gradient G and
the linear part of its proximal term, before SGD adds weight decay and the quadratic part. The ascent of sharpness-aware
steps is along the plain gradient. That code takes the number of local steps K from client 0 (SCAFFOLD, FedGamma, FedCM,
MoFedSAM); here it is each client's own, or their mean, which is the same where all have as many samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.algorithms.papers import mean
from tests.algorithms.quadratics import Quadratics

Vector = np.ndarray


def clipped(g: Vector, norm: float) -> Vector:
    """As ``torch.nn.utils.clip_grad_norm_``."""
    return g * min(1.0, norm / (float(np.linalg.norm(g)) + 1e-6))


@dataclass
class FLSimulator:
    """The simulator: its settings, and the number of steps in which it clipped.

    Attributes:
        f: the clients' objectives.
        batches: the rows of client i's steps in round t.
        lr: first local learning rate; times ``decay`` after each round.
        wd: weight decay.
        clip: norm to which gradients are clipped.
        rho: radius of the ascent.
        lamb: weight of the proximal term.
        alpha: share of the gradient in FedCM and MoFedSAM.
        eta_g: global learning rate.
        eps: what is added to the norm in the ascent.
    """

    f: Quadratics
    batches: Callable[[int, int], list[np.ndarray]]
    lr: float = 0.1
    decay: float = 0.998
    wd: float = 1e-3
    clip: float = 10.0
    rho: float = 0.1
    lamb: float = 0.1
    alpha: float = 0.1
    eta_g: float = 1.0
    eps: float = 1e-7
    clips: list[bool] = field(default_factory=list)

    def step(self, w: Vector, G: Vector, eta: float, lamb: float = 0.0, q: Vector | float = 0.0) -> Vector:
        """One step of torch's SGD with the weight decay ``wd + lamb``."""
        G = G + lamb * q
        self.clips.append(bool(np.linalg.norm(G) > self.clip))
        return w - eta * (clipped(G, self.clip) + (self.wd + lamb) * w)

    def ascended(self, i: int, w: Vector, B: np.ndarray) -> Vector:
        """Gradient after the ascent."""
        g = self.f.grad(i, w, B)
        return self.f.grad(i, w + self.rho * g / (np.linalg.norm(g) + self.eps), B)

    def run(self, method: str, x: Vector, cohorts: Sequence[Sequence[int]]) -> list[Vector]:
        """The server's model after each round."""
        self.x, self.n, d = x, self.f.n, np.zeros_like(x)
        self.h, self.mu, self.c_i = ([d] * self.n for _ in range(3))
        self.c, self.Delta, self.m, self.v, self.s = d, d, d, d, d
        history = []
        for t, S in enumerate(cohorts, 1):
            self.x = getattr(self, method)(t, S, self.lr * self.decay ** (t - 1))
            history.append(self.x)
        return history

    def moved(self, t: int, S: Sequence[int], eta: float, sam: bool) -> dict[int, Vector]:
        """Local steps without corrections."""
        out = {}
        for i in S:
            w = self.x
            for B in self.batches(t, i):
                w = self.step(w, self.ascended(i, w, B) if sam else self.f.grad(i, w, B), eta)
            out[i] = w - self.x
        return out

    def fedavg(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.x + self.eta_g * mean(list(self.moved(t, S, eta, sam=False).values()))

    def fedsam(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.x + self.eta_g * mean(list(self.moved(t, S, eta, sam=True).values()))

    def fedadam(self, t: int, S: Sequence[int], eta: float) -> Vector:
        D = mean(list(self.moved(t, S, eta, sam=False).values()))
        self.m, self.v = 0.9 * self.m + 0.1 * D, 0.99 * self.v + 0.01 * D * D
        return self.x + self.eta_g * self.m / (np.sqrt(self.v) + 0.01)

    def fedprox(self, t: int, S: Sequence[int], eta: float) -> Vector:
        D = []
        for i in S:
            w = self.x
            for B in self.batches(t, i):
                w = self.step(w, self.f.grad(i, w, B), eta, self.lamb, -self.x)
            D.append(w - self.x)
        return self.x + self.eta_g * mean(D)

    def momentum(self, t: int, S: Sequence[int], eta: float, sam: bool) -> Vector:
        """FedCM and MoFedSAM."""
        D = []
        for i in S:
            w = self.x
            for B in self.batches(t, i):
                g = self.ascended(i, w, B) if sam else self.f.grad(i, w, B)
                w = self.step(w, self.alpha * g + (1 - self.alpha) * self.Delta, eta)
            D.append(w - self.x)
        K = np.mean([len(self.batches(t, i)) for i in S])
        self.Delta = -mean(D) / (K * eta)
        return self.x + self.eta_g * mean(D)

    def fedcm(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.momentum(t, S, eta, sam=False)

    def mofedsam(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.momentum(t, S, eta, sam=True)

    def controlled(self, t: int, S: Sequence[int], eta: float, sam: bool) -> Vector:
        """SCAFFOLD and FedGamma."""
        D, dc = [], []
        for i in S:
            w, K = self.x, len(self.batches(t, i))
            for B in self.batches(t, i):
                g = self.ascended(i, w, B) if sam else self.f.grad(i, w, B)
                w = self.step(w, g + (self.c - self.c_i[i]), eta)
            new = self.c_i[i] - self.c - (w - self.x) / (K * eta)
            D.append(w - self.x)
            dc.append(new - self.c_i[i])
            self.c_i[i] = new
        self.c = self.c + sum(dc) / self.n
        return self.x + self.eta_g * mean(D)

    def scaffold(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.controlled(t, S, eta, sam=False)

    def fedgamma(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.controlled(t, S, eta, sam=True)

    def regularised(self, t: int, S: Sequence[int], eta: float, gradient: Callable[..., Vector]) -> Vector:
        """FedDyn, FedSpeed and FedSMOO: the mean of the active models plus that of ALL h_i."""
        local = []
        for i in S:
            w, q = self.x, self.h[i] - self.x
            for B in self.batches(t, i):
                w = self.step(w, gradient(i, w, B), eta, self.lamb, q)
            self.h[i] = self.h[i] + (w - self.x)
            local.append(w)
        return mean(local) + sum(self.h) / self.n

    def feddyn(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.regularised(t, S, eta, self.f.grad)

    def fedspeed(self, t: int, S: Sequence[int], eta: float) -> Vector:
        return self.regularised(t, S, eta, self.ascended)

    def fedsmoo(self, t: int, S: Sequence[int], eta: float) -> Vector:
        def gradient(i: int, w: Vector, B: np.ndarray) -> Vector:
            u = self.f.grad(i, w, B) - self.mu[i] - self.s
            e = self.rho * u / (np.linalg.norm(u) + self.eps)
            self.mu[i] = self.mu[i] + e - self.s
            return self.f.grad(i, w + e, B)

        x = self.regularised(t, S, eta, gradient)
        active = mean([self.mu[i] for i in S])
        self.s = self.rho * active / (np.linalg.norm(active) + self.eps)
        return x
