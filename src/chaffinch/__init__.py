"""chaffinch: tell the grain from the chaff in noisy image datasets.

>>> import chaffinch
>>> study = chaffinch.Study("fashion-web")  # doctest: +SKIP
>>> found = study.detect("lsa")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .base.errors import InputError, MissingEvidence
    from .data import NoisyDataset, Observed, Truth, open_dataset
    from .spec import Cut, Spec
    from .study import Detection, Study
    from .workspace import Workspace

_HOMES = {
    "InputError": "base.errors",
    "MissingEvidence": "base.errors",
    "NoisyDataset": "data",
    "Observed": "data",
    "Truth": "data",
    "open_dataset": "data",
    "Cut": "spec",
    "Spec": "spec",
    "Detection": "study",
    "Study": "study",
    "Workspace": "workspace",
}

__all__ = [
    "Cut",
    "Detection",
    "InputError",
    "MissingEvidence",
    "NoisyDataset",
    "Observed",
    "Spec",
    "Study",
    "Truth",
    "Workspace",
    "__version__",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `import chaffinch` alone costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
