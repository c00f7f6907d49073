"""Handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI 1998), as bundled with scikit-learn: no file needed."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.sources import Store
from fedsim.data.splits import divide, holdout


def digits(store: Store, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 images ``[1, 8, 8]`` with pixels in [0, 1]; the stratified split depends on the options alone."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    return Dataset("digits", *divide(x, y, None, holdout((y,), test_fraction, seed, "digits")), classes=10)
