"""Real data sets on tensors, by name, and a user's own files of the same formats."""

from fedsim.data.adapters import dataset_of
from fedsim.data.by_client import dataset_by_client
from fedsim.data.catalogue import available, load
from fedsim.data.dataset import Dataset, Split
from fedsim.data.npz import save_dataset
from fedsim.data.sources import MissingDataError, data_directory

__all__ = [
    "Dataset", "MissingDataError", "Split", "available", "data_directory", "dataset_by_client", "dataset_of", "load",
    "save_dataset",
]  # fmt: skip
