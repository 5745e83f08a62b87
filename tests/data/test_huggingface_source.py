"""`hf:` reads what ``save_to_disk`` of Hugging Face datasets leaves, without that library."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.cli import main
from chaffinch.data import open_dataset
from chaffinch.data.sources import fingerprint, recognise

PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGE, LABEL = {"_type": "Image"}, {"names": ["cat", "owl"], "_type": "ClassLabel"}


def png(value=90):
    stream = io.BytesIO()
    Image.new("L", (6, 6), value).save(stream, "PNG")
    return stream.getvalue()


def save(folder, features, *shards):
    """A dataset as ``save_to_disk`` writes it: a description, a list of files, and Arrow streams."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for file, columns in zip(files, shards, strict=True):
        table = pa.table(columns)
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "citation": ""}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
    return folder


def pictures(*values):
    return pa.array([{"bytes": png(value), "path": None} for value in values], PICTURE)


@pytest.fixture
def saved(tmp_path):
    shards = [{"img": pictures(10, 20), "y": [0, 1]}, {"img": pictures(30), "y": [-1]}, {"img": pictures(40), "y": [1]}]
    return save(tmp_path / "d", {"img": IMAGE, "y": LABEL}, *shards)


def opened(folder):
    return open_dataset(f"hf:{folder}")


def test_pictures_labels_and_names(saved):
    d = opened(saved)
    assert d.observed.classes == ("cat", "owl")
    assert d.observed.labels.tolist() == [0, 1, 1]
    assert [int(one[0, 0]) for one in d.observed.images] == [10, 20, 40]
    assert d.observed.ids.tolist() == ["0", "1", "3"]
    assert d.warnings == ("1 of 4 rows have no label (row 2); they are left out",)
    assert d.name == recognise(str(saved)) == f"hf:{saved}"
    assert d.digest == opened(saved).digest


def test_classes_keep_their_order_and_those_that_do_not_occur(tmp_path):
    label = {"names": ["z", "a", "never"], "_type": "ClassLabel"}
    d = opened(save(tmp_path / "d", {"image": IMAGE, "label": label}, {"image": pictures(1, 2), "label": [1, 0]}))
    assert d.observed.classes == ("z", "a", "never")
    assert d.observed.labels.tolist() == [1, 0]


def test_splits(tmp_path):
    features = {"image": IMAGE, "label": LABEL}
    for i, split in enumerate(("train", "test", "validation")):
        save(tmp_path / "d" / split, features, {"image": pictures(i, i), "label": [0, 1]})
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test", "validation"]}')
    d = opened(tmp_path / "d")
    assert [int(one[0, 0]) for one in d.observed.images] == [0, 0]
    assert [int(one[0, 0]) for one in d.test.images] == [1, 1]
    assert d.warnings == ("splits that are not used: validation",)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    alone = opened(tmp_path / "d")
    assert [int(one[0, 0]) for one in alone.observed.images] == [1, 1]
    assert alone.test is None


def test_other_columns(tmp_path):
    features = {"text": {}, "id": {}, "embedding": {}, "label": {"dtype": "string", "_type": "Value"}}
    columns = {"text": ["a", "b"], "id": ["x", "y"], "embedding": [[1.0], [2.0]], "label": ["owl", "cat"]}
    d = opened(save(tmp_path / "d", features, columns))
    assert d.observed.ids.tolist() == ["x", "y"]
    assert d.observed.features.tolist() == [[1], [2]]
    assert d.observed.classes == ("cat", "owl")
    assert d.warnings == ("columns that are not used: text",)


def test_fingerprint_and_digest_follow_the_files(saved):
    before, digest = fingerprint(f"hf:{saved}"), opened(saved).digest
    assert fingerprint(f"hf:{saved}") == before
    save(saved, {"img": IMAGE, "y": LABEL}, {"img": pictures(10, 20), "y": [0, 1]})
    assert fingerprint(f"hf:{saved}") != before
    assert opened(saved).digest != digest


