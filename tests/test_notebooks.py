"""Every notebook runs from top to bottom, through the core, on the bundled data."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from chaffinch import registry

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("application/vnd.plotly.v1+json" in out.get("data", {}) for out in outputs) >= 3
    assert not any(out.output_type == "error" for out in outputs)


def test_every_loss_has_a_picture_of_its_own():
    """In the notebook of the losses the section of each ends in one figure."""
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.stem == "03_losses"), as_version=4)
    section, drawn = "", dict.fromkeys(registry.methods("loss"), 0)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = [line for line in cell.source.splitlines() if line.startswith("#")]
            section = titles[-1].strip("# `") if titles else section
        elif section in drawn:
            drawn[section] += cell.source.splitlines()[-1].startswith(("laid_out(", "by_belief("))
    assert set(drawn.values()) == {1}, drawn


def test_there_are_notebooks_and_they_carry_no_output():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), (
            f"clear the outputs of {path.name}"
        )


@pytest.mark.parametrize(
    ("stem", "kind", "call"), [("02_detectors", "detector", 'find("{}"'), ("03_losses", "loss", 'formula("{}")')]
)
def test_every_method_has_its_section(stem: str, kind: str, call: str):
    (path,) = (path for path in NOTEBOOKS if path.stem == stem)
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    slugs = registry.methods(kind)
    assert f" {len(slugs)} {'losses' if kind == 'loss' else 'detectors'}" in text, "correct their number in the text"
    for slug in slugs:
        assert text.count(f"\n## `{slug}`\n") == text.count(call.format(slug)) == 1, slug
