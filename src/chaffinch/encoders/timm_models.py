"""Networks of the timm library as encoders: fetched once, then kept like those that were trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from .network import Network


def library() -> Any:
    """The timm library.

    Raises:
        InputError: it is not installed, or does not work with the torch that is.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError(
            f'models of timm need {error.name}, which is not installed: pip install "chaffinch[timm]"'
        ) from error
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision that was built for another torch
        raise InputError(
            f"timm cannot be used here ({str(error).splitlines()[0]}); install the torchvision that belongs to "
            f"torch {torch.__version__}"
        ) from error
    return timm


class TimmModel(Network):
    """A model of timm without its classifier; pictures are normalised as in its training.

    Args:
        model: its name, such as ``resnet18.a1_in1k``.
        shape: (channels, h, w) of the pictures; empty = those it was trained on.
        pretrained: fetch its weights (from the network, or from where they were kept).

    Raises:
        InputError: timm cannot be used, there is no such model, or its weights cannot be fetched.
    """

    def __init__(self, model: str, shape: tuple[int, ...] = (), *, pretrained: bool = False) -> None:
        super().__init__()
        timm = library()
        if not timm.is_model(model):
            near = timm.list_models(f"*{model.partition('.')[0]}*")[:5]
            hint = f"there are {', '.join(near)}" if near else "'timm.list_models()' lists them"
            raise InputError(f"timm has no model {model!r}; {hint}")
        try:
            self.body = timm.create_model(model, pretrained=pretrained, num_classes=0)
        except Exception as error:  # the library raises of every kind where a model cannot be had
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"the weights of {model} cannot be fetched ({why}); without network, give a local file: "
                "--weights FILE.safetensors"
            ) from error
        config: Mapping[str, Any] = timm.data.resolve_model_data_config(self.body)
        self.shape = tuple(shape) or tuple(config["input_size"])
        self.mean, self.std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.classifier: str | tuple[str, ...] = getattr(self.body, "pretrained_cfg", {}).get("classifier") or ()
        self.layers = ("final",)
        self.dim = int(getattr(self.body, "head_hidden_size", None) or self.body.num_features)

    def features(self, x: Tensor, layer: str = "final") -> Tensor:
        """Pooled activations (B, D); x is (B, 3, H, W) in [0, 1]."""
        out: Tensor = self.body((x - self.mean.to(x)) / self.std.to(x))
        return out

    @property
    def source(self) -> dict[str, str]:
        """Where its weights are from, and their licence, as far as the library knows."""
        told = getattr(self.body, "pretrained_cfg", {})
        return {
            "source": str(told.get("hf_hub_id") or told.get("url") or ""),
            "licence": str(told.get("license") or ""),
        }

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights of the same model, with or without its classifier.

        Raises:
            InputError: they are of another model.
        """
        names = (self.classifier,) if isinstance(self.classifier, str) else self.classifier
        body = {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in names))}
        try:
            self.body.load_state_dict(body)
        except RuntimeError as error:
            raise InputError(f"these are not weights of this model: {str(error).splitlines()[1].strip()}") from error