def test_the_command(saved, save_encoder, capsys):
    save_encoder()
    labels = [i % 2 for i in range(40)]
    save(saved, {"img": IMAGE, "y": LABEL}, {"img": pictures(*range(40)), "y": labels})
    options = ["--encoder", "tiny", "--detector", "knn-label", "--json", "--quiet"]
    assert main(["detect", f"hf:{saved}", *options]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 40


def change(saved, file, **values):
    path = saved / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def describe(saved, **features):
    change(saved, "dataset_info.json", features=features)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "state.json").unlink(), r"no folder written by save_to_disk \(state\.json is missing\)"),
        (lambda d: (d / "state.json").write_text("{"), r"state\.json cannot be read as JSON"),
        (lambda d: (d / "state.json").write_text("[]"), "names no data files"),
        (lambda d: (d / "dataset_info.json").unlink(), r"dataset_info\.json cannot be read"),
        (lambda d: (d / "dataset_info.json").write_text("[1]"), "describes no features"),
        (lambda d: change(d, "dataset_info.json", features=[1]), "describes no features"),
        (lambda d: describe(d, img=IMAGE), "column 'label' is missing"),
        (lambda d: describe(d, y=LABEL), "one of the columns image, embedding"),
        (lambda d: describe(d, img=IMAGE, y={"_type": "ClassLabel"}), "'names' is missing or no text"),
        (lambda d: describe(d, img=IMAGE, y={**LABEL, "names": ["a"]}), "label: row 1 is 1, there are 1 classes"),
        (lambda d: describe(d, img=IMAGE, y=LABEL, id={}), "column 'id' cannot be read"),
        (lambda d: change(d, "state.json", _data_files=[{"filename": "../secret.arrow"}]), "is no name of a file"),
        (lambda d: change(d, "state.json", _data_files=[{"filename": "/etc/passwd"}]), "is no name of a file"),
        (lambda d: change(d, "state.json", _data_files=[{"filename": 3}]), "'filename' is missing or no text"),
        (lambda d: change(d, "state.json", _data_files=[{"filename": "none.arrow"}]), "cannot be read as Arrow"),
        (lambda d: (d / "data-00001-of-00003.arrow").write_bytes(b"x" * 50), "cannot be read as Arrow"),
        (lambda d: (d / "data-00001-of-00003.arrow").write_bytes(b""), "cannot be read as Arrow"),
        (lambda d: (d / "dataset_dict.json").write_text('{"splits": ["../d"]}'), "is no name of a file"),
        (lambda d: (d / "dataset_dict.json").write_text('{"splits": []}'), "names no splits"),
        (lambda d: (d / "dataset_dict.json").write_text('{"splits": 3}'), "'splits' is missing or no text"),
    ],
)  # fmt: skip
def test_damaged(saved, damage, message):
    damage(saved)
    with pytest.raises(InputError, match=f"{saved}: .*{message}"):
        opened(saved)


def test_shards_that_do_not_fit(tmp_path):
    features = {"image": IMAGE, "label": LABEL}
    shards = [{"image": pictures(1), "label": [0]}, {"image": ["x"], "label": [0]}]
    with pytest.raises(InputError, match="do not fit each other"):
        opened(save(tmp_path / "d", features, *shards))


@pytest.mark.parametrize("file", ["data-00000-of-00003.arrow", "state.json", "dataset_info.json"])
def test_a_file_that_is_a_link_out_of_the_folder(saved, tmp_path, file):
    outside = tmp_path / "outside"
    (saved / file).rename(outside)
    (saved / file).symlink_to(outside)
    with pytest.raises(InputError, match=f"{file} is a link that leaves the folder"):
        opened(saved)


def test_a_split_that_is_a_link_out_of_the_folder(saved, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "train").symlink_to(saved)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="train is a link that leaves the folder"):
        opened(tmp_path / "all")


def test_no_folder(tmp_path):
    for open_ in (opened, lambda folder: fingerprint(f"hf:{folder}")):
        with pytest.raises(InputError):
            open_(tmp_path / "none")


@pytest.mark.parametrize("file", ["data-00000-of-00003.arrow", "state.json", "dataset_info.json"])
def test_mutated_bytes_give_a_dataset_or_an_input_error(saved, file):
    rng, good, usable = np.random.default_rng(4), (saved / file).read_bytes(), 0
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(rng.integers(5)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        (saved / file).unlink()  # the old one may still be mapped
        (saved / file).write_bytes(raw)
        try:
            d = opened(saved)
            assert len(np.asarray(d.observed.images)) == len(d)
            usable += 1
        except InputError:
            continue
    assert 0 < usable < 300
