"""The live page of runs: who may see it, and that it follows the files."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from threading import Thread

import pytest

from fedsim.errors import ConfigError, RunError
from fedsim.report.compare import Comparison, compare
from fedsim.report.live import HOST, LivePage, server_of
from tests.report.test_compare import SLOW, make_run
from tests.report.test_page import CHROMIUM, dom

pytestmark = pytest.mark.slow


@contextmanager
def serving(page: LivePage) -> Iterator[str]:
    server, address = server_of(page)
    with server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


def add_round(run: Path, value: float) -> None:
    """One more evaluation of every seed."""
    for file in run.glob("seed-*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        last = max(row["round"] for row in rows)
        new = [dict(row, round=last + 10) for row in rows if row["round"] == last]
        for row in new:
            row["value"] = value if row["metric"] == "accuracy" else row["value"]
        file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *new]))


def test_only_who_has_the_address_sees_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", SLOW)
    page = LivePage(lambda: compare([run]), [run])
    with serving(page) as address:
        bare = address.partition("?")[0]
        assert bare.startswith(f"http://{HOST}:")
        with urllib.request.urlopen(address) as answer:
            assert "<h1>a</h1>" in answer.read().decode() and "connect-src 'self'" in str(answer.headers)
        for wrong, code in ((bare, 403), (address[:-1], 403), (address.replace("/?", "/manifest.json?"), 404)):
            with pytest.raises(urllib.error.HTTPError, match=str(code)) as error:
                urllib.request.urlopen(wrong)
            error.value.close()
        port = int(bare.rstrip("/").rpartition(":")[2])
        with pytest.raises(RunError, match=f"cannot listen on port {port}: .*; choose another --port"):
            server_of(page, port)
    with pytest.raises(ConfigError, match="--port is 70000; expected 1 to 65535"):
        server_of(page, 70000)


def test_numbers_are_made_anew_where_a_file_has_grown(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", SLOW, state="running")
    calls: list[Comparison] = []
    page = LivePage(lambda: calls.append(compare([run])) or calls[-1], [run])  # type: ignore[func-returns-value]
    asked = f"/data.json?token={page.token}"
    status, kind, first = page.answer(asked)
    assert (status, kind) == (HTTPStatus.OK, "application/json")
    assert page.answer(asked)[2] == first and len(calls) == 1, "nothing has changed"
    add_round(run, 0.9)
    later = json.loads(page.answer(asked)[2])
    assert later["metrics"][0]["curves"][0]["mean"][-1] == 0.9 and len(calls) == 2
    assert "<td>a</td><td>0</td><td>running</td><td>40</td>" in later["summary"]


def test_a_run_that_was_not_evaluated_yet_is_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", {0: []}, state="running")
    page = LivePage(lambda: compare([run]), [run])
    status, _, body = page.answer(f"/?token={page.token}")
    assert status == HTTPStatus.OK and "Waiting" in body and "nothing yet" in body
    assert page.answer(f"/data.json?token={page.token}")[0] == HTTPStatus.NO_CONTENT


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_what_the_run_has_reached_meanwhile(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a", SLOW)

    def growing() -> Comparison:
        compared = compare([run])
        add_round(run, 0.9)
        return compared

    with serving(LivePage(growing, [run])) as address:
        shown = dom(address, tmp_path, 1000)
    (body,) = re.findall(r"<body.*?>", shown)
    assert "<td>0.900 ±&nbsp;0.000</td>" in shown and "stale" not in body
