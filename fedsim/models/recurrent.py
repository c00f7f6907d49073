"""Next-character prediction with LSTMs (McMahan et al., AISTATS 2017, arXiv 1602.05629; LEAF, arXiv 1812.01097)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedsim.errors import ConfigError, ModelError
from fedsim.models.shapes import one_tensor, unfit


class CharacterModel(nn.Module):
    """Embedding, LSTM and one linear layer at every position."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, T]`` to logits of the next token ``[B, T, vocabulary]``."""
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.output(states)
        return logits


@dataclass(frozen=True)
class CharLSTM:
    """Stacked LSTM over characters that predicts the next one at every position.

    It has 822,570 parameters for a vocabulary of 90, against 820,522 in TensorFlow: PyTorch's LSTM keeps two biases
    for each gate.

    Attributes:
        embedding: width of the character embedding.
        hidden: width of each LSTM layer.
        layers: number of LSTM layers.
    """

    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        if min(self.embedding, self.hidden, self.layers) < 1:
            raise ConfigError(f"got {self}; expected embedding, hidden and layers of at least 1")

    def build(self, input_shape: tuple[int, ...], classes: int) -> CharacterModel:
        """The network for sequences ``[T]`` of token ids below ``classes``; see ``Architecture.build``."""
        if not one_tensor(input_shape) or len(input_shape) != 1:
            raise unfit("CharLSTM", "sequences of token ids [T]", input_shape)
        if classes < 1:
            raise ModelError(f"CharLSTM got classes={classes}; expected the vocabulary's size, at least 1")
        return CharacterModel(classes, self.embedding, self.hidden, self.layers)
