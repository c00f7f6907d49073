"""Model zoo: frozen settings whose ``build(input_shape, classes)`` returns a network without BatchNorm or Dropout."""

from fedsim.models.convolutional import CifarLeNet, LeNet5, McMahanCNN
from fedsim.models.linear import MLP, Logistic
from fedsim.models.normalization import group_norm
from fedsim.models.recurrent import CharLSTM
from fedsim.models.resnet import ResNet18
from fedsim.models.shapes import Architecture

MODELS: tuple[type[Architecture], ...] = (Logistic, MLP, LeNet5, McMahanCNN, CifarLeNet, ResNet18, CharLSTM)

__all__ = [
    "MLP", "MODELS", "Architecture", "CharLSTM", "CifarLeNet", "LeNet5", "Logistic", "McMahanCNN", "ResNet18",
    "group_norm",
]  # fmt: skip
