"""Text to predict the next character of: JSON lines of ``{"client", "text"}``, Shakespeare by role, tiny Shakespeare.

The task by speaking role: McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017. Tiny Shakespeare: Karpathy, char-rnn, 2015.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.arrays import distinct
from fedsim.data.dataset import Dataset, Split
from fedsim.data.sources import Remote, Source, Store, read_text, user_file
from fedsim.errors import ConfigError, DataError

SHAKESPEARE = Source(
    title="Shakespeare by role",
    origin='any plain-text edition (such as https://www.gutenberg.org/ebooks/100), one line {"client": "play/role", '
    '"text": "..."} for each speaking role',
    folder="",
    files={"shakespeare.jsonl": None},
)
TINY_SHAKESPEARE = Source(
    title="tiny Shakespeare",
    origin="https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt), saved as tinyshakespeare.txt",
    folder="",
    files={
        "tinyshakespeare.txt": Remote("input.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
    },
    base_url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare",
)

LINE = '{"client": ..., "text": ...}'


def read_jsonl(path: Path) -> dict[str, str]:
    """Text of each client of a JSON lines file; the texts of a client with several lines are joined by a newline."""
    content = read_text(user_file(path, f"lines {LINE}"))
    texts: dict[str, list[str]] = {}
    kinds: dict[type, int] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error!r}; expected {LINE}, one object per line") from error
        if not isinstance(entry, dict) or not {"client", "text"} <= entry.keys():
            if isinstance(entry, dict) and "user_data" in entry:
                raise DataError(f"{where}: this is LEAF's JSON; read it with --data leaf")
            found = f"keys {', '.join(list(entry)[:8])}" if isinstance(entry, dict) else f"a {type(entry).__name__}"
            raise DataError(f"{where}: {found}; expected {LINE}, one object per line")
        client, text = entry["client"], entry["text"]
        if not isinstance(client, str | int) or isinstance(client, bool) or not isinstance(text, str):
            raise DataError(f"{where}: expected client as a string or whole number and text as a string")
        if len(kinds | {type(client): number}) > 1:
            first = next(iter(kinds.values()))
            raise DataError(f"{where}: client {client!r} is a {type(client).__name__}, unlike that of line {first}")
        kinds.setdefault(type(client), number)
        texts.setdefault(str(client), []).append(text)
    return {client: "\n".join(parts) for client, parts in texts.items()}


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters of a text as numbers ``[len(text)]``."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def cut(tokens: NDArray[np.int64], length: int, test_fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows ``[n, length + 1]`` of a text, each from the last token of the one before: training, then test."""
    n = (len(tokens) - 1) // length
    windows = tokens[np.arange(n)[:, None] * length + np.arange(length + 1)]
    kept = n - int(n * test_fraction)
    return windows[:kept], windows[kept:]


def gather(pieces: list[NDArray[np.int64]]) -> Split:
    """One split of the windows of client k at position k."""
    windows = torch.from_numpy(np.concatenate(pieces))
    client = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    return Split(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), client)


def sequences(
    texts: dict[str, str], where: Path, sequence_length: int, test_fraction: float, min_chars: int
) -> Dataset:
    """Windows of each client's text, the last ``test_fraction`` for testing; the vocabulary is that of all texts."""
    if sequence_length < 1:
        raise ConfigError(f"sequence_length is {sequence_length}; expected at least 1")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; expected a number between 0 and 1, such as 0.2")
    vocabulary = distinct(code_points("".join(texts.values())))
    least = max(min_chars, sequence_length + 1)
    names = [client for client, text in texts.items() if len(text) >= least]
    pieces = [
        cut(np.searchsorted(vocabulary, code_points(texts[client])), sequence_length, test_fraction) for client in names
    ]
    if not any(len(test) for _, test in pieces):
        raise DataError(
            f"{where}: none of {len(texts)} texts (expected {least} characters or more) has training and test windows; "
            "choose a smaller sequence_length or min_chars, or a larger test_fraction"
        )
    train, test = (gather([piece[k] for piece in pieces]) for k in (0, 1))
    notes = f"{len(names)} of {len(texts)} clients have at least {least} characters"
    notes += "; the others are left out" if len(names) < len(texts) else ""
    return Dataset("jsonl", train, test, len(vocabulary), tuple(names), tuple(map(chr, vocabulary)), notes)


def jsonl(path: str | Path, *, sequence_length: int = 80, test_fraction: float = 0.2, min_chars: int = 0) -> Dataset:
    """Lines ``{"client": ..., "text": ...}``: x and y int64 ``[N, T]``, y the characters that follow those of x.

    Args:
        path: the file.
        sequence_length: characters T of a window.
        test_fraction: share of each client's windows, the last ones, that is held out for testing.
        min_chars: least number of characters; clients with fewer, or too few for one window, are left out.
    """
    path = Path(path).expanduser()
    return sequences(read_jsonl(path), path, sequence_length, test_fraction, min_chars)


def shakespeare(
    store: Store, *, sequence_length: int = 80, test_fraction: float = 0.2, min_chars: int = 1000
) -> Dataset:
    """Natural clients are the speaking roles with at least ``min_chars`` characters."""
    path = store.find(SHAKESPEARE)["shakespeare.jsonl"]
    data = jsonl(path, sequence_length=sequence_length, test_fraction=test_fraction, min_chars=min_chars)
    return replace(data, name="shakespeare")


def tiny_shakespeare(store: Store, *, sequence_length: int = 80, test_fraction: float = 0.1) -> Dataset:
    """1.1 million characters of the plays as one text, without natural clients; the end of it is the test split."""
    path = store.find(TINY_SHAKESPEARE)["tinyshakespeare.txt"]
    data = sequences({"": read_text(path)}, path, sequence_length, test_fraction, min_chars=0)
    train, test = (split._replace(client=None) for split in (data.train, data.test))
    return replace(data, name="tiny_shakespeare", train=train, test=test, client_names=None, notes="")
