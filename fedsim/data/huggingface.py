"""Tables of Hugging Face's ``datasets`` by name: of a folder or file here, or of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedsim.data.adapters import dataset_of
from fedsim.data.dataset import Dataset
from fedsim.data.sources import MissingDataError, user_folder, user_path
from fedsim.errors import ConfigError, DataError, how_to_install, in_one_line

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Endings of files, and what ``datasets.load_dataset`` calls their format."""
SAVED = ("dataset_dict.json", "state.json")
"""What ``save_to_disk`` leaves in a folder, of several splits or of one."""
SPLITS = ("train", "test", "validation", "valid", "dev")


def huggingface(
    path: str | Path | None = None,
    *,
    hub: str | None = None,
    config: str | None = None,
    inputs: Sequence[str] | None = None,
    target: str | None = None,
    client: str | None = None,
    tokenizer_path: str | Path | None = None,
    max_length: int = 64,
    layout: Literal["auto", "HWC", "CHW"] = "auto",
    regression: bool = False,
    test_fraction: float = 0.2,
) -> Dataset:
    """A table of Hugging Face's ``datasets``, of which it needs the extra huggingface; see ``fedsim.dataset_of``.

    Args:
        path: a folder that ``save_to_disk`` wrote; or a file .json, .jsonl, .csv or .parquet, or a folder of such files
            called train and test.
        hub: instead of that, name of a data set of the hub, which is downloaded to the library's cache.
        config: configuration of a data set of the hub.
        inputs: columns of inputs; several become the model's arguments by name.
        target: column of targets; by default one called label or alike.
        client: column of natural clients.
        tokenizer_path: folder of a tokenizer of transformers, by which texts become token ids.
        max_length: token ids of a text, which is padded or cut.
        layout: place of the channels in images that are arrays; "auto" finds it out.
        regression: take whole numbers as real targets.
        test_fraction: share of each class to test on, where there is no test split.

    Raises:
        ConfigError: the extra is missing, or both or none of path and hub are given.
        DataError: the table cannot be read.
    """
    if (path is None) == (hub is None):
        raise ConfigError(
            "data set 'huggingface' needs option 'path', a folder or file here, or 'hub', a name of the hub, and not"
            f" both: path is {path}, hub {hub}"
        )
    table = _of_hub(hub, config) if hub else _of_files(Path(str(path)).expanduser())
    tokenize = None if tokenizer_path is None else _tokenizer(Path(tokenizer_path), max_length)
    chosen = inputs[0] if inputs is not None and len(inputs) == 1 else inputs
    return dataset_of(
        table, inputs=chosen, target=target, client=client, tokenize=tokenize, layout=layout, regression=regression,
        test_fraction=test_fraction, name=str(hub or Path(str(path)).stem).replace("/", "-"),
    )  # fmt: skip


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data huggingface needs datasets ({error}): {how_to_install('huggingface')}") from None
    return datasets


def _of_hub(name: str | None, config: str | None) -> Any:
    """A data set of the hub, or of the library's cache of it."""
    datasets = _library()
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:                             # of every kind: network, names, files
        which = f'"{name}"' + (f', "{config}"' if config else "")
        raise DataError(
            f"Hugging Face's hub gives no {which}: {in_one_line(error)}\n"
            f"  without a network: where there is one, datasets.load_dataset({which}).save_to_disk(FOLDER); bring"
            " FOLDER here, and set data.path to it instead of data.hub\n"
            "  or bring the library's cache, and set HF_HOME to it"
        ) from None


def _of_files(path: Path) -> Any:
    """A saved table, or one of text files or Parquet."""
    saved = path.is_dir() and any((path / name).is_file() for name in SAVED)
    files = {} if saved else _files(path)
    kinds = sorted({FILES[file.suffix] for file in files.values()})
    if len(kinds) > 1:
        raise DataError(f"{path} has files of the formats {', '.join(kinds)}; expected one")
    datasets = _library()
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(kinds[0], data_files={split: str(file) for split, file in files.items()})
    except Exception as error:                             # of every kind that readers of files have
        raise DataError(f"{path}: datasets cannot read it: {in_one_line(error)}") from None


def _files(path: Path) -> Mapping[str, Path]:
    """File of each split."""
    expected = (
        f"a folder that save_to_disk wrote, a file ({', '.join(FILES)}), or a folder with such a file called train, and"
        " perhaps one called test"
    )
    if user_path(path, expected).is_file() and path.suffix in FILES:
        return {"train": path}
    there = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in FILES} if path.is_dir() else {}
    if "train" not in there:
        raise MissingDataError(f"{path}: found {', '.join(there) or 'no table'}; expected {expected}")
    return {split: there[split] for split in SPLITS if split in there}


def _tokenizer(folder: Path, length: int) -> Callable[[list[str]], Mapping[str, Any]]:
    """Function from texts to token ids ``[N, length]`` and their mask."""
    folder = user_folder(folder, "the folder of data.tokenizer_path, which tokenizer.save_pretrained(FOLDER) wrote")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        fix = how_to_install("huggingface")
        raise ConfigError(f"data.tokenizer_path needs transformers ({error}): {fix}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise DataError(f"{folder}: transformers finds no tokenizer in it: {in_one_line(error)}") from None
    return lambda texts: dict(
        tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    )
