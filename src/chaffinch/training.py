"""What somebody has to know who starts a training: which losses can, what they can be told, what to type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import registry
from .base.methods import find_method, method_options
from .data import NoisyDataset
from .study import encoder_cards
from .workspace import Workspace

JOB = "training"
"""Name of the job; one training at a time is enough for a workspace."""


@dataclass(frozen=True)
class Plan:
    """A training that can be started.

    Attributes:
        dataset: name that opens it.
        name: of the encoder.
        loss: slug, and its parameters.
        parameters: of the loss, all of them.
        epochs, batch, seed, architecture, learning_rate: of the recipe.
        flip: may pictures be mirrored?
        side: pixels a side at which larger pictures are seen.
    """

    dataset: str
    name: str
    loss: str
    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: int = 5
    batch: int = 256
    seed: int = 0
    architecture: str = "preact-resnet-8-16-32"
    flip: bool = True
    side: int = 64
    learning_rate: float = 3e-3

    def command(self) -> tuple[str, ...]:
        """Arguments of ``chaffinch`` that start it, or go on with it."""
        values = {
            "loss": self.loss, "epochs": self.epochs, "batch": self.batch, "seed": self.seed,
            "architecture": self.architecture, "side": self.side, "learning-rate": self.learning_rate,
            "name": self.name,
        }  # fmt: skip
        words = ["train-encoder", self.dataset]
        for option, value in values.items():
            words += [f"--{option}", str(value)]
        for name, value in self.parameters.items():
            words += ["--set", f"{name}={value}"]
        return (*words, *["--no-flip"] * (not self.flip))

    @classmethod
    def of(cls, command: list[str]) -> Plan:
        """The plan behind a command that `command` gave."""
        values: dict[str, Any] = {"dataset": command[1], "flip": "--no-flip" not in command, "parameters": {}}
        rest = [word for word in command[2:] if word != "--no-flip"]
        for option, value in zip(rest[::2], rest[1::2], strict=True):
            if option == "--set":
                values["parameters"].update([value.split("=", 1)])
            else:
                values[option.removeprefix("--").replace("-", "_")] = value
        for name in ("epochs", "batch", "seed", "side", "learning_rate"):
            usual = getattr(cls, name)
            values[name] = type(usual)(values.get(name, usual))
        return cls(**values)


def losses(dataset: NoisyDataset) -> dict[str, str | None]:
    """Every loss, and why it cannot train an encoder on a dataset; None if it can. Those that can come first."""
    from .encoders.steps import lacking

    found = {slug: lacking(cls, dataset) for slug, cls in registry.methods("loss").items()}
    return dict(sorted(found.items(), key=lambda item: (item[1] is not None, item[0])))


def architectures() -> list[str]:
    """Names of the networks, the smallest first."""
    from .encoders.network import ARCHITECTURES

    return sorted(ARCHITECTURES, key=lambda name: int(name.rpartition("-")[2]))


def options(slug: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every parameter of a loss, the given ones checked by making one.

    Raises:
        InputError: no such loss or parameter, or a value that it cannot take.
    """
    cls = find_method("loss", slug)
    found = method_options(cls, given)
    cls(**found)
    return found


def free_name(workspace: Workspace, loss: str) -> str:
    """A name that no encoder and no unfinished training has: the loss's, with a number if need be."""
    taken = set(encoder_cards(workspace)) | {
        path.name.partition(".partial.")[0] for path in (workspace.root / "encoders").glob("*.partial.safetensors")
    }
    names = (loss if i == 1 else f"{loss}-{i}" for i in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def discard(workspace: Workspace, name: str) -> None:
    """Throw away an unfinished training."""
    (workspace.root / "encoders" / f"{name}.partial.safetensors").unlink(missing_ok=True)
