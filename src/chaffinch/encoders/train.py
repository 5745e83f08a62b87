"""Training of a contrastive encoder: resumable after every epoch, bit-exact on the CPU."""

from __future__ import annotations

import ctypes
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .. import registry
from ..base.errors import InputError
from ..base.threads import cores
from ..data import NoisyDataset
from ..losses.base import Batch, ContrastiveLoss
from .augment import Augment
from .checkpoint import Encoder, ModelCard, write_tensors
from .network import PreActResNet, build, to_tensor


@dataclass(frozen=True)
class Recipe:
    """How to train an encoder.

    Attributes:
        loss: slug of a loss.
        epochs, batch, learning_rate, weight_decay: of AdamW with a one-cycle schedule.
        temperature: of the loss.
        seed: of weights, order and augmentation.
        architecture: name in ``network.ARCHITECTURES``.
        augment: the views.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
    """

    loss: str = "simclr"
    epochs: int = 40
    batch: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    seed: int = 0
    architecture: str = "preact-resnet-32-64-128"
    augment: Augment = Augment()
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Progress:
    """What one training step or epoch reports: epoch and step done, of how many, loss, seconds left."""

    epoch: int
    epochs: int
    share: float
    loss: float
    seconds_left: float


def pick_device(wanted: str = "auto") -> str:
    """The device to compute on: CUDA, then MPS, then the CPU.

    Raises:
        InputError: the device that was asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(wanted.split(":")[0], False):
        raise InputError(f"device {wanted!r} is not available; there are {[n for n, ok in there.items() if ok]}")
    return wanted


def device_name(device: str) -> str:
    """What to write on the model card: the accelerator's name, or the processor and its cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device == "mps":
        return "Apple GPU (MPS)"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU, {cores()} cores ({model or platform.processor() or platform.machine()})"


