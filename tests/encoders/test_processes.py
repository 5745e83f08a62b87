"""Two processes train one encoder: each takes half of every batch, the loss sees the whole of it."""

import json
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
from functools import partial
import numpy as np
import torch
from pathlib import Path

from chaffinch.data import NoisyDataset, Observed
from chaffinch.encoders.augment import Augment
from chaffinch.encoders.device import engine
from chaffinch.encoders.network import build
from chaffinch.encoders.steps import Learner, Pictures, gathered
from chaffinch.base.methods import find_method
from chaffinch.losses.base import Sizes

fabric = engine("cpu", "float32")
rng = np.random.default_rng(0)
labels = np.arange(48) % 3
seen = Observed(labels=labels, classes=("a", "b", "c"), ids=np.arange(48).astype(str),
                images=rng.integers(0, 255, (48, 12, 12), dtype=np.uint8))
out = {}
for slug in sys.argv[1].split(","):
    torch.manual_seed(0)
    loss = find_method("loss", slug)(**({"size": 4, "warm_up": 0} if slug == "sbcl" else {}))
    network = build("preact-resnet-8-16-32", 1)
    loss.setup(Sizes(network.dim, network.projection, 3, 48, (1, 12, 12)))
    learner = Learner(network, loss, 3)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1)
    module, optimiser = fabric.setup(learner, optimiser)
    if fabric.world_size > 1:
        learner.gather = partial(gathered, fabric)
    still = Augment(crop=(1, 1), ratio=1, flip=0, jitter=0)
    data = Pictures(NoisyDataset("toy", seen), loss, 16, still, fabric, (12, 12), Path("."))
    if loss.wants_epoch(0):
        loss.on_epoch(data.features(network), data.labels, 0, torch.Generator().manual_seed(3))
    network.eval()  # batch statistics would differ between halves and wholes
    rows = torch.arange(16)
    order = torch.cat([rows[0::2], rows[1::2]])  # as two processes gather them
    rows = rows if fabric.world_size > 1 else order
    x, y, index, aux = data.step(rows, torch.Generator().manual_seed(1))
    total, per_sample, _ = module(x, y, index, aux, torch.Generator().manual_seed(2))
    fabric.backward(total)
    _, gradient = learner.features_and_gradient()
    if fabric.world_size > 1:
        gradient = learner.gather(gradient) / fabric.world_size
    parameters = {name: p.grad.norm().item() for name, p in learner.named_parameters() if p.grad is not None}
    out[slug] = {"second": [], "total": total.item(), "per_sample": per_sample.tolist(), "parameters": parameters,
                 "first": network.stem.weight.grad.flatten().tolist(), "h": gradient.flatten().tolist()}
    if second := loss.second_parameters():  # as the training does after the step of the network
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            batch = learner.batch(x, network.features(x), y, index, aux, torch.Generator().manual_seed(2))
        fabric.backward(loss.second(batch))
        out[slug]["second"] = [p.grad.flatten().tolist() for p in second]
if fabric.is_global_zero:
    print("RESULT " + json.dumps(out))
if fabric.world_size > 1:
    torch.distributed.destroy_process_group()  # its threads may not outlive the interpreter
"""

SLUGS = ("simclr", "supcon", "dcl", "ce", "hydra", "mclrec", "sbcl")


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "step.py"
    path.write_text(SCRIPT)
    found = []
    for start in ([sys.executable], TORCHRUN):
        output = run([*start, str(path), ",".join(SLUGS)]).stdout
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        found.append(json.loads(line.removeprefix("RESULT ")))
    return found


@pytest.mark.parametrize("slug", SLUGS)
def test_one_step_is_the_same(both, slug):
    """Loss, losses of the samples, gradients of weights and of features."""
    one, two = (found[slug] for found in both)
    assert two["total"] == pytest.approx(one["total"], rel=1e-5)
    np.testing.assert_allclose(two["per_sample"], one["per_sample"], rtol=1e-4)
    np.testing.assert_allclose(two["first"], one["first"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(two["h"], one["h"], rtol=1e-3, atol=1e-6)
    assert len(two["second"]) == len(one["second"])
    for mine, yours in zip(two["second"], one["second"], strict=True):
        np.testing.assert_allclose(mine, yours, rtol=1e-3, atol=1e-6)
    assert any(one["second"]) == (slug == "mclrec")
    assert two["parameters"].keys() == one["parameters"].keys()
    for name, norm in one["parameters"].items():
        assert two["parameters"][name] == pytest.approx(norm, rel=1e-3, abs=1e-7), name


def test_too_few_pictures_for_so_many_processes(tmp_path):
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 12, 12), np.uint8), labels=np.array([0, 1, 0]))
    options = ["-m", "chaffinch.cli", "train-encoder", f"arrays:{tmp_path / 'few.npz'}", "--out", str(tmp_path)]
    done = subprocess.run([*TORCHRUN, *options, "--device", "cpu"], capture_output=True, text=True, timeout=300)
    assert "2 processes need at least 4 pictures in a batch, got 3" in done.stderr
    assert done.returncode
    assert [p.name for p in tmp_path.iterdir()] == ["few.npz"]


def test_training_reaches_the_loss_of_one_process(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 2
    images = rng.integers(0, 60, (128, 12, 12), dtype=np.uint8)
    images[labels == 0, ::3] += 150
    images[labels == 1, :, ::3] += 150
    np.savez(tmp_path / "toy.npz", images=images, labels=labels)
    options = [
        "-m", "chaffinch.cli", "train-encoder", f"arrays:{tmp_path / 'toy.npz'}", "--epochs", "15", "--batch", "32",
        "--architecture", "preact-resnet-8-16-32", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    losses = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        told = run([*start, *options, "--out", str(tmp_path), "--name", name]).stderr
        assert name == "two" or not told, "it was to be quiet"
        losses.append(json.loads((tmp_path / f"{name}.json").read_text())["history"])
    assert len(losses[0]) == len(losses[1]) == 15
    fell = losses[0][0] - np.mean(losses[0][-3:])
    assert fell > 0.3, "it learns"
    assert np.mean(losses[1][-3:]) == pytest.approx(np.mean(losses[0][-3:]), abs=0.25 * fell)
    assert sorted(p.name for p in tmp_path.glob("two.*")) == ["two.json", "two.record.safetensors", "two.safetensors"]
