"""A detector of somebody else's package is found, run and shown like one of ours."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from chaffinch import registry
from chaffinch.spec import Cut, Spec

APP = str(Path(__file__).parents[1] / "app.py")

MODULE = '''
"""Length of the features, as a stranger would write it."""

import numpy as np

from chaffinch.card import MethodCard
from chaffinch.detectors.base import Detector


class FeatureLength(Detector):
    """The shorter the more suspicious."""

    card = MethodCard(
        slug="feature-length", name="Feature length", paper="A note (Somebody; 2031)", year=2030,
        formula=r"s_i = -|x_i|", summary="Short features are suspicious.", fails_when="Lengths mean nothing.",
        finds={"ood"},
    )

    def __init__(self, share=0.25):
        self.share = share

    def fit(self, X, y, *, neighbors=None):
        self.scores_ = -np.linalg.norm(X, axis=1)
        self.flags_ = self.scores_ > np.quantile(self.scores_, 1 - self.share)
        self.info_ = {"share": self.share, "k": neighbors.k}
        return self
'''


@pytest.fixture
def package(tmp_path):
    """A folder with an installed package that announces one detector, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "plumage-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plumage.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plumage\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[chaffinch.detectors]\nfeature-length = plumage:FeatureLength\n")
    return site


def chaffinch(package, *argv):
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "chaffinch.cli", *map(str, argv)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": path, "CHAFFINCH_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def installed(package, monkeypatch):
    """The package in this very process, for the length of one test."""
    monkeypatch.syspath_prepend(str(package))
    importlib.invalidate_caches()
    registry.methods.cache_clear()
    yield
    monkeypatch.undo()
    sys.modules.pop("plumage", None)
    importlib.invalidate_caches()
    registry.methods.cache_clear()


def test_is_listed(package):
    done = chaffinch(package, "methods", "--json")
    assert done.returncode == 0, done.stderr
    [row] = [row for row in json.loads(done.stdout) if row["slug"] == "feature-length"]
    assert row == {
        "slug": "feature-length", "kind": "detector", "name": "Feature length", "paper": "A note (Somebody; 2031)",
        "arxiv": "", "year": 2030, "needs": ["features", "neighbors"], "finds": ["ood"],
    }  # fmt: skip
    assert "feature-length" not in registry.methods("detector"), "it is not there unless it is installed"


def test_is_run(package, arrays_file, blobs):
    out = arrays_file().parent / "out.csv"
    wanted = ["--detector", "feature-length@budget=0.25", "--detector", "lsa", "--out", out, "--json"]
    done = chaffinch(package, "detect", f"arrays:{arrays_file()}", *wanted)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["detectors"]
    assert list(found) == ["feature-length", "lsa"]
    assert found["feature-length"]["flagged"] == 45
    lengths = np.linalg.norm(blobs.observed.features, axis=1)
    written = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")
    np.testing.assert_allclose(written["featurelength_score"], -lengths, rtol=1e-5)


def test_is_shown(installed, arrays_file, monkeypatch):
    spec = Spec(
        dataset=f"arrays:{arrays_file()}",
        encoder="features",
        map="pca",
        detectors=(Cut("feature-length", budget=0.25),),
        sample="b007",
    )
    monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
    app = AppTest.from_file(APP, default_timeout=120).run()
    assert not app.exception, app.exception
    assert not app.error
    toggle = app.toggle(key="on-feature-length")
    assert toggle.value is True
    assert toggle.label == "Feature length"
    bodies = [h.proto.body for h in app.get("html")]
    assert any("<b>45</b><span>flagged</span>" in body for body in bodies)
    assert any("<b>feature-length</b>" in body for body in bodies), "the inspector names it"
    toggle.set_value(False).run()
    assert not app.exception
    assert not any("<b>45</b><span>flagged</span>" in h.proto.body for h in app.get("html"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-np.linalg.norm(X, axis=1)", "np.full(len(y), np.nan)", "feature-length found no finite score for row 0"),
        (
            "*, neighbors=None",
            "*, plumes=None",
            "feature-length needs plumes, which is not there; chaffinch does not know",
        ),
    ],
)
def test_one_that_does_not_work_is_named(package, arrays_file, old, new, message):
    (package / "plumage.py").write_text(MODULE.replace(old, new))
    one = chaffinch(package, "detect", f"arrays:{arrays_file()}", "--detector", "feature-length", "--json")
    assert one.returncode == 2
    assert message in one.stderr
    assert "Traceback" not in one.stderr
