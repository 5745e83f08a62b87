"""The encoder for photographs is the published network, and its features find what was planted among photographs."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from streamlit.testing.v1 import AppTest
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.base.files import asset, sha256_file
from chaffinch.cli import main
from chaffinch.data import CLEAN, MISLABELLED, OOD, NoisyDataset, Observed, Truth
from chaffinch.encoders import packaged
from chaffinch.encoders.checkpoint import load_encoder, read_pickled
from chaffinch.encoders.efficientnet import Conv, EfficientNetLite0
from chaffinch.encoders.network import to_tensor
from chaffinch.encoders.packaged import Package, packaged_weights
from chaffinch.spec import Spec
from chaffinch.study import Study, encoder_cards, find_encoder

CARD = "efficientnet-lite0.safetensors"


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(asset("encoders", "efficientnet-lite0.json").with_name(CARD))


def crops(name, n, rng):
    """Random squares of a photograph, (n, 112, 112, 3)."""
    photo, found = load_sample_image(name), []
    for _ in range(n):
        side = int(rng.integers(120, 220))
        top, left = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
        x = to_tensor(photo[None, top : top + side, left : left + side].copy())
        found.append((F.interpolate(x, (112, 112), mode="bilinear", antialias=True) * 255).round())
    return torch.cat(found).to(torch.uint8).movedim(1, -1).numpy()


@pytest.mark.parametrize(
    ("photo", "rows", "columns", "known"),
    [  # of a Chinese palace: palace, monastery, boathouse, bell cote; by the package efficientnet-lite-pytorch 0.1.0
        ("china.jpg", slice(100, 324), slice(200, 424), {698: 7.141, 663: 6.957, 449: 6.223, 442: 5.801, 975: 5.193}),
        # of a flower, out of focus at this scale: lampshade, daisy, sea anemone
        ("flower.jpg", slice(100, 324), slice(200, 424), {619: 7.187, 985: 6.284, 108: 5.668, 996: 5.004, 117: 4.919}),
    ],
)
def test_it_says_of_a_photograph_what_the_published_network_says(encoder, photo, rows, columns, known):
    x = to_tensor(load_sample_image(photo)[None, rows, columns].copy())
    with torch.inference_mode():
        logits = encoder.network(x)[0]
    top = logits.topk(5)
    assert top.indices.tolist() == list(known)
    np.testing.assert_allclose(top.values.numpy(), list(known.values()), atol=2e-3)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [6, 7, 12])
def test_convolutions_are_padded_as_tensorflow_does_it(kernel, stride, side):
    torch.manual_seed(0)
    conv, x = Conv(1, 1, kernel, stride, bias=False), torch.rand(1, 1, side, side)
    size = -(-side // stride)
    total = max((size - 1) * stride + kernel - side, 0)
    lead = total // 2  # documentation of tf.nn.convolution, padding="SAME"
    slow = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - lead, j * stride + b - lead
                    if 0 <= row < side and 0 <= column < side:
                        slow[i, j] += conv.weight[0, 0, a, b].detach() * x[0, 0, row, column]
    torch.testing.assert_close(conv(x)[0, 0].detach(), slow, rtol=1e-4, atol=1e-5)


def test_every_layer_gives_a_vector_a_picture_whatever_its_size_and_colour(encoder):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((3, 28, 28), (3, 50, 80, 3))]
    dims = [16, 24, 40, 80, 112, 192, 320, 1280]
    for layer, dim in zip(encoder.layers, dims, strict=True):
        for images in pictures:
            found = encoder.embed(images, layer=layer)
            assert found.shape == (3, dim)
            assert np.isfinite(found).all()
    one = encoder.embed(pictures[1], batch=1)
    np.testing.assert_allclose(encoder.embed(pictures[1]), one, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="has no layer 'layer9'"):
        encoder.embed(pictures[0], layer="layer9")


def test_planted_noise_among_photographs_is_found(workspace):
    rng = np.random.default_rng(5)
    images = np.concatenate([crops("china.jpg", 45, rng), crops("flower.jpg", 45, rng), crops("china.jpg", 8, rng)])
    images[90:] = rng.integers(0, 256, (8, 14, 14, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)  # no photographs
    true = np.repeat([0, 1, -1], [45, 45, 8])
    given = np.where(true < 0, np.arange(98) % 2, true)
    wrong = np.array([3, 11, 20, 31, 50, 58, 66, 80])
    given[wrong] = 1 - given[wrong]
    observed = Observed(labels=given, classes=("temple", "flower"), ids=np.arange(98).astype(str), images=images)
    study = Study(NoisyDataset("photographs", observed, Truth.of(given, true)), workspace=workspace)
    assert study.encoder == "efficientnet-lite0"
    assert not study.advice
    assert study.features.shape == (98, 1280)
    kinds = study.truth.kind
    assert [int((kinds == kind).sum()) for kind in (CLEAN, MISLABELLED, OOD)] == [82, 8, 8]
    assert study.figures(study.detect("knn-label"), given > 5)["auroc_mislabelled"] > 0.97
    assert study.figures(study.detect("knn-distance"), given > 5)["auroc_ood"] > 0.97


def test_it_is_listed_with_its_paper(capsys):
    assert main(["methods", "--json"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["slug"] == "efficientnet-lite0")
    assert (row["kind"], row["arxiv"], row["year"]) == ("encoder", "1905.11946", 2019)
    assert row["paper"].startswith("EfficientNet: Rethinking")


def test_another_sight_of_the_same_weights_is_another_key(workspace, pictures):
    card = json.loads(asset("encoders", "efficientnet-lite0.json").read_text())
    (workspace.folder("encoders") / "larger.json").write_text(json.dumps(card | {"sizes": {"shape": [3, 160, 160]}}))
    keys = {Study(pictures, name, workspace=workspace).key for name in ("efficientnet-lite0", "larger")}
    assert len(keys) == 2


def test_no_training_starts_from_it(encoder, pictures, tmp_path):
    from chaffinch.trainers.train import Recipe, train

    with pytest.raises(InputError, match="efficientnet-lite0 was trained elsewhere and only embeds"):
        next(train(pictures, Recipe(trainer="ce"), tmp_path, encoder))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class TestPickles:
    """Weights that are a pickle: from an installed package only, and nothing in them is run."""

    @pytest.fixture
    def plant(self, tmp_path, monkeypatch):
        """A function that makes the package bring this instead."""

        def put(content) -> Path:
            path = tmp_path / "weights.pth"
            content(path)
            monkeypatch.setattr("chaffinch.encoders.checkpoint.packaged_weights", lambda architecture: path)
            return path

        return put

    def load(self, folder, sha256):
        card = json.loads(asset("encoders", "efficientnet-lite0.json").read_text())
        (folder / "efficientnet-lite0.json").write_text(json.dumps(card | {"sha256": sha256}))
        return load_encoder(folder / CARD)

    def test_other_weights_than_those_of_the_card_are_refused_unread(self, plant, tmp_path, monkeypatch):
        path = plant(lambda path: torch.save(EfficientNetLite0().state_dict(), path))
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
        for told in ("0" * 64, ""):
            with pytest.raises(InputError, match=r"weights\.pth is damaged: its checksum"):
                self.load(tmp_path, told)
        assert path.exists()

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_a_pickle_that_would_run_code_is_refused(self, plant, tmp_path, wrapped):
        mark = tmp_path / "run"
        evil = {"fc.weight": Hostile(mark)}
        path = plant(lambda path: torch.save(evil, path) if wrapped else path.write_bytes(pickle.dumps(evil, 2)))
        with pytest.raises(InputError, match=r"weights\.pth is refused: .*can run code"):
            self.load(tmp_path, sha256_file(path))
        assert not mark.exists()
        pickle.loads(pickle.dumps(evil))  # noqa: S301  ours
        assert mark.exists(), "it would have run"

    def test_what_is_no_dict_of_tensors_is_refused(self, tmp_path):
        for value in ([torch.zeros(1)], {"a": 1.0}):
            torch.save(value, tmp_path / "w.pth")
            with pytest.raises(InputError, match="something else than tensors"):
                read_pickled(tmp_path / "w.pth")
        (tmp_path / "w.pth").write_bytes(b"PK")
        with pytest.raises(InputError, match="refused"):
            read_pickled(tmp_path / "w.pth")

    def test_tensors_of_another_network_are_named(self, plant, tmp_path):
        path = plant(lambda path: torch.save({"fc.weight": torch.zeros(2, 2)}, path))
        with pytest.raises(InputError, match=r"weights\.pth does not hold the weights of efficientnet-lite0"):
            self.load(tmp_path, sha256_file(path))

    def test_a_path_of_the_user_is_never_unpickled(self, tmp_path):
        with pytest.raises(InputError, match=r"only \.safetensors"):
            load_encoder(tmp_path / "mine.pth")
        with pytest.raises(InputError, match="no package brings weights of 'mine'"):
            packaged_weights("mine")


class TestNotInstalled:
    @pytest.fixture(autouse=True)
    def gone(self, monkeypatch):
        there = packaged.PACKAGES["efficientnet-lite0"]
        monkeypatch.setitem(
            packaged.PACKAGES, "efficientnet-lite0", Package("no-such-package-here", there.file, there.extra)
        )

    def test_it_says_what_installs_it(self, workspace):
        assert "error" in encoder_cards(workspace)["efficientnet-lite0"][1]
        assert "error" not in encoder_cards(workspace)["simclr"][1]
        with pytest.raises(InputError, match=r'pip install "chaffinch\[photos\]"'):
            find_encoder(workspace, "efficientnet-lite0")

    def test_the_app_says_so_and_shows_what_is_there(self, pictures, tmp_path, monkeypatch):
        colour = pictures.observed.images[..., None].repeat(3, -1)
        np.savez(tmp_path / "p.npz", images=colour, labels=pictures.observed.labels)
        monkeypatch.setenv("CHAFFINCH_SPEC", Spec(dataset=f"arrays:{tmp_path / 'p.npz'}").to_toml())
        app = AppTest.from_file(str(Path(__file__).parents[2] / "app.py"), default_timeout=120).run()
        assert not app.exception
        assert app.selectbox(key="encoder").value == "simclr"
        assert "pip install" in app.sidebar.info[0].value
        assert "have to be embedded first" in app.subheader[0].value
        app.button(key="job-stop").click().run()

    def test_photographs_fall_back_to_what_is_there(self, workspace, pictures):
        colour = pictures.observed.images[..., None].repeat(3, -1)
        observed = Observed(
            labels=pictures.observed.labels, classes=pictures.observed.classes, ids=pictures.observed.ids, images=colour
        )
        study = Study(NoisyDataset("colour", observed), workspace=workspace)
        assert study.encoder == "simclr"
        assert 'pip install "chaffinch[photos]"' in study.advice
        assert not Study(pictures, workspace=workspace).advice, "small grey pictures lack nothing"

    def test_commands_say_so_and_go_on(self, pictures, workspace, tmp_path, capsys):
        observed = pictures.observed
        colour = observed.images[..., None].repeat(3, -1)
        np.savez(tmp_path / "p.npz", images=colour, labels=observed.labels, classes=np.array(observed.classes))
        name, out = f"arrays:{tmp_path / 'p.npz'}", str(tmp_path / "cleaned")
        for argv in (["export", name, "--out", out], ["check", name], ["detect", name, "--detector", "knn-label"]):
            assert main([*argv, "--quiet"]) == 0
            said = capsys.readouterr()
            assert said.err.count("warning: simclr stands in for the encoder for photographs: ") == 1
            assert 'pip install "chaffinch[photos]"' in said.err
        assert "encoder simclr" in said.out
        assert main(["methods", "--json"]) == 0
        said = capsys.readouterr()
        assert 'pip install "chaffinch[photos]"' in said.err
        assert "efficientnet-lite0" not in {row["slug"] for row in json.loads(said.out)}
