"""The model card of an encoder, ``NAME.json``: readable without loading the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ..base.errors import InputError
from ..base.files import read_json
from ..base.shapes import misfit

PREFIX = "timm:"
"""How the name of an architecture of timm begins."""


@dataclass
class ModelCard:
    """What is written beside the weights.

    Attributes:
        name: slug of the encoder.
        architecture: name in ``network.ARCHITECTURES``, ``efficientnet-lite0``, or ``timm:MODEL``.
        channels: 1 or 3.
        dim: size of the final features.
        loss: slug of the loss, with its parameters in ``loss_parameters``.
        outputs: further features that the loss's own modules give (see ``ContrastiveLoss.outputs``).
        sizes: what those modules were built for (``losses.base.Sizes``); of others, the ``shape`` of what it sees.
        dataset, dataset_digest: what it was trained on, by the name that opens it, and the key of its content.
        seed, epochs, batch, learning_rate, weight_decay, augment: the recipe.
        precision: float32 or bfloat16 (autocast).
        stored: float32, or float16 where the weights were halved to save space.
        device, seconds: what trained it, and how long the training took.
        seconds_per_epoch: the median epoch of its training; 0 = not known. Of shipped encoders, which were trained on a
            busy machine, that of a short training on an idle one (``benchmarks/training.py --cards``).
        timed_on: where that was, if not on ``device``.
        history: mean loss of each epoch.
        metrics: figures measured on its features, with the command that measured them.
        sha256: checksum of the weights.
        packaged: do the weights come with an installed package (see ``packaged``)?
        about: of a network that was trained elsewhere: ``name``, ``paper``, ``arxiv``, ``year``, ``source`` and
            ``licence``.
    """

    name: str
    architecture: str
    channels: int
    dim: int
    loss: str
    dataset: str
    seed: int
    epochs: int
    batch: int
    learning_rate: float
    precision: str
    device: str
    seconds: float
    seconds_per_epoch: float = 0.0
    timed_on: str = ""
    dataset_digest: str = ""
    stored: str = "float32"
    weight_decay: float = 0.0
    loss_parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    packaged: bool = False
    about: dict[str, str | int] = field(default_factory=dict)


class _Sizes(TypedDict, total=False):
    """``ModelCard.sizes`` in JSON."""

    features: int
    projection: int
    classes: int
    samples: int
    shape: list[int]


def load_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        InputError: the file is missing or not JSON, lacks a field or has one that cannot be; the message names it.
    """
    values = read_json(path)
    if wrong := misfit(values, ModelCard) or _unusable(ModelCard(**values)):
        raise InputError(f"{path} is not a model card of chaffinch: {wrong}; remove it, or train the encoder again")
    return ModelCard(**values)


def _unusable(card: ModelCard) -> str:
    """The first field whose type is right and whose value cannot be, and why; empty if there is none."""
    if card.channels not in (1, 3):
        return f"channels must be 1 or 3, got {card.channels}"
    if wrong := misfit(card.sizes, _Sizes, "sizes"):
        return wrong
    needed = list(_Sizes.__annotations__) if card.outputs else ["shape"] if card.architecture.startswith(PREFIX) else []
    if missing := [key for key in needed if key not in card.sizes]:
        return f"sizes.{missing[0]} is missing"
    if len(card.sizes.get("shape", [0] * 3)) != 3:
        return f"sizes.shape must be channels, height and width, got {card.sizes['shape']}"
    for key, value in card.sizes.items():
        if min(value if isinstance(value, list) else [value]) < 1:
            return f"sizes.{key} must be above 0, got {value}"
    return "about.name is missing" if card.about and "name" not in card.about else ""
