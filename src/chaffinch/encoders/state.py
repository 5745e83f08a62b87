"""The state of an unfinished training on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.record import Record
from .checkpoint import write_tensors
from .watch import Watch


class State:
    """Weights, what the loss remembers, optimisers, schedules, record and history: all it takes to go on.

    Args:
        learner: network and loss.
        optimisers, schedules: as many of each.
        watch: follows the samples.
        path: of the file.
        identity: what dataset and recipe the training is of; a file of another is refused.
        precision: in which it was begun.
    """

    def __init__(
        self, learner: nn.Module, optimisers: list[Any], schedules: list[Any], watch: Watch, path: Path,
        identity: str, precision: str,
    ) -> None:  # fmt: skip
        self.learner, self.optimisers, self.schedules, self.watch = learner, optimisers, schedules, watch
        self.path, self.identity, self.started_in = path, identity, precision

    @staticmethod
    def _read(path: Path, identity: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(path, "pt") as archive:
                plain = json.loads(archive.metadata()["state"])
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
        except Exception as error:  # a damaged file of any kind: say so, keep it, let the user decide
            raise InputError(f"{path} cannot be read ({error}); delete it to start again") from error
        if plain["identity"] != identity:
            raise InputError(
                f"{path} belongs to another recipe or dataset; delete it, or give this training another --name"
            )
        return plain, tensors

    @classmethod
    def begun_in(cls, path: Path, identity: str) -> str | None:
        """The precision in which a training was begun, None if it was not."""
        return str(cls._read(path, identity)[0]["precision"]) if path.exists() else None

    def save(self, history: list[float], seconds: float, xy: NDArray[np.float32]) -> None:
        """Write the state after an epoch, whole or not at all."""
        tensors = {f"learner.{key}": value for key, value in self.learner.state_dict().items()}
        groups = []
        for i, optimiser in enumerate(self.optimisers):
            values = optimiser.state_dict()
            groups.append(values["param_groups"])
            for index, moments in values["state"].items():
                tensors |= {f"optimiser.{i}.{index}.{key}": value for key, value in moments.items()}
        if self.watch.kept["epochs"]:
            tensors |= {f"record.{key}": torch.from_numpy(v) for key, v in vars(self.watch.record()).items()}
        tensors["xy"] = torch.from_numpy(xy)
        plain = {
            "identity": self.identity,
            "history": history,
            "seconds": seconds,
            "precision": self.started_in,
            "groups": groups,
            "schedules": [{k: v for k, v in s.state_dict().items() if not callable(v)} for s in self.schedules],
        }
        write_tensors(self.path, tensors, {"state": json.dumps(plain)})

    def resume(self) -> tuple[list[float], float, NDArray[np.float32]]:
        """Load the partial file if there is one; return history, seconds spent and the last picture."""
        if not self.path.exists():
            return [], 0.0, np.empty((0, 2), np.float32)
        plain, tensors = self._read(self.path, self.identity)
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            found.setdefault(kind, {})[rest] = value
        self.learner.load_state_dict(found["learner"])
        for i, (optimiser, groups) in enumerate(zip(self.optimisers, plain["groups"], strict=True)):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in found.get("optimiser", {}).items():
                which, index, moment = key.split(".", 2)
                if int(which) == i:
                    state.setdefault(int(index), {})[moment] = value
            optimiser.load_state_dict({"state": state, "param_groups": groups})
        for schedule, values in zip(self.schedules, plain["schedules"], strict=True):
            schedule.load_state_dict(values)
        if "record" in found:
            self.watch.restore(Record(**{key: value.numpy() for key, value in found["record"].items()}))
        return list(plain["history"]), float(plain["seconds"]), found["xy"][""].numpy()
