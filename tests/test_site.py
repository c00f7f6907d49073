"""The documentation as a site: its pages exist, and every link leads to a file and a heading. `make docs` builds it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import fedsim

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
    tutorials = [SITE.place(str(file.relative_to(ROOT))) for file in SITE.TUTORIALS.glob("*.py")]
    made = [*tutorials, *(f"reference/{name}.md" for name in SITE.REFERENCE)]
    assert sorted(listed) == sorted([*map(SITE.place, WRITTEN), *made])


def headings(page: Path) -> set[str]:
    """The names by which links lead to the headings of a page, or of a script of cells."""
    mark = "# #" if page.suffix == ".py" else "#"
    found = re.findall(rf"^{mark}+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)|[^\w\s-]", r"\1", heading) for heading in found]
    return {re.sub(r"[-\s]+", "-", heading.strip()).lower() for heading in plain}


@pytest.mark.parametrize("path", [*WRITTEN, *(str(file.relative_to(ROOT)) for file in SITE.TUTORIALS.glob("*.py"))])
def test_every_link_leads_to_a_file_and_a_heading(path: str) -> None:
    page = ROOT / path
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text().replace("\n# ", "\n")):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


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
        ("docs/own.md", "tutorials/own_algorithm.py", "tutorials/own_algorithm.md"),
        ("docs/tutorials/own_algorithm.py", "../own.md", "../own.md"),
        ("README.md", "docs/tutorials/gossip.py", "tutorials/gossip.md"),
        ("docs/guide.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("docs/guide.md", "#metrics", "#metrics"),
    ],
)
def test_links_are_rewritten_for_the_site(page: str, link: str, expected: str) -> None:
    assert SITE.rewritten(page, f"see [it]({link}), or [a] (b)") == f"see [it]({expected}), or [a] (b)"


def test_the_citation_is_of_this_version() -> None:
    """Its form is that of the Citation File Format 1.2.0."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert cited["license"] == "Apache-2.0" and cited["type"] == "software" and all(cited["authors"])
    assert fedsim.__version__.startswith(cited["version"])
