"""Modules and losses with state besides the parameters are refused by name; those that mix samples are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.data import Split
from fedsim.engine.examine import examine, give_shapes, snapshot
from fedsim.engine.model import Model
from fedsim.errors import ModelError
from fedsim.models import CharLSTM, LeNet5, ResNet18
from fedsim.models.losses import cross_entropy

N, CLASSES = 40, 10
X, Y = torch.randn(N, 64, generator=torch.Generator().manual_seed(0)), torch.arange(N) % CLASSES
SAMPLES = Split(X, Y)
calls = 0


class Net(nn.Module):
    """A linear layer around which ``body(self, x)`` does something."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.body = nn.Linear(64, CLASSES), body
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("table", None, persistent=False)
        self.target = nn.Parameter(torch.zeros(64), requires_grad=False)
        self.calls, self.largest = 0, -1e9
        self.last: Tensor | None = None
        self.seen: list[float] = []
        self.masks: dict[int, Tensor] = {}
        self.draws = torch.Generator()

    def forward(self, x: Tensor) -> Any:
        """Logits, in the good case."""
        return self.body(self, x)


def tried(body: Callable[[Any, Tensor], Any], loss: Any = cross_entropy) -> Model:
    torch.manual_seed(0)
    model = Model(Net(body), loss)
    examine(model, SAMPLES)
    return model


def averages(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.mean.lerp_(x.detach().mean(0), 0.1)
    return m.linear(x - m.mean)  # type: ignore[no-any-return]


def follows(m: Any, x: Tensor) -> Tensor:
    m.target.data.lerp_(x.detach().mean(0), 0.1)
    return m.linear(x)  # type: ignore[no-any-return]


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.linear(x) * m.calls  # type: ignore[no-any-return]


def counts_evaluations(m: Any, x: Tensor) -> Tensor:
    m.calls += not m.training
    return m.linear(x)  # type: ignore[no-any-return]


def grows(m: Any, x: Tensor) -> Tensor:
    m.seen.append(float(x.mean()))
    return m.linear(x)  # type: ignore[no-any-return]


def observes(m: Any, x: Tensor) -> Tensor:
    m.largest = max(m.largest, float(x.max()))
    return m.linear(x)  # type: ignore[no-any-return]


def first_seen(m: Any, x: Tensor) -> Tensor:
    m.last = x.mean(0).detach() if m.last is None else m.last
    return m.linear(x - m.last)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (averages, "buffer mean"),
        (follows, "buffer target"),
        (counts, "attribute calls"),
        (counts_evaluations, "attribute calls"),
        (grows, "attribute seen"),
        (observes, "attribute largest"),
        (first_seen, "attribute last"),
    ],
)
def test_state_is_refused_by_name(body: Any, named: str) -> None:
    with pytest.raises(ModelError, match=rf"Net keeps state besides its parameters: {named} changed.*layer\.eval\(\)"):
        tried(body)


def test_the_layers_of_pytorch_that_keep_state() -> None:
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, CLASSES)))
    with pytest.raises(ModelError, match=r"buffer 1\.parametrizations\.weight\.0\._u, buffer 1\.parametrizations.*_v"):
        examine(Model(model, cross_entropy), SAMPLES)
    model[1].parametrizations.eval()  # type: ignore[operator, union-attr]
    examine(Model(model, cross_entropy), SAMPLES)


def test_a_global_variable_is_found_by_what_it_does() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        global calls
        calls += 1
        return m.linear(x) * calls  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="what Net or its loss gives for a minibatch depends on those before"):
        tried(body)


def test_a_forward_pass_that_writes_into_parameters() -> None:
    with pytest.raises(ModelError, match="Net writes into its parameters"):
        tried(lambda m, x: (m.linear.weight.data.clamp_(-0.01, 0.01), m.linear(x))[1])


def test_random_numbers() -> None:
    with pytest.raises(ModelError, match=r"draws random numbers in training by aten\.rand"):
        tried(lambda m, x: m.linear(x + torch.rand(x.shape)))
    with pytest.raises(ModelError, match="Net or its loss draws from the global generator"):
        tried(lambda m, x: m.linear(x + np.random.rand()))  # noqa: NPY002


