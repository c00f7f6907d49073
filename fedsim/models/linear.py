"""Models of linear layers: a ``Sequential`` of ``Flatten``, ``Linear`` and ``ReLU``, which the engine batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.shapes import features, output_width


def linear_layers(*widths: int) -> list[nn.Module]:
    """``Linear`` layers from each width to the next, with a ``ReLU`` between any two."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return layers[1:]


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression; with one output, linear or binary logistic regression.

    Attributes:
        bias: give each output an intercept.
        zero: start from zero, the usual start for a convex problem, instead of PyTorch's random initialisation.
    """

    bias: bool = True
    zero: bool = False

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for samples of any shape; see ``Architecture.build``."""
        linear = nn.Linear(features("Logistic", input_shape), output_width(classes), bias=self.bias)
        if self.zero:
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)
        return nn.Sequential(nn.Flatten(), linear)


@dataclass(frozen=True)
class MLP:
    """Multi-layer perceptron with ReLU; the default is the 2NN of McMahan et al. (AISTATS 2017, arXiv 1602.05629).

    Attributes:
        hidden: widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (200, 200)

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"got hidden={self.hidden}; expected one or more widths of at least 1")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for samples of any shape; see ``Architecture.build``."""
        widths = features("MLP", input_shape), *self.hidden, output_width(classes)
        return nn.Sequential(nn.Flatten(), *linear_layers(*widths))
