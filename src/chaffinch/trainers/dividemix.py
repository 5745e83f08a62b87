"""DivideMix: two networks divide the samples for one another and learn as from a half-labelled set."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..card import MethodCard
from ..losses.base import check_temperature, check_weights
from .base import Batch, Division, Site, Step, Trainer, kept_only, log_probs
from .mixing import balance_penalty, draw_mix, sharpen, weighted_ce
from .pls_lsa_plus import merged


class DivideMix(Trainer):
    r"""Samples of small loss keep their label as far as it is believed; the labels of all others are guessed.

    - Warm-up: cross-entropy on all samples, if asked for plus :math:`\sum_c p_c \log p_c`, which keeps the network
      unsure where wrong labels always go to the same class.
    - Divide, after each epoch from the last of the warm-up on: w is the posterior of the small component of a network's
      losses on the plain pictures, :math:`w_i = P(\mathrm{low} \mid -\log p_{i,y_i})`. A sample counts as labelled for
      a network if the *other* one says w > t.
    - Guess, from two weak views, sharpened to the power 1/T:

      .. math:: q_i \propto \begin{cases} \big(w_i y_i + (1-w_i)\, \bar p_i\big)^{1/T} & \text{labelled, } \bar p
          \text{ of the network itself}\\ \big(\tfrac12 (\bar p^1_i + \bar p^2_i)\big)^{1/T} & \text{unlabelled, both
          networks} \end{cases}

    - MixMatch: all views of a batch are mixed with one another, one lambda from Beta(a, a), the larger of it and its
      complement; mixtures that are mostly a labelled sample are X, the others U:

      .. math:: L = \frac{1}{|X|} \sum_X CE(x^m, q^m) + \lambda_u(e) \frac{1}{|U| C} \sum_U \Vert p(x^m) - q^m \Vert^2
          + \sum_c \frac1C \log\frac{1/C}{\bar p_c}, \qquad \lambda_u(e) = \lambda_u \min(1, (e - \text{warmup}) /
          \text{ramp})

    Half of every batch is labelled and half is not, so a small half is seen several times in an epoch, and not all of a
    large one. A sample is reported as flagged if both networks doubt it, with the mean of 1 - w as its score.
    Predictions are the mean of both networks' logits.

    The paper's lambda_u is 0 for 20 % and 25 for 50 % symmetric noise on CIFAR-10, 0 for asymmetric noise, and 25 to
    150 on CIFAR-100: it has to be chosen. Its warm-up of 10 epochs (30 on CIFAR-100) and ramp of 16 are of 300 longer
    epochs; the defaults here suit some 14 to 60 epochs of 12,000 samples. What the networks cannot tell yet when the
    warm-up ends is doubted, and stays so: from scratch it must be long enough. The learning rate is a cosine; the
    paper's, a tenth from half the epochs on, holds on to early doubts when epochs are few (14 epochs on 1,200
    handwritten digits, 40 % wrong labels: 88 % right against 94 %, mixup 90 %).

    Differs from the released code: w never falls again towards the very smallest losses, outlying losses are cut off
    before they are scaled, the network's own guesses come from one pass over all views of the batch, and where one part
    is empty the samples are all taken as the other; if nothing is believed, all count as labelled with their small w.

    Source: Li, Socher, Hoi, ICLR 2020, arXiv 2002.07394.

    Args:
        warmup: epochs of plain cross-entropy first, at least 1.
        threshold: t, belief above which a sample keeps its label.
        temperature: T; guesses are sharper the lower it is.
        alpha: a, of mixup.
        lambda_u: weight of the unlabelled term after the ramp.
        ramp: epochs over which it grows from 0; 0 starts at once.
        balance: weight of the penalty on predictions that leave classes out.
        penalty: weight of the confidence penalty in the warm-up; 1 for wrong labels that always go to the same class.
        remember: how many epochs' scaled losses are averaged before they are divided; 5 for very much noise.
    """

    card = MethodCard(
        slug="dividemix",
        name="DivideMix",
        paper="DivideMix: Learning with Noisy Labels as Semi-supervised Learning (Li, Socher, Hoi; ICLR 2020)",
        arxiv="2002.07394",
        year=2020,
        formula=r"L = L_X + \lambda_u L_U + \sum_c \tfrac1C \log\frac{1/C}{\bar p_c},\qquad"
        r" q_i \propto \begin{cases} (w_i y_i + (1-w_i)\,\bar p_i)^{1/T} & w_i > t\\"
        r" (\tfrac12(\bar p^1_i + \bar p^2_i))^{1/T} & w_i \le t \end{cases}",
        summary="Two networks learn side by side, and each says which labels the other should believe. What is not "
        "believed is treated as unlabelled: both networks guess its label together, and everything is mixed with "
        "everything.",
        fails_when="Foreign pictures get a guessed label too and are learnt as if they belonged to a class; rare and "
        "hard clean pictures cost much and lose their label. The weight of the unlabelled term has to fit the amount "
        "of noise, classes of very different size suffer from the balance penalty, and it costs several times as much "
        "as plain training.",
    )
    networks = 2

    clean: Tensor
    guess: Tensor
    past: Tensor

    def __init__(
        self,
        warmup: int = 6,
        threshold: float = 0.5,
        temperature: float = 0.5,
        alpha: float = 4.0,
        lambda_u: float = 25.0,
        ramp: int = 4,
        balance: float = 1.0,
        penalty: float = 0.0,
        remember: int = 1,
    ) -> None:
        super().__init__()
        if warmup < 1:
            raise InputError(f"warmup must be at least 1 epoch, got {warmup}")
        if not 0 < threshold < 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        if remember < 1:
            raise InputError(f"remember must be at least 1 epoch, got {remember}")
        check_weights(alpha=alpha, lambda_u=lambda_u, ramp=ramp, balance=balance, penalty=penalty)
        self.warmup, self.threshold, self.remember = warmup, threshold, remember
        self.temperature, self.alpha = check_temperature(temperature), alpha
        self.lambda_u, self.ramp, self.balance, self.penalty = lambda_u, ramp, balance, penalty

    def setup(self, site: Site) -> None:
        """Believe all labels: belief (2, N), guesses (2, N, C) and scaled losses (2, epochs, N) of both networks."""
        super().setup(site)
        self.steps, self.trusted = site.steps, site.trusted
        n = len(site.labels)
        self.register_buffer("clean", torch.ones(self.networks, n, device=site.labels.device))
        self.register_buffer("guess", F.one_hot(site.labels, site.classes).float().repeat(self.networks, 1, 1))
        self.register_buffer("past", torch.full((self.networks, self.remember, n), torch.nan).to(site.labels.device))

    def labelled(self, k: int) -> Tensor:
        """(N,) bool: does a sample keep its label for network k? The other network says so; all where it says none."""
        found = self.clean[1 - k] > self.threshold
        return found if bool(found.any()) else torch.ones_like(found)

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """Every sample once in the warm-up, then a labelled and an unlabelled one in turns."""
        if epoch < self.warmup:
            return super().visit(k, epoch, rng)
        return in_turns(self.labelled(k), rng)

    def step(self, k: int, batch: Batch) -> Step:
        """Cross-entropy in the warm-up, then guesses and MixMatch."""
        net, y = self.nets[k], F.one_hot(batch.y, self.classes).float()
        if batch.epoch < self.warmup:
            logits = net(batch.weak())
            total = weighted_ce(logits, y, torch.ones_like(y[:, 0]))
            if self.penalty:
                total = total - self.penalty * entropy(logits)
            return Step(total, logits)
        labelled = self.labelled(k)[batch.rows]
        views = torch.cat([batch.weak(), batch.weak()])
        both = labelled.repeat(2)
        with torch.no_grad():
            said = torch.stack(log_probs(net(views)).chunk(2)).logsumexp(0) - math.log(2)
            p = said.exp()
            targets = co_refine(p, y, self.clean[1 - k, batch.rows], self.temperature)
            if not bool(labelled.all()):
                self.nets[1 - k].eval()
                other = torch.stack(log_probs(self.nets[1 - k](views[~both])).exp().chunk(2)).mean(0)
                targets[~labelled] = sharpen((p[~labelled] + other) / 2, 1 / self.temperature)
        write(self.guess[k], batch.rows, targets)
        mix = draw_mix(len(views), self.alpha, batch.rng)
        logits, mixed = net(mix(views)), mix(targets.repeat(2, 1))
        supervised = weighted_ce(logits[both], mixed[both], torch.ones_like(mixed[both, 0]))
        unsupervised = squared_error(logits[~both], mixed[~both])
        penalty = balance_penalty(logits)
        scale = ramped(batch.step / self.steps, self.lambda_u, self.warmup, self.ramp)
        total = supervised + scale * unsupervised + self.balance * penalty
        named = {"labelled": supervised, "unlabelled": unsupervised, "balance": penalty}
        return Step(total, said, {name: float(part.detach()) for name, part in named.items()})

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Belief of both networks; flagged where both doubt."""
        if epoch < self.warmup - 1:
            return super().divide(looks, epoch)
        one, two = (self.believe(k, look["logits"]) for k, look in enumerate(looks))
        return merged(one, two)

    def believe(self, k: int, logits: Tensor) -> Division:
        """Renew what network k believes, from logits (N, C) of the plain pictures."""
        losses = F.cross_entropy(logits.double(), self.labels, reduction="none").cpu().numpy()
        note = ""
        try:
            scaled = torch.as_tensor(fit_mixture(losses).scaled(losses)).to(self.past)
            self.past[k] = torch.cat([self.past[k, 1:], scaled[None]])
            values = self.past[k].nanmean(0).double().cpu().numpy()
            high = torch.as_tensor(fit_mixture(values).monotone_posterior(values)).to(self.clean)
        except InputError as error:
            high, note = torch.zeros_like(self.clean[k]), str(error)
        if self.trusted is not None:
            high = high.masked_fill(self.trusted, 0.0)
        self.clean[k] = 1 - high
        flags = self.clean[k] <= self.threshold
        return Division(flags, high, "small-loss", targets=self.guess[k].clone(), note=note)


