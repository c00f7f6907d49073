"""The data sets and file formats by name: `load` and `available`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.data.adapters import images
from fedsim.data.cifar import cifar10, cifar_binary
from fedsim.data.csv_folder import csv_folder, heart_disease
from fedsim.data.dataset import Dataset
from fedsim.data.digits import digits
from fedsim.data.huggingface import huggingface
from fedsim.data.idx import fashion_mnist, idx, mnist
from fedsim.data.leaf import leaf
from fedsim.data.libsvm import a9a, libsvm, libsvm_named
from fedsim.data.npy import npy
from fedsim.data.npz import npz, uci_har
from fedsim.data.sources import Store, data_directory
from fedsim.data.summary import summary
from fedsim.data.text import jsonl, shakespeare, tiny_shakespeare
from fedsim.errors import ConfigError, suggest

Loader = Callable[..., Dataset]

NAMED: dict[str, tuple[str, Loader]] = {
    "digits": ("1,797 digits of 8 x 8 pixels, 10 classes; comes with scikit-learn", digits),
    "mnist": ("70,000 digits of 28 x 28 pixels, 10 classes; natural clients: writers", mnist),
    "fashion_mnist": ("70,000 pictures of clothing of 28 x 28 pixels, 10 classes", fashion_mnist),
    "cifar10": ("60,000 colour images of 32 x 32 pixels, 10 classes", cifar10),
    "uci_har": ("10,299 windows of a phone's motion sensors, 6 activities; natural clients: subjects", uci_har),
    "shakespeare": ("next character in the plays; natural clients: speaking roles", shakespeare),
    "tiny_shakespeare": ("next character in 1.1 million characters of the plays", tiny_shakespeare),
    "heart_disease": ("920 patients, 13 features, 2 classes; natural clients: hospitals", heart_disease),
    "a9a": ("LIBSVM: 48,842 people, 123 features, 2 classes", a9a),
    "mushrooms": ("LIBSVM: 8,124 mushrooms, 112 features, 2 classes", partial(libsvm_named, "mushrooms")),
    "w8a": ("LIBSVM: 49,749 web pages, 300 features, 2 classes", partial(libsvm_named, "w8a")),
    "phishing": ("LIBSVM: 11,055 web sites, 68 features, 2 classes", partial(libsvm_named, "phishing")),
    "german_scale": ("LIBSVM: 1,000 loans, 24 features, 2 classes", partial(libsvm_named, "german_scale")),
    "australian": ("LIBSVM: 690 credit cards, 14 features, 2 classes", partial(libsvm_named, "australian")),
}
FORMATS: dict[str, tuple[str, Loader]] = {
    "npz": ("your own arrays: an .npz file with x, y and perhaps client", npz),
    "csv": ("your own tables: a folder with one CSV file per client, or one CSV file", csv_folder),
    "jsonl": ("your own texts: JSON lines {client, text}", jsonl),
    "leaf": ("your own samples by user: LEAF's JSON, a file or a folder", leaf),
    "libsvm": ("your own features: a LIBSVM text file", libsvm),
    "idx": ("your own grey images: a folder of IDX files named as MNIST's", idx),
    "images": ("your own images: a folder with a folder of images for each class", images),
    "npy": ("your own arrays, larger than memory: a folder with x.npy, y.npy, x_test.npy, y_test.npy", npy),
    "huggingface": ("your own or the hub's tables of Hugging Face's datasets (extra huggingface)", huggingface),
    "cifar_binary": ("your own colour images: a folder of CIFAR binary files", cifar_binary),
}


def available() -> Mapping[str, str]:
    """Name and one-line description of every data set and format that `load` reads."""
    return {name: description for name, (description, _) in (NAMED | FORMATS).items()}


def options_of(name: str) -> list[str]:
    """Options of a data set or format."""
    return [option for option in inspect.signature((NAMED | FORMATS)[name][1]).parameters if option != "store"]


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    base_url: str | None = None,
    **options: Any,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `available`; a format (``npz``, ``csv``, ...) takes option ``path``.
        data_dir: folder of the data files; default the environment variable ``FEDSIM_DATA``, else the user's cache.
        download: fetch missing files from the public source, where their checksums are known.
        base_url: a mirror to fetch them from.
        options: the loader's own, such as ``test_fraction`` or ``sequence_length``.

    Raises:
        ConfigError: the name or an option is unknown, or an option is out of range.
        DataError: a file is corrupt; `MissingDataError` if it is missing.
    """
    if name not in NAMED | FORMATS:
        raise ConfigError(f"no data set {name!r}; {suggest(name, NAMED | FORMATS, see='fedsim list data')}")
    loader, known = (NAMED | FORMATS)[name][1], options_of(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"data set {name!r} has no option {option!r}; {suggest(option, known)}")
    if name in NAMED:
        return loader(Store(data_directory(data_dir), download, base_url), **options)
    if "path" not in options and inspect.signature(loader).parameters["path"].default is inspect.Parameter.empty:
        raise ConfigError(f"data set {name!r} needs option 'path': where your files are")
    if download:
        raise ConfigError(f"data set {name!r} is your own files, which cannot be downloaded; leave out download")
    data = loader(**options)
    return replace(data, notes=summary(data, options.get("path") or options.get("hub", "")))
