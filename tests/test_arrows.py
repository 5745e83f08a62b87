"""The import arrows of the design: data flows left to right, and nothing imports what is on its right."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import chaffinch

ROOT = Path(chaffinch.__file__).parent
BUNDLE = ROOT.parents[1]
LEVELS = """card; registry; base; data; losses detectors metrics projection; encoders; trainers; evidence; verdict;
spec workspace reviews thumbnails exports; study; figures; views checks benefit;
comparison lineup pulls training experiment cleaned; lesson;
ui cli; pages app"""
LEVEL = {name: i for i, level in enumerate(LEVELS.split(";")) for name in level.split()}
HEAVY = {"torch", "sklearn", "umap", "faiss", "streamlit", "plotly", "pandas", "scipy"}
FILES = {path.relative_to(ROOT): path for path in ROOT.rglob("*.py") if "_bundle" not in path.parts}
FILES |= {path.relative_to(BUNDLE): path for path in [*BUNDLE.glob("app.py"), *BUNDLE.glob("pages/*.py")]}


def imports(source: str, place: Path) -> list[tuple[str, bool]]:
    """Every imported module by its full name, and whether it is imported when the file is."""
    tree, package = ast.parse(source), ("chaffinch", *place.with_suffix("").parts)[:-1]
    late = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            start = ".".join((*above, *filter(None, [node.module])))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node not in late) for name in names]
    return found


def faults(source: str, place: Path) -> list[str]:
    """What one file imports against the arrows."""
    room, wrong = place.with_suffix("").parts[0], []
    for name, at_top in imports(source, place):
        first, *rest = name.split(".")
        target = rest[0] if first == "chaffinch" and rest else None
        if target in LEVEL and target != room and LEVEL[target] >= LEVEL[room]:
            wrong.append(f"{place} imports {name}")
        if first == "streamlit" and room not in {"ui", "pages", "app"}:
            wrong.append(f"{place} imports streamlit")
        if first == "faiss" and place != Path("base/neighbors.py"):
            wrong.append(f"{place} imports faiss")
        if first == "ray" and (at_top or place != Path("encoders/ray_engine.py")):
            wrong.append(f"{place} imports ray")
        if first == "torch" and at_top and room not in {"losses", "encoders", "trainers"}:
            wrong.append(f"{place} imports torch at its top")
        if first in {"numpy", "torch", "sklearn"} and room == "pages":
            wrong.append(f"{place} imports {first}")
    return wrong


@pytest.mark.parametrize("place", FILES, ids=str)
def test_arrows(place):
    if place == Path("__init__.py"):  # conveniences, imported when they are used
        return
    assert place.with_suffix("").parts[0] in LEVEL, f"give {place} a place among the levels"
    assert faults(FILES[place].read_text(encoding="utf-8"), place) == []


@pytest.mark.parametrize(
    ("place", "source", "count"),
    [
        ("data/a.py", "from ..losses.base import Batch", 1),
        ("data/a.py", "from .. import losses", 1),
        ("data/a.py", "from chaffinch.losses import simclr", 1),
        ("data/a.py", "def f():\n    import chaffinch.encoders.train", 1),
        ("losses/a.py", "from ..detectors import lsa", 1),
        ("card.py", "from .registry import get", 1),
        ("cli.py", "from .ui import shell", 1),
        ("figures/a.py", "import streamlit as st", 1),
        ("base/a.py", "import faiss", 1),
        ("encoders/a.py", "def f():\n    import ray.data", 1),
        ("encoders/ray_engine.py", "import ray", 1),
        ("encoders/ray_engine.py", "def f():\n    import ray", 0),
        ("detectors/a.py", "import torch", 1),
        ("detectors/a.py", "if True:\n    from torch.nn import functional as F", 1),
        ("pages/a.py", "import numpy as np\nfrom sklearn.svm import SVC", 2),
        ("data/a.py", "from . import noise\nfrom ..card import KINDS\nimport numpy as np", 0),
        ("detectors/a.py", "def f():\n    import torch", 0),
        ("base/neighbors.py", "import faiss", 0),
        ("ui/a.py", "import streamlit\nfrom ..figures import map", 0),
        ("pages/a.py", "import streamlit\nfrom chaffinch.ui import shell", 0),
    ],
)
def test_the_check_can_fail(place, source, count):
    assert len(faults(source, Path(place))) == count


def test_import_is_quick_and_light():
    code = """
import json, sys, time
start = time.process_time()
import chaffinch
seconds = time.process_time() - start
print(json.dumps([seconds, chaffinch.__version__, sorted({name.split(".")[0] for name in sys.modules})]))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, version, modules = json.loads(answer.stdout)
    assert seconds < 0.5
    assert version == chaffinch.__version__
    assert not HEAVY & set(modules)


def test_opening_a_dataset_needs_no_heavy_library():
    code = "import sys, chaffinch.data; print(*{name.split('.')[0] for name in sys.modules})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(answer.stdout.split())
