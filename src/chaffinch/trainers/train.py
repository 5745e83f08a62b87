"""Training of robust classifiers: resumable after every epoch, bit-exact on the CPU, with a record of every sample."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.files import digest
from ..base.methods import find_method, method_options
from ..base.threads import cores
from ..base.training_run import EpochRecord, begin, plain, write_epoch
from ..data import NoisyDataset
from ..encoders.augment import Augment, RandAugment, Shift
from ..encoders.checkpoint import Encoder, write_tensors
from ..encoders.device import device_name, engine, keep_freed_memory, pick_device, pick_precision
from ..encoders.network import build, to_tensor
from ..encoders.state import State
from .base import Batch, Division, Net, Site, Trainer, average, log_probs

STATE, MODEL = "state.partial.safetensors", "model.safetensors"
"""Files of a run, beside its description and its epochs."""


@dataclass(frozen=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        trainer: slug.
        parameters: of the trainer; the rest are its defaults.
        epochs, batch, learning_rate, momentum, weight_decay: of stochastic gradient descent.
        seed: of weights, order and augmentation.
        architecture: name in ``network.ARCHITECTURES``, for a training from scratch.
        weak, strong, contrast: the views.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """

    trainer: str = "pls-lsa"
    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: int = 14
    batch: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    architecture: str = "half-preact-resnet-32-64-128"
    weak: Shift = Shift()
    strong: RandAugment = RandAugment()
    contrast: Augment = Augment()
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Progress:
    """What one training step reports.

    Attributes:
        epoch, epochs: from 0, of how many.
        share: of this epoch that is done.
        loss: of this step.
        seconds_left: until the whole training is done.
        record: of the epoch, after its last step.
    """

    epoch: int
    epochs: int
    share: float
    loss: float
    seconds_left: float
    record: EpochRecord | None = None


def lacking(trainer: type[Trainer], dataset: NoisyDataset) -> str | None:
    """Why a trainer cannot learn from a dataset, in words for its user; None if it can."""
    slug, observed = trainer.card.slug, dataset.observed
    if observed.images is None:
        return f"{dataset.name} has no pictures to train a classifier on"
    if len(np.unique(observed.labels)) < 2:
        return f"{slug} needs labels of at least two classes; {dataset.name} has one"
    if "truth" in trainer.asks and dataset.truth is None:
        return f"{slug} is told which samples are noisy, and of {dataset.name} that is not known"
    return None


