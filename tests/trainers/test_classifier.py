"""A classifier read back from its run: the probabilities of its networks; whatever is missing or damaged is named."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chaffinch.base.errors import InputError
from chaffinch.encoders.network import to_tensor
from chaffinch.trainers.classifier import Classifier
from chaffinch.trainers.train import MODEL


@pytest.fixture
def run(stripes, trained):
    return trained(stripes(n=40), trainer="pls-lsa-plus", epochs=1, parameters={"layer": "layer1"}).folder


def test_it_says_the_mean_of_its_networks(run, stripes):
    found = Classifier(run)
    pictures = stripes(n=9).observed.images
    with torch.inference_mode():
        by_hand = torch.stack([net(to_tensor(pictures)) for net in found._nets]).mean(0).softmax(1)
    assert len(found._nets) == 2
    np.testing.assert_allclose(found.pred_probs(pictures), by_hand, atol=1e-6)
    np.testing.assert_allclose(found.pred_probs(pictures, batch=2), by_hand, atol=1e-6)
    assert found.classes == ("across", "down", "both")


def test_pictures_of_another_sort(run):
    with pytest.raises(InputError, match=r"pictures with 1 channel\(s\), not 3"):
        Classifier(run).pred_probs(np.zeros((2, 12, 12, 3), np.uint8))


def test_an_unfinished_run(run):
    (run / MODEL).unlink()
    with pytest.raises(InputError, match="has not come to its end"):
        Classifier(run)


def test_damaged_weights(run):
    (run / MODEL).write_bytes(b"no weights")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        Classifier(run)


def test_weights_of_another_network(run):
    about = json.loads((run / "run.json").read_text())
    about["about"]["architecture"] = "preact-resnet-32-64-128"
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="does not hold the weights of preact-resnet-32-64-128"):
        Classifier(run)
    state = load_file(run / MODEL)
    save_file({k: v for k, v in state.items() if "stem" not in k}, run / MODEL)
    with pytest.raises(InputError, match="does not hold the weights"):
        Classifier(run)
