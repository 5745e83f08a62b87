"""Models of timm become encoders like those that were trained here."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chaffinch.base.errors import InputError
from chaffinch.cli import main
from chaffinch.encoders.checkpoint import add_model, load_encoder
from chaffinch.encoders.timm_models import library
from chaffinch.study import Study, encoder_cards

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.2)


class Body(nn.Module):
    """A model with timm's manners: mean colours, a linear layer, a classifier unless there are no classes."""

    num_features = 5
    pretrained_cfg = {"classifier": "head", "hf_hub_id": "timm/toy", "license": "apache-2.0"}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.colours = nn.Linear(3, 5)
        self.head = nn.Linear(5, num_classes) if num_classes else nn.Identity()

    def forward(self, x):
        return self.head(self.colours(x.mean((2, 3))))


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for the library, as far as it is used."""
    fake = ModuleType("timm")
    fake.asked = []

    def create_model(name, *, pretrained, num_classes):
        fake.asked.append((name, pretrained))
        if pretrained and name == "toy.offline":
            raise OSError("no network\nlong story")
        torch.manual_seed(3)
        return Body(num_classes)

    fake.create_model = create_model
    fake.is_model = lambda name: name.partition(".")[0] == "toy"
    fake.list_models = lambda pattern: ["toy"] if "to" in pattern else []
    fake.data = SimpleNamespace(
        resolve_model_data_config=lambda model: {"input_size": (3, 24, 24), "mean": MEAN, "std": STD}
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)


def expected(body, images):
    x = torch.as_tensor(images).movedim(-1, 1).float() / 255
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        return body.colours(x.mean((2, 3))).numpy()


def test_a_fetched_model_embeds_as_the_library_would(timm, tmp_path, colours):
    path = add_model("toy.v1", tmp_path, "mine")
    assert timm.asked[0] == ("toy.v1", True)
    encoder = load_encoder(path)
    assert timm.asked[-1] == ("toy.v1", False), "from disk, not from the network again"
    torch.manual_seed(3)
    np.testing.assert_allclose(encoder.embed(colours), expected(Body(0), colours), rtol=1e-4, atol=1e-5)
    assert encoder.card.architecture == "timm:toy.v1"
    assert encoder.card.sizes == {"shape": [3, 24, 24]}
    assert encoder.card.about["source"] == "timm/toy"
    assert encoder.card.about["licence"] == "apache-2.0"


def test_weights_from_a_file_with_their_classifier(timm, tmp_path, colours):
    torch.manual_seed(9)
    body = Body(10)
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(add_model("toy", tmp_path, "mine", weights=tmp_path / "w.safetensors", side=24))
    assert not any(pretrained for _, pretrained in timm.asked)
    np.testing.assert_allclose(encoder.embed(colours), expected(body, colours), rtol=1e-4, atol=1e-5)


def test_the_command_adds_it_for_every_other_command(timm, workspace, pictures, capsys):
    assert main(["add-encoder", "timm:toy.v1"]) == 0
    assert "--encoder timm-toy.v1" in capsys.readouterr().out
    assert encoder_cards(workspace)["timm-toy.v1"][1]["dim"] == 5
    assert Study(pictures, "timm-toy.v1", workspace=workspace).features.shape == (60, 5)
    assert main(["add-encoder", "toy.v1"]) == 2
    assert "choose another --name" in capsys.readouterr().err


def test_what_cannot_be_used_is_refused_with_a_reason(timm, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    save_file({"colours.weight": torch.zeros(5, 3)}, tmp_path / "other.safetensors")
    for arguments, why in [
        ({"model": "tog"}, r"no model 'tog'; there are toy"),
        ({"model": "toy.offline"}, r"cannot be fetched \(no network\); without network, give a local file"),
        ({"weights": tmp_path / "w.pth"}, r"only \.safetensors files are read"),
        ({"weights": tmp_path / "broken.safetensors"}, "not a readable safetensors"),
        ({"weights": tmp_path / "gone.safetensors"}, "not a readable safetensors"),
        ({"weights": tmp_path / "other.safetensors"}, "not weights of this model: .*colours.bias"),
    ]:
        with pytest.raises(InputError, match=why):
            add_model(**{"model": "toy", "folder": tmp_path, "name": "mine", **arguments})
    assert not list(tmp_path.glob("mine*"))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), r'need timm, .*pip install "chaffinch\[timm\]"'),
        (RuntimeError("operator torchvision::nms does not exist"), "the torchvision that belongs to torch"),
    ],
)
def test_without_the_library_it_says_what_installs_it(monkeypatch, error, why):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise error

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(InputError, match=why):
        library()


def test_a_real_model(tmp_path, colours):
    """With the library itself, where it can be installed: its torchvision has to belong to the torch at hand."""
    try:
        timm = library()
    except InputError as error:
        pytest.skip(str(error))
    model = timm.create_model("resnet18", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(add_model("resnet18", tmp_path, "mine", weights=tmp_path / "w.safetensors", side=24))
    config = timm.data.resolve_model_data_config(model)
    x = torch.as_tensor(colours).movedim(-1, 1).float() / 255
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        known = model.forward_head(model.forward_features((x - mean) / std), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.embed(colours), known, rtol=1e-3, atol=1e-4)
