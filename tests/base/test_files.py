"""Files are written whole or not at all, and what identifies data changes with the data."""

import json
import os

import numpy as np
import pytest

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.files import (
    asset,
    bundle_dir,
    digest,
    read_json,
    replacing,
    sha256_file,
    verify,
    write_json,
)


def test_replacing_makes_the_folder_and_the_file(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_replacing_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_round_trip_and_failed_write(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"ä": [1, 2]})
    assert read_json(path) == {"ä": [1, 2]}
    assert "ä" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == {"ä": [1, 2]}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe\x00"])
def test_unreadable_json_is_an_input_error(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json cannot be read as JSON"):
        read_json(path)


def test_sha256_and_verify(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == known
    assert verify(path, known) == path
    path.write_bytes(b"abd")
    with pytest.raises(InputError, match=r"abc is damaged: its SHA-256 is .* expected ba7816bf8f01cfea"):
        verify(path, known)


def test_digest_is_stable():
    """A fixed key: if this changes, every cached result of every user becomes a miss."""
    X = np.arange(6, dtype=np.float32).reshape(2, 3)
    key = digest(X, {"b": 1, "a": [2.5, "x"]}, "text")
    assert key == "df75bd673191ba20abfb"
    assert digest(np.asfortranarray(X), {"a": [2.5, "x"], "b": 1}, "text") == key
    assert len(digest()) == 20


def test_digest_tells_everything_apart():
    a = np.arange(6, dtype=np.int64)
    changed = a.copy()
    changed[3] = 99
    values = [
        (a,),
        (changed,),
        (a.reshape(2, 3),),
        (a.reshape(3, 2),),
        (a.astype(np.int32),),
        (a.view(np.uint64),),
        (a[:0],),
        (np.empty((0, 2), np.int64),),
        (a, a),
        (a[:3], a[3:]),
        (a[:2], a[2:]),
        (a.tolist(),),
        (np.array(["ab", "c"]),),
        (np.array(["a", "bc"]),),
        ("ab", "c"),
        ("a", "bc"),
        ("1",),
        (1,),
        (True,),
        (None,),
        (np.int64(3),),
        (np.array(3),),
        (),
    ]
    keys = [digest(*value) for value in values]
    assert len(set(keys)) == len(keys)


def test_digest_of_text_ignores_its_padding():
    assert digest(np.array(["ä", "b"], "U1")) == digest(np.array(["ä", "b"], "U40"))
    assert digest(np.array(["ä", "b"], object)) == digest(np.array(["ä", "b"]))


def test_asset_missing_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match=r"bundled file .*nothing\.bin is missing"):
        asset("here", "nothing.bin")
    (tmp_path / "a.json").write_text(json.dumps(1))
    assert asset("a.json") == tmp_path / "a.json"
    monkeypatch.delenv("CHAFFINCH_ASSETS")
    assert asset("fashion-web", "pool.json") == bundle_dir() / "assets" / "fashion-web" / "pool.json"


def test_missing_evidence_says_all():
    error = MissingEvidence("small-loss", "history", "train a head first")
    assert isinstance(error, ValueError)
    assert (error.slug, error.piece, error.remedy) == ("small-loss", "history", "train a head first")
    assert str(error) == "small-loss needs history, which is not there; train a head first"