def in_turns(first: Tensor, rng: torch.Generator) -> Tensor:
    """(N,) positions, one where ``first`` (N,) is true and one where it is not in turns.

    Each part is in random order, again and again; so half of any stretch is of either part. Where one part is empty,
    every position once.
    """
    n = len(first)
    if bool(first.all()) or not bool(first.any()):
        return torch.randperm(n, generator=rng, device=rng.device)
    order = torch.empty(n, dtype=torch.int64, device=rng.device)
    order[::2] = kept_only(~first, rng)[: len(order[::2])]
    order[1::2] = kept_only(first, rng)[: len(order[1::2])]
    return order


def write(memory: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write values (B, ...) into rows (B,) of a memory (N, ...); of a row that comes twice, the last value stays."""
    later = (rows[:, None] == rows).triu(1).any(1)  # without this, threads would race for the row
    memory[rows[~later]] = values[~later].to(memory.dtype)


def co_refine(p: Tensor, y: Tensor, w: Tensor, temperature: float) -> Tensor:
    """Labels y (B, C) as far as they are believed, w (B,), predictions p (B, C) for the rest, sharpened."""
    return sharpen(w[:, None] * y + (1 - w[:, None]) * p, 1 / temperature)


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples and classes of the squared error of probabilities (M, C); 0 without samples."""
    return (log_probs(logits).exp() - targets).square().sum() / max(targets.numel(), 1)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions of a batch."""
    log_p = log_probs(logits)
    return -(log_p.exp() * log_p).sum(1).mean()


def ramped(epoch: float, weight: float, warmup: int, ramp: float = 16) -> float:
    """The weight in force at an epoch (from 0, parts of epochs count): 0 in the warm-up, then growing to all of it."""
    return weight * min(max((epoch - warmup) / ramp, 0.0), 1.0) if ramp else weight * (epoch >= warmup)
