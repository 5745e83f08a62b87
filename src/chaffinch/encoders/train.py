"""Training of encoders: resumable after every epoch, bit-exact on the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base.errors import InputError
from ..base.methods import find_method, method_options
from ..base.threads import cores
from ..data import NoisyDataset
from ..losses.base import Sizes
from .augment import Augment
from .checkpoint import Encoder
from .decoded import seen_at
from .device import device_name, engine, keep_freed_memory, local_processes, pick_device, pick_precision
from .model_card import ModelCard
from .network import build
from .state import State
from .steps import Learner, Pictures, gathered, lacking
from .watch import Watch, marks


@dataclass(frozen=True)
class Recipe:
    """How to train an encoder.

    Attributes:
        loss: slug of a loss.
        parameters: of the loss; the rest are its defaults.
        epochs, batch, learning_rate, weight_decay: of AdamW with a one-cycle schedule.
        seed: of weights, order and augmentation.
        architecture: name in ``network.ARCHITECTURES``.
        side: pictures larger than so many pixels a side are shrunk to that.
        augment: the views.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        half: store the weights in half the space (see `Encoder.save`).
    """

    loss: str = "simclr"
    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: int = 40
    batch: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
    architecture: str = "preact-resnet-32-64-128"
    side: int = 64
    augment: Augment = Augment()
    device: str = "auto"
    precision: str = "auto"
    half: bool = False


@dataclass(frozen=True)
class Snapshot:
    """What can be shown of an unfinished training after an epoch.

    Attributes:
        history: mean loss of each epoch so far.
        parts: the loss's named parts, mean over this epoch.
        rows: (M,) positions of the samples on the map.
        xy: (M, 2) their features' first two principal components, turned to match the epoch before.
        speed: pictures per second, all views counted once.
    """

    history: list[float]
    parts: dict[str, float]
    rows: NDArray[np.int64]
    xy: NDArray[np.float32]
    speed: float


@dataclass(frozen=True)
class Progress:
    """What one training step reports.

    Attributes:
        epoch, epochs: from 0, of how many.
        share: of this epoch that is done.
        loss: of this step.
        seconds_left: until the whole training is done.
        decoded: share of the pictures that are decoded, while nothing else has begun; afterwards None.
        snapshot: after the last step of an epoch, what there is to show.
    """

    epoch: int
    epochs: int
    share: float
    loss: float
    seconds_left: float
    snapshot: Snapshot | None = None
    decoded: float | None = None


def train_encoder(dataset: NoisyDataset, recipe: Recipe, folder: Path, name: str) -> Iterator[Progress]:
    """Train an encoder on the pictures of a dataset; yield progress after every step.

    After each epoch everything needed to go on is in ``folder/NAME.partial.safetensors``; calling this again
    with the same recipe resumes there and, on the CPU, ends in the same bits. When the last epoch is done,
    ``NAME.safetensors`` and ``NAME.json`` appear, ``NAME.record.safetensors`` (see `Record`), and the partial file
    goes. Under ``torchrun`` every process takes its share of each batch, and the loss sees the whole batch.

    Raises:
        InputError: no pictures, too few for two in a batch, a recipe that cannot be followed, an unknown loss or one
            that lacks what it needs, or a partial file of another recipe.
    """
    observed = dataset.observed
    chosen = find_method("loss", recipe.loss)
    options = method_options(chosen, recipe.parameters)
    if reason := lacking(chosen, dataset):
        raise InputError(reason)
    assert observed.images is not None
    if not 0 < recipe.learning_rate < float("inf"):
        raise InputError(f"the learning rate must be a number above 0, got {recipe.learning_rate}")
    if min(recipe.batch, len(observed)) < 2:
        raise InputError(f"training needs at least two pictures in a batch, got {min(recipe.batch, len(observed))}")
    if recipe.side < 8:
        raise InputError(f"pictures must be seen at 8 or more pixels a side, got {recipe.side}")
    if recipe.epochs < 1:
        raise InputError(f"training needs at least one epoch, got {recipe.epochs}")
    device = pick_device(recipe.device)
    torch.set_num_threads(max(1, cores() // local_processes()))
    if device == "cpu":
        keep_freed_memory()
    channels = 1 if observed.images.ndim == 3 else observed.images.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # inside the fork: the caller's generator is left as it was
        network, loss = build(recipe.architecture, channels), chosen(**options)
        size = seen_at(observed.images.shape, recipe.side)
        shape = (channels, *size)
        sizes = Sizes(network.dim, network.projection, len(observed.classes), len(observed), shape)
        loss.setup(sizes)
        learner = Learner(network.to(memory_format=torch.channels_last), loss, sizes.classes)  # type: ignore[call-overload]
    path = folder / f"{name}.partial.safetensors"
    identity = _identity(dataset.digest, recipe, options, size if size != observed.images.shape[1:3] else None)
    precision = State.begun_in(path, identity) or pick_precision(recipe.precision, device)
    fabric = engine(device, precision)
    if min(recipe.batch, len(observed)) < 2 * fabric.world_size:
        raise InputError(
            f"{fabric.world_size} processes need at least {2 * fabric.world_size} pictures in a batch, got "
            f"{min(recipe.batch, len(observed))}"
        )
    second = loss.second_parameters()
    first = [p for p in learner.parameters() if not any(p is other for other in second)]
    optimisers = [torch.optim.AdamW(first, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)]
    if second:
        optimisers.append(torch.optim.AdamW(second, lr=recipe.learning_rate, weight_decay=0.0))
    module, *optimisers = fabric.setup(learner, *optimisers)
    if fabric.world_size > 1:
        learner.gather = partial(gathered, fabric)
    data = Pictures(dataset, loss, min(recipe.batch, len(observed)), recipe.augment, fabric, size, folder)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=recipe.learning_rate, total_steps=data.steps * recipe.epochs)
        for o in optimisers
    ]

    def step(rows: Tensor, sight: torch.Generator, draws: torch.Generator) -> tuple[float, dict[str, float]]:
        """One step of each optimiser; its loss, and the parts of it."""
        x, y, index, aux = data.step(rows, sight)
        total, per_sample, parts = module(x, y, index, aux, draws)
        optimisers[0].zero_grad(set_to_none=True)
        fabric.backward(total)
        optimisers[0].step()
        schedules[0].step()
        if second:
            with torch.no_grad():
                again = learner.batch(x, network.features(x), y, index, aux, draws)
            optimisers[1].zero_grad(set_to_none=True)  # the main step has left its own there
            fabric.backward(loss.second(again))
            optimisers[1].step()
            schedules[1].step()
        h, gradient = learner.features_and_gradient()
        watch.step(learner.gather(index), per_sample, learner.gather(h), learner.gather(gradient) / fabric.world_size)
        return float(total.detach()), parts

    watch = Watch(observed.labels, sizes.classes, network.dim, recipe.seed)
    state = State(learner, optimisers, schedules, path, identity, precision)
    history, times, xy = list[float](), list[float](), np.empty((0, 2), np.float32)
    if found := state.resume():
        history, times = found[0]["history"], found[0]["times"]
        xy = found[1].pop("xy").numpy()
        watch.restore({name: value.numpy() for name, value in found[1].items()})
    begun = len(history)
    for share in data.decode():
        yield Progress(begun, recipe.epochs, 0.0, float("nan"), float("nan"), decoded=share)
    started = time.perf_counter()
    for epoch in range(begun, recipe.epochs):
        epoch_started = time.perf_counter()
        # every epoch has generators of its own, so a resumed run draws what an unbroken one would have drawn
        own = recipe.seed * 1_000_003 + epoch
        draws = torch.Generator(device=fabric.device).manual_seed(own)
        sight = torch.Generator(device=fabric.device).manual_seed(own * 8_191 + 1 + fabric.global_rank)
        if loss.wants_epoch(epoch):
            loss.on_epoch(data.features(network), data.labels[: data.n], epoch, draws)
        network.train()
        watch.begin()
        losses, parts = list[float](), list[dict[str, float]]()
        for rows in data.order(draws):
            value, named = step(rows, sight, draws)
            if not np.isfinite(value):
                raise InputError(
                    f"the loss became {value} in epoch {epoch + 1}; lower the learning rate (now "
                    f"{recipe.learning_rate:g}) or raise the temperature. {path.name} keeps the last good epoch"
                )
            losses.append(value)
            parts.append(named)
            now, done = time.perf_counter(), (epoch - begun) * data.steps + len(losses)
            left = (now - started) / done * ((recipe.epochs - begun) * data.steps - done)
            if len(losses) < data.steps:
                yield Progress(epoch, recipe.epochs, len(losses) / data.steps, value, left)
        history.append(float(np.mean(losses)))
        speed = data.steps * data.batch / (time.perf_counter() - epoch_started)
        if epoch + 1 in marks(recipe.epochs):
            watch.note(epoch + 1)
        shown, xy = watch.picture(xy)
        times.append(time.perf_counter() - epoch_started)
        if fabric.is_global_zero:
            kept = {name: torch.from_numpy(value) for name, value in watch.stacked().items()}
            state.save({"history": history, "times": times}, {"xy": torch.from_numpy(xy), **kept})
        means = {key: float(np.mean([named[key] for named in parts])) for key in parts[0]}
        yield Progress(epoch, recipe.epochs, 1.0, value, left, Snapshot(history.copy(), means, shown, xy, speed))

    card = ModelCard(
        name=name,
        architecture=recipe.architecture,
        channels=channels,
        dim=network.dim,
        loss=recipe.loss,
        loss_parameters=options,
        outputs=list(chosen.outputs),
        sizes=asdict(sizes),
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        seed=recipe.seed,
        epochs=recipe.epochs,
        batch=data.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        augment=asdict(recipe.augment),
        precision=precision,
        device=device_name(device),
        seconds=round(sum(times), 1),
        seconds_per_epoch=round(median(times), 2),
        history=[round(value, 5) for value in history],
    )
    if fabric.is_global_zero:
        watch.record().save(folder / f"{name}.record.safetensors")
        Encoder(network, card, loss).save(folder, half=recipe.half)
        path.unlink(missing_ok=True)


def _identity(data: str, recipe: Recipe, options: dict[str, Any], shrunk: tuple[int, int] | None) -> str:
    """What a partial file belongs to; asking for the same device explicitly is not another recipe."""
    plain = {**asdict(recipe), "parameters": options, "device": "", "precision": "", "half": False}
    del plain["side"]
    if shrunk:
        plain["shrunk"] = shrunk
    return json.dumps([data, plain], sort_keys=True)
