"""SNCF: three groups found once in label-free features, and three equal streams of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.neighbors import nearest, nearest_in, unit_rows
from ..base.threads import blas_threads
from ..card import MethodCard
from ..detectors.sncf import (
    CLASS_SHARE,
    CLEAN,
    MISLABELLED,
    OOD,
    TOO_FEW,
    Sncf,
    affinity,
    best_clusters,
    draw,
    fellows,
    place,
    spectral,
)
from ..losses.base import check_temperature, check_weights
from .base import Batch, Division, Site, Step, Trainer, kept_only, log_probs
from .mixing import Mix, draw_mix, mixed_ce, same_class, sharpen, targeted_contrast

PROJECTION = 128
"""Length of the contrastive head's rows."""

FOREIGN = 100
"""Neighbourhood and smallest cluster among the foreign samples, at most 15 % of them."""

LIMIT = 20_000
"""Foreign samples above which a random subset is clustered and the rest are placed among it."""

ALONE = -1
"""Cluster of a foreign sample that joins none."""


class GuidedContrast(Trainer):
    r"""SNCF: clean, mislabelled and foreign samples are told apart once, and each group teaches what it can.

    Before the first epoch the detector `sncf` divides all samples by the start's features, which have to be learnt
    without labels: clean, mislabelled, foreign. The foreign ones are clustered once more, the same way but without
    labels. Then the clean ones alone are trained on; after the warm-up each batch is a third of every group, small
    ones repeated. With p of two weak views, a mislabelled sample gets the target :math:`q \propto (p_1 + p_2)^2`; with
    mixup (one lambda, the larger one; partner o),

    .. math:: L = CE_{mix}\big([x^1_{clean}, x^2_{clean}, x^1_{mis}]\big) + w\, \frac1B \sum_i
        \frac{-\sum_j T_{ij} \log \mathrm{sm}_j(z^m_i \cdot z^2_j / \tau)}{\sum_j T_{ij}}, \qquad
        T = \lambda S + (1-\lambda) S_o

    :math:`z^m` is of a mixture of first views of the whole batch, :math:`z^2` of the second views,
    :math:`S_{ij} = [a_i = a_j]`: a is the class (guessed for mislabelled samples), for a foreign sample its cluster,
    and for one in no cluster itself. So foreign pictures shape the features, but never the classes.

    From scratch there are no features to divide by, and it says so. Differs from the paper: the network starts from
    the encoder that gave the features, not from nothing; its contrastive head is two layers of the features' width;
    both views are shifted and flipped only. What the warm-up trains on was not to be found out: here it is the whole
    loss on clean samples. The learning rate falls to a tenth at half and at four fifths of the training. The paper
    warms up for 30 of 100 epochs; the default is for 14.

    Source: Albert, Arazo, O'Connor, McGuinness, ECCV 2022, arXiv 2207.01573.

    Args:
        warmup: epochs on clean samples alone.
        contrast: weight w of the contrastive term; 0 leaves it out (the paper: 1; on CNWL the share of foreign samples,
            or 0.5 where there are none).
        temperature: of the contrastive term.
        gamma: how much a guess is sharpened.
        alpha: of mixup.
        rule: of the detector, ``class`` or ``dataset``.
        sense: which cluster is foreign, the ``sparser`` or the ``denser`` one; ``paper`` takes what the paper does
            under the rule.
        seed: of the detector.
    """

    card = MethodCard(
        slug="sncf",
        name="Guided contrast (SNCF)",
        paper="Embedding contrastive unsupervised features to cluster in- and out-of-distribution noise in corrupted "
        "image datasets (Albert, Arazo, O'Connor, McGuinness; ECCV 2022)",
        arxiv="2207.01573",
        year=2022,
        formula=r"L = CE_{mix} + \frac1B\sum_i \frac{-\sum_j T_{ij}\log\mathrm{sm}_j(z^m_i\cdot z_j/\tau)}"
        r"{\sum_j T_{ij}},\qquad T_{ij} = [a_i = a_j]",
        summary="Tells clean, mislabelled and foreign pictures apart once, before training. Clean ones teach their "
        "label, mislabelled ones a guessed label, and foreign ones only which of them look alike.",
        fails_when="The three groups are wrong from the start: they are never looked at again. A tiny group is shown "
        "as often as the clean pictures, and learnt by heart.",
    )

    group: Tensor
    cluster: Tensor
    suspicion: Tensor
    guess: Tensor

    def __init__(
        self,
        warmup: int = 4,
        contrast: float = 1.0,
        temperature: float = 0.2,
        gamma: float = 2.0,
        alpha: float = 1.0,
        rule: str = "class",
        sense: str = "paper",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if warmup < 0:
            raise InputError(f"warmup must be at least 0 epochs, got {warmup}")
        if rule not in ("class", "dataset"):
            raise InputError(f"rule must be class or dataset, got {rule!r}")
        if sense not in ("paper", "sparser", "denser"):
            raise InputError(f"sense must be paper, sparser or denser, got {sense!r}")
        check_weights(contrast=contrast, gamma=gamma, alpha=alpha)
        self.warmup, self.contrast, self.temperature = warmup, contrast, check_temperature(temperature)
        self.gamma, self.alpha, self.seed = gamma, alpha, seed
        self.rule, self.sense = rule, None if sense == "paper" else sense
        self.note = ""

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """The contrastive head."""
        return {"contrast": nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, PROJECTION))}

    def setup(self, site: Site) -> None:
        """Divide the samples, cluster the foreign ones, and start the guesses (N, C) at the given labels."""
        super().setup(site)
        features, y = site.features().cpu().numpy(), site.labels.cpu().numpy()
        found = Sncf(rule=self.rule, sense=self.sense, seed=self.seed).fit(features, y)
        groups, self.note = found.groups_, str(found.info_.get("note", ""))
        if not (groups == CLEAN).any():
            groups, self.note = np.full_like(groups, CLEAN), "sncf called no sample clean, so all are taken for clean"
        clusters = np.full(len(y), ALONE)
        clusters[groups == OOD] = foreign_clusters(features[groups == OOD], seed=self.seed)
        kept = {"group": groups, "cluster": clusters, "suspicion": found.scores_.astype(np.float32)}
        for name, values in kept.items():
            self.register_buffer(name, torch.as_tensor(values, device=site.labels.device))
        self.register_buffer("guess", F.one_hot(site.labels, site.classes).float())
        self.flags.copy_(self.group != CLEAN)

    def rate(self, epoch: int) -> float:
        """A tenth from half of the training on, a hundredth from four fifths."""
        return float(0.1 ** ((2 * epoch >= self.epochs) + (5 * epoch >= 4 * self.epochs)))

    def groups(self) -> Tensor:
        """(N,) group of each sample; one that is not flagged is clean."""
        return torch.where(self.flags, self.group, CLEAN)

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """Clean positions in the warm-up, then of every group in turn; N in all."""
        group = self.groups()
        return in_turn(
            [group == CLEAN] if epoch < self.warmup else [group == g for g in (CLEAN, MISLABELLED, OOD)], rng
        )

    def step(self, k: int, batch: Batch) -> Step:
        """Both terms, with what the batch holds of each group."""
        net, group = self.nets[k], self.groups()[batch.rows]
        one, two = batch.weak(), batch.weak()
        h = net.body.features(two)
        logits = net.classify(h)
        targets, clean, wrong = F.one_hot(batch.y, self.classes).float(), group == CLEAN, group == MISLABELLED
        if bool(wrong.any()):
            with torch.no_grad():
                p = (log_probs(net(one)).exp() + log_probs(logits.detach()).exp()) / 2
            targets[wrong] = sharpen(p, self.gamma)[wrong]
            self.guess[batch.rows[wrong]] = targets[wrong]
        total, parts = logits.sum() * 0, {}
        labelled = torch.cat([one[clean], two[clean], one[wrong]])
        if len(labelled) > 1:
            t = torch.cat([targets[clean], targets[clean], targets[wrong]])
            mix = draw_mix(len(t), self.alpha, batch.rng)
            total = mixed_ce(net(mix(labelled)), t, torch.ones_like(t[:, 0]), mix)
            parts["classification"] = float(total.detach())
        if self.contrast:
            mix = draw_mix(len(one), self.alpha, batch.rng)
            alike = self.alike(targets.argmax(1), group, batch.rows)
            project = net.heads["contrast"]
            anchors = project(net.body.features(mix(one)))
            term = targeted_contrast(anchors, project(h), guide(alike, mix), self.temperature)
            total = total + self.contrast * term
            parts["contrast"] = float(term.detach())
        return Step(total, logits, parts)

    def alike(self, classes: Tensor, group: Tensor, rows: Tensor) -> Tensor:
        """(B,) a: samples with the same number attract each other."""
        clusters = int(self.cluster.max()) + 1
        cluster = self.cluster[rows]
        foreign = self.classes + torch.where(cluster == ALONE, clusters + rows, cluster)
        return torch.where(group == OOD, foreign, classes)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """The groups do not change; what the mislabelled are guessed to be does."""
        foreign = self.group == OOD
        targets = torch.where(foreign[:, None], 1 / self.classes, self.guess)
        return Division(
            self.group != CLEAN, self.suspicion, "sncf", (~foreign).float(), targets=targets, note=self.note
        )


