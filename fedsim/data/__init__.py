"""Real data sets on tensors, by name, and a user's own files of the same formats."""

from fedsim.data.catalogue import available, load
from fedsim.data.dataset import Dataset, Split
from fedsim.data.sources import MissingDataError, data_directory

__all__ = ["Dataset", "MissingDataError", "Split", "available", "data_directory", "load"]
