"""From a folder of pictures to a cleaned one on the command line; the planted noise is found as in the bundled data."""

import json

import numpy as np
import pytest
from planted import original, plant

from chaffinch.cli import main
from chaffinch.data import CLEAN, MISLABELLED, OOD
from chaffinch.exports import read_table
from chaffinch.metrics.verdict import three_way
from chaffinch.study import Study


def told(capsys, *argv) -> dict:
    """The JSON document of a command that must not fail."""
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_from_a_folder_to_a_cleaned_folder(tmp_path, capsys, workspace, count):
    draw = plant(tmp_path / "crawled", count, tests=count // 10)
    name = f"folder:{tmp_path / 'crawled'}"
    found = told(
        capsys, "detect", name, "--detector", "lsa", "--detector", "small-loss", "--verdict", "--encoder", "simclr"
    )
    assert found["n"] == count

    folder = Study(name, "simclr", workspace=workspace)
    same = Study(original(folder, draw), "simclr", workspace=workspace)
    verdict, planted = folder.verdict(), same.truth.kind
    assert found["verdict"]["rates"] == pytest.approx(verdict.rates)
    np.testing.assert_array_equal(verdict.proba, same.verdict().proba, "files change nothing of what is found")
    for slug in ("lsa", "small-loss"):
        np.testing.assert_array_equal(folder.detect(slug).scores, same.detect(slug).scores)
    found = three_way(verdict.proba, planted)["macro_f1"]
    assert found > 0.65, "of 71 samples a class"
    if count > 1000:
        bundled = Study("fashion-web", "simclr", workspace=workspace)
        there = three_way(bundled.verdict().proba, draw.truth.kind)["macro_f1"]
        assert found > there - 0.02
    check_the_export(tmp_path, capsys, name, folder, same, thorough=count > 1000)


def check_the_export(tmp_path, capsys, name, folder, same, thorough):
    """What the verdict is sure of goes; of few pictures it is sure less often."""
    planted = same.truth.kind
    out = tmp_path / "cleaned"
    written = told(
        capsys, "export", name, "--out", out, "--encoder", "simclr", "--pictures", "copies", "--drop", "ood",
        "--relabel", "--above", "0.5", "--format", "parquet",
    )  # fmt: skip
    table = read_table(out / "table.parquet").set_index("id").loc[folder.observed.ids.tolist()]
    kept = (table["action"] != "drop").to_numpy()
    assert written["counts"]["dropped"] == int((~kept).sum())
    assert sum(path.is_file() for path in (out / "pictures").rglob("*.png")) == int(kept.sum())
    final = table["final_label"].to_numpy()
    right = np.array([*folder.observed.classes, ""])[same.truth.labels] == final
    assert right[kept].mean() > np.mean(planted == CLEAN), "what is left is cleaner"
    assert np.mean(kept[planted == CLEAN]) > 0.85, "and hardly anything clean went with the chaff"
    if thorough:
        assert right[kept].mean() > 0.9
        assert np.mean(~kept[planted == OOD]) > 0.9
        assert right[kept & (planted == MISLABELLED)].mean() > 0.7, "most wrong labels were put right"

    again = tmp_path / "again"
    told(capsys, "export", "--replay", out / "manifest.json", "--out", again)
    assert (again / "table.parquet").read_bytes() == (out / "table.parquet").read_bytes()