def foreign_clusters(X: NDArray[np.floating], *, limit: int = LIMIT, seed: int = 0) -> NDArray[np.int64]:
    """Clusters (M,) from 0 of foreign samples, `ALONE` for those that join none: the detector's steps without labels.

    Args:
        X: (M, F) features.
        limit: samples above which a random subset is clustered, and the rest get the cluster of the nearest in it.
        seed: of the subset.
    """
    found = np.full(len(X), ALONE)
    if len(X) < TOO_FEW:
        return found
    detector, Z = Sncf(), unit_rows(X)
    drawn = draw(np.zeros(len(Z), np.int64), limit, seed)
    near = nearest(Z[drawn], detector.k)
    with blas_threads(1):
        E = place(Z, drawn, spectral(affinity(near), detector.dims, seed)[1], near.k)
        E /= np.maximum(np.linalg.norm(E, axis=1, keepdims=True), 1e-300)
        m = min(FOREIGN, max(2, round(CLASS_SHARE * len(drawn))))
        inside = drawn[np.argsort(fellows(E[drawn], m)[:, -1], kind="stable")]  # OPTICS starts with the densest
        found[inside] = best_clusters(E[inside], [m], m, detector.xi, detector.largest)
        rest = np.setdiff1d(np.arange(len(Z)), drawn)
        if len(rest):
            found[rest] = found[inside[nearest_in(E[inside], E[rest], 1).indices[:, 0]]]
    return found


def in_turn(members: list[Tensor], rng: torch.Generator) -> Tensor:
    """(N,) positions from several groups in turn, each in random order, again and again; empty groups are left out.

    Args:
        members: of each group (N,) bool.
        rng: on their device.
    """
    n = len(members[0])
    streams = [kept_only(~each, rng) for each in members if bool(each.any())]
    return torch.stack(streams, 1)[: -(-n // len(streams))].flatten()[:n]


def guide(alike: Tensor, mix: Mix) -> Tensor:
    """(B, B) what each mixture (row) is pulled towards: all that is alike one of its pictures."""
    return mix(same_class(alike, alike))
