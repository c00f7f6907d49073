"""Handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI 1998), as bundled with scikit-learn: no file needed.

scikit-learn itself takes half a second to import, so its file is read where it is at hand.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.sources import Store
from fedsim.data.splits import divide, holdout


def digits(store: Store, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 images ``[1, 8, 8]`` with pixels in [0, 1].

    Args:
        test_fraction: share of each class that is held out for testing.
        seed: of the choice of test samples, whatever the run's seed is.
    """
    pixels, labels = digits_of_scikit_learn()
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    return Dataset("digits", *divide(x, y, None, holdout((y,), test_fraction, seed, "digits")), classes=10)


def digits_of_scikit_learn() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[1797, 64]`` from 0 to 16, and labels."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels
