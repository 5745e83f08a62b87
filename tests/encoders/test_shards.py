"""Shards are there whole or not at all; a begun folder goes on, a damaged shard is made again."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from chaffinch.base.errors import InputError
from chaffinch.data import open_dataset
from chaffinch.encoders.shards import Shards

NONE = np.empty(0, np.int64)


@pytest.fixture
def features():
    return np.random.default_rng(5).normal(size=(60, 8)).astype(np.float32)


@pytest.fixture
def shards(tmp_path, pictures):
    """Of 60 pictures, in three blocks."""
    found = Shards(tmp_path / "shards", pictures.observed, "k1", 25)
    found.begin({"encoder": "tiny"})
    return found


def fill(shards, features, blocks=range(3)):
    for block in blocks:
        shards.write(block, features[shards.rows(block)], NONE)


def test_in_and_out(shards, features):
    assert shards.missing() == [0, 1, 2]
    shards.write(1, features[25:50], np.array([0, 7]))
    assert shards.missing() == [0, 2]
    fill(shards, features, [2, 0])
    assert shards.missing() == []
    found = shards.read()
    np.testing.assert_array_equal(found["features"], features)
    assert found["features"].dtype == np.float32
    assert found["undecoded"].tolist() == [25, 32]
    assert sorted(path.name for path in shards.folder.iterdir()) == [
        "manifest.json", "shard-000000.parquet", "shard-000001.parquet", "shard-000002.parquet",
    ]  # fmt: skip
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    assert manifest == {"encoder": "tiny", "key": "k1", "block": 25, "n": 60, "shards": 3}


def test_the_folder_opens_as_a_table(shards, features, pictures):
    fill(shards, features)
    opened = open_dataset(f"table:{shards.folder}").observed
    o = pictures.observed
    np.testing.assert_array_equal(opened.features, features)
    assert opened.ids.tolist() == o.ids.tolist()
    given = [[seen.classes[label] for label in seen.labels] for seen in (opened, o)]
    assert given[0] == given[1]


def test_written_twice_is_there_once(shards, features):
    fill(shards, features, [0, 1, 2, 1])
    assert sum(pq.read_metadata(path).num_rows for path in shards.folder.glob("*.parquet")) == 60
    np.testing.assert_array_equal(shards.read()["features"], features)


def test_a_begun_folder_goes_on(shards, features):
    fill(shards, features, [2])
    again = replace(shards)
    again.begin({"encoder": "tiny"})
    assert again.missing() == [0, 1]


@pytest.mark.parametrize("change", [{"key": "k2"}, {"block": 30}])
def test_a_folder_of_other_features(shards, change):
    with pytest.raises(InputError, match="holds shards of other features, or of another size"):
        replace(shards, **change).begin({})


def test_a_folder_of_something_else(tmp_path, pictures):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds other files; choose a new or an empty folder"):
        Shards(tmp_path, pictures.observed, "k1").begin({})
    with pytest.raises(InputError, match=r"letter\.txt.* cannot be written"):
        Shards(tmp_path / "letter.txt" / "s", pictures.observed, "k1").begin({})
    with pytest.raises(InputError, match="at least one picture, got 0"):
        Shards(tmp_path / "s", pictures.observed, "k1", 0).begin({})


def test_what_is_damaged_or_foreign_is_missing(shards, features):
    fill(shards, features)
    path = shards.path(1)
    path.write_bytes(path.read_bytes()[:-20])
    assert shards.missing() == [1]
    replace(shards, key="k2").write(0, features[:25], NONE)
    assert shards.missing() == [0, 1]
    fill(shards, features, [0])
    path.write_bytes(shards.path(2).read_bytes())
    assert shards.missing() == [1], "ten rows instead of 25"


def test_damage_inside(shards, features):
    """The footer is whole, so only reading finds it."""
    fill(shards, features)
    path = shards.path(1)
    raw = bytearray(path.read_bytes())
    raw[raw.index(features[30].tobytes())] ^= 1
    path.write_bytes(raw)
    assert shards.missing() == []
    with pytest.raises(InputError, match=r"shard-000001\.parquet is damaged; remove it and start the command again"):
        shards.read()


def test_rows_of_other_pictures(shards, features):
    fill(shards, features)
    shards.path(1).write_bytes(shards.path(0).read_bytes())
    with pytest.raises(InputError, match=r"shard-000001\.parquet is not of these pictures"):
        shards.read()
