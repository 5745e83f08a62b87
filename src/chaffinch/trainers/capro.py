"""CAPro: prototypes grown from a few trustworthy anchors check every label together with the classifier."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.neighbors import nearest
from ..card import MethodCard
from ..detectors.capro import DROPPED, clean, most_agreed, support
from ..encoders.network import PreActResNet
from ..losses.base import check_temperature, unit, wide
from .base import Batch, Division, Net, Site, Step, Trainer, log_probs, numpy_probs
from .mixing import draw_mix, mixed_ce, weighted_ce
from .rrl import class_means

EMBEDDING = 128
"""Length of the embedding."""

MIXED = 0.8
"""Alpha of mixup in the last epochs."""

CALM = 0.3
"""Share of the recipe's learning rate."""


class AlignedPrototypes(Trainer):
    r"""CAPro: class prototypes start from anchors, not from the majority, and with the classifier clean the labels.

    The features h of a weak view give logits, and through a projector the unit embedding v; the strong view gives a
    key v' by slowly following copies of encoder and projector. A queue holds the last keys. A back-projector rebuilds h
    from v, and a second classifier reads v. Losses, each of weight 1:

    - :math:`L_{cls}`: cross-entropy of the classifier; :math:`L_{ins}`: v finds its key among the queue, over tau;
    - :math:`L_{prj} = \mathrm{mean}\,(\mathrm{back}(v) - h)^2`, h without gradient, and v without once there are
      prototypes;
    - from ``prototypes_from`` on, :math:`L_{pro} = CE(v \cdot z / \tau, y)`;
    - :math:`L_{low} = (1-\beta)\, CE(p^{aux}, y) + \beta\, CE(p^{aux}, b)`, where all keys vote for b (no softmax, no
      temperature; before there are prototypes, beta is 0):

    .. math:: b \propto \sum_j a_j \big(\alpha\, p^{aux}(k_j) + (1-\alpha)\, \mathrm{sm}(k_j \cdot z / \tau)\big), \quad
        a_j \propto \min(1, \max(0, v \cdot k_j)) + 10^{-7}

    Prototypes z start as normalised mean of the slow embeddings of each class's anchors; then each sample moves the
    one of its label, :math:`z_c \leftarrow \mathrm{normalise}(m z_c + (1-m) v)`. After each epoch from the one before
    ``clean_from`` on,

    .. math:: s_i = \alpha\, p_i + (1-\alpha)\, \mathrm{sm}(v_i \cdot z / \tau), \qquad y_i \leftarrow \begin{cases}
        \arg\max s_i & \max s_i \ge T \\ y_i & s_{i,y_i} \ge 1/C \\ \text{dropped} & \text{else} \end{cases}

    Anchors keep their label. Dropped samples teach through :math:`L_{ins}` alone. In the last epochs the encoder stands
    still, and the classifier learns the cleaned labels with mixup.

    The paper takes as anchors the pictures whose text fits the class. Without text they are, as in the detector
    `capro`, the samples of each class whose neighbours agree most with their label: neighbours in the features of the
    start, or, from scratch, in those of the slow encoder once prototypes begin.

    Differs from the released code: the projector of the keys follows slowly, too. Shared, as there, it runs away from
    the older keys of the queue with all embeddings at once, and tiny trainings ended with one embedding for all. Labels
    are cleaned after each epoch, on plain pictures, and hold for the next one, not anew in every step. A batch moves a
    prototype at once, with the weights that its samples have one by one, but normalised once. Stages 1 and 2 are one
    training, the encoder never frozen between them. Layers are as wide as the features, as 2,048 is with the paper's
    network. For five losses the learning rate is three tenths of the recipe's: at 0.1 a quarter of tiny trainings lost
    a class. The slow copies follow at 0.99 (the paper: 0.999) and the queue holds 2,048 keys, for a few epochs of
    12,000 samples; the paper begins prototypes at epoch 5 or 10 and cleaning at 10 or 20, of 60 or 120.

    Source: Qin, Chen, Shen, Fu, Gu, Li, Sun, Ji, NeurIPS 2023, arXiv 2310.09761.

    Args:
        prototypes_from: first epoch (from 0) with prototypes, at least 1.
        clean_from: first epoch with cleaned labels, not before the prototypes.
        finish: last epochs, in which only the classifier learns; not before labels are cleaned.
        anchors: number of anchors of a class, at most a quarter of it.
        k: neighbours whose agreement makes an anchor.
        alpha: weight of the classifier beside the prototypes.
        tau: temperature of all cosines.
        threshold: T, from which on a label is replaced.
        beta: weight of the keys' vote, 0 to 1.
        momentum: with which the slow copies follow.
        prototype_momentum: m.
        queue: number of keys, at most one of each sample.
    """

    card = MethodCard(
        slug="capro",
        name="Aligned prototypes (CAPro)",
        paper="CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes "
        "(Qin, Chen, Shen, Fu, Gu, Li, Sun, Ji; NeurIPS 2023)",
        arxiv="2310.09761",
        year=2023,
        formula=r"L = L_{cls} + L_{low} + L_{ins} + L_{prj} + L_{pro},\qquad"
        r" s_i = \alpha\,p_i + (1-\alpha)\,\mathrm{softmax}_c\big(v_i \cdot z_c / \tau\big)",
        summary="Each class grows from its most trustworthy pictures, not from the majority. Classifier and class "
        "prototypes together keep, replace or drop every label, and what is dropped still shapes the features.",
        fails_when="Labels are cleaned before a class is learnt, which is then relabelled but for its anchors; the "
        "anchors are wrong, as when most pictures of a class are wrong in a way of their own; a class has several "
        "looks; with many classes a kept label needs little support.",
    )

    slow: PreActResNet
    slow_project: nn.Module
    anchor: Tensor
    prototypes: Tensor
    ready: Tensor
    queue: Tensor
    place: Tensor
    filled: Tensor
    cleaned: Tensor

    def __init__(
        self,
        prototypes_from: int = 2,
        clean_from: int = 4,
        finish: int = 1,
        anchors: int = 50,
        k: int = 20,
        alpha: float = 0.5,
        tau: float = 0.1,
        threshold: float = 0.6,
        beta: float = 0.1,
        momentum: float = 0.99,
        prototype_momentum: float = 0.999,
        queue: int = 2048,
    ) -> None:
        super().__init__()
        least = {"prototypes_from": (prototypes_from, 1), "finish": (finish, 0), "anchors": (anchors, 1), "k": (k, 1)}
        for name, (value, lowest) in {**least, "queue": (queue, 1)}.items():
            if value < lowest:
                raise InputError(f"{name} must be at least {lowest}, got {value}")
        if clean_from < prototypes_from:
            raise InputError(f"clean_from must be at least prototypes_from ({prototypes_from}), got {clean_from}")
        shares = {"alpha": alpha, "threshold": threshold, "beta": beta, "momentum": momentum}
        for name, share in {**shares, "prototype_momentum": prototype_momentum}.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {share}")
        self.prototypes_from, self.clean_from, self.finish = prototypes_from, clean_from, finish
        self.anchors, self.k, self.size, self.tau = anchors, k, queue, check_temperature(tau, "tau")
        self.alpha, self.threshold, self.beta = alpha, threshold, beta
        self.momentum, self.prototype_momentum = momentum, prototype_momentum

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Projector and back-projector; the classifier on the embedding comes in `setup`, which knows the classes."""
        return {
            "project": nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, EMBEDDING)),
            "back": nn.Sequential(nn.Linear(EMBEDDING, dim), nn.ReLU(), nn.Linear(dim, dim)),
        }

    def rate(self, epoch: int) -> float:
        """A cosine from three tenths."""
        return CALM * super().rate(epoch)

    def setup(self, site: Site) -> None:
        """Make the second classifier, the slow copies, prototypes (C, d), the queue (Q, d) and the labels (N,)."""
        super().setup(site)
        (net,), device, n = self.nets, site.labels.device, len(site.labels)
        net.heads["aux"] = nn.Linear(EMBEDDING, site.classes, bias=False)
        self.slow = copy.deepcopy(net.body).requires_grad_(False)
        self.slow_project = copy.deepcopy(net.heads["project"]).requires_grad_(False)
        self.register_buffer("anchor", torch.zeros(n, dtype=torch.bool, device=device))
        self.register_buffer("prototypes", torch.zeros(site.classes, EMBEDDING, device=device))
        self.register_buffer("ready", torch.tensor(False, device=device))
        self.register_buffer("queue", torch.zeros(min(self.size, n), EMBEDDING, device=device))
        self.register_buffer("place", torch.tensor(0, device=device))
        self.register_buffer("filled", torch.tensor(0, device=device))
        self.register_buffer("cleaned", site.labels.clone())
        if site.started:
            self.choose_anchors(site.features())

    def choose_anchors(self, features: Tensor) -> None:
        """Take the samples of each class whose neighbours in features (N, F) agree most with their label."""
        y = self.labels.cpu().numpy()
        found = most_agreed(nearest(features.cpu().numpy(), self.k), y, np.bincount(y), self.anchors)
        self.anchor.copy_(torch.as_tensor(found))

    def embed(self, net: Net, h: Tensor) -> Tensor:
        """Unit embeddings (B, d) of features (B, F)."""
        return unit(net.heads["project"](h))

    def step(self, k: int, batch: Batch) -> Step:
        """All losses of one batch; in the last epochs that of the classifier alone."""
        net, x = self.nets[k], batch.weak()
        y = torch.where(self.flags, self.cleaned, self.labels)[batch.rows]
        kept = y != DROPPED
        targets, w = F.one_hot(y.clamp(min=0), self.classes).float(), kept.float()
        if batch.epoch >= max(self.clean_from, self.epochs - self.finish):
            return self.refine(net, x, targets, kept, batch)
        h = net.body.features(x)
        logits, v = net.classify(h), self.embed(net, h)
        with torch.no_grad():
            key = unit(self.slow_project(self.slow.features(batch.strong())))
        before = self.queue[: int(self.filled)].clone()  # the way back needs it
        parts = {"instance": instance_loss(v, key, before, self.tau)}
        self.enqueue(key)
        rebuilt = wide(net.heads["back"](v.detach() if self.ready else v))
        parts["rebuilding"] = (w * ((rebuilt - wide(h.detach())) ** 2).mean(1)).sum() / w.sum().clamp(min=1)
        parts["classification"] = weighted_ce(logits, targets, w)
        said = net.heads["aux"](v)
        parts["embedding"] = weighted_ce(said, targets, w)
        if self.ready:
            vote = self.vote(net, v.detach())
            parts["embedding"] = (1 - self.beta) * parts["embedding"] + self.beta * weighted_ce(said, vote, w)
            parts["prototypes"] = weighted_ce(v @ self.prototypes.clone().T / self.tau, targets, w)
            self.prototypes.copy_(moved(self.prototypes, v.detach()[kept], y[kept], self.prototype_momentum))
        total = torch.stack(list(parts.values())).sum()
        return Step(total, logits, {name: float(part.detach()) for name, part in parts.items()})

    def refine(self, net: Net, x: Tensor, targets: Tensor, kept: Tensor, batch: Batch) -> Step:
        """Mixup of the classifier alone, on features that stand still."""
        net.body.eval()  # until the next epoch
        mix = draw_mix(int(kept.sum()), MIXED, batch.rng)
        with torch.no_grad():
            logits, h = net(x), net.body.features(mix(x[kept]))
        loss = mixed_ce(net.classify(h), targets[kept], torch.ones_like(targets[kept, 0]), mix)
        return Step(loss, logits, {"refinement": float(loss.detach())})

    def enqueue(self, keys: Tensor) -> None:
        """Put keys (B, d) in the place of the oldest ones."""
        size, keys = len(self.queue), keys[-len(self.queue) :]
        spots = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.queue[spots] = keys.to(self.queue.dtype)
        self.place.copy_((self.place + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))

    @torch.no_grad()
    def vote(self, net: Net, v: Tensor) -> Tensor:
        """What all keys, the sample's own among them, say of embeddings: (B, C)."""
        keys = self.queue[: int(self.filled)]
        classifier, prototypes = net.heads["aux"](keys), keys @ self.prototypes.T / self.tau
        said = self.alpha * log_probs(classifier).exp() + (1 - self.alpha) * log_probs(prototypes).exp()
        return bootstrapped(v, keys, said)

    @torch.no_grad()
    def stepped(self, k: int, batch: Batch) -> None:
        """The slow copies follow."""
        net = self.nets[k]
        for copied, original in ((self.slow, net.body), (self.slow_project, net.heads["project"])):
            for slow, fast in zip(copied.parameters(), original.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)

    def look(self, k: int, x: Tensor) -> dict[str, Tensor]:
        """Logits and the embedding; until there are prototypes, features of the slow encoder, too."""
        net = self.nets[k]
        h = net.body.features(x)
        found = {"logits": net.classify(h), "embedding": self.embed(net, h)}
        return found if self.ready else found | {"slow": self.slow.features(x)}

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Begin with prototypes when it is time, then clean the labels."""
        (look,) = looks
        if epoch + 1 >= self.prototypes_from and not self.ready:
            self.begin(look["slow"])
        return self.clean(look) if epoch + 1 >= self.clean_from else super().divide(looks, epoch)

    def begin(self, slow: Tensor) -> None:
        """Prototypes from the anchors, by the slow encoder's features (N, F); a class without any starts whole."""
        if not bool(self.anchor.any()):
            self.choose_anchors(slow)
        anchored = torch.bincount(self.labels[self.anchor], minlength=self.classes) > 0
        core = self.anchor | ~anchored[self.labels]
        with torch.no_grad():
            v = unit(self.slow_project(slow[core]))
        self.prototypes.copy_(class_means(v, self.labels[core], self.prototypes))
        self.ready.fill_(True)

    def clean(self, look: dict[str, Tensor]) -> Division:
        """Keep, replace or drop every label."""
        p, y = numpy_probs(look["logits"]), self.labels.cpu().numpy()
        v, prototypes = (values.double().cpu().numpy() for values in (look["embedding"], self.prototypes))
        s = support(p, cosines(v, prototypes, np.bincount(y, minlength=self.classes) > 0), self.alpha, self.tau)
        cleaned = clean(s, y, self.threshold)
        anchor = self.anchor.cpu().numpy()
        cleaned[anchor] = y[anchor]
        self.cleaned.copy_(torch.as_tensor(cleaned))
        kept = self.cleaned != DROPPED
        lost = len(np.setdiff1d(y, cleaned))
        scores = torch.as_tensor(1 - s[np.arange(len(y)), y], device=kept.device).float()
        note = f"no sample of {lost} class(es) is left to train on" if lost else ""
        targets = torch.as_tensor(s, device=kept.device).float()
        return Division(self.cleaned != self.labels, scores, "capro", kept.float(), targets=targets, note=note)