def pick_precision(wanted: str, device: str) -> str:
    """bfloat16 autocast where it pays: on GPUs that have it and on processors with AMX tiles.

    AVX-512 alone is not enough: there a bfloat16 product was measured at half the speed of a float32 one.
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    amx = device == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bfloat16" if amx else "float32"


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the system after every operation.

    A training step on the CPU allocates the same 100 MB activations again and again; faulting their pages in
    each time took 40 % of the step. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def train_encoder(dataset: NoisyDataset, recipe: Recipe, folder: Path, name: str) -> Iterator[Progress]:
    """Train an encoder on the pictures of a dataset; yield progress after every step.

    After each epoch everything needed to go on is in ``folder/NAME.partial.safetensors``; calling this again
    with the same recipe resumes there and, on the CPU, ends in the same bits. When the last epoch is done,
    ``NAME.safetensors`` and ``NAME.json`` appear and the partial file goes.

    Raises:
        InputError: no pictures, too few for two in a batch, an unknown loss, or a partial file of another recipe.
    """
    observed = dataset.observed
    if observed.images is None:
        raise InputError(f"{dataset.name} has no pictures to train an encoder on")
    n = len(observed)
    if not 0 < recipe.learning_rate < float("inf"):
        raise InputError(f"the learning rate must be a number above 0, got {recipe.learning_rate}")
    batch = min(recipe.batch, n)
    if batch < 2:
        raise InputError(f"training needs at least two pictures in a batch, got {batch}")
    if recipe.epochs < 1:
        raise InputError(f"training needs at least one epoch, got {recipe.epochs}")
    device, started = pick_device(recipe.device), time.perf_counter()
    torch.set_num_threads(cores())
    if device == "cpu":
        keep_freed_memory()
    try:
        loss_class = registry.get("loss", recipe.loss)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    loss: ContrastiveLoss = loss_class(temperature=recipe.temperature).to(device)

    channels = 1 if observed.images.ndim == 3 else observed.images.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # inside the fork: the caller's generator is left as it was
        network = build(recipe.architecture, channels)
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.as_tensor(observed.images).to(device)
    labels = torch.as_tensor(observed.labels).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = max(1, n // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.learning_rate, total_steps=steps * recipe.epochs
    )
    run = _Run(network, optimiser, schedule, folder / f"{name}.partial.safetensors", dataset.digest, recipe)
    history, spent, precision = run.resume(pick_precision(recipe.precision, device))
    first, rate = len(history), None

    for epoch in range(first, recipe.epochs):
        # every epoch has a generator of its own, so a resumed run draws what an unbroken one would have drawn
        generator = torch.Generator(device=device).manual_seed(recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator, device=device)
        network.train()
        total = torch.zeros((), device=device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            x = to_tensor(images[rows])
            views = torch.cat([recipe.augment(x, generator), recipe.augment(x, generator)])
            views = views.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bfloat16"):
                z = network(views)
            out = loss(Batch(z=z.view(2, len(rows), -1).transpose(0, 1), y=labels[rows], index=rows))
            optimiser.zero_grad(set_to_none=True)
            out.total.backward()
            optimiser.step()
            schedule.step()
            total += out.total.detach()
            done = (epoch - first) * steps + step + 1
            rate = (time.perf_counter() - started) / done
            left = rate * (steps * (recipe.epochs - first) - done)
            yield Progress(epoch, recipe.epochs, (step + 1) / steps, float(out.total.detach()), left)
        history.append(float(total / steps))
        run.save(history, spent + time.perf_counter() - started, precision)

    card = ModelCard(
        name=name,
        architecture=recipe.architecture,
        channels=channels,
        dim=int(network.norm.num_features),
        loss=recipe.loss,
        loss_parameters={"temperature": recipe.temperature},
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        seed=recipe.seed,
        epochs=recipe.epochs,
        batch=batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        augment=asdict(recipe.augment),
        precision=precision,
        device=device_name(device),
        seconds=round(spent + time.perf_counter() - started, 1),
        history=[round(value, 5) for value in history],
    )
    Encoder(network, card).save(folder)
    run.path.unlink(missing_ok=True)


class _Run:
    """The state of a training on disk: weights, optimiser, schedule, history."""

    def __init__(
        self, network: PreActResNet, optimiser: Any, schedule: Any, path: Path, data: str, recipe: Recipe
    ) -> None:
        self.network, self.optimiser, self.schedule, self.path = network, optimiser, schedule, path
        # the device may change between sessions, and asking for it explicitly is not another recipe
        self.identity = json.dumps([data, {**asdict(recipe), "device": "", "precision": ""}], sort_keys=True)

    def save(self, history: list[float], seconds: float, precision: str) -> None:
        state = self.optimiser.state_dict()
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        for index, values in state["state"].items():
            tensors |= {f"optimiser.{index}.{key}": value for key, value in values.items()}
        plain = {
            "identity": self.identity,
            "history": history,
            "seconds": seconds,
            "precision": precision,
            "groups": state["param_groups"],
            "schedule": {key: v for key, v in self.schedule.state_dict().items() if not callable(v)},
        }
        write_tensors(self.path, tensors, {"state": json.dumps(plain)})

    def resume(self, precision: str) -> tuple[list[float], float, str]:
        """Load the partial file if there is one; return history, seconds spent, precision."""
        if not self.path.exists():
            return [], 0.0, precision
        try:
            with safe_open(self.path, "pt") as archive:
                plain = json.loads(archive.metadata()["state"])
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
        except Exception as error:  # a damaged file of any kind: say so, keep it, let the user decide
            raise InputError(f"{self.path} cannot be read ({error}); delete it to start again") from error
        if plain["identity"] != self.identity:
            raise InputError(
                f"{self.path} belongs to another recipe or dataset; delete it, or give this training another --name"
            )
        self.network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k[0] == "n"})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, field = key.split(".", 2)
                state.setdefault(int(index), {})[field] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": plain["groups"]})
        self.schedule.load_state_dict(plain["schedule"])
        return list(plain["history"]), float(plain["seconds"]), str(plain["precision"])
