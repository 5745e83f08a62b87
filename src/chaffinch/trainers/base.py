"""The interface of every robust trainer: a step on a batch, a look at all samples, a division into kept and flagged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..card import MethodCard
from ..encoders.network import PreActResNet


@dataclass(frozen=True)
class Site:
    """What a trainer is told before the first epoch. All tensors are on the device.

    Attributes:
        labels: (N,) int64, given labels.
        classes: C.
        dim: F, length of the network's final features.
        epochs: of the training.
        steps: of an epoch.
        rng: for what the trainer draws at the start, on the CPU.
        features: gives (N, F) features of the plain pictures by the encoder that the training starts from.
        kind: (N,) true kinds, codes as in ``KINDS``; only for a trainer that asks for the truth.
        trusted: (N,) bool, samples whose label is known to be right, or None; they are never reported as flagged.
        started: is there an encoder that the training starts from, and so are there features?
    """

    labels: Tensor
    classes: int
    dim: int
    epochs: int
    steps: int
    rng: torch.Generator
    features: Callable[[], Tensor]
    kind: Tensor | None = None
    trusted: Tensor | None = None
    started: bool = True


@dataclass(frozen=True)
class Batch:
    """What one step works on.

    Attributes:
        rows: (B,) positions in the dataset.
        y: (B,) given labels.
        epoch: from 0.
        step: from 0, counted through the whole training.
        rng: for what the step draws, on the device.
        weak, strong, contrast, plain: each call gives new views (B, channels, H, W): shifted and flipped; that and a
            random operation; as for training an encoder; the pictures themselves.
    """

    rows: Tensor
    y: Tensor
    epoch: int
    step: int
    rng: torch.Generator
    weak: Callable[[], Tensor]
    strong: Callable[[], Tensor]
    contrast: Callable[[], Tensor]
    plain: Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """What one step says.

    Attributes:
        total: scalar to minimise.
        logits: (B, C) what the network said of the samples while it was trained on them.
        parts: named scalars worth plotting.
    """

    total: Tensor
    logits: Tensor
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Division:
    """What is decided after an epoch; it acts in the next one.

    Attributes:
        flags: (N,) bool.
        scores: (N,) suspicion behind them, higher = more suspicious.
        detector: which detector made them.
        weights: (N,) how far each new label is trusted, 0 to 1.
        pseudo_losses: (N,) loss against the guessed label.
        targets: (N, C) guessed labels.
        note: what the user should know.
    """

    flags: Tensor
    scores: Tensor | None = None
    detector: str = ""
    weights: Tensor | None = None
    pseudo_losses: Tensor | None = None
    targets: Tensor | None = None
    note: str = ""


class Net(nn.Module):
    """An encoder's body with a linear classifier on its features, and what else a trainer puts there.

    Args:
        body: its projection head goes.
        classes: C.
        heads: further modules on the features, by name.
    """

    def __init__(self, body: PreActResNet, classes: int, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        body.head = nn.Sequential()
        self.body, self.classify, self.heads = body, nn.Linear(body.dim, classes), nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, channels, H, W) in [0, 1]."""
        out: Tensor = self.classify(self.body.features(x))
        return out


class Trainer(nn.Module):
    """Base of all trainers. A subclass sets ``card`` and writes ``step``; most write ``divide`` too.

    Everything a trainer learns or remembers is a parameter or a buffer made in ``setup``, so that a training that was
    cut off goes on in the same bits.
    """

    card: ClassVar[MethodCard]
    wants: ClassVar[tuple[str, ...]] = ("images", "labels")
    """What a dataset must have; further: ``truth`` (an upper bound)."""
    networks: ClassVar[int] = 1
    """How many networks learn; one after the other within an epoch."""
    layers: tuple[str, ...] = ()
    """Layers of the body whose pooled activations a look keeps, beside the logits."""

    labels: Tensor
    flags: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.nets: list[Net] = []

    @classmethod
    def asks(cls) -> tuple[str, ...]:
        """What a dataset must have."""
        return cls.wants

    def build(self, nets: list[Net]) -> None:
        """Take in the networks."""
        self.nets = nets  # typed, and in the state by the list beside it
        self.learners = nn.ModuleList(nets)

    def setup(self, site: Site) -> None:
        """Make the memory: flags (N,) and weights (N,) in force. A subclass adds its own after calling this."""
        self.classes, self.epochs = site.classes, site.epochs
        self.register_buffer("labels", site.labels, persistent=False)
        self.register_buffer("flags", torch.zeros(len(site.labels), dtype=torch.bool, device=site.labels.device))
        self.register_buffer("weights", torch.ones(len(site.labels), device=site.labels.device))

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Modules on the features (B, dim) of each network, beside the classifier; default: none."""
        return {}

    def rate(self, epoch: int) -> float:
        """Share of the learning rate in an epoch (from 0): a cosine that ends just above 0."""
        return (1 + math.cos((epoch + 1) * math.pi / (self.epochs + 1))) / 2

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """(N,) positions that network k is trained on in an epoch, in their order; default: every sample once."""
        return torch.randperm(len(self.labels), generator=rng, device=rng.device)

    def step(self, k: int, batch: Batch) -> Step:
        """The loss of network k on one batch."""
        raise TypeError(f"{type(self).__name__} does not define step")

    def stepped(self, k: int, batch: Batch) -> None:
        """Called after network k was updated; default: nothing."""

    def look(self, k: int, x: Tensor) -> dict[str, Tensor]:
        """What network k says of plain pictures in evaluation mode: ``logits`` (B, C), and what `divide` wants."""
        net = self.nets[k]
        layers = (*self.layers, "final")
        found = dict(zip(layers, net.body.pooled(x, layers), strict=True))
        h = found["final"] if "final" in self.layers else found.pop("final")
        return {"logits": net.classify(h), **found}

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Decide after an epoch (from 0) from looks at all N samples, one of each network; default: flag nothing."""
        return Division(torch.zeros_like(self.flags))

    def accept(self, division: Division) -> None:
        """Put a division in force."""
        self.flags.copy_(division.flags)
        if division.weights is not None:
            self.weights.copy_(division.weights)

    def predict(self, looks: list[dict[str, Tensor]]) -> Tensor:
        """Logits (M, C) by which the classifier is judged: the mean over the networks."""
        return torch.stack([look["logits"] for look in looks]).mean(0)


def average(named: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each part over the steps that had it."""
    sums: dict[str, list[float]] = {}
    for parts in named:
        for key, value in parts.items():
            sums.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def log_probs(logits: Tensor) -> Tensor:
    """Logarithms of probabilities, float32 or wider."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def kept_only(flags: Tensor, rng: torch.Generator) -> Tensor:
    """(N,) positions of unflagged samples in random order, again and again until there are N of them.

    So an epoch has as many steps whatever is flagged, and trainers that drop samples are compared at the same budget.
    Where everything is flagged, nothing is dropped.
    """
    n = len(flags)
    kept = torch.arange(n, device=flags.device) if bool(flags.all()) else (~flags).nonzero()[:, 0]
    rounds = -(-n // len(kept))
    orders = [kept[torch.randperm(len(kept), generator=rng, device=rng.device)] for _ in range(rounds)]
    return torch.cat(orders)[:n]


def numpy_probs(logits: Tensor) -> Any:
    """Probabilities (N, C) as float64, for detectors."""
    return log_probs(logits).exp().double().cpu().numpy()
