"""Whatever is changed in a file, its reader takes it or raises an InputError; nothing else comes out."""

import copy
import io
import json
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import load_file

from chaffinch import cleaned, pulls, registry
from chaffinch.base.errors import InputError
from chaffinch.base.files import read_json
from chaffinch.base.record import Record, load_record
from chaffinch.base.training_run import TrainingRun
from chaffinch.cleaned import Policy, make
from chaffinch.data import open_dataset
from chaffinch.encoders.augment import Augment
from chaffinch.encoders.checkpoint import load_encoder
from chaffinch.reviews import Decision
from chaffinch.spec import Cut
from chaffinch.study import Study, encoder_cards, find_encoder

VALUES = (None, [], {}, "x", -1, 1e30, True)


def replaced(document):
    """Each value inside a JSON document, and the document itself, replaced by each of `VALUES`; (place, document)."""

    def places(value, path=()):
        yield path
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield from places(value[key], (*path, key))

    for path in places(document):
        for value in VALUES:
            whole = {"": copy.deepcopy(document)}
            inside = whole
            for key in ("", *path)[:-1]:
                inside = inside[key]
            inside[("", *path)[-1]] = value
            yield path, whole[""]


def changed(raw, count, seed, head=None):
    """Some files with one to three other bytes, or cut off; half of the changes lie in the first ``head`` bytes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        out = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            out[rng.integers(head if head and i % 2 else len(out))] = rng.integers(256)
        yield bytes(out[: rng.integers(len(out))] if i % 5 == 0 else out)


def tried(read, mutants):
    """How many of the mutants a reader takes, and how many it refuses with an InputError."""
    taken = refused = 0
    for place, mutant in mutants:
        try:
            read(mutant)
            taken += 1
        except InputError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error
    return taken, refused


def header(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_deeply_nested_json(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path / "deep.json")


class TestArrays:
    def read(self, path, raw):
        path.write_bytes(raw)
        return open_dataset(f"arrays:{path}")

    def test_bytes(self, arrays_file):
        path = arrays_file(rows=slice(40), xy=np.zeros((40, 2)), trusted=np.arange(40) < 9)
        taken, refused = tried(lambda raw: self.read(path, raw), enumerate(changed(path.read_bytes(), 200, 1)))
        assert 0 < taken < refused

    def test_bytes_of_members_whose_checksums_are_right(self, arrays_file):
        path = arrays_file(rows=slice(40), xy=np.zeros((40, 2)), trusted=np.arange(40) < 9)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}

        def mutants():
            for name, raw in members.items():
                for i, other in enumerate(changed(raw, 40, 2, head=128)):
                    file = io.BytesIO()
                    with zipfile.ZipFile(file, "w") as archive:
                        for key, value in members.items():
                            archive.writestr(key, other if key == name else value)
                    yield (name, i), file.getvalue()

        taken, refused = tried(lambda raw: self.read(path, raw), mutants())
        assert taken > 10
        assert refused > 100

    def test_a_map_has_two_coordinates(self, arrays_file):
        with pytest.raises(InputError, match=r"xy must be \(180, 2\) coordinates of a map, got shape \(180, 3\)"):
            open_dataset(f"arrays:{arrays_file(xy=np.zeros((180, 3)))}")


class TestEncoder:
    SIZES = {"features": 32, "projection": 32, "classes": 2, "samples": 60, "shape": [1, 12, 12]}

    @pytest.fixture
    def path(self, save_encoder, tmp_path, monkeypatch):
        monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path))  # the bundled cards are not read a thousand times
        return save_encoder(
            sizes=self.SIZES, augment=asdict(Augment()), history=[1.5, 1.25], metrics={"knn": 0.5},
            loss_parameters={"temperature": 0.2}, about={"name": "tiny", "year": 2020},
        )  # fmt: skip

    def read(self, path, pictures, workspace, text):
        path.with_suffix(".json").write_text(text)
        encoder_cards(workspace)
        find_encoder(workspace, "tiny")
        encoder = load_encoder(path)
        assert encoder.embed(pictures.observed.images[:2]).shape == (2, 32)
        study = Study(pictures, "tiny", workspace=workspace)
        assert study.key
        Augment.of(study.card()["augment"])

    def test_values_of_the_card(self, path, pictures, workspace):
        card = json.loads(path.with_suffix(".json").read_text())
        mutants = ((place, json.dumps(value)) for place, value in replaced(card))
        taken, refused = tried(lambda text: self.read(path, pictures, workspace, text), mutants)
        assert taken > 20
        assert refused > 150

    @pytest.mark.parametrize("change", [{"crop": [0.5, 0.2]}, {"ratio": -1}, {"jitter": 1e30}, {"crop": [1]}, {"x": 1}])
    def test_augmentations_that_cannot_be(self, change):
        with pytest.raises(InputError, match="the model card cannot be used"):
            Augment.of(change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"architecture": []}, r"architecture must be a text, got \[\]"),
            ({"channels": -1}, "channels must be 1 or 3, got -1"),
            ({"sizes": {"shape": [1, 0, 12]}}, r"sizes\.shape must be above 0"),
            ({"sizes": {"shape": [12, 12]}}, r"sizes\.shape must be channels, height and width"),
            ({"architecture": "timm:resnet18", "sizes": {}}, r"sizes\.shape is missing"),
            ({"outputs": ["joint"], "sizes": {"shape": [1, 12, 12]}}, r"sizes\.features is missing"),
            ({"outputs": ["joint"]}, "simclr gives no 'joint'"),
            ({"history": [1, "x"]}, r"history\[1\] must be a number, got 'x'"),
            ({"about": {"year": 2020}}, r"about\.name is missing"),
        ],
    )
    def test_the_field_is_named(self, path, change, message):
        card = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=rf"tiny\.json.*{message}"):
            load_encoder(path)

    def test_a_card_without_a_checksum_disables_its_encoder(self, path, workspace):
        card = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({k: v for k, v in card.items() if k != "sha256"}))
        with pytest.raises(InputError, match=r"tiny\.json lacks sha256"):
            find_encoder(workspace, "tiny")

    def test_bytes_of_the_weights(self, path):
        card = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(card | {"sha256": ""}))

        def read(raw):
            path.write_bytes(raw)
            load_encoder(path)

        taken, refused = tried(read, enumerate(changed(path.read_bytes(), 200, 3, head=header(path))))
        assert min(taken, refused) > 20


class TestManifest:
    @pytest.fixture
    def study(self, blobs, workspace):
        return Study(blobs, "features", workspace=workspace)

    @pytest.fixture
    def manifest(self, blobs, a_run, workspace):
        study = Study(blobs, "features", workspace=workspace, run=a_run(blobs))
        made = [Decision(1, "b000", "keep", "", "ann", "2026-01-02T03:04:05+00:00", "", 1)]
        cuts = [Cut("small-loss"), Cut("knn-label", budget=0.1)]
        told = make(study, cuts, made, Policy(drop=("ood",)), layout="none").manifest
        return told | {"table": {"name": "table.csv", "sha256": "0" * 64}}

    def test_values(self, study, manifest, workspace, tmp_path):
        path = tmp_path / "manifest.json"

        def opened(told):  # as the command does
            dataset, run = told["dataset"]["name"], told["run"] or {"name": ""}
            dataset = study.dataset if dataset == "blobs" else dataset
            return Study(dataset, told["encoder"]["name"], workspace=workspace, seed=told["seed"], run=run["name"])

        def read(told):
            path.write_text(json.dumps(told))
            back = cleaned.replay(path, opened)[1]
            assert not back.get("table") or back["table"]["sha256"]

        assert tried(read, [("unchanged", manifest)]) == (1, 0)
        taken, refused = tried(read, replaced({key: manifest[key] for key in manifest if key != "counts"}))
        assert taken > 20
        assert refused > 200

    @pytest.mark.parametrize("slug", sorted(registry.methods("detector")))
    def test_parameters_of_detectors(self, blobs, workspace, manifest, tmp_path, slug):
        """Those of the right type may still be out of range."""
        parameters = registry.get("detector", slug)().get_params()
        parameters |= {"steps": 20} if "steps" in parameters else {}
        path, study = tmp_path / "manifest.json", Study(blobs, "features", workspace=workspace)
        plain = manifest | {"run": None}

        def read(values):
            path.write_text(json.dumps(plain | {"detectors": [{"cut": f"{slug}@own", "parameters": values}]}))
            cleaned.replay(path, lambda _: study)

        taken, refused = tried(read, replaced(parameters))
        assert refused > 5

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (("dataset", "name"), None, r"dataset\.name must be a text, got None"),
            (("encoder", "name"), {}, r"encoder\.name must be a text, got {}"),
            (("encoder", "sha256"), 1e30, r"encoder\.sha256 must be a text or null, got 1e\+30"),
            (("table",), True, "table must be an object, got True"),
            (("detectors", 0, "parameters"), [], r"detectors\[0\]\.parameters must be an object, got \[\]"),
            (("detectors", 0, "parameters", "seed"), "x", "small-loss: seed must be a whole number, got 'x'"),
            (("detectors", 0, "parameters", "threshold"), "x", "small-loss: threshold must be a number, got 'x'"),
            (("detectors", 0, "parameters", "seed"), -1, "seed must be 0 to"),
        ],
    )
    def test_the_key_is_named(self, study, manifest, tmp_path, keys, value, message):
        inside = manifest
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = value
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"run": None}))
        with pytest.raises(InputError, match=message):
            cleaned.replay(tmp_path / "manifest.json", lambda _: study)


class TestRun:
    @pytest.fixture
    def folder(self, a_run, blobs, workspace):
        return workspace.root / "runs" / a_run(blobs)

    def read(self, folder, blobs):
        run = TrainingRun(folder)
        run.check(blobs.digest, blobs.name)
        assert run.history.losses(blobs.observed.labels).shape == run.force[0].shape
        assert isinstance(run.done, bool)
        assert run.trust is None or run.trust.shape == run.force[0].shape

    def test_values_of_the_description(self, folder, blobs):
        path = folder / "run.json"
        mutants = ((place, json.dumps(value)) for place, value in replaced(json.loads(path.read_text())))

        def read(text):
            path.write_text(text)
            self.read(folder, blobs)

        taken, refused = tried(read, mutants)
        assert taken > 20
        assert refused > 100

    def test_bytes_of_an_epoch(self, folder, blobs):
        path = folder / "epoch-0002.safetensors"

        def read(raw):
            path.write_bytes(raw)
            self.read(folder, blobs)

        taken, refused = tried(read, enumerate(changed(path.read_bytes(), 300, 4, head=header(path))))
        assert min(taken, refused) > 20

    @pytest.mark.parametrize(
        "change",
        [
            {"flags": np.zeros(180, np.float32)}, {"flags": np.zeros(179, bool)}, {"seen": np.zeros((180, 2), "f2")},
            {"log_probs": np.zeros(180, "f2")}, {"weights": np.zeros(180, np.int32)},
        ],
    )  # fmt: skip
    def test_arrays_that_do_not_fit(self, folder, change):
        from safetensors.numpy import save_file

        path = folder / "epoch-0001.safetensors"
        save_file(load_file(path) | change, path)
        with pytest.raises(InputError, match=r"epoch-0001\.safetensors is not a readable record of an epoch: \w+ is "):
            TrainingRun(folder).epoch(1)


class TestRecord:
    @pytest.fixture
    def path(self, tmp_path):
        rng, path = np.random.default_rng(5), tmp_path / "tiny.record.safetensors"
        losses = rng.random((2, 30)).astype(np.float16)
        towards = rng.uniform(-1, 1, (2, 30, 3)).astype(np.float16)
        Record(np.arange(30) * 6, np.array([1, 2]), losses, losses * 2, towards).save(path)
        return path

    def test_bytes(self, path, blobs):
        truth = blobs.truth

        def read(raw):
            path.write_bytes(raw)
            pulls.read(load_record(path), blobs.observed.labels, truth.kind, truth.labels, True)

        taken, refused = tried(read, enumerate(changed(path.read_bytes(), 400, 6, head=header(path))))
        assert min(taken, refused) > 20

    @pytest.mark.parametrize(
        "change",
        [
            {"rows": np.arange(29)}, {"rows": np.arange(30) - 1}, {"epochs": np.ones(2)},
            {"pulls": np.zeros((30, 2), np.float16)}, {"towards": np.zeros((2, 30), np.float16)},
        ],
    )  # fmt: skip
    def test_arrays_that_do_not_fit(self, path, change):
        Record(**(vars(load_record(path)) | change)).save(path)
        with pytest.raises(InputError, match="its arrays do not fit each other"):
            load_record(path)
