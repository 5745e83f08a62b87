"""A trained classifier, read back from the folder of its run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..base.errors import InputError
from ..base.methods import find_method
from ..base.training_run import TrainingRun
from ..data import Images
from ..encoders.network import build, to_tensor
from .base import Net, Trainer, log_probs
from .train import MODEL


class Classifier:
    """What a training has left: it says of pictures which class they are.

    Args:
        folder: of a run that has come to its end, such as ``chaffinch train`` makes.

    Attributes:
        classes: C names.

    Raises:
        InputError: there is no finished run, or its weights are damaged or of another network.
    """

    def __init__(self, folder: Path) -> None:
        about = TrainingRun(folder).about
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.channels = int(about["channels"])
        path = folder / MODEL
        if not path.is_file():
            raise InputError(f"{path} is missing: the training has not come to its end; run the same command again")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from error
        trainer: Trainer = find_method("trainer", about["trainer"])(**about["parameters"])
        bodies = [build(about["architecture"], self.channels) for _ in range(trainer.networks)]
        trainer.build([Net(body, len(self.classes), {}) for body in bodies])
        said = {name: value for name, value in state.items() if ".heads." not in name}  # those only helped to learn
        try:
            torch.nn.ModuleList(trainer.nets).load_state_dict(said)
        except RuntimeError as error:
            raise InputError(f"{path} does not hold the weights of {about['architecture']}: {error}") from error
        self._nets = [net.eval() for net in trainer.nets]

    def pred_probs(self, images: Images, *, device: str = "cpu", batch: int = 256) -> NDArray[np.float64]:
        """Probabilities (N, C), by the mean of all networks' logits.

        Args:
            images: (N, H, W) or (N, H, W, 3) uint8.
            device: where to compute.
            batch: pictures at a time.

        Raises:
            InputError: the pictures have another number of channels than those it was trained on.
        """
        channels = 1 if images.ndim == 3 else images.shape[-1]
        if channels != self.channels:
            raise InputError(f"this classifier was trained on pictures with {self.channels} channel(s), not {channels}")
        found = []
        with torch.inference_mode():
            for net in self._nets:
                net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for start in range(0, len(images), batch):
                x = to_tensor(images[start : start + batch]).to(device)
                logits = torch.stack([net(x) for net in self._nets]).mean(0)
                found.append(log_probs(logits).exp().double().cpu().numpy())
        return np.concatenate(found)
