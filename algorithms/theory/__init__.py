"""Step sizes in theory: what is proved of an algorithm (``theory_of``), and the algorithm with such a step size.

A contractive compressor has E||C(x) - x||^2 <= (1 - alpha) ||x||^2. With theta = 1 - sqrt(1 - alpha) and beta =
(1 - alpha) / theta, xi = sqrt(beta / theta) = (1 + sqrt(1 - alpha)) / alpha - 1 is what its errors cost: 0 for the
identity, about 2 / alpha for strong compression.

Most step sizes here follow from one lemma. Let x <- x - gamma g, where the lengths of the steps bound the errors of g:
    sum_t ||g^t - grad f(x^t)||^2 <= Gamma^2 sum_t ||x^{t+1} - x^t||^2                        (in expectation)
Then gamma = 1 / (L + Gamma) gives  sum_t ||grad f(x^t)||^2 <= 2 (f(x^0) - inf f) / gamma, by summing the descent
    f(x^{t+1}) <= f(x^t) - gamma/2 ||grad f(x^t)||^2
                  + gamma/2 ||g^t - grad f(x^t)||^2 - (1/(2 gamma) - L/2) ||x^{t+1} - x^t||^2
since gamma^2 Gamma^2 + gamma L <= 1. Gamma is thus the gain of a method from steps to errors; gains in series multiply,
gains in parallel add. An estimate that follows a vector by contractive messages, g <- g + C(v - g), has the gain xi
from changes of v to v - g.

L~ is the quadratic mean L_QM of the clients' L_i or, as Richtarik, Gasanov, Burlachenko prove ("Error Feedback
Reloaded", ICLR 2024, arXiv 2402.10774), their smaller arithmetic mean L_AM. Step sizes hold for full gradients, except
for EF21SGDM and EF21PAGE, and for full participation, unless the theory takes a ``participation``. There is one module
for each family; an algorithm of your own is added by ``@theory_of.register``.
"""

from algorithms.theory import ef21, error_feedback, gossip, unbiased
from algorithms.theory.step_sizes import Task, Theory, beta, theory_of, theta, with_theory, xi

__all__ = [
    "Task",
    "Theory",
    "beta",
    "ef21",
    "error_feedback",
    "gossip",
    "theory_of",
    "theta",
    "unbiased",
    "with_theory",
    "xi",
]
