"""MkDocs' hook: the site is made of the repository's files where they are, of the docstrings, and of tutorials.

Pages of ``docs/`` are at the root of the site; the other files keep their paths. Links between them, which are right in
the repository, are rewritten for that; files of code that a page links to are copied. A tutorial is a script whose
cells begin with ``# %%``: it is executed as a notebook, and its page has the outputs.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md", "benchmarks/README.md")
REFERENCE = {
    "algorithms": [f"algorithms.{file.stem}" for file in sorted((ROOT / "algorithms").glob("[!_]*.py"))],
    "vocabulary": [
        f"fedsim.{name}" for name in ("algorithm", "clients", "gossip", "types", "values", "messages.rebuilt", "errors")
    ],
    "experiments": ["fedsim.api", "fedsim.experiment", "fedsim.controller.run", "fedsim.sweeps"],
    "local": [f"fedsim.engine.{name}" for name in ("optimizers", "step_schedules", "augmentation", "mixup", "sharing")],
    "data": ["fedsim.data", "fedsim.partition", "fedsim.models", "fedsim.problems"],
    "topologies": ["topologies"],
    "compression": ["fedsim.compress", "fedsim.feedback"],
    "robust": ["fedsim.robust"],
    "clock": ["fedsim.clock"],
    "reports": ["fedsim.report", "fedsim.record"],
}
"""Modules by page; a package stands for all that is below it."""
PAINT = re.compile(r"\x1b\[[0-9;]*m")
"""Colours of a terminal, in which Jupyter writes tracebacks."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


class TutorialError(Exception):
    """A tutorial cannot be executed."""


def place(path: str) -> str:
    """Path on the site of a file of the repository."""
    path = path.removeprefix("docs/")
    return f"{path.removesuffix('.py')}.md" if path.startswith("tutorials/") else path


def tutorial(source: Path, kernel: str = "python3") -> tuple[str, dict[str, bytes]]:
    """Execute a script of cells in a folder of its own; its page as Markdown, and pictures by name.

    Raises:
        TutorialError: there is no kernel, or a cell failed.
    """
    import jupytext
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert import MarkdownExporter

    notebook = jupytext.read(source)
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=600, kernel_name=kernel, resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],         # it warns of its own port on this machine
        )  # fmt: skip
        try:
            client.execute(env={**os.environ, "PATH": commands})   # `fedsim` of this environment, activated or not
        except NoSuchKernel:
            fix = "pip install '.[docs]' in a checkout of fedsim"
            raise TutorialError(f"{source.name}: there is no Jupyter kernel {kernel!r} to execute it; {fix}") from None
        except CellExecutionError as error:
            raise TutorialError(f"{source.name}: {PAINT.sub('', str(error))}") from None
    for cell in notebook.cells:                            # progress, notes and warnings are of one execution
        if "outputs" in cell:
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    page, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": source.stem})
    return page, dict(resources["outputs"])


def targets(path: str, text: str) -> dict[str, str]:
    """The links of a file of the repository to others, and the paths of those."""
    folder = posixpath.dirname(path)
    return {link: posixpath.normpath(posixpath.join(folder, link)) for link in LINK.findall(text)}


def rewritten(path: str, text: str) -> str:
    """A page whose links are those of the site."""
    here, found = posixpath.dirname(place(path)), targets(path, text)
    return LINK.sub(lambda match: posixpath.relpath(place(found[match[1]]), here or "."), text)


def reference(page: str) -> str:
    """A page of the reference: a heading, and the docstrings of its modules."""
    modules = "\n\n".join(f"::: {module}" for module in REFERENCE[page])
    return f"# {page.capitalize()}\n\n{modules}\n"


def on_files(files: Any, config: Any) -> Any:
    """Add pages and linked files that are outside ``docs/``, and the reference."""
    from mkdocs.structure.files import File

    added = set(PAGES)
    for page in [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]:
        added |= {path for path in targets(page, (ROOT / page).read_text()).values() if not path.startswith("docs/")}
    for path in sorted(added):
        if (ROOT / path).is_dir():
            raise FileNotFoundError(f"a page links to the folder {path}, which the site has no page for; link a file")
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for source in sorted(TUTORIALS.glob("*.py")):
        name = f"docs/tutorials/{source.name}"
        page, pictures = tutorial(source)
        files.append(File.generated(config, place(name), content=rewritten(name, page)))
        for picture, data in pictures.items():
            files.append(File.generated(config, f"tutorials/{picture}", content=data))
    for page in REFERENCE:
        files.append(File.generated(config, f"reference/{page}.md", content=reference(page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    if uri.startswith(("reference/", "tutorials/")):
        return markdown
    return rewritten(uri if uri in PAGES else f"docs/{uri}", markdown)
