"""Training of robust classifiers: resumable after every epoch, bit-exact on the CPU, with a record of every sample."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
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
from ..encoders.network import PreActResNet, build, to_tensor
from ..encoders.state import State
from .base import Batch, Division, Net, Site, Step, Trainer, average, log_probs

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
    if "truth" in trainer.asks() and dataset.truth is None:
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
    session = _Session(dataset, recipe, folder, start)
    for epoch in range(session.begun, recipe.epochs):
        yield from session.epoch(epoch)
    session.finish()


class _Session:
    """One call of `train`: set up once, or where an earlier one was cut off; then an epoch at a time."""

    def __init__(self, dataset: NoisyDataset, recipe: Recipe, folder: Path, start: Encoder | None) -> None:
        chosen = find_method("trainer", recipe.trainer)
        options = method_options(chosen, recipe.parameters)
        if reason := lacking(chosen, dataset):
            raise InputError(reason)
        pictures = dataset.observed.images
        assert pictures is not None
        self.n, self.classes = len(dataset), len(dataset.observed.classes)
        channels = 1 if pictures.ndim == 3 else pictures.shape[-1]
        _check(recipe, self.n, channels, start)
        self.recipe, self.folder = recipe, folder
        self.device, self.started = pick_device(recipe.device), time.perf_counter()
        torch.set_num_threads(cores())
        if self.device == "cpu":
            keep_freed_memory()
        identity = _identity(dataset, chosen, recipe, options, start)
        precision = State.begun_in(folder / STATE, identity) or pick_precision(recipe.precision, self.device)
        self.fabric = engine(self.device, precision)
        self.images = torch.as_tensor(np.asarray(pictures)).to(self.device)  # those in files are decoded once
        self.labels = torch.as_tensor(dataset.observed.labels).to(self.device)
        marks = dataset.observed.trusted
        self.trusted = None if marks is None else torch.as_tensor(marks).to(self.device)
        self.batch = min(recipe.batch, self.n)
        self.steps = self.n // self.batch + (self.n % self.batch > 1)  # a batch of one has no variance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # inside the fork: the caller's generator is left as it was
            self.trainer: Trainer = chosen(**options)
            self.trainer.build([self._net(start, channels) for _ in range(chosen.networks)])
            self._set_up(dataset, start)
        self.optimisers = [
            torch.optim.SGD(
                net.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )
            for net in self.trainer.nets
        ]
        self.judge = _Judge(dataset, self.device)
        self.about = {
            "trainer": recipe.trainer, "parameters": options, "dataset": dataset.name,
            "dataset_digest": dataset.digest, "n": self.n, "classes": list(dataset.observed.classes),
            "epochs": recipe.epochs, "batch": self.batch, "learning_rate": recipe.learning_rate,
            "momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "seed": recipe.seed,
            "architecture": start.card.architecture if start else recipe.architecture,
            "channels": channels, "start": start.card.name if start else "", "precision": precision,
            "device": device_name(self.device), "weak": asdict(recipe.weak), "strong": asdict(recipe.strong),
            "contrast": asdict(recipe.contrast),
        }  # fmt: skip
        self.state = State(self.trainer, self.optimisers, [], folder / STATE, identity, precision)
        found = self.state.resume()
        self.done: list[dict[str, Any]] = found[0]["epochs"] if found else []
        self.begun = len(self.done)
        begin(folder, self.about, self.done)
        if not self.done:
            for stale in (*folder.glob("epoch-*.safetensors"), folder / MODEL):  # of an earlier training
                stale.unlink(missing_ok=True)

    def _net(self, start: Encoder | None, channels: int) -> Net:
        body = build(start.card.architecture if start else self.recipe.architecture, channels)
        if start is not None:
            body.load_state_dict(copy.deepcopy(start.network.state_dict()))
        return Net(body, self.classes, self.trainer.make_heads(body.dim))

    def _set_up(self, dataset: NoisyDataset, start: Encoder | None) -> None:
        trainer, truth = self.trainer, dataset.truth
        site = Site(
            labels=self.labels, classes=self.classes, dim=trainer.nets[0].body.dim, epochs=self.recipe.epochs,
            steps=self.steps, rng=torch.Generator().manual_seed(self.recipe.seed),
            features=lambda: _features(start, dataset.observed.images, self.device),
            kind=torch.as_tensor(truth.kind).to(self.device) if truth and "truth" in trainer.asks() else None,
            trusted=self.trusted, started=start is not None,
        )  # fmt: skip
        if unknown := sorted({*trainer.layers} - {*trainer.nets[0].body.layers}):
            layers = ", ".join(trainer.nets[0].body.layers)
            raise InputError(f"{trainer.card.slug}: unknown layer {unknown[0]!r}; this network has {layers}")
        trainer.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer.setup(site)
        trainer.to(self.device)
        if self.trusted is not None:
            trainer.flags[self.trusted] = False

    def epoch(self, epoch: int) -> Iterator[Progress]:
        """Train every network, look at all samples, divide them, and write it all down."""
        # every epoch has generators of its own, so a resumed run draws what an unbroken one would have drawn
        own, since = self.recipe.seed * 1_000_003 + epoch, time.perf_counter()
        draws = torch.Generator(device=self.fabric.device).manual_seed(own)
        sight = torch.Generator(device=self.fabric.device).manual_seed(own * 8_191 + 1)
        seen = torch.full((self.n, self.classes), torch.nan, device=self.device)
        losses, parts, left = list[float](), list[dict[str, float]](), 0.0
        steps = self.steps * self.trainer.networks
        at_start = self.trainer.flags.cpu().numpy().copy() if epoch == 0 and bool(self.trainer.flags.any()) else None
        for k in range(self.trainer.networks):
            self.trainer.train()
            for group in self.optimisers[k].param_groups:
                group["lr"] = self.recipe.learning_rate * self.trainer.rate(epoch)
            for i, rows in enumerate(_split(self.trainer.visit(k, epoch, draws), self.batch)[: self.steps]):
                out = self._step(k, self._batch(rows, epoch, epoch * self.steps + i, draws, sight))
                seen[rows] = log_probs(out.logits.detach())
                losses.append(float(out.total.detach()))
                parts.append(out.parts)
                left = self._seconds_left((epoch - self.begun) * steps + len(losses), steps)
                if len(losses) < steps:
                    yield Progress(epoch, self.recipe.epochs, len(losses) / steps, losses[-1], left)
        told = self._looks(self.images)
        after = torch.stack([log_probs(look["logits"]).exp() for look in told]).mean(0).log().clamp(min=-60)
        if not bool(after.isfinite().all()):
            raise self._diverged("output of the network", float("nan"), epoch)
        division = _trusted(self.trainer.divide(told, epoch), self.trusted)
        self.trainer.accept(division)
        record = EpochRecord(
            epoch=epoch,
            loss=float(np.mean(losses)),
            accuracy=self.judge(self.trainer, self._looks),
            seconds=round(time.perf_counter() - since, 2),
            parts=average(parts),
            detector=division.detector,
            note=division.note,
            log_probs=after.half().cpu().numpy(),
            seen=torch.where(seen.isnan(), after, seen).clamp(min=-60).half().cpu().numpy(),
            flags=division.flags.cpu().numpy(),
            **{name: _array(getattr(division, name)) for name in ("scores", "weights", "pseudo_losses")},
            targets=None if division.targets is None else division.targets.half().cpu().numpy(),
            at_start=at_start,
        )
        self._save(record)
        yield Progress(epoch, self.recipe.epochs, 1.0, losses[-1], left, record)

    def finish(self) -> None:
        """Leave the weights, and no state."""
        nets = enumerate(self.trainer.nets)
        write_tensors(
            self.folder / MODEL, {f"{k}.{name}": v for k, net in nets for name, v in net.state_dict().items()}
        )
        self.state.path.unlink(missing_ok=True)

    def _batch(self, rows: Tensor, epoch: int, step: int, draws: torch.Generator, sight: torch.Generator) -> Batch:
        x = to_tensor(self.images[rows])

        def view(make: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[], Tensor]:
            return lambda: make(x, sight).contiguous(memory_format=torch.channels_last)

        return Batch(
            rows, self.labels[rows], epoch, step, draws, weak=view(self.recipe.weak), strong=view(self.recipe.strong),
            contrast=view(self.recipe.contrast), plain=view(lambda x, _: x),
        )  # fmt: skip

    def _step(self, k: int, batch: Batch) -> Step:
        with self.fabric.autocast():
            out = self.trainer.step(k, batch)
        if not bool(out.total.detach().isfinite()):
            raise self._diverged("loss", float(out.total.detach()), batch.epoch)
        self.optimisers[k].zero_grad(set_to_none=True)
        self.fabric.backward(out.total)
        self.optimisers[k].step()
        self.trainer.stepped(k, batch)
        return out

    def _looks(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        """What every network says of plain pictures, in evaluation mode."""
        self.trainer.eval()
        with torch.no_grad(), self.fabric.autocast():
            return [_in_parts(self.trainer, k, pictures) for k in range(self.trainer.networks)]

    def _save(self, record: EpochRecord) -> None:
        write_epoch(self.folder, record)
        self.done.append(plain(record))
        self.state.save({"epochs": self.done}, {})
        begin(self.folder, self.about, self.done)

    def _seconds_left(self, count: int, steps: int) -> float:
        """After so many steps of this session, of so many an epoch."""
        spent = time.perf_counter() - self.started
        return spent / count * ((self.recipe.epochs - self.begun) * steps - count)

    def _diverged(self, what: str, value: float, epoch: int) -> InputError:
        kept = f"; {self.folder} keeps the last good epoch" if self.done else ""
        return InputError(
            f"the {what} became {value} in epoch {epoch + 1}; lower the learning rate (now "
            f"{self.recipe.learning_rate:g}){kept}"
        )


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
    if not 0 <= recipe.momentum < 1:
        raise InputError(f"momentum must lie from 0 to below 1, got {recipe.momentum}")
    if not 0 <= recipe.weight_decay < float("inf"):
        raise InputError(f"the weight decay must be 0 or more and finite, got {recipe.weight_decay}")
    if recipe.epochs < 1:
        raise InputError(f"training needs at least one epoch, got {recipe.epochs}")
    if start is not None and not isinstance(start.network, PreActResNet):
        raise InputError(
            f"encoder {start.card.name} was trained elsewhere and only embeds; start from one that was trained here, "
            "or from scratch"
        )
    if start is not None and start.card.channels != channels:
        raise InputError(
            f"encoder {start.card.name} was trained on pictures with {start.card.channels} channel(s), these have "
            f"{channels}; start from another one, or from scratch"
        )


def _identity(
    dataset: NoisyDataset, chosen: type[Trainer], recipe: Recipe, options: dict[str, Any], start: Encoder | None
) -> str:
    """What a state belongs to; asking for the same device explicitly is not another recipe."""
    values = {**asdict(recipe), "parameters": options, "device": "", "precision": ""}
    weights = digest(*(v.cpu().numpy() for v in start.network.state_dict().values())) if start else ""
    told = [digest(dataset.truth.kind)] if dataset.truth and "truth" in chosen.asks() else []
    return json.dumps([dataset.digest, values, weights, *told], sort_keys=True)


def _features(start: Encoder | None, images: Any, device: str) -> Tensor:
    if start is None:
        raise InputError("this trainer reads the features of the encoder that it starts from; choose one with --start")
    return torch.as_tensor(start.embed(images, device=device)).to(device)


def _split(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _in_parts(trainer: Trainer, k: int, pictures: Tensor, size: int = 256) -> dict[str, Tensor]:
    """A look at many pictures, a few at a time: what is larger does not fit the caches."""
    found = [trainer.look(k, to_tensor(part)) for part in _split(pictures, size)]
    return {name: torch.cat([part[name] for part in found]).float() for name in found[0]}


def _trusted(division: Division, rows: Tensor | None) -> Division:
    """Samples known to be clean, (N,) bool, are never flagged, and their labels are fully trusted."""
    if rows is None:
        return division
    weights = None if division.weights is None else division.weights.masked_fill(rows, 1.0)
    return replace(division, flags=division.flags & ~rows, weights=weights)


def _array(values: Tensor | None) -> Any:
    return None if values is None else values.float().cpu().numpy()