def keeps_its_last_call(m: Any, x: Tensor) -> Tensor:
    m.last = m.linear(x)
    m.seen.clear()
    m.seen.append(float(x.detach().mean()))
    return m.last  # type: ignore[no-any-return]


def caches_by_shape(m: Any, x: Tensor) -> Tensor:
    if len(x) not in m.masks:
        m.masks[len(x)] = torch.full((len(x), 1), 2.0)
    m.table = torch.arange(64)
    return m.linear(x * m.masks[len(x)] + m.table)  # type: ignore[no-any-return]


@pytest.mark.parametrize("body", [keeps_its_last_call, caches_by_shape, lambda m, x: m.linear(x - m.target + m.mean)])
def test_what_follows_from_the_call_alone_is_no_state(body: Any) -> None:
    model = tried(body)
    assert not model.mixes
    net = model.module
    assert net.last is None and not net.seen and not net.masks and net.table is None, "the trial must leave no trace"


@pytest.mark.parametrize(
    ("module", "x", "y"),
    [
        (lambda: LeNet5().build((1, 28, 28), 10), torch.randn(6, 1, 28, 28), torch.arange(6)),
        (lambda: ResNet18(groups=4).build((3, 8, 8), 10), torch.randn(5, 3, 8, 8), torch.arange(5)),
        (lambda: CharLSTM().build((6,), 20), torch.randint(0, 20, (5, 6)), torch.randint(0, 20, (5, 6))),
        (lambda: nn.Linear(3, 4), torch.randn(1, 3), torch.zeros(1, dtype=torch.int64)),
    ],
    ids=["LeNet", "ResNet", "LSTM", "one sample"],
)
def test_an_examination_changes_nothing(module: Callable[[], nn.Module], x: Tensor, y: Tensor) -> None:
    model, drawn = Model(module(), cross_entropy), torch.get_rng_state()
    initial, before = model.vector(), snapshot(model)
    examine(model, Split(x, y))
    assert torch.equal(model.vector(), initial) and not before.differences(snapshot(model)) and not model.mixes
    assert torch.equal(torch.get_rng_state(), drawn)