def cosines(v: NDArray[np.float64], prototypes: NDArray[np.float64], present: NDArray[np.bool_]) -> Any:
    """(N, C) of embeddings and prototypes; -inf for a class (C,) that nobody carries."""
    return np.where(present, v @ prototypes.T, -np.inf)


def instance_loss(v: Tensor, key: Tensor, queue: Tensor, tau: float) -> Tensor:
    """Each embedding (B, d) finds its own key (B, d) among those of a queue (Q, d); unit rows."""
    logits = torch.cat([(v * key).sum(1, keepdim=True), v @ queue.T], 1) / tau
    return -log_probs(logits)[:, 0].mean()


def bootstrapped(v: Tensor, keys: Tensor, said: Tensor) -> Tensor:
    """b (B, C): mean of what is said of keys (Q, C), weighted by their cosine to v (B, d), cut to 0 to 1."""
    weights = (wide(v) @ wide(keys).T).clamp(0, 1) + 1e-7
    b = weights / weights.sum(1, keepdim=True) @ said
    return b / b.sum(1, keepdim=True)


def moved(prototypes: Tensor, v: Tensor, y: Tensor, momentum: float) -> Tensor:
    """Prototypes (C, d) after a batch of embeddings (B, d) with labels (B,), in its order; normalised once."""
    same = y[:, None] == y[None, :]
    later = same.triu(1).sum(1)
    sums = torch.zeros_like(prototypes).index_add_(0, y, (momentum**later)[:, None] * wide(v))
    counts = torch.bincount(y, minlength=len(prototypes))[:, None]
    return torch.where(counts > 0, unit(momentum**counts * prototypes + (1 - momentum) * sums), prototypes)
