"""An encoder comes back from disk as it went, and nothing else is taken for one."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from chaffinch.base.errors import InputError
from chaffinch.base.files import sha256_file
from chaffinch.encoders.checkpoint import Encoder, ModelCard, load_card, load_encoder, write_tensors
from chaffinch.encoders.network import build

SMALL = "preact-resnet-8-16-32"


def card(**changes):
    values = {
        "name": "toy", "architecture": SMALL, "channels": 1, "dim": 32, "loss": "simclr", "dataset": "toy",
        "seed": 0, "epochs": 3, "batch": 32, "learning_rate": 0.003, "precision": "float32", "device": "CPU",
        "seconds": 1.5,
    }  # fmt: skip
    return ModelCard(**{**values, **changes})


def encoder(seed=0, **changes):
    made = card(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Encoder(build(made.architecture, made.channels), made)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 12, 12), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    return encoder().save(tmp_path)


def test_round_trip(tmp_path, images):
    first = encoder(history=[2.5, 1.25], metrics={"knn": 0.8}, loss_parameters={"temperature": 0.2})
    path = first.save(tmp_path / "deep")
    again = load_encoder(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["toy.json", "toy.safetensors"]
    assert again.card == first.card == load_card(path.with_suffix(".json"))
    assert again.card.sha256 == sha256_file(path)
    for layer in first.network.layers:
        np.testing.assert_array_equal(again.embed(images, layer=layer), first.embed(images, layer=layer))
    assert not np.allclose(encoder(seed=1).embed(images), first.embed(images))


def test_half_the_space_and_nearly_the_same_features(tmp_path, images):
    whole = encoder()
    small = whole.save(tmp_path / "half", half=True)
    full = encoder().save(tmp_path / "full")
    assert small.stat().st_size < 0.65 * full.stat().st_size
    again = load_encoder(small)
    assert (again.card.stored, load_encoder(full).card.stored) == ("float16", "float32")
    assert next(again.network.parameters()).dtype == torch.float32
    features = whole.embed(images)
    difference = np.abs(again.embed(images) - features).max() / np.abs(features).max()
    assert 0 < difference < 2e-3


def test_no_pickle_in_the_file(saved):
    head = saved.read_bytes()
    size = int.from_bytes(head[:8], "little")
    assert "stem.weight" in json.loads(head[8 : 8 + size])


def test_embed(images):
    e, seen = encoder(), []
    X = e.embed(images, batch=4, progress=seen.append)
    assert (X.shape, X.dtype) == ((10, 32), np.float32)
    assert seen == pytest.approx([0.4, 0.8, 1.0])
    np.testing.assert_allclose(X, e.embed(images), atol=1e-6)
    assert e.embed(images, layer="layer1").shape == (10, 8)
    order = np.random.default_rng(1).permutation(10)
    np.testing.assert_allclose(e.embed(images[order]), X[order], atol=1e-6)
    assert not e.network.training


def test_embed_colour():
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    assert encoder(channels=3).embed(images).shape == (3, 32)


def test_colour_pictures_are_made_grey_for_a_grey_network_and_the_other_way_round():
    grey = np.random.default_rng(5).integers(0, 256, (3, 12, 12), dtype=np.uint8)
    alike = np.repeat(grey[..., None], 3, axis=3)
    np.testing.assert_allclose(encoder().embed(alike), encoder().embed(grey), atol=1e-5)
    wide = encoder(channels=3)
    np.testing.assert_array_equal(wide.embed(grey), wide.embed(alike))
    red = np.zeros((1, 12, 12, 3), np.uint8)
    red[..., 0] = 200
    as_grey = np.full((1, 12, 12), 60, np.uint8)  # 0.299 of 200
    np.testing.assert_allclose(encoder().embed(red), encoder().embed(as_grey), atol=1e-2)


def test_pictures_of_another_size_are_fitted_to_the_size_of_the_card():
    sizes = {"shape": [1, 12, 12]}
    large = np.zeros((2, 24, 24), np.uint8)
    large[0, :12], large[1] = 90, 200
    small = large[:, ::2, ::2]
    fitted = encoder(sizes=sizes)
    np.testing.assert_array_equal(fitted.embed(small), encoder().embed(small))
    np.testing.assert_allclose(fitted.embed(large[1:]), encoder().embed(small[1:]), atol=1e-5)
    wide = np.full((1, 12, 24), 255, np.uint8)  # fits at half its size, black above and below
    letterbox = np.zeros((1, 12, 12), np.uint8)
    letterbox[:, 3:9] = 255
    np.testing.assert_allclose(fitted.embed(wide), encoder().embed(letterbox), atol=1e-5)
    assert not np.allclose(fitted.embed(large), encoder().embed(large), atol=1e-3)


def test_pictures_in_files_are_decoded_a_batch_at_a_time():
    class Store:
        shape, ndim, dtype, most = (7, 12, 12), 3, np.dtype(np.uint8), 0
        whole = np.random.default_rng(6).integers(0, 256, (7, 12, 12), dtype=np.uint8)

        def __len__(self):
            return 7

        def __getitem__(self, rows):
            self.most = max(self.most, len(self.whole[rows]))
            return self.whole[rows]

    store = Store()
    np.testing.assert_array_equal(encoder().embed(store, batch=3), encoder().embed(store.whole, batch=3))
    assert store.most == 3


def test_unknown_layer(images):
    with pytest.raises(InputError, match="encoder toy has no layer 'fc'; it has layer1, layer2, layer3, final"):
        encoder().embed(images, layer="fc")


def rewrite(path, **changes):
    """Change fields of the model card on disk."""
    values = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**values, **changes}))


def test_architecture_mismatch(saved):
    rewrite(saved, architecture="preact-resnet-32-64-128")
    with pytest.raises(InputError, match="does not hold the weights of preact-resnet-32-64-128 with 1 channel"):
        load_encoder(saved)


def test_channel_mismatch(saved):
    rewrite(saved, channels=3)
    with pytest.raises(InputError, match=r"does not hold the weights of .* with 3 channel"):
        load_encoder(saved)


def test_missing_tensor(saved):
    state = dict(encoder().network.state_dict())
    del state["stem.weight"]
    write_tensors(saved, state)
    rewrite(saved, sha256="")
    with pytest.raises(InputError, match=r"stem\.weight"):
        load_encoder(saved)


def test_unknown_architecture(saved):
    rewrite(saved, architecture="resnet-50")
    with pytest.raises(InputError, match="unknown architecture 'resnet-50'"):
        load_encoder(saved)


@pytest.mark.parametrize("checked", [True, False])
def test_damaged_weights(saved, checked):
    saved.write_bytes(saved.read_bytes()[:-100])
    if not checked:
        rewrite(saved, sha256="")
    message = r"toy\.safetensors is damaged" if checked else "is not a readable safetensors file"
    with pytest.raises(InputError, match=message):
        load_encoder(saved)


def test_one_changed_byte_is_noticed(saved):
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        load_encoder(saved)


def test_missing_weights(saved):
    saved.unlink()
    with pytest.raises(InputError, match=r"encoder weights .*toy\.safetensors are missing"):
        load_encoder(saved)


def test_missing_card(saved):
    saved.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"toy\.json cannot be read as JSON"):
        load_encoder(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"name": "toy"}', "architecture"), ("[]", "not a model card"), ('{"colour": 1}', "colour")],
)
def test_wrong_card(saved, content, message):
    saved.with_suffix(".json").write_text(content)
    with pytest.raises(InputError, match=rf"toy\.json is not a model card of chaffinch.*{message}|{message}"):
        load_encoder(saved)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ""])
def test_pickles_are_refused_unread(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / f"toy{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"only \.safetensors checkpoints are read"):
        load_encoder(path)
    disguised = encoder().save(tmp_path)
    disguised.write_bytes(path.read_bytes())
    rewrite(disguised, sha256="")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        load_encoder(disguised)
    assert not (tmp_path / "exploded").exists()


def test_saving_again_replaces(saved, images):
    other = encoder(seed=1)
    assert other.save(saved.parent) == saved
    np.testing.assert_array_equal(load_encoder(saved).embed(images), other.embed(images))
    assert replace(load_encoder(saved).card, sha256="") == card()


def test_the_shipped_cards_say_what_was_measured(workspace):
    """Every encoder that was trained here has the shipped figures on its card, and the seconds of an epoch."""
    from chaffinch.lineup import figures_key, stored
    from chaffinch.study import Study, encoder_cards

    cards = {name: card for name, (_, card) in encoder_cards(workspace).items() if card["epochs"]}
    assert len(cards) > 20
    dataset = Study("fashion-web", workspace=workspace).dataset
    for name, card in cards.items():
        assert card["dataset_digest"] == dataset.digest, name
        assert card["seconds_per_epoch"] > 0, name
        row = stored(workspace, figures_key(Study(dataset, name, workspace=workspace)))
        assert row["seconds_per_epoch"] == card["seconds_per_epoch"], name
        for key, value in card["metrics"].items():
            if key not in ("command", "detectors"):
                assert value == (row[key] if key == "called" else pytest.approx(row[key], abs=5e-5)), (name, key)
        for slug, values in card["metrics"]["detectors"].items():
            assert values == pytest.approx(row["detectors"][slug], abs=5e-5), (name, slug)


def test_the_default_encoder_still_gives_what_its_card_says(workspace):
    """The figures on the card are those that the shipped features give with this code."""
    from chaffinch.study import Study
    from chaffinch.verdict import judge

    study = Study("fashion-web", "simclr", workspace=workspace)
    metrics = study.card()["metrics"]
    assert set(metrics["detectors"]) >= {"lsa", "small-loss"}
    found = {slug: study.detect(slug) for slug in ("lsa", "small-loss")}
    measured = {slug: study.figures(d, d.flags()) for slug, d in found.items()}
    for slug, figures in measured.items():
        for name, value in metrics["detectors"][slug].items():
            assert figures[name] == pytest.approx(value, abs=0.003), (slug, name)
    again = judge(study.features, study.observed.labels, len(study.observed.classes))
    assert (study.verdict().kinds != again.kinds).mean() < 0.001, "the shipped verdict is what the code gives"
    judged = study.judged(study.verdict())
    assert judged["macro_f1"] == pytest.approx(metrics["verdict_macro_f1"], abs=0.003)
    assert judged["macro_f1"] >= 0.9
    assert measured["lsa"]["auroc_ood"] >= 0.975
    assert measured["lsa"]["auroc_ood_vs_mislabelled"] >= 0.97
    assert measured["small-loss"]["auroc_mislabelled"] >= 0.96
