"""An encoder on disk: ``NAME.safetensors`` (weights) and ``NAME.json`` (the model card).

No pickle is written, and none read but the weights that an installed package brings: those have to have the checksum
of their model card, and tensors alone are taken from them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..base.errors import InputError
from ..base.files import replacing, sha256_file, write_json
from ..base.methods import find_method, method_options
from ..base.threads import cores
from ..data import Images
from ..losses.base import ContrastiveLoss, Sizes
from .device import side_by_side
from .efficientnet import EfficientNetLite0, renamed
from .model_card import PREFIX, ModelCard, load_card
from .network import Network, at_a_time, build, fitted, to_tensor
from .packaged import packaged_weights
from .timm_models import TimmModel


class Encoder:
    """A trained network that embeds pictures.

    Args:
        network: the network; its projection head is not used.
        card: where it comes from.
        loss: the loss that trained it, whose own modules give ``card.outputs``; not needed where there are none.
    """

    def __init__(self, network: Network, card: ModelCard, loss: ContrastiveLoss | None = None) -> None:
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
        batch: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> NDArray[np.float32]:
        """Features of pictures, which are made grey or colour, and of the size, of those that trained the network.

        Args:
            images: (N, H, W) or (N, H, W, 3) uint8; those in files are decoded a batch at a time.
            layer: one of ``self.layers``.
            device: where to compute, such as ``"cpu"`` or ``"cuda"``.
            batch: pictures at a time; None = as many as are best for their size.
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
        batch = batch or at_a_time(size or images.shape[1:3])

        def work(start: int) -> NDArray[np.float32]:
            with torch.inference_mode():
                x = fitted(to_tensor(images[start : start + batch]).to(device), channels, size)
                found = network.features(x, layer) if loss is None else loss.output(layer, network.features(x), x)
                return np.asarray(found.float().cpu().numpy())

        out = []
        for found in side_by_side(work, range(0, len(images), batch), cores() if device == "cpu" else 1):
            out.append(found)
            if progress:
                progress(min(1.0, len(out) * batch / len(images)))
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


def load_encoder(path: Path) -> Encoder:
    """Load an encoder from its weights; the card lies beside them.

    Raises:
        InputError: a file is missing or damaged, or the weights are of another architecture.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: only .safetensors checkpoints are read (pickled ones can run code)")
    card = load_card(path.with_suffix(".json"))
    weights = packaged_weights(card.architecture) if card.packaged else path
    if not weights.is_file():
        raise InputError(f"encoder weights {path} are missing")
    if (card.sha256 or card.packaged) and sha256_file(weights) != card.sha256:
        raise InputError(f"{weights} is damaged: its checksum is not the one in {path.stem}.json")
    network, loss = _network(card), None
    if card.outputs:
        chosen = find_method("loss", card.loss)
        if strange := sorted(set(card.outputs) - set(chosen.outputs)):
            raise InputError(f"{path.stem}.json: {card.loss} gives no {strange[0]!r}; train the encoder again")
        loss = chosen(**method_options(chosen, card.loss_parameters))
        loss.setup(Sizes(**{**card.sizes, "shape": tuple(card.sizes["shape"])}))
    try:
        state = renamed(read_pickled(weights)) if card.packaged else load_file(weights)
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("loss.")})
        if loss is not None:
            own = {key.removeprefix("loss."): value for key, value in state.items() if key.startswith("loss.")}
            loss.load_state_dict({**loss.state_dict(), **own} if own else {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(
            f"{weights} does not hold the weights of {card.architecture} with {card.channels} channel(s): {first}"
        ) from error
    return Encoder(network, card, loss)


def _network(card: ModelCard) -> Network:
    """A fresh network for the weights that a card speaks of."""
    if card.architecture.startswith(PREFIX):
        return TimmModel(card.architecture.removeprefix(PREFIX), tuple(card.sizes["shape"]))
    return EfficientNetLite0() if card.architecture == "efficientnet-lite0" else build(card.architecture, card.channels)


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a pickled file of weights, which must hold nothing else; no code in it is run.

    Raises:
        InputError: it holds something else, or is no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is refused: it is no file of weights, or holds more than weights, and what else a pickle holds "
            f"can run code ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} is refused: it holds something else than tensors by name")
    return state


def add_model(model: str, folder: Path, name: str, *, weights: Path | None = None, side: int | None = None) -> Path:
    """Make an encoder of a model of timm, and keep it like those that were trained here.

    Args:
        model: its name in timm.
        folder: of the encoders.
        name: of the encoder.
        weights: a .safetensors file to take its weights from; None: they are fetched.
        side: pixels a side of what it sees; None: of what it was trained on.

    Returns:
        The path of the weights.

    Raises:
        InputError: timm cannot be used, the model or the weights cannot be had, or it cannot see pictures of this size.
    """
    if weights is not None and weights.suffix != ".safetensors":
        raise InputError(f"--weights {weights}: only .safetensors files are read (pickled ones can run code)")
    shape = (3, side, side) if side else ()
    network = TimmModel(model, shape, pretrained=weights is None).eval()
    if weights is not None:
        try:
            network.take(load_file(weights))
        except (SafetensorError, OSError) as error:
            raise InputError(f"--weights {weights} is not a readable safetensors file: {error}") from error
    try:
        with torch.inference_mode():
            found = network.features(torch.zeros(1, *network.shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"{model} cannot see pictures of {network.shape} ({error}); try without --side") from error
    if found.shape != (1, network.dim):
        raise InputError(f"{model} gives features of shape {tuple(found.shape)}, not one vector a picture")
    fetched = network.source
    if weights is not None:
        fetched["source"] = weights.name
    card = ModelCard(
        name=name, architecture=f"{PREFIX}{model}", channels=network.shape[0], dim=network.dim, loss="",
        dataset="other pictures", seed=0, epochs=0, batch=0, learning_rate=0.0, precision="float32",
        device="trained elsewhere", seconds=0.0, sizes={"shape": list(network.shape)},
        about={"name": f"{model} of timm", **fetched},
    )  # fmt: skip
    return Encoder(network, card).save(folder)
