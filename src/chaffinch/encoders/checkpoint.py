"""An encoder on disk: ``NAME.safetensors`` (weights) and ``NAME.json`` (the model card). No pickle anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..base.errors import InputError
from ..base.files import read_json, replacing, sha256_file, write_json
from ..base.methods import find_method, method_options
from ..data import Images
from ..losses.base import ContrastiveLoss, Sizes
from .network import PreActResNet, build, fitted, to_tensor


@dataclass
class ModelCard:
    """What is written beside the weights.

    Attributes:
        name: slug of the encoder.
        architecture: name in ``network.ARCHITECTURES``.
        channels: 1 or 3.
        dim: size of the final features.
        loss: slug of the loss, with its parameters in ``loss_parameters``.
        outputs: further features that the loss's own modules give (see ``ContrastiveLoss.outputs``).
        sizes: what those modules were built for (``losses.base.Sizes``).
        dataset, dataset_digest: what it was trained on, by the name that opens it, and the key of its content.
        seed, epochs, batch, learning_rate, weight_decay, augment: the recipe.
        precision: float32 or bfloat16 (autocast).
        stored: float32, or float16 where the weights were halved to save space.
        device, seconds: what trained it, and how long the training took.
        history: mean loss of each epoch.
        metrics: figures measured on its features, with the command that measured them.
        sha256: checksum of the weights.
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


class Encoder:
    """A trained network that embeds pictures.

    Args:
        network: the network; its projection head is not used.
        card: where it comes from.
        loss: the loss that trained it, whose own modules give ``card.outputs``; not needed where there are none.
    """

    def __init__(self, network: PreActResNet, card: ModelCard, loss: ContrastiveLoss | None = None) -> None:
        self.network, self.card = network.eval(), card
        self.loss = loss.eval() if loss is not None and card.outputs else None

    @property
    def layers(self) -> tuple[str, ...]:
        """What `embed` can give: layers of the network, and outputs of the loss."""
        return (*self.network.layers, *self.card.outputs)

    def embed(
        self,
        images: Images,
        *,
        layer: str = "final",
        device: str = "cpu",
        batch: int = 128,
        progress: Callable[[float], None] | None = None,
    ) -> NDArray[np.float32]:
        """Features of pictures, which are made grey or colour, and of the size, of those that trained the network.

        Args:
            images: (N, H, W) or (N, H, W, 3) uint8; those in files are decoded a batch at a time.
            layer: one of ``self.layers``.
            device: where to compute, such as ``"cpu"`` or ``"cuda"``.
            batch: pictures at a time; activations of many more do not fit the caches (1,024: half the speed).
            progress: called with the share done, 0 to 1.

        Returns:
            (N, D) float32.

        Raises:
            InputError: there is no such layer.
        """
        if layer not in self.layers:
            raise InputError(f"encoder {self.card.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        network = self.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = None if self.loss is None or layer not in self.card.outputs else self.loss.to(device)
        channels, size = self.card.channels, self.card.sizes.get("shape", ())[1:]
        out = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = fitted(to_tensor(images[start : start + batch]).to(device), channels, size)
                found = network.features(x, layer) if loss is None else loss.output(layer, network.features(x), x)
                out.append(found.float().cpu().numpy())
                if progress:
                    progress(min(1.0, (start + batch) / len(images)))
        return np.concatenate(out)

    def save(self, folder: Path, *, half: bool = False) -> Path:
        """Write weights and card into ``folder``; return the path of the weights.

        Args:
            folder: must be there.
            half: weights of layers as float16: half the size, and features differ in the fourth digit.
        """
        path = folder / f"{self.card.name}.safetensors"
        tensors = self.network.state_dict()
        if self.loss is not None:
            tensors |= {f"loss.{key}": value for key, value in self._own_state().items()}
        if half:
            tensors = {key: value.half() if value.ndim > 1 else value for key, value in tensors.items()}
            self.card.stored = "float16"
        write_tensors(path, tensors)
        self.card.sha256 = sha256_file(path)
        write_json(path.with_suffix(".json"), asdict(self.card))
        return path

    def _own_state(self) -> dict[str, torch.Tensor]:
        """What the loss's modules learnt; what it remembers of single samples stays behind."""
        assert self.loss is not None
        memory = {key for key, value in self.loss.named_buffers() if value.shape[:1] == (self.card.sizes["samples"],)}
        return {key: value for key, value in self.loss.state_dict().items() if key not in memory}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written, such as on a full disk.
    """
    with replacing(path) as temporary:
        try:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def load_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        InputError: the file is missing, not JSON, or lacks a field; the message names it.
    """
    values = read_json(path)
    try:
        return ModelCard(**values)
    except TypeError as error:
        raise InputError(f"{path} is not a model card of chaffinch: {error}") from error


def load_encoder(path: Path) -> Encoder:
    """Load an encoder from its weights; the card lies beside them.

    Raises:
        InputError: a file is missing or damaged, or the weights are of another architecture.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: only .safetensors checkpoints are read (pickled ones can run code)")
    card = load_card(path.with_suffix(".json"))
    if not path.is_file():
        raise InputError(f"encoder weights {path} are missing")
    if card.sha256 and sha256_file(path) != card.sha256:
        raise InputError(f"{path} is damaged: its checksum is not the one in {path.stem}.json")
    network, loss = build(card.architecture, card.channels), None
    if card.outputs:
        chosen = find_method("loss", card.loss)
        loss = chosen(**method_options(chosen, card.loss_parameters))
        loss.setup(Sizes(**{**card.sizes, "shape": tuple(card.sizes["shape"])}))
    try:
        state = load_file(path)
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("loss.")})
        if loss is not None:
            own = {key.removeprefix("loss."): value for key, value in state.items() if key.startswith("loss.")}
            loss.load_state_dict({**loss.state_dict(), **own} if own else {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(
            f"{path} does not hold the weights of {card.architecture} with {card.channels} channel(s): {first}"
        ) from error
    return Encoder(network, card, loss)
