"""Model zoo: frozen settings whose ``build(input_shape, classes)`` returns a network, without BatchNorm."""

from fedsim.models.convolutional import CifarLeNet, LeNet5, McMahanCNN
from fedsim.models.linear import MLP, Logistic
from fedsim.models.lora import LoRA, merged
from fedsim.models.normalization import group_norm
from fedsim.models.peft import save_adapter
from fedsim.models.recurrent import CharLSTM
from fedsim.models.resnet import ResNet18
from fedsim.models.shapes import Architecture
from fedsim.models.text import TextClassifier
from fedsim.models.transformer import GPT

MODELS: tuple[type[Architecture], ...] = (
    Logistic, MLP, LeNet5, McMahanCNN, CifarLeNet, ResNet18, CharLSTM, GPT, LoRA,
)  # fmt: skip

__all__ = [
    "GPT", "MLP", "MODELS", "Architecture", "CharLSTM", "CifarLeNet", "LeNet5", "LoRA", "Logistic", "McMahanCNN",
    "ResNet18", "TextClassifier", "group_norm", "merged", "save_adapter",
]  # fmt: skip
