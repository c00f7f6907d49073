"""The documentation as a site: its pages exist, and every link leads to a file. Building it is left to `make docs`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = hook()
WRITTEN = [*SITE.PAGES, *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        (content,) = entry.values()
        yield from [content] if isinstance(content, str) else pages(content)


def test_the_menu_lists_every_page_once() -> None:
    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted([*map(SITE.place, WRITTEN), *(f"reference/{name}.md" for name in SITE.REFERENCE)])


def test_the_reference_names_modules_there_are() -> None:
    for module in (module for modules in SITE.REFERENCE.values() for module in modules):
        assert importlib.util.find_spec(module), module
    assert "algorithms.fedspeed" in SITE.REFERENCE["algorithms"]


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/guide.md", "guide.md"),
        ("README.md", "algorithms/fedavg.py", "algorithms/fedavg.py"),
        ("docs/gossip.md", "../experiments/README.md#what", "experiments/README.md#what"),
        ("docs/gossip.md", "gossip.png", "gossip.png"),
        ("experiments/README.md", "../docs/gossip.png", "../gossip.png"),
        ("docs/guide.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("docs/guide.md", "#metrics", "#metrics"),
    ],
)
def test_links_are_rewritten_for_the_site(page: str, link: str, expected: str) -> None:
    assert SITE.rewritten(page, f"see [it]({link}), or [a] (b)") == f"see [it]({expected}), or [a] (b)"
