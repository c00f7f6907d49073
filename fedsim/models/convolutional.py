"""Small convolutional networks from the literature: two 5x5 convolutions with pooling, then linear layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedsim.models.linear import linear_layers
from fedsim.models.shapes import image_shape, output_width


def two_convolutions(
    image: tuple[int, int, int],
    filters: tuple[int, int],
    padding: tuple[int, int],
    hidden: tuple[int, ...],
    classes: int,
) -> nn.Sequential:
    """Twice (5x5 convolution, ReLU, 2x2 max-pooling), then linear layers of the widths ``hidden``."""
    channels, *sides = image
    layers: list[nn.Module] = []
    for width, pad in zip(filters, padding, strict=True):
        layers += [nn.Conv2d(channels, width, kernel_size=5, padding=pad), nn.ReLU(), nn.MaxPool2d(2)]
        channels, sides = width, [(side + 2 * pad - 4) // 2 for side in sides]
    linear = linear_layers(channels * sides[0] * sides[1], *hidden, output_width(classes))
    return nn.Sequential(*layers, nn.Flatten(), *linear)


@dataclass(frozen=True)
class LeNet5:
    """LeNet-5 (LeCun et al., Proc. IEEE 1998) with ReLU and max-pooling: 6-16 filters, 120-84 units.

    Images smaller than 32x32 are padded by 2 pixels, as LeCun's 28x28 digits were. It has 61,706 parameters for
    1x28x28 and 10 classes.
    """

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for images from 12x12; see ``Architecture.build``."""
        image = image_shape("LeNet5", input_shape, smallest=12)
        border = 2 if min(image[1:]) < 32 else 0
        return two_convolutions(image, (6, 16), (border, 0), (120, 84), classes)


@dataclass(frozen=True)
class McMahanCNN:
    """The CNN of McMahan et al. (AISTATS 2017, arXiv 1602.05629) for MNIST: 32-64 filters, 512 units.

    Convolutions preserve the image's size. It has 1,663,370 parameters for 1x28x28 and 10 classes.
    """

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for images from 4x4; see ``Architecture.build``."""
        image = image_shape("McMahanCNN", input_shape, smallest=4)
        return two_convolutions(image, (32, 64), (2, 2), (512,), classes)


@dataclass(frozen=True)
class CifarLeNet:
    """The CNN of FedDyn (Acar et al., ICLR 2021, arXiv 2111.04263) for CIFAR: 64-64 filters, 384-192 units.

    It has 797,962 parameters for 3x32x32 and 10 classes.
    """

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for images from 16x16; see ``Architecture.build``."""
        image = image_shape("CifarLeNet", input_shape, smallest=16)
        return two_convolutions(image, (64, 64), (0, 0), (384, 192), classes)