def train(dataset: NoisyDataset, recipe: Recipe, folder: Path, start: Encoder | None = None) -> Iterator[Progress]:
    """Train a classifier on the noisy labels of a dataset; yield progress after every step.

    After each epoch its record (see `EpochRecord`) and everything needed to go on are in the folder; calling this again
    with the same recipe resumes there and, on the CPU, ends in the same bits. When the last epoch is done, the weights
    are in ``model.safetensors`` and the state goes.

    Args:
        dataset: its truth is seen only by a trainer that is told it, an upper bound; accuracy is that on its test
            samples, without those set aside as trusted.
        recipe: how.
        folder: of the run.
        start: encoder whose weights the networks start from; its architecture stands in place of the recipe's.

    Raises:
        InputError: no pictures, fewer than two classes, a recipe that cannot be followed, an encoder for other
            pictures, an unknown trainer or one that lacks what it needs, or a state of another recipe.
    """
    observed, chosen = dataset.observed, find_method("trainer", recipe.trainer)
    options = method_options(chosen, recipe.parameters)
    if reason := lacking(chosen, dataset):
        raise InputError(reason)
    assert observed.images is not None
    n, channels = len(observed), 1 if observed.images.ndim == 3 else observed.images.shape[-1]
    _check(recipe, n, channels, start)
    device, started = pick_device(recipe.device), time.perf_counter()
    torch.set_num_threads(cores())
    if device == "cpu":
        keep_freed_memory()
    identity, path = _identity(dataset.digest, recipe, options, start), folder / STATE
    precision = State.begun_in(path, identity) or pick_precision(recipe.precision, device)
    fabric = engine(device, precision)
    images = torch.as_tensor(observed.images).to(device)
    labels = torch.as_tensor(observed.labels).to(device)
    batch = min(recipe.batch, n)
    steps = n // batch + (n % batch > 1)  # a batch of one has no variance

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # inside the fork: the caller's generator is left as it was
        trainer: Trainer = chosen(**options)
        nets = []
        for _ in range(chosen.networks):
            body = build(start.card.architecture if start else recipe.architecture, channels)
            if start is not None:
                body.load_state_dict(copy.deepcopy(start.network.state_dict()))
            nets.append(Net(body, len(observed.classes), trainer.make_heads(body.dim)))
        trainer.build(nets)
        site = Site(
            labels=labels, classes=len(observed.classes), dim=nets[0].body.dim, epochs=recipe.epochs, steps=steps,
            rng=torch.Generator().manual_seed(recipe.seed),
            features=lambda: _features(start, observed.images, device),
            kind=torch.as_tensor(dataset.truth.kind).to(device) if "truth" in chosen.asks and dataset.truth else None,
        )  # fmt: skip
        trainer.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer.setup(site)
        trainer.to(device)
    optimisers = [
        torch.optim.SGD(
            net.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        for net in nets
    ]
    state = State(trainer, optimisers, [], path, identity, precision)
    about = {
        "trainer": recipe.trainer, "parameters": options, "dataset": dataset.name, "dataset_digest": dataset.digest,
        "n": n, "classes": list(observed.classes), "epochs": recipe.epochs, "batch": batch,
        "learning_rate": recipe.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay,
        "seed": recipe.seed, "architecture": start.card.architecture if start else recipe.architecture,
        "channels": channels, "start": start.card.name if start else "", "precision": precision,
        "device": device_name(device), "weak": asdict(recipe.weak), "strong": asdict(recipe.strong),
        "contrast": asdict(recipe.contrast),
    }  # fmt: skip
    done: list[dict[str, Any]] = []
    if found := state.resume():
        done = found[0]["epochs"]
    begin(folder, about, done)
    judge = _Judge(dataset, device)

    def looks(pictures: Tensor) -> list[dict[str, Tensor]]:
        """What every network says of plain pictures, in evaluation mode."""
        trainer.eval()
        with torch.no_grad(), fabric.autocast():
            found = [_in_parts(trainer, k, pictures) for k in range(chosen.networks)]
        return found

    begun = len(done)
    total = (recipe.epochs - begun) * steps * chosen.networks
    for epoch in range(begun, recipe.epochs):
        # every epoch has generators of its own, so a resumed run draws what an unbroken one would have drawn
        own = recipe.seed * 1_000_003 + epoch
        draws = torch.Generator(device=fabric.device).manual_seed(own)
        sight = torch.Generator(device=fabric.device).manual_seed(own * 8_191 + 1)
        losses, parts, epoch_started, left = list[float](), list[dict[str, float]](), time.perf_counter(), 0.0
        seen = torch.full((n, len(observed.classes)), torch.nan, device=device)
        for k in range(chosen.networks):
            trainer.train()
            for group in optimisers[k].param_groups:
                group["lr"] = recipe.learning_rate * trainer.rate(epoch)
            for i, rows in enumerate(_split(trainer.visit(k, epoch, draws), batch)[:steps]):
                x = to_tensor(images[rows])
                seat = Batch(
                    rows, labels[rows], epoch, epoch * steps + i, draws,
                    weak=_view(recipe.weak, x, sight), strong=_view(recipe.strong, x, sight),
                    contrast=_view(recipe.contrast, x, sight), plain=_view(lambda x, _: x, x, sight),
                )  # fmt: skip
                with fabric.autocast():
                    out = trainer.step(k, seat)
                value = float(out.total.detach())
                if not np.isfinite(value):
                    raise InputError(
                        f"the loss became {value} in epoch {epoch + 1}; lower the learning rate (now "
                        f"{recipe.learning_rate:g}). {folder} keeps the last good epoch"
                    )
                optimisers[k].zero_grad(set_to_none=True)
                fabric.backward(out.total)
                optimisers[k].step()
                trainer.stepped(k, seat)
                seen[rows] = log_probs(out.logits.detach())
                losses.append(value)
                parts.append(out.parts)
                now, count = time.perf_counter(), (epoch - begun) * steps * chosen.networks + len(losses)
                left = (now - started) / count * (total - count)
                if len(losses) < steps * chosen.networks:
                    yield Progress(epoch, recipe.epochs, len(losses) / steps / chosen.networks, value, left)
        told = looks(images)
        after = torch.stack([log_probs(look["logits"]).exp() for look in told]).mean(0).log().clamp(min=-60)
        division = _trusted(trainer.divide(told, epoch), observed.trusted)
        trainer.accept(division)
        record = EpochRecord(
            epoch=epoch,
            loss=float(np.mean(losses)),
            accuracy=judge(trainer, looks),
            seconds=round(time.perf_counter() - epoch_started, 2),
            parts=average(parts),
            detector=division.detector,
            note=division.note,
            log_probs=after.half().cpu().numpy(),
            seen=torch.where(seen.isnan(), after, seen).clamp(min=-60).half().cpu().numpy(),
            flags=division.flags.cpu().numpy(),
            **{name: _array(getattr(division, name)) for name in ("scores", "weights", "pseudo_losses")},
            targets=None if division.targets is None else division.targets.half().cpu().numpy(),
        )
        write_epoch(folder, record)
        done.append(plain(record))
        state.save({"epochs": done}, {})
        begin(folder, about, done)
        yield Progress(epoch, recipe.epochs, 1.0, value, left, record)
    weights = {f"{k}.{name}": v for k, net in enumerate(nets) for name, v in net.state_dict().items()}
    write_tensors(folder / MODEL, weights)
    path.unlink(missing_ok=True)


class _Judge:
    """Accuracy on the test samples, without those set aside as trusted."""

    def __init__(self, dataset: NoisyDataset, device: str) -> None:
        self.images, self.labels = torch.empty(0), torch.empty(0)
        if test := dataset.test:
            rows = np.setdiff1d(np.arange(len(test.labels)), dataset.trusted)
            self.images = torch.as_tensor(test.images[rows]).to(device)
            self.labels = torch.as_tensor(test.labels[rows]).to(device)

    def __call__(self, trainer: Trainer, looks: Any) -> float | None:
        if not len(self.images):
            return None
        said = trainer.predict(looks(self.images)).argmax(1)
        return float((said == self.labels).float().mean())


def _check(recipe: Recipe, n: int, channels: int, start: Encoder | None) -> None:
    if not 0 < recipe.learning_rate < float("inf"):
        raise InputError(f"the learning rate must be a number above 0, got {recipe.learning_rate}")
    if min(recipe.batch, n) < 2:
        raise InputError(f"training needs at least two pictures in a batch, got {min(recipe.batch, n)}")
    if recipe.epochs < 1:
        raise InputError(f"training needs at least one epoch, got {recipe.epochs}")
    if start is not None and start.card.channels != channels:
        raise InputError(
            f"encoder {start.card.name} was trained on pictures with {start.card.channels} channel(s), these have "
            f"{channels}; start from another one, or from scratch"
        )


def _identity(data: str, recipe: Recipe, options: dict[str, Any], start: Encoder | None) -> str:
    """What a state belongs to; asking for the same device explicitly is not another recipe."""
    values = {**asdict(recipe), "parameters": options, "device": "", "precision": ""}
    weights = digest(*(v.numpy() for v in start.network.state_dict().values())) if start else ""
    return json.dumps([data, values, weights], sort_keys=True)


def _features(start: Encoder | None, images: Any, device: str) -> Tensor:
    if start is None:
        raise InputError("this trainer reads the features of the encoder that it starts from; choose one with --start")
    return torch.as_tensor(start.embed(images, device=device)).to(device)


def _view(make: Any, x: Tensor, sight: torch.Generator) -> Any:
    return lambda: make(x, sight).contiguous(memory_format=torch.channels_last)


def _split(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _in_parts(trainer: Trainer, k: int, pictures: Tensor, size: int = 256) -> dict[str, Tensor]:
    """A look at many pictures, a few at a time: what is larger does not fit the caches."""
    found = [trainer.look(k, to_tensor(part)) for part in _split(pictures, size)]
    return {name: torch.cat([part[name] for part in found]).float() for name in found[0]}


def _trusted(division: Division, trusted: Any) -> Division:
    """Samples known to be clean are never flagged."""
    if trusted is not None:
        division.flags[torch.as_tensor(trusted).to(division.flags.device)] = False
    return division


def _array(values: Tensor | None) -> Any:
    return None if values is None else values.float().cpu().numpy()
