"""Downloads, from a server on this machine: what arrives is checked and whole, or is not there at all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data import MissingDataError, data_directory, load
from fedsim.data.idx import qmnist_writers
from fedsim.data.sources import Remote, Source, Store
from fedsim.errors import DataError
from tests.data.files import idx_bytes


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; breaks off in the middle of any file called ``cut``."""

    def do_GET(self) -> None:
        if not self.path.endswith("cut"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        return None

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server offers it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not path.is_dir() or path.name.startswith(".")]


def test_plain_and_gzipped_files(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    packed = gzip.compress(b"second")
    (folder / "first.txt").write_bytes(b"first")
    (folder / "b.gz").write_bytes(packed)
    files = {"a": Remote("first.txt", sha256(b"first")), "b": Remote("b.gz", "md5:" + hashlib.md5(packed).hexdigest())}
    source = Source("set", "https://example.org", "deep/set", files, base_url=url)
    with pytest.raises(MissingDataError, match="download=True"):
        Store(tmp_path).find(source)
    found = Store(tmp_path, download=True).find(source)
    assert found == {"a": tmp_path / "deep/set/a", "b": tmp_path / "deep/set/b.gz"}
    assert found["a"].read_bytes() == b"first" and found["b"].read_bytes() == packed
    assert sorted(leftovers(tmp_path / "deep")) == sorted(found.values())


def test_only_what_is_missing_is_fetched(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "b").write_bytes(b"new")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_bytes(b"mine")
    files = {"a": Remote("a", sha256(b"theirs")), "b": Remote("b", sha256(b"new"))}
    found = Store(tmp_path, True, base_url=url + "/").find(Source("set", "", "set", files, "http://nowhere.invalid"))
    assert found["a"].read_bytes() == b"mine" and found["b"].read_bytes() == b"new"


def test_archive(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    with tarfile.open(folder / "all.tar.gz", "w:gz") as archive:
        for name in ("set/a", "set/b", "../evil"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    remote = Remote("all.tar.gz", sha256((folder / "all.tar.gz").read_bytes()))
    root = tmp_path / "data"
    found = Store(root, True).find(Source("set", "", "set", {"a": remote, "b": remote}, url))
    assert [path.read_text() for path in found.values()] == ["set/a", "set/b"]
    assert sorted(leftovers(root)) == sorted(found.values()) and not (tmp_path / "evil").exists()
    with pytest.raises(DataError, match="'other/a' not found"):
        Store(root, True).find(Source("set", "", "other", {"a": remote}, url))


@pytest.mark.parametrize(
    ("name", "match"),
    [("bad", "hash"), ("absent", "404"), ("cut", "[Ii]ncomplete|broken"), ("bad.tar.gz", "gzip|file could not")],
)
def test_failures_leave_nothing_behind(served: tuple[Path, str], tmp_path: Path, name: str, match: str) -> None:
    folder, url = served
    (folder / "bad").write_bytes(b"tampered")
    (folder / "bad.tar.gz").write_bytes(b"no archive")
    checksum = sha256(b"no archive" if name == "bad.tar.gz" else b"original")
    root = tmp_path / "data"
    with pytest.raises(DataError, match=rf"(?s)download from {url}/{name} failed: .*({match}).*example\.org"):
        Store(root, True).find(Source("set", "https://example.org", "set", {"file": Remote(name, checksum)}, url))
    assert leftovers(root) == []


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny Shakespeare: download from http://127\.0\.0\.1:9/input\.txt failed"):
        load("tiny_shakespeare", tmp_path, download=True, base_url="http://127.0.0.1:9")
    assert leftovers(tmp_path) == []


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "MNIST").write_text("a file where a folder must go")
    with pytest.raises(DataError, match=r"MNIST: download .* failed"):
        load("mnist", tmp_path, download=True, base_url="http://127.0.0.1:9")


@pytest.mark.slow
def test_published_checksums_accept_the_published_files(
    real_data: Any, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = served
    here = real_data("tiny_shakespeare"), real_data("a9a"), real_data("mushrooms"), real_data("w8a")
    root = data_directory()
    (folder / "input.txt").symlink_to(root / "tinyshakespeare.txt")
    for name in ("a9a", "a9a.t", "mushrooms", "w8a"):
        (folder / name).symlink_to(root / "libsvm" / name)
    for data in here:
        fetched = load(data.name, tmp_path / "data", download=True, base_url=url)
        assert fetched.train.x.equal(data.train.x) and fetched.test.y.equal(data.test.y)


def test_writers_from_qmnist(tmp_path: Path) -> None:
    labels = load("digits").test
    rows = np.zeros((400, 8), np.int32)
    rows[: len(labels.y), 0] = labels.y.numpy()
    rows[:, 2] = np.arange(400) // 9
    path = tmp_path / "qmnist-test-labels-idx2-int"
    path.write_bytes(idx_bytes(rows))
    np.testing.assert_array_equal(qmnist_writers(path, labels), np.arange(len(labels.y)) // 9)
    rows[5, 0] += 1
    path.write_bytes(idx_bytes(rows))
    with pytest.raises(DataError, match="qmnist-test-labels-idx2-int: its rows do not carry MNIST's labels"):
        qmnist_writers(path, labels)
