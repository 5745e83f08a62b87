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


def test_there_are_notebooks_and_they_carry_no_output():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), (
            f"clear the outputs of {path.name}"
        )


def test_every_detector_has_its_section():
    (path,) = (path for path in NOTEBOOKS if path.stem == "02_detectors")
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for slug in registry.methods("detector"):
        assert text.count(f"\n## `{slug}`\n") == text.count(f'find("{slug}")') == 1, slug