class Contrasting(nn.Module):
    """A loss that subtracts the largest of the minibatch, in training."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses ``[B]``."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses - self.scale * losses.max() if self.training or self.always else losses


def centred(losses: Tensor) -> Tensor:
    """Of the same values: only the gradients mix."""
    return losses - losses.mean() + losses.mean().detach()


@pytest.mark.parametrize(
    ("body", "loss"),
    [
        (lambda m, x: m.linear(x - x.mean(0) if m.training else x), cross_entropy),
        (lambda m, x: m.linear(x / x.amax(0) if m.training else x), cross_entropy),
        (lambda m, x: m.linear(x / x.std(0) if m.training else x), cross_entropy),
        (lambda m, x: m.linear(x), Contrasting()),
        (lambda m, x: m.linear(x) / (len(x) if m.training else 1), cross_entropy),
        (lambda m, x: m.linear(x), lambda o, t: centred(cross_entropy(o, t))),
    ],
    ids=["mean", "largest", "deviation, of no one sample", "loss", "number", "gradients alone"],
)
def test_mixing_in_training_is_found_out(body: Any, loss: Any) -> None:
    assert tried(body, loss).mixes


def test_coarse_rounding_is_not_taken_for_mixing() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = torch.tanh(m.linear(x))
            return (h @ h.new_ones(CLASSES, CLASSES) + h).float()

    assert not tried(body).mixes


def test_a_dense_model_that_mixes_by_its_loss_alone() -> None:
    model = Model(nn.Linear(64, CLASSES), Contrasting())
    assert model.dense is not None
    examine(model, SAMPLES)
    assert model.mixes


@pytest.mark.parametrize(
    "weights",
    [
        lambda losses: torch.where(losses < losses.mean(), 0.5, 1.0),
        lambda losses: losses >= losses.topk(max(1, len(losses) // 2))[0][-1],
        lambda losses: losses == losses.max(),
    ],
    ids=["below the mean", "harder half", "hardest"],
)
def test_losses_that_choose_among_the_samples_of_a_minibatch(weights: Callable[[Tensor], Tensor]) -> None:
    """Whatever the initial model."""

    class Choosing(nn.Module):
        def forward(self, o: Tensor, t: Tensor) -> Tensor:
            losses = F.cross_entropy(o, t, reduction="none")
            return losses * weights(losses) if self.training else losses

    for seed in range(20):
        torch.manual_seed(seed)
        model = Model(nn.Linear(64, CLASSES), Choosing())
        examine(model, SAMPLES)
        assert model.mixes, seed


def test_a_last_layer_of_zeros_hides_nothing() -> None:
    model = Model(nn.Linear(64, CLASSES), Contrasting())
    examine(Model(nn.Linear(64, CLASSES), cross_entropy), SAMPLES)
    model.load(torch.zeros(model.d))
    examine(model, SAMPLES)
    assert model.mixes and not model.vector().any()


def test_mixing_in_evaluation_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Net mixes the samples of a batch in evaluation.*if self\.training"):
        tried(lambda m, x: m.linear(x - x.mean(0)))
    with pytest.raises(ModelError, match=r"the loss Contrasting mixes the samples of a batch in evaluation"):
        tried(lambda m, x: m.linear(x), Contrasting(always=True))
    with pytest.raises(ModelError, match=r"the loss .*lambda.* mixes the samples of a batch in evaluation"):
        tried(lambda m, x: m.linear(x), lambda o, t: cross_entropy(o, t) / len(o))


def test_attention_that_takes_the_samples_for_positions() -> None:
    def of(batch_first: bool) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
        return nn.Sequential(nn.Unflatten(1, (8, 8)), layer, nn.Flatten(), nn.Linear(64, CLASSES))

    examine(Model(of(True), cross_entropy), SAMPLES)
    with pytest.raises(ModelError, match="batch_first=True"):
        examine(Model(of(False), cross_entropy), SAMPLES)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda m, x: (m.linear(x), x), "cross_entropy got outputs of type tuple; expected a tensor, or a dict"),
        (lambda m, x: m.linear(x).squeeze(), r"Net returned outputs \[10\] for one input of shape \[64\]"),
        (lambda m, x: m.linear(x[:, :3]), r"Net with its loss cannot take an input of shape \[64\] with the target 9"),
        (lambda m, x: m.linear(x[:, :3] if m.training else x), r"Net or its loss raised RuntimeError on 6 samples"),
        (lambda m, x: m.linear(x.view(1, 64)), r"Net or its loss raised RuntimeError on 6 samples of shape \[64\]"),
    ],
    ids=["tuple", "squeeze", "shape", "in training", "of one sample only"],
)
def test_errors_name_the_model(body: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tried(body)


def test_a_loss_with_state_or_parameters() -> None:
    class Smoothed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

        def forward(self, o: Tensor, t: Tensor) -> Tensor:
            losses = F.cross_entropy(o, t, reduction="none")
            self.total = self.total + losses.detach().mean()
            return losses / self.total

    with pytest.raises(ModelError, match=r"attribute of the loss\.total"):
        tried(lambda m, x: m.linear(x), Smoothed())
    with pytest.raises(ModelError, match=r"the loss Linear has parameters \(weight, bias\)"):
        Model(nn.Linear(2, 2), nn.Linear(2, 2))


def test_lazy_layers_get_their_shapes() -> None:
    module = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(CLASSES))
    with pytest.raises(ModelError, match=r"parameter '0\.weight' has no shape yet"):
        Model(module, cross_entropy)
    give_shapes(module, X[:1].double())
    examine(Model(module, cross_entropy), SAMPLES)
    with pytest.raises(ModelError, match=r"Sequential with lazy layers raised .*Error on inputs of shape \[3\]"):
        give_shapes(nn.Sequential(nn.LazyLinear(5), nn.Linear(6, 2)), torch.zeros(1, 3))
