"""The state of an unfinished training on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from ..base.errors import InputError
from .checkpoint import write_tensors

Kept = tuple[dict[str, Any], dict[str, Tensor]]
"""What a training keeps of its own: plain values and tensors."""


class State:
    """Weights, what the learner remembers, optimisers and schedules: with what a training keeps, all to go on.

    Args:
        learner: everything that learns or remembers, as one module.
        optimisers: their state is kept.
        schedules: of the learning rates, where they have a state.
        path: of the file.
        identity: what dataset and recipe the training is of; a file of another is refused.
        precision: in which it was begun.
    """

    def __init__(
        self, learner: nn.Module, optimisers: list[Any], schedules: list[Any], path: Path, identity: str, precision: str
    ) -> None:
        self.learner, self.optimisers, self.schedules = learner, optimisers, schedules
        self.path, self.identity, self.started_in = path, identity, precision

    @staticmethod
    def _read(path: Path, identity: str) -> Kept:
        try:
            with safe_open(path, "pt") as archive:
                plain = json.loads(archive.metadata()["state"])
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
            owner = plain["identity"]
        except Exception as error:  # a damaged file of any kind: say so, keep it, let the user decide
            raise InputError(f"{path} cannot be read ({error}); delete it to start again") from error
        if owner != identity:
            raise InputError(
                f"{path} belongs to another recipe or dataset; delete it, or give this training another --name"
            )
        return plain, tensors

    @classmethod
    def begun_in(cls, path: Path, identity: str) -> str | None:
        """The precision in which a training was begun, None if it was not."""
        return str(cls._read(path, identity)[0]["precision"]) if path.exists() else None

    def save(self, kept: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write the state after an epoch, whole or not at all, with what the training keeps."""
        found = {f"learner.{key}": value for key, value in self.learner.state_dict().items()}
        groups = []
        for i, optimiser in enumerate(self.optimisers):
            values = optimiser.state_dict()
            groups.append(values["param_groups"])
            for index, moments in values["state"].items():
                found |= {f"optimiser.{i}.{index}.{key}": value for key, value in moments.items() if value is not None}
        found |= {f"kept.{key}": value for key, value in tensors.items()}
        plain = {
            "identity": self.identity,
            "kept": kept,
            "precision": self.started_in,
            "groups": groups,
            "schedules": [{k: v for k, v in s.state_dict().items() if not callable(v)} for s in self.schedules],
        }
        write_tensors(self.path, found, {"state": json.dumps(plain)})

    def resume(self) -> Kept | None:
        """Load the partial file if there is one; return what the training kept.

        Raises:
            InputError: it is damaged, of another recipe or dataset, or of a version that remembered other things.
        """
        if not self.path.exists():
            return None
        plain, tensors = self._read(self.path, self.identity)
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            found.setdefault(kind, {})[rest] = value
        try:
            self.learner.load_state_dict(found.get("learner", {}))
        except RuntimeError as error:
            raise InputError(
                f"{self.path} does not hold what this version of the training remembers; delete it to start again"
            ) from error
        for i, (optimiser, groups) in enumerate(zip(self.optimisers, plain["groups"], strict=True)):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in found.get("optimiser", {}).items():
                which, index, moment = key.split(".", 2)
                if int(which) == i:
                    state.setdefault(int(index), {})[moment] = value
            optimiser.load_state_dict({"state": state, "param_groups": groups})
        for schedule, values in zip(self.schedules, plain["schedules"], strict=True):
            schedule.load_state_dict(values)
        return plain["kept"], found.get("kept", {})
