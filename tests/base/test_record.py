"""The record of a training on disk."""

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.base.record import Record, load_record


def make(towards):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    return Record(np.arange(3), np.array([1, 2]), values, values * 2, towards)


def test_round_trip_keeps_cosines_to_a_step(tmp_path):
    towards = np.linspace(-1, 1, 24).reshape(2, 3, 4).astype(np.float16)
    path = tmp_path / "a.record.safetensors"
    make(towards).save(path)
    again = load_record(path)
    for name in ("rows", "epochs", "losses", "pulls"):
        np.testing.assert_array_equal(getattr(again, name), getattr(make(towards), name))
    assert np.abs(again.towards.astype(float) - towards).max() <= 0.5 / 127 + 1e-3
    np.testing.assert_array_equal(again.towards[[0, 1], [0, 2], [0, 3]], [-1, 1])
    assert path.stat().st_size < 24 + 4 * 12 + 3 * 8 + 600  # a byte a cosine


def test_the_last_pull_is_the_last_that_was_noted():
    pulls = np.array([[1, 2, np.nan], [3, np.nan, np.nan]], np.float16)
    record = Record(np.arange(3), np.array([1, 2]), pulls, pulls, np.empty((2, 3, 0), np.float16))
    np.testing.assert_array_equal(record.last_pulls, [3, 2, np.nan])


def test_no_classes_and_numbers_outside(tmp_path):
    path = tmp_path / "a.record.safetensors"
    make(np.empty((2, 3, 0), np.float16)).save(path)
    assert load_record(path).towards.shape == (2, 3, 0)
    make(np.full((2, 3, 1), 1.0009765625, np.float16)).save(path)
    assert (load_record(path).towards == 1).all()


def test_damage_is_named(tmp_path):
    path = tmp_path / "a.record.safetensors"
    with pytest.raises(InputError, match=r"a\.record\.safetensors"):
        load_record(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable training record"):
        load_record(path)
