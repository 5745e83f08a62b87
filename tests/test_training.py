"""What somebody has to know who starts a training."""

import numpy as np
import pytest

from chaffinch import registry, training
from chaffinch.base.errors import InputError
from chaffinch.cli import _parser
from chaffinch.data import NoisyDataset, Observed
from chaffinch.training import Plan


@pytest.mark.parametrize(
    "plan",
    [
        Plan(
            "fashion-web:n=500", "ce-2", "ce", {"smoothing": 0.1}, 3, 64, 7, "preact-resnet-32-64-128", False, 48, 1e-4
        ),
        Plan("arrays:/a b/c=d.npz", "sce", "sce", {"alpha": 0.1, "beta": 1.0, "A": -9.21}),
        Plan("fashion-web", "simclr-2", "simclr"),
    ],
)
def test_a_command_says_all_of_a_plan(plan):
    back = Plan.of(list(plan.command()))
    assert back.command() == plan.command()
    assert (back.dataset, back.name, back.loss, back.epochs, back.flip, back.side, back.learning_rate) == (
        plan.dataset, plan.name, plan.loss, plan.epochs, plan.flip, plan.side, plan.learning_rate,
    )  # fmt: skip
    args = _parser().parse_args([*plan.command(), "--job", "j"])
    assert (args.dataset, args.name, args.loss, args.seed) == (plan.dataset, plan.name, plan.loss, plan.seed)
    assert (args.epochs, args.batch, args.architecture) == (plan.epochs, plan.batch, plan.architecture)
    assert args.no_flip is not plan.flip
    assert args.learning_rate == plan.learning_rate
    assert args.set == [f"{name}={value}" for name, value in plan.parameters.items()]


def test_losses_that_cannot_train_come_last_and_say_why(pictures, blobs):
    found = training.losses(pictures)
    assert set(found) == set(registry.methods("loss"))
    assert found["simclr"] is None
    assert found["ce"] is None
    assert "classes that are numbers" in found["supremix"]
    reasons = [reason is not None for reason in found.values()]
    assert reasons == sorted(reasons)
    assert all("no pictures" in reason for reason in training.losses(blobs).values())
    observed = pictures.observed
    numbered = NoisyDataset(
        "n", Observed(labels=observed.labels, classes=("0", "90"), ids=observed.ids, images=observed.images)
    )
    assert training.losses(numbered)["supremix"] is None


def test_options_are_checked_by_the_loss():
    assert training.options("ce") == {"smoothing": 0.0}
    assert training.options("ce", {"smoothing": "0.2"}) == {"smoothing": 0.2}
    with pytest.raises(InputError, match="smoothing"):
        training.options("ce", {"smoothing": 3.0})
    with pytest.raises(InputError, match="no parameter 'smoothin'"):
        training.options("ce", {"smoothin": 0.1})


def test_the_smallest_network_comes_first():
    names = training.architectures()
    assert names[0] == Plan("d", "n", "ce").architecture
    assert names[1:] == ["preact-resnet-32-64-128", "half-preact-resnet-32-64-128"]


def test_a_free_name_is_nobodys(workspace, save_encoder):
    assert training.free_name(workspace, "mine") == "mine"
    save_encoder("mine")
    assert training.free_name(workspace, "mine") == "mine-2"
    partial = workspace.folder("encoders") / "mine-2.partial.safetensors"
    partial.write_bytes(b"begun")
    assert training.free_name(workspace, "mine") == "mine-3"
    training.discard(workspace, "mine-2")
    assert not partial.exists()
    assert training.free_name(workspace, "mine") == "mine-2"
    training.discard(workspace, "mine-2")  # gone already
    assert training.free_name(workspace, "simclr") == "simclr-2"  # a shipped encoder is called so


def test_every_loss_has_options_that_a_widget_can_show():
    for slug in registry.methods("loss"):
        for value in training.options(slug).values():
            assert isinstance(value, bool | int | float | str)
            assert not isinstance(value, float) or np.isfinite(value)
