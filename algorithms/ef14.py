"""EF14, classic error feedback: Seide, Fu, Droppo, Li, Yu, Interspeech 2014; Stich, Cordonnier, Jaggi, NeurIPS 2018
(arXiv 1809.07599).

    client i:  e_i = 0 at first
               p <- e_i + gamma grad f_i(x);   v_i <- C(p);   e_i <- p - v_i;   send v_i
    server:    x <- x - mean_S v_i

gamma is inside the compressor, so with a schedule what was left behind keeps the step of its own round. Exact where
every client is at rest at the minimiser; else a floor that grows with gamma and with the clients' heterogeneity.
Down 1 vector, up 1 compressed vector.

Step size in theory: gamma = 1 / (L (1 + xi)) (xi of C: ``algorithms.theory``). With zeta^2 a bound on the mean of
||grad f_i - grad f||^2, the mean over T rounds of ||grad f(z)||^2 is at most
    2 (f(x) - inf f) / (gamma T) + (gamma L xi zeta)^2
at z = x - mean e_i, which moves by gamma grad f(x): e_i follows from the gradients with the gain xi, and f falls as in
the lemma there. The last term is the floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms import theory
from algorithms.dcgd import Gradient, gradient_of
from algorithms.theory import Task, Theory
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import contractive, one_of, positive
from fedsim.compress import TopK


class EF14State(NamedTuple):
    x: Vector  # [d] server model
    e_i: Kept[Vector]  # [n, d] what each client has not yet sent


@dataclass(frozen=True)
class EF14:
    """Compressed gradient descent whose clients add what they left out to their next message.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to step and error; contractive.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    gradient: Gradient = "full"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF14State:
        return EF14State(x, clients.keep(torch.zeros_like(x)))

    def round(self, s: EF14State, clients: Clients) -> EF14State:
        sent, e_i = clients.each(self.client, s.x, s.e_i)
        return EF14State(s.x - clients.mean(sent), s.e_i | e_i)

    def client(self, local: Local, x: Vector, e_i: Vector) -> tuple[Packed, Vector]:
        p = e_i + self.lr * local.decay * gradient_of(local, x, self.gradient)
        v_i = self.compressor.compress(p, local)
        return v_i, p - v_i.unpack()

    def theory(self, task: Task) -> Theory:
        """The step size down to the floor, with everybody in every round; see the module."""
        theory.refuse_minibatches(self)
        c = theory.constants_of(task)
        alpha = theory.alpha_of(self.compressor, c.d)
        xi = theory.xi(alpha)
        return Theory({"nonconvex": 1 / (c.L * (1 + xi))}, {"alpha": alpha, "xi": xi, "L": c.L})
