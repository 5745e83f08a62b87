"""A built wheel works from any folder: app, pages, settings and assets travel with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_wheel_carries_everything_the_app_needs(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in ("app.py", "pages/explore.py", ".streamlit/config.toml", "assets/fashion-web/pool.npz"):
        assert f"chaffinch/_bundle/{part}" in names
    assert {"chaffinch/pyproject.toml", "chaffinch/ui/frontend/map.js"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_wheel_works_from_another_folder(wheel: Path, tmp_path: Path):
    # unpacked beside nothing else: what is imported must come from the wheel, not from the checkout
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "CHAFFINCH_HOME": str(tmp_path / "home")}
    code = (
        "import chaffinch, chaffinch.cli; from chaffinch.base.files import bundle_dir; print(chaffinch.__file__);"
        "print(len(chaffinch.open_dataset('fashion-web:n=50'))); print((bundle_dir() / 'app.py').is_file());"
        "chaffinch.cli.main(['methods'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(site))
    assert lines[1:3] == ["50", "True"]
    assert any("simclr" in line for line in lines)
