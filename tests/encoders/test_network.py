"""Networks: sizes, shapes and layers are those their names promise."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from chaffinch.base.errors import InputError
from chaffinch.encoders.network import ARCHITECTURES, PreActBlock, build, to_tensor


def test_parameter_count():
    """Counted by hand: stem, three blocks, last norm, head."""
    network = build("preact-resnet-32-64-128", 1)
    stem = 1 * 9 * 32
    one = 2 * 32 + 9 * 32 * 32 + 2 * 32 + 9 * 32 * 32
    two = 2 * 32 + 9 * 32 * 64 + 2 * 64 + 9 * 64 * 64 + 32 * 64
    three = 2 * 64 + 9 * 64 * 128 + 2 * 128 + 9 * 128 * 128 + 64 * 128
    last = 2 * 128 + (128 * 128 + 128) * 2
    assert sum(p.numel() for p in network.parameters()) == stem + one + two + three + last == 339_424


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (12, 9)])
def test_shapes_and_layers(architecture, channels, size):
    widths = [int(part) for part in architecture.split("-")[-3:]]
    network = build(architecture, channels).eval()
    assert network.layers == ("layer1", "layer2", "layer3", "final")
    x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = {layer: network.features(x, layer) for layer in network.layers}
        torch.testing.assert_close(network(x), network.head(got["final"]))
    assert [tuple(value.shape) for value in got.values()] == [(2, w) for w in (*widths, widths[-1])]
    assert (got["final"] >= 0).all()
    assert not torch.equal(got["layer3"], got["final"])


@pytest.mark.parametrize(
    "layers",
    [
        ("layer1",), ("final",), ("layer3", "layer1"), ("final", "layer2"), ("layer2", "final", "layer2"),
        ("layer1", "layer2", "layer3", "final"), (),
    ],
)  # fmt: skip
def test_pooled_gives_several_layers_in_one_pass(layers):
    """In the order asked for, each as if asked for alone, and computed by hand."""
    network, passes = build("preact-resnet-8-16-32", 1).eval(), []
    network.stem.register_forward_hook(lambda *_: passes.append(1))
    x = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = network.pooled(x, layers)
        assert len(passes) == 1
        h, by_hand = network.stem((x - 0.5) / 0.25), {}
        for i, stage in enumerate(network.stages):
            h = stage(h)
            by_hand[f"layer{i + 1}"] = h.mean((2, 3))
        by_hand["final"] = network.norm(h).relu().mean((2, 3))
        assert len(found) == len(layers)
        for layer, value in zip(layers, found, strict=True):
            assert torch.equal(value, by_hand[layer])
            assert torch.equal(value, network.features(x, layer))


def test_pooled_stops_where_it_can():
    network, passes = build("preact-resnet-8-16-32", 1).eval(), []
    for stage in network.stages:
        stage.register_forward_hook(lambda *_: passes.append(1))
    network.pooled(torch.zeros(1, 1, 8, 8), ("layer2", "layer1"))
    assert len(passes) == 2


def test_pooled_of_an_unknown_layer():
    with pytest.raises(InputError, match=r"unknown layer 'layer9'; this network has layer1, layer2, layer3, final"):
        build("preact-resnet-8-16-32", 1).pooled(torch.zeros(1, 1, 8, 8), ("layer1", "layer9"))


def test_stages_halve_the_picture():
    network = build("preact-resnet-8-16-32", 1)
    x, sizes = torch.zeros(1, 8, 12, 12), []
    for stage in network.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [12, 6, 3]


def test_block_without_weights_is_the_identity():
    block = PreActBlock(4, 4, 1)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x)
    assert block.shortcut is None
    assert PreActBlock(4, 8, 1).shortcut is not None


def test_rows_do_not_see_each_other_when_embedding():
    network = build("preact-resnet-8-16-32", 1).eval()
    x = torch.rand(6, 1, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(network.features(x)[2:3], network.features(x[2:3]), atol=1e-6, rtol=1e-5)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown architecture 'resnet-50'; there are preact-resnet-32"):
        build("resnet-50", 1)
    with pytest.raises(InputError, match=r"unknown layer 'layer9'; this network has layer1, .*final"):
        build("preact-resnet-8-16-32", 1).features(torch.zeros(1, 1, 8, 8), "layer9")


def test_to_tensor():
    grey = np.array([[[0, 255], [51, 102]]], np.uint8)
    torch.testing.assert_close(to_tensor(grey), torch.tensor([[[[0, 1], [0.2, 0.4]]]]))
    colour = np.zeros((2, 4, 5, 3), np.uint8)
    colour[..., 1] = 255
    x = to_tensor(colour)
    assert x.shape == (2, 3, 4, 5)
    assert x.mean((0, 2, 3)).tolist() == [0, 1, 0]


def test_gradients_of_odd_batches_on_two_threads_stay_inside_their_memory():
    """oneDNN's strided 1x1 convolution did not (torch 2.13); a corrupted heap kills the process sooner or later."""
    code = (
        "import torch\nfrom chaffinch.encoders.network import build\n"
        "torch.set_num_threads(2)\nnetwork = build('preact-resnet-8-16-32', 1).to(memory_format=torch.channels_last)\n"
        "for i in range(150):\n    network(torch.rand(33, 1, 12, 12)).sum().backward()\n"
        "    kept = [torch.rand(7 * (i % 13) + 1) for _ in range(3)]\nprint('whole')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.strip()) == (0, "whole"), ended.stderr[-500:]
