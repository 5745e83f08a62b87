"""PC²: pictures are matched with captions of classes, and mismatched ones borrow that of a trusted picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..card import MethodCard
from ..detectors.pc2 import divergence, mismatch
from ..losses.base import check_temperature, check_weights, unit
from .base import Batch, Division, Net, Site, Step, Trainer, kept_only, log_probs
from .dividemix import entropy, in_turns, write
from .pls_lsa_plus import merged

HIDDEN = 256
"""Width of the head that sorts pictures and captions into pseudo-classes."""


class PseudoCaptioning(Trainer):
    r"""Pairs of a picture and a caption: trusted ones are learnt with a soft margin, mismatched ones borrow a caption.

    The caption of a sample is a learnt embedding of its given class, so the classifier's logits are the cosines
    :math:`S_{ic}` of a picture with each class's embedding, divided by a temperature that only shapes probabilities.
    Two networks A and B, each dividing the pairs for the other:

    - Hinges: with pairs i, j of a batch that are of different classes and a margin :math:`m_i` for each pair,

      .. math:: c^t_{ij} = [m_i + S_{ij} - S_{ii}]_+, \qquad c^v_{ij} = [m_j + S_{ij} - S_{jj}]_+, \qquad
          m_i = \alpha \frac{10^{y_i} - 1}{9}

    - Pseudo-classes: one head with K outputs sorts pictures and captions; :math:`L_{pc} = CE(\text{picture},
      \text{pseudo-class of its caption})`, less lambda times an entropy H of the pictures' distributions p.
    - Warm-up, on all pairs: the mean of both hinges over the negatives, m = alpha, plus L_pc - lambda H; p of every
      pair is kept in a bank.
    - Divide, after each epoch from the last of the warm-up on: w is the posterior of the small component of the pairs'
      mean hinges (over the whole dataset), u that of their oscillation :math:`KL(p_i \Vert \mathrm{bank}_i)`. A pair is
      trusted where w > t; if all are, the hundredth with the largest hinges is not. Trusted pairs match by
      :math:`y_i = w_i + (1 - w_i)\, u_i\, [u_i > \tfrac12]`.
    - Afterwards trusted pairs learn from the hardest negative in each row and column, with :math:`m_i` of their match,
      plus L_pc - lambda H. Later in the training half of each batch are mismatched pairs: each takes the caption of the
      trusted picture in the batch whose p has the largest cosine sigma with its own, matches by y = sigma, or 0 if that
      is too small, and learns from hinges alone; with y = 0 it still pushes captions that rank above the borrowed one.
      From then on the bank is renewed.

    A sample is reported as flagged if both networks doubt it; its score is the mean of 1 - y, where pairs that are not
    trusted have y = w.

    In the paper every pair has a caption of its own, a batch has 128 pairs, the warm-up is 5 of 50 epochs, and
    mismatched pairs come in after 25. Differs from paper and released code, for the sake of classes or as noted:

    - Pairs of one class share a caption, so they are no negatives; for the division, means over the negatives are
      scaled as if every pair had as many. Similarities are cosines, not learnt.
    - Hinges are means over the batch in units of the margin, for plain gradient descent; the released sums make L_pc
      about 0.04 of them, here ``pseudo``. Trusted and mismatched pairs share a step.
    - The pseudo-class of a caption has the largest ratio of its probability to the sum over all captions. With the
      largest probability itself, the captions of ten handwritten digits shared one to three pseudo-classes, whatever
      the entropy, and all pictures' p were alike.
    - H is that of the batch's mean p, as is usual; the released code takes the mean of each p's (``diverse=False``).
    - The bank is written under global positions; of a pair that is missing, the prediction counts as much moved.
    - Each pair's own margin is in both hinges; the hinge ends at 0; posteriors are monotone.

    Borrowing need not help: on 1,200 handwritten digits with 40 % wrong labels (14 epochs, batches of 64) 98 % of the
    test digits were right with ``borrow=1``, 96 % with 0.5.

    Source: Duan, Gu, Ying, Qi, Meng, Shi, ACM Multimedia 2024, arXiv 2408.01349.

    Args:
        warmup: epochs on all pairs first, at least 1.
        borrow: share of the training after which mismatched pairs borrow captions; 1 leaves them out to the end.
        margin: alpha, above 0.
        threshold: t, belief above which a pair is trusted.
        similarity: sigma below which a borrowed caption has no margin, 0 to 1.
        pseudo_classes: K, at least 2.
        pseudo: weight of L_pc - lambda H beside the hinges.
        entropy: lambda.
        diverse: let the mean distribution be even, rather than each.
        temperature: of the probabilities of classes.
    """

    card = MethodCard(
        slug="pc2",
        name="Pseudo-captions (PC²)",
        paper="PC²: Pseudo-Classification Based Pseudo-Captioning for Noisy Correspondence Learning in Cross-Modal "
        "Retrieval (Duan, Gu, Ying, Qi, Meng, Shi; ACM Multimedia 2024)",
        arxiv="2408.01349",
        year=2024,
        formula=r"L = \sum_i \max_j [m_i + S_{ij} - S_{ii}]_+ + \max_j [m_i + S_{ji} - S_{ii}]_+ + L_{pc} - \lambda H,"
        r"\qquad m_i = \alpha \tfrac{10^{y_i}-1}{9},\quad y_i = w_i + (1-w_i)\,u_i\,[u_i>\tfrac12]",
        summary="A picture has to be more similar to its own label than to others, by a margin that shrinks where the "
        "two hardly match. Two networks tell one another which pairs to trust; a picture that does not match its label "
        "borrows that of a trusted picture like it.",
        fails_when="Batches are small and classes many, so the trusted half holds no picture of the right class to "
        "borrow from: a wrong label is then borrowed at full margin. Foreign pictures borrow one too. Rare and hard "
        "clean pictures count as mismatched.",
    )
    networks = 2

    match: Tensor
    doubted: Tensor
    bank: Tensor
    borrowed: Tensor
    likeness: Tensor

    def __init__(
        self,
        warmup: int = 5,
        borrow: float = 0.5,
        margin: float = 0.2,
        threshold: float = 0.5,
        similarity: float = 0.5,
        pseudo_classes: int = 128,
        pseudo: float = 0.1,
        entropy: float = 10.0,
        diverse: bool = True,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        if warmup < 1:
            raise InputError(f"warmup must be at least 1 epoch, got {warmup}")
        for name, share in {"borrow": borrow, "similarity": similarity}.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} must lie from 0 to 1, got {share}")
        if not 0 < threshold < 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        if pseudo_classes < 2:
            raise InputError(f"pseudo_classes must be at least 2, got {pseudo_classes}")
        check_weights(pseudo=pseudo, entropy=entropy)
        self.warmup, self.borrow, self.margin = warmup, borrow, check_temperature(margin, "margin")
        self.threshold, self.similarity, self.pseudo_classes = threshold, similarity, pseudo_classes
        self.pseudo, self.entropy, self.diverse = pseudo, entropy, diverse
        self.temperature = check_temperature(temperature)

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """The head that sorts pictures and captions into pseudo-classes."""
        last = nn.Linear(HIDDEN, self.pseudo_classes, bias=False)
        return {"pseudo": nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), last)}

    def build(self, nets: list[Net]) -> None:
        """Put a caption for each class in place of each network's classifier."""
        for net in nets:
            net.classify = Captions(net.body.dim, net.classify.out_features, self.temperature)
        super().build(nets)

    def setup(self, site: Site) -> None:
        """Trust all pairs; of both networks: match, doubt, borrowed class and its sigma (2, N), bank (2, N, K)."""
        super().setup(site)
        self.trusted = site.trusted
        n, device = len(site.labels), site.labels.device
        self.register_buffer("match", torch.ones(self.networks, n, device=device))
        self.register_buffer("doubted", torch.zeros(self.networks, n, dtype=torch.bool, device=device))
        self.register_buffer("bank", torch.full((self.networks, n, self.pseudo_classes), torch.nan, device=device))
        self.register_buffer("borrowed", site.labels.repeat(self.networks, 1))
        self.register_buffer("likeness", torch.zeros(self.networks, n, device=device))

    def borrows(self, epoch: int) -> bool:
        """Do mismatched pairs take part in an epoch?"""
        return epoch >= max(self.warmup, self.borrow * self.epochs)

    def mismatched(self, k: int) -> Tensor:
        """(N,) bool: is a pair mismatched for network k? The other network says so; none where it says all."""
        found = self.doubted[1 - k]
        return torch.zeros_like(found) if bool(found.all()) else found

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """Trusted pairs, again and again until there are N; later a trusted and a mismatched one in turns."""
        if self.borrows(epoch):
            return in_turns(~self.mismatched(k), rng)
        return kept_only(self.mismatched(k), rng)

    def step(self, k: int, batch: Batch) -> Step:
        """Hinges and pseudo-classes of trusted pairs, hinges of mismatched pairs with borrowed captions."""
        net, y = self.nets[k], batch.y
        h = net.body.features(batch.weak())
        logits = net.classify(h)
        s, log_p = logits * self.temperature, sort(net, h)
        captions = pseudo_classes(sort(net, net.classify.weight.detach()).detach())
        if batch.epoch < self.warmup or self.borrows(batch.epoch):
            write(self.bank[k], batch.rows, log_p.detach())
        wrong = self.mismatched(k)[batch.rows]
        margin = soft_margin(self.match[1 - k, batch.rows], self.margin)
        terms = {
            "triplet": triplets(s[~wrong], y[~wrong], margin[~wrong], hardest=batch.epoch >= self.warmup),
            "pseudo-class": F.nll_loss(log_p[~wrong], captions[y[~wrong]]),
            "entropy": spread(log_p[~wrong], diverse=self.diverse),
        }
        total = terms["triplet"] / self.margin
        total = total + self.pseudo * (terms["pseudo-class"] - self.entropy * terms["entropy"])
        if bool(wrong.any()):
            p = log_p.detach().exp()
            likeness, donor = donors(p[wrong], p[~wrong])
            likeness = torch.where(likeness >= self.similarity, likeness, 0.0)
            borrowed = y[~wrong][donor]
            write(self.borrowed[k], batch.rows[wrong], borrowed)
            write(self.likeness[k], batch.rows[wrong], likeness)
            terms["borrowed"] = triplets(s[wrong], borrowed, soft_margin(likeness, self.margin), hardest=True)
            total = total + terms["borrowed"] / self.margin
        return Step(total, logits, {name: float(term.detach()) for name, term in terms.items()})

    def look(self, k: int, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, C), and logarithms of the probabilities of pseudo-classes (B, K)."""
        net = self.nets[k]
        h = net.body.features(x)
        return {"logits": net.classify(h), "pseudo": sort(net, h)}

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Trust and match by both networks; flagged where both doubt."""
        if epoch < self.warmup - 1:
            return super().divide(looks, epoch)
        one, two = (self.judge(k, look["logits"] * self.temperature, look["pseudo"]) for k, look in enumerate(looks))
        return merged(one, two)

    def judge(self, k: int, s: Tensor, log_p: Tensor) -> Division:
        """Renew what network k trusts, from similarities (N, C) and pseudo-class log-probabilities (N, K)."""
        losses, note = pair_losses(s, self.labels, self.margin).float().cpu().numpy(), ""  # rounded: equal stays equal
        try:
            noisy = fit_mixture(losses).monotone_posterior(losses)
            trusted = 1.0 - noisy > self.threshold
            if trusted.all():
                trusted[np.argsort(-losses, kind="stable")[: max(1, len(losses) // 100)]] = False
                note = "no pair was hard to believe, so the hundredth with the largest losses is doubted"
        except InputError as error:
            noisy, trusted, note = np.zeros(len(losses)), np.ones(len(losses), bool), str(error)
        if self.trusted is not None:
            known = self.trusted.cpu().numpy()
            noisy, trusted = np.where(known, 0.0, noisy), trusted | known
        moved = divergence(log_p.double().cpu().numpy(), self.bank[k].double().cpu().numpy())
        moved = np.where(np.isnan(moved), np.nanmax(moved, initial=0.0), moved)
        unstable = np.zeros(len(moved))
        if np.ptp(moved) > 0:
            unstable = fit_mixture(moved).monotone_posterior(moved)
        scores = torch.as_tensor(mismatch(noisy, unstable, trusted)).to(self.match)
        doubted = ~torch.as_tensor(trusted, device=scores.device)
        self.match[k], self.doubted[k] = 1 - scores, doubted
        label = torch.where(doubted, self.borrowed[k], self.labels)
        return Division(
            doubted, scores, "pc2", torch.where(doubted, self.likeness[k], self.match[k]),
            targets=F.one_hot(label, self.classes).float(), note=note,
        )  # fmt: skip


class Captions(nn.Linear):
    """A learnt embedding of each class; gives cosines with features (B, F), divided by a temperature: (B, C)."""

    def __init__(self, dim: int, classes: int, temperature: float) -> None:
        super().__init__(dim, classes, bias=False)
        self.temperature = temperature

    def forward(self, h: Tensor) -> Tensor:
        """Logits of features."""
        return cosines(h, self.weight) / self.temperature


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) of the rows of a and b, in float32 or wider: in half precision, donors that are nearly alike would tie."""
    with torch.autocast(a.device.type, enabled=False):
        return unit(a) @ unit(b).T


def sort(net: Net, x: Tensor) -> Tensor:
    """Logarithms of the probabilities of pseudo-classes (B, K), of features or captions (B, F) brought to one scale."""
    return log_probs(net.heads["pseudo"](unit(x) * math.sqrt(x.shape[1])))


def pseudo_classes(log_p: Tensor) -> Tensor:
    """(C,) pseudo-class of each caption, from (C, K): the one that is likelier for it than for all captions."""
    return (log_p - log_p.logsumexp(0)).argmax(1)


def soft_margin(y: Tensor, margin: float) -> Tensor:
    """Margins (B,) of pairs that match by y (B,), cut to 0 to 1."""
    return margin * (10 ** y.clamp(0, 1) - 1) / 9


def hinges(s: Tensor, y: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """What wrong captions (row's picture, column's caption) and wrong pictures cost, both (B, B), 0 within a class.

    Args:
        s: (B, B) similarity of each picture (row) and each caption (column).
        y: (B,) classes of the captions.
        margin: (B,) of the pair whose own similarity, on the diagonal, is to be larger.
    """
    bar, same = margin - s.diagonal(), y[:, None] == y
    captions, pictures = (side.clamp(min=0).masked_fill(same, 0.0) for side in (s + bar[:, None], s + bar))
    return captions, pictures


def triplets(s: Tensor, y: Tensor, margin: Tensor, *, hardest: bool) -> Tensor:
    """Mean over pairs of both their hinges, each with the hardest negative or the mean over the batch.

    Args:
        s: (B, C) similarity of each picture and the caption of each class.
        y: (B,) classes of the pairs' captions.
        margin: (B,).
        hardest: else the mean.
    """
    captions, pictures = hinges(s[:, y], y, margin)
    if hardest:
        return (captions.amax(1) + pictures.amax(0)).mean()
    return (captions.mean(1) + pictures.mean(0)).mean()


def pair_losses(s: Tensor, y: Tensor, margin: float) -> Tensor:
    """(N,) what each pair costs as the positive, all others in the dataset being the batch.

    The mean of both hinges over the pair's negatives, times (N-1)/N: where each caption is another, that is the sum
    over N. Sorted similarities make it N log N for each class.

    Args:
        s: (N, C) similarity of each picture and the caption of each class.
        y: (N,) classes.
        margin: of all pairs.
    """
    s, n = s.double(), len(y)
    count, own = torch.bincount(y, minlength=s.shape[1]).double(), s.gather(1, y[:, None])
    found = (margin + s - own).clamp(min=0).scatter(1, y[:, None], 0.0) @ count
    for c in range(s.shape[1]):
        mine = y == c
        others, bar = s[~mine, c].sort(descending=True).values, own[mine, 0] - margin
        sums = F.pad(others.cumsum(0), (1, 0))
        above = torch.searchsorted(-others, -bar)
        found[mine] += sums[above] - above * bar
    return found / (n - count[y]).clamp(min=1) * (n - 1) / n


def spread(log_p: Tensor, *, diverse: bool) -> Tensor:
    """Entropy of the mean of distributions (B, K), or the mean of their entropies."""
    return entropy((log_p.logsumexp(0) - math.log(len(log_p)))[None] if diverse else log_p)


def donors(p: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
    """For each of p (B, K) the largest cosine with one of ``trusted`` (M, K), and which that is: both (B,)."""
    found = cosines(p, trusted).max(1)
    return found.values, found.indices
