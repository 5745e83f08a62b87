"""Subclass-balancing contrastive learning: big classes are cut into pieces as large as the small ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, cosine_rows, unit

ROUNDS = 50  # of k-means at most
STILL = 1e-3  # squared shift of all centres together at which k-means stops
CLIP = (0.2, 0.8)  # the quantiles over classes between which the spread is kept
COOLEST = 0.1  # of the temperature: what a class without any spread gets


class SBCL(ContrastiveLoss):
    r"""Supervised contrastive loss on two levels: subclasses of like pictures and, more weakly, classes.

    Every ``step`` epochs class c of :math:`n_c` pictures is cut by balanced k-means on its cosines into
    :math:`K_c = \max(1, \lfloor n_c / \max(\min_k n_k, \delta)\rfloor)` subclasses. For a row i let A be all other
    rows, :math:`M_i` those of its subclass (with its other view), :math:`P_i` those of its class but another subclass:

    .. math:: \ell_i = -\frac{1}{|M_i|}\sum_{p \in M_i} \log\frac{e^{z_i^\top z_p/\tau}}{\sum_{a \in A} e^{z_i^\top
        z_a/\tau}} - \frac{\beta}{|P_i|}\sum_{p \in P_i} \log\frac{e^{z_i^\top z_p/\tau_c}}{\sum_{a \in A \setminus M_i}
        e^{z_i^\top z_a/\tau_c}}

    The class's own temperature follows its spread: :math:`\tau_c = \tau\,\phi_c / \bar\phi` with
    :math:`\phi_c = \overline{\lVert z - t_c \rVert} / \log(n_c + 10)` about the class mean :math:`t_c`, kept within the
    20 % and 80 % quantiles over classes (with few classes this leaves little); classes in one piece keep tau. Until the
    first clustering, and for classes in one piece, :math:`P_i` is empty and the loss is the supervised contrastive one.
    A row with an empty set of positives adds 0 to that level.

    Differs from the paper: k-means++ starts from 1 - cosine, a cluster's row of cosines is divided by the sum of their
    absolute values (the same for features after a ReLU), tau_c is at least a tenth of tau, both levels have weight 1
    and beta exactly, and ``size`` can cut balanced classes too. The same pieces follow from the same ``rng``.

    Source: Hou, Zhang, Wang, Zhou, ICCV 2023, arXiv 2306.15925.

    Args:
        temperature: tau > 0 of the subclass level, and of the class level where no spread is known.
        beta: weight of the class level, 0 or more.
        delta: pictures in the smallest subclass worth cutting off.
        size: pictures in a subclass; 0 = as many as the smallest class has, at least ``delta``.
        step: epochs between clusterings.
        warm_up: epochs before the first clustering.
        exponential: the paper's class temperature, tau exp(phi / mean phi), in place of its code's linear one.
        own_view: put the own other views back among a row's class positives and into that denominator, as the paper's
            code does; then no row lacks positives.
    """

    card = MethodCard(
        slug="sbcl",
        name="SBCL",
        paper="Subclass-balancing Contrastive Learning for Long-tailed Recognition (Hou, Zhang, Wang, Zhou; ICCV 2023)",
        arxiv="2306.15925",
        year=2023,
        formula=r"\ell_i = -\frac{1}{|M_i|}\sum_{p\in M_i}\log\frac{e^{z_i^\top z_p/\tau}}{\sum_{a\neq i}"
        r"e^{z_i^\top z_a/\tau}} -\frac{\beta}{|P_i|}\sum_{p\in P_i}\log\frac{e^{z_i^\top z_p/\tau_c}}"
        r"{\sum_{a\neq i,\,a\notin M_i}e^{z_i^\top z_a/\tau_c}}",
        summary="Pictures of one subclass attract most, those of the same class less, all others repel; the subclasses "
        "are found again and again by clustering each class. Labels are used, so wrong ones are learnt, but "
        "mislabelled pictures that look alike gather in a subclass of their own instead of melting into the class.",
        fails_when="With classes of about equal size nothing is cut unless you set the size of a subclass, and the "
        "loss is the plain supervised one. Foreign pictures get subclasses of their given class, which protects them.",
    )
    needs = frozenset({"z", "y", "index"})

    subclass: Tensor
    class_temperature: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        beta: float = 0.25,
        delta: int = 10,
        size: int = 0,
        step: int = 10,
        warm_up: int = 10,
        exponential: bool = False,
        own_view: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if not 0 <= beta < float("inf"):
            raise InputError(f"beta must be 0 or more and finite, got {beta}")
        for name, value, least in (("delta", delta, 1), ("size", size, 0), ("step", step, 1), ("warm_up", warm_up, 0)):
            if value < least:
                raise InputError(f"{name} must be {least} or more, got {value}")
        self.beta, self.delta, self.size, self.step, self.warm_up = beta, delta, size, step, warm_up
        self.exponential, self.own_view = exponential, own_view

    def setup(self, sizes: Sizes) -> None:
        """Make room for the samples' subclasses (N,), -1 = not clustered yet, and the classes' temperatures (C,)."""
        self.register_buffer("subclass", torch.full((sizes.samples,), -1))
        self.register_buffer("class_temperature", torch.full((sizes.classes,), self.temperature))

    def wants_epoch(self, epoch: int) -> bool:
        """Every ``step`` epochs from ``warm_up`` on."""
        return epoch >= self.warm_up and (epoch - self.warm_up) % self.step == 0

    def on_epoch(self, features: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> None:
        """Cut each class of the (N, F) features into subclasses, numbered through all classes; set the temperatures."""
        x = unit(features)
        counts = torch.bincount(y, minlength=len(self.class_temperature))
        pieces = subclass_counts(counts, self.delta, self.size)
        spread = x.new_zeros(len(counts))
        first = 0
        for c, k in enumerate(pieces.tolist()):
            rows = (y == c).nonzero().squeeze(1)
            if len(rows):
                mine = x[rows]
                spread[c] = (mine - mine.mean(0)).norm(dim=1).mean()
                self.subclass[rows] = first + balanced_kmeans(mine, k, rng)
                first += k
        here = counts > 0
        found = class_temperatures(spread[here], counts[here], self.temperature, self.exponential)
        self.class_temperature[here] = found.to(self.class_temperature.dtype)
        self.class_temperature[pieces == 1] = self.temperature

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections with labels and positions; a position of -1 counts as not clustered."""
        if batch.y is None or batch.index is None:
            raise InputError("sbcl needs the labels and positions of the samples")
        b, v, _ = batch.z.shape
        at_least(v * b, 2, "views", "sbcl")
        z = cosine_rows(batch.z)  # (V*B, D)
        sub = torch.where(batch.index < 0, -1, self.subclass[batch.index.clamp_min(0)])
        sub = torch.where(sub < 0, -1 - batch.y, sub).repeat(v)  # what is not clustered is one piece of its class
        y = batch.y.repeat(v)
        sample = torch.arange(b, device=z.device).repeat(v)
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)

        alike = sub[:, None] == sub
        positive, among = (y[:, None] == y) & ~alike, ~alike
        if self.own_view:
            own = (sample[:, None] == sample) & ~eye & (sub >= 0).any()  # not during the warm-up
            positive, among = positive | own, among | own
        cosine = z @ z.T  # (V*B, V*B)
        inner = _contrast(cosine / self.temperature, alike & ~eye, ~eye)
        outer = _contrast(cosine / self.class_temperature[y][:, None], positive, among)
        loss = inner + self.beta * outer
        parts = {"subclass": float(inner.detach().mean()), "class": float(outer.detach().mean())}
        return LossOut(loss.mean(), loss.detach().view(v, b).mean(0), parts)


