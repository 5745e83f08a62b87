"""A built wheel works from any folder: app, pages, settings and assets travel with it."""

import os
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest
from browser import free_port, serve

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


def test_assets_are_small_enough_to_travel():
    size = sum(path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file())
    assert size <= 70 * 2**20


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


def test_wheel_serves_the_app_from_an_empty_folder(wheel: Path, tmp_path: Path):
    site, empty, port = tmp_path / "site", tmp_path / "empty", free_port()
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    (empty / "random.py").write_text("raise RuntimeError('code of the current folder was run')")
    command = [sys.executable, "-c", "import sys, chaffinch.cli; sys.exit(chaffinch.cli.main(sys.argv[1:]))"]
    command = [*command[:1], "-P", *command[1:], "app", "--port", str(port)]
    log = tmp_path / "log.txt"
    with serve(command, port, log, cwd=empty, PYTHONPATH=str(site), CHAFFINCH_HOME="home") as url:
        for path in ("/", "/_stcore/bidi-components/chaffinch.map/map.js"):
            with urllib.request.urlopen(url + path, timeout=30) as answer:
                assert answer.status == 200
    assert "code of the current folder" not in log.read_text()
    assert [path.name for path in empty.iterdir() if path.name != "home"] == ["random.py"]
    assert not (site / "chaffinch" / "_bundle" / "home").exists()


def test_source_distribution_can_build_the_wheel(tmp_path: Path):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {".ci/bundle.py", "app.py", "pages/explore.py", "assets/fashion-web/pool.npz"} <= names
