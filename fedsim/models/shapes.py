"""The architecture protocol, and checks of sample shapes shared by all models."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

from torch import nn

from fedsim.errors import ConfigError, ModelError

FITS = (
    "Logistic and MLP take any shape, ResNet18 any image, McMahanCNN images from 4x4, LeNet5 from 12x12,"
    " CifarLeNet from 16x16, CharLSTM and GPT token sequences [T]"
)


class Architecture(Protocol):
    """Settings of a model; the network itself comes from ``build``."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build a freshly initialised network; parameters are drawn from torch's global generator, so seed it first.

        Args:
            input_shape: shape of one sample, without the batch axis; a dict or tuple of shapes for such inputs.
            classes: number of classes; 0 (regression) and 1 (a binary logit) both give one output.

        Raises:
            ModelError: the model does not accept samples of this shape.
        """


def check_model(place: str, model: Any) -> None:
    """Require a module, or settings with ``build``; ``place`` says what it is for."""
    if isinstance(model, type) or not (isinstance(model, nn.Module) or hasattr(model, "build")):
        raise ConfigError(f"{place} is {model!r:.200}; expected an nn.Module, or settings such as MLP((100,))")


def unfit(model: str, expected: str, input_shape: tuple[int, ...]) -> ModelError:
    """Error for samples of an unsupported shape, with the shapes that each model accepts."""
    shape = list(input_shape) if one_tensor(input_shape) else input_shape
    return ModelError(f"{model} got samples of shape {shape}; expected {expected}. {FITS}.")


def one_tensor(input_shape: Any) -> bool:
    """True for the shape of one tensor, not of several."""
    return isinstance(input_shape, tuple) and all(isinstance(length, int) for length in input_shape)


def features(model: str, input_shape: tuple[int, ...]) -> int:
    """Number of features of a sample, a tensor of any shape."""
    if not one_tensor(input_shape):
        raise unfit(model, "one tensor, or a module of your own for several", input_shape)
    return prod(input_shape)


def output_width(classes: int) -> int:
    """Width of the last layer."""
    if classes < 0:
        raise ModelError(f"got classes={classes}; expected a number of classes, or 0 for regression")
    return max(classes, 1)


def image_shape(model: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Check for an image of at least ``smallest`` by ``smallest`` pixels; return ``(channels, height, width)``."""
    if not one_tensor(input_shape) or len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        raise unfit(model, f"images [channels, height, width] of at least {smallest}x{smallest} pixels", input_shape)
    channels, height, width = input_shape
    return channels, height, width