def _contrast(logits: Tensor, positive: Tensor, among: Tensor) -> Tensor:
    """Minus the mean log-probability of each row's positives among some columns; 0 for a row without positives."""
    count = positive.sum(1)
    shut = ~among & (count > 0)[:, None]  # a row without positives sees all columns, so that its sum is finite
    repel = torch.logsumexp(logits.masked_fill(shut, -torch.inf), dim=1)
    attract = logits.masked_fill(~positive, 0.0).sum(1) / count.clamp_min(1)
    return (repel - attract) * (count > 0)


def subclass_counts(counts: Tensor, delta: int, size: int = 0) -> Tensor:
    """How many subclasses each class is cut into, from the classes' sizes (C,)."""
    return (counts // (size or max(int(counts[counts > 0].min()), delta))).clamp_min(1)


def class_temperatures(spread: Tensor, counts: Tensor, temperature: float, exponential: bool = False) -> Tensor:
    """(C,) temperatures from the classes' mean distances to their means and their sizes."""
    phi = spread / torch.log(counts + 10)
    low, high = phi.quantile(phi.new_tensor(CLIP))
    phi = phi.clamp(low, high)
    ratio = torch.where(phi.mean() > 0, phi / phi.mean(), 1.0)
    return temperature * (ratio.exp() if exponential else ratio.clamp_min(COOLEST))


def balanced_kmeans(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Cluster 0..k-1 of each unit row of x (n, F); the clusters hold floor(n / k) rows or one more."""
    if k == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    centres = _start(x, k, rng)
    for _ in range(ROUNDS):
        score = x @ centres.T  # the length of a centre does not matter: each column is divided by its own sum
        cluster = _assign(score / score.abs().sum(0).clamp_min(torch.finfo(x.dtype).tiny))
        before, centres = centres, _means(x, cluster, k)
        if (centres - before).square().sum() < STILL:
            break
    return cluster


def _start(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k rows of x, each drawn in proportion to its 1 - cosine with the nearest row drawn before (k-means++)."""
    pick = torch.randint(len(x), (1,), generator=rng, device=x.device)
    picks, far = [pick], x.new_full((len(x),), torch.inf)
    for _ in range(k - 1):
        far = torch.minimum(far, (1 - x @ x[pick[0]]).clamp_min(1e-12))  # never all 0: rows may be equal
        pick = torch.multinomial(far, 1, generator=rng)
        picks.append(pick)
    return x[torch.cat(picks)]


def _means(x: Tensor, cluster: Tensor, k: int) -> Tensor:
    """Mean row of each cluster, summed in a fixed order on every device."""
    order = cluster.argsort(stable=True)
    sizes = torch.bincount(cluster, minlength=k)
    rank = torch.arange(len(x), device=x.device) - (sizes.cumsum(0) - sizes)[cluster[order]]
    seats = torch.full((k, int(sizes.max())), len(x), device=x.device)  # an empty seat names a row of zeros
    seats[cluster[order], rank] = order
    return torch.cat([x, x.new_zeros(1, x.shape[1])])[seats].sum(1) / sizes[:, None]


def _assign(score: Tensor) -> Tensor:
    """Go down the scores of all (row, cluster) pairs: each cluster takes floor(n / k) rows, then one more at most."""
    n, k = score.shape
    cluster = _greedy(score, n // k)
    rest = (cluster < 0).nonzero().squeeze(1)
    if len(rest):
        cluster[rest] = _greedy(score[rest], 1)
    return cluster


def _greedy(score: Tensor, room: int) -> Tensor:
    """Greedy matching of n rows to clusters with room for a few each; -1 for a row that finds none.

    Going down the sorted pairs gives the one matching that no row and cluster would both rather leave. So it can be
    found without the sort: all free rows ask their best cluster at once, and a cluster keeps the best that ask.
    """
    n, k = score.shape
    cluster = torch.full((n,), -1, device=score.device)
    bar = score.new_full((k,), -torch.inf)  # the lowest score in a full cluster: it only rises
    free = torch.arange(n, device=score.device)
    while len(free):
        asked = score[free]
        best, choice = asked.masked_fill(asked <= bar, -torch.inf).max(1)
        hopeful = best > -torch.inf
        cluster[free[hopeful]] = choice[hopeful]

        seated = (cluster >= 0).nonzero().squeeze(1)
        seated = seated[score[seated, cluster[seated]].argsort(descending=True, stable=True)]
        seated = seated[cluster[seated].argsort(stable=True)]  # by cluster, then from the best down
        sizes = torch.bincount(cluster[seated], minlength=k)
        starts = sizes.cumsum(0) - sizes
        rank = torch.arange(len(seated), device=score.device) - starts[cluster[seated]]
        full = (sizes >= room).nonzero().squeeze(1)
        bar[full] = score[seated[starts[full] + room - 1], full]
        free = seated[rank >= room]
        cluster[free] = -1
    return cluster
