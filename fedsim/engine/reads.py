"""What a step reads of its tensors without an operation on them, so that no recording of operations repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedsim.engine.tape import Unreplayable

VALUES = ("tolist", "numpy", "__array__", "__dlpack__", "__repr__", "__format__", "untyped_storage", "data_ptr")
"""Words for the values of a tensor, which another round changes."""

SIZES = ("shape", "size", "__len__", "numel", "nelement", "nbytes")
"""Words for the sizes of a tensor."""


class Reads(TorchFunctionMode):
    """Refusal of reads of values, and of the sizes of samples, whose number changes from batch to batch.

    Attributes:
        samples: tensors of the minibatch, as the step gets them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: Sequence[Tensor] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":                              # of a property
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in VALUES or (name in SIZES and any(args[0] is t for t in self.samples)):
            raise Unreplayable(f"the step reads {name} of a tensor")
        return func(*args, **(kwargs or {}))
