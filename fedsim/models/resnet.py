"""ResNet-18 (He et al., CVPR 2016, arXiv 1512.03385) with GroupNorm in place of BatchNorm.

BatchNorm's statistics belong to a client's own data and break under averaging (Hsieh et al., ICML 2020,
arXiv 1910.00189); GroupNorm has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.errors import ConfigError
from fedsim.models.shapes import image_shape, output_width

Stem = Literal["cifar", "imagenet"]


class PaddedConv2d(nn.Conv2d):
    """Convolution without bias, padded to preserve the size up to the stride, which omits the products with zeros that
    some entries of its kernel make alone: on a map of 1x1, all of a 3x3 kernel but its centre meet only the padding.

    Those entries are parameters as the others are, with a gradient of 0; results are exact to rounding.

    Args:
        before: number of channels of the input.
        after: of the output.
        kernel: width of the kernel, odd.
        stride: width of a step between outputs.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__(before, after, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """``[B, before, H, W]`` to ``[B, after, H/stride, W/stride]``, rounded up."""
        size = input.shape[-2:]
        (above, below), (left, right) = map(self._outside, size)
        if not (above or left):                            # nothing is cut below or on the right without these
            return super().forward(input)
        weight = F.pad(self.weight, (-left, -right, -above, -below))   # slices of slices would take two copies back
        reach = self.kernel_size[0] // 2
        if weight.shape[-2:] == size and above == left == reach:   # a single output, a product of matrices
            return F.linear(input.flatten(-3), weight.flatten(1))[..., None, None]
        return F.conv2d(input, weight, stride=self.stride, padding=(reach - above, reach - left))

    def _outside(self, length: int) -> tuple[int, int]:
        """Numbers of the kernel's first and last rows that meet no row of a map of ``length`` at any output; columns
        likewise.
        """
        reach, last = self.kernel_size[0] // 2, (length - 1) // self.stride[0] * self.stride[0]   # centre of the last
        return max(reach - last, 0), max(reach + 1 - length, 0)


def convolution(before: int, after: int, kernel: int, stride: int = 1) -> PaddedConv2d:
    """The convolution with He's initialisation (by fan-out)."""
    layer = PaddedConv2d(before, after, kernel, stride)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class BasicBlock(nn.Module):
    """``relu(body(x) + shortcut(x))`` with two 3x3 convolutions in the body."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(before, after, 3, stride),
            nn.GroupNorm(groups, after),
            nn.ReLU(),
            convolution(after, after, 3),
            nn.GroupNorm(groups, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(convolution(before, after, 1, stride), nn.GroupNorm(groups, after))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, before, H, W]`` to ``[B, after, H/stride, W/stride]``."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 with GroupNorm, for images of any size.

    For 3 channels and 10 classes it has 11,181,642 parameters with the "imagenet" stem and 11,173,962 with "cifar".

    Attributes:
        stem: "cifar" begins with a 3x3 convolution, "imagenet" with a 7x7 of stride 2 and a max-pooling of stride 2.
        groups: number of groups of each GroupNorm; it must divide 64.
    """

    stem: Stem = "cifar"
    groups: int = 2

    def __post_init__(self) -> None:
        if self.stem not in get_args(Stem):
            raise ConfigError(f"got stem={self.stem!r}; expected 'cifar' or 'imagenet'")
        if self.groups < 1 or 64 % self.groups:
            raise ConfigError(f"got groups={self.groups}; expected a divisor of 64, such as 2 or 32")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The network for images of any size; see ``Architecture.build``."""
        channels, _, _ = image_shape("ResNet18", input_shape, smallest=1)
        imagenet = self.stem == "imagenet"
        first = convolution(channels, 64, 7, stride=2) if imagenet else convolution(channels, 64, 3)
        layers: list[nn.Module] = [first, nn.GroupNorm(self.groups, 64), nn.ReLU()]
        if imagenet:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        before = 64
        for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [BasicBlock(before, after, stride, self.groups), BasicBlock(after, after, 1, self.groups)]
            before = after
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, output_width(classes)))
