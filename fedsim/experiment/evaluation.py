"""What a run measures, and when."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.checks import number, whole
from fedsim.errors import ConfigError


@dataclass(frozen=True)
class Evaluation:
    """Evaluation on the test set and on clients' own samples. The last round is always evaluated.

    Args:
        every: rounds between evaluations of the server's model on the test set, which also accompany those on clients.
        clients_every: rounds between evaluations on each client's own samples; 0 evaluates the last round only, null
            none.
        worst: share of clients, those with the worst values, in the "worst" mean.
        holdout: share of each client's samples held out from training for evaluation; with 0, clients are evaluated on
            their training samples.
        fine_tune: local steps that every client makes on its training samples before its model is measured again; 0 for
            none.
        fine_tune_lr: step size of fine-tuning; by default the algorithm's lr.
        fine_tune_layers: layers that fine-tuning changes, as in share.layers.
        clients_at_most: largest number of clients, or nodes, that are evaluated one by one; if there are more, a random
            sample of this size is, the same in every round.
        unseen: share of the clients, the last ones, that never train and are measured with the server's model.
    """

    every: int = 5
    clients_every: int | None = 0
    worst: float = 0.1
    holdout: float = 0.0
    fine_tune: int = 0
    fine_tune_lr: float | None = None
    fine_tune_layers: str = "all"
    clients_at_most: int = 10_000
    unseen: float = 0.0

    def __post_init__(self) -> None:
        whole("evaluation.every", self.every, 1)
        if self.clients_every is not None:
            whole("evaluation.clients_every", self.clients_every, 0, "; 0 is the last round only, null is never")
        number("evaluation.worst", self.worst, lambda v: 0 < v <= 1, "a share above 0 and at most 1")
        whole("evaluation.clients_at_most", self.clients_at_most, 1)
        for name in ("holdout", "unseen"):
            number(f"evaluation.{name}", getattr(self, name), lambda v: 0 <= v < 1, "a share from 0 to below 1")
        whole("evaluation.fine_tune", self.fine_tune, 0)
        if self.fine_tune_lr is not None:
            number("evaluation.fine_tune_lr", self.fine_tune_lr, lambda v: v > 0, "a finite number above 0, or none")
        if self.fine_tune and not self.holdout:
            raise ConfigError(
                "evaluation.fine_tune needs samples that it does not train on; set evaluation.holdout, such as 0.2"
            )

    def due(self, round: int) -> bool:
        """Whether a round is evaluated even if it is not the last one."""
        return round % self.every == 0 or self.clients_due(round)

    def clients_due(self, round: int) -> bool:
        """Whether clients are evaluated in a round even if it is not the last one."""
        return bool(self.clients_every and round % self.clients_every == 0)
