"""An energy model of the features, trained by maximum likelihood (MECO): what is improbable, is foreign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.gaussian import Features, blocks, fit_gaussians, fitted_rows
from ..base.mixture import fit_mixture
from ..base.neighbors import Neighbors
from ..base.threads import blas_threads
from ..card import MethodCard
from .base import Array, Detector, Labels

INFLATION = 1.5
"""Variance of the noise, where that of the features is 1."""

BATCH, NOISE = 1024, 2048
"""Samples and noise samples of a step."""

CLIP = 0.999
"""Quantile at which the log-weights of the noise are cut."""

RATE = 0.01
"""Step size of Adam."""

PRIOR = 4.0
"""Precision of a Gaussian prior on the network's weights: with few samples, little is learnt beyond a Gaussian."""

PHASES = 10
"""Before each but the first, the lowest f are trimmed anew."""

DRAWS = 2**16
"""Noise samples that measure Z in the end."""

LARGE = 50_000
"""Samples to train on; more are drawn from."""

WIDEST = 64
"""Directions above which the weights of the noise vary too much."""

ROWS = 5
"""Samples that one direction needs at least."""


class EnergyModel(Detector):
    r"""A density of the features that nobody has normalised, from the samples that their neighbours confirm.

    With x the leading principal coordinates of unit features, whitened,

    .. math:: s_i = \log Z - f(x_i), \qquad f(x) = -\tfrac12 \lVert Lx\rVert^2 + b^\top x + v^\top \tanh(Wx + c),
        \qquad Z = \int e^{f}

    f starts as the Gaussian of the data and is trained by maximum likelihood. Noise y is drawn from q, that Gaussian
    with its covariance inflated to 1.5; a moving average u follows the mean of :math:`w_j = e^{f(y_j)}/q(y_j)`, and the
    gradient is :math:`-\mathrm{mean}\,\nabla f(x_i) + \mathrm{mean}\,(w_j/u)\,\nabla f(y_j)`. Without the network
    this is a Mahalanobis distance. The square keeps f low far away from everything. The largest weights are cut, so u
    falls short of Z; the Z of the scores is one more mean, over fresh noise.

    Likelihood takes foreign samples for data too once there are many: trained on everything it finds only lonely ones.
    So it is trained on seeds (in each class the 30 % whose 10 nearest neighbours carry the same label most often), and
    the least likely few per cent of them are left out, chosen anew nine times on the way. Labels play no other part.
    What was trained on scores a little lower than its like; with few samples a prior keeps f near the Gaussian.

    Flags: a mixture of two on :math:`\sqrt{2(s - \min s)}`, a distance, where s is like a squared one. The paper gives
    no rule. The batches are every k-th sample in the order of the first coordinate, so that row order decides nothing.

    Source: Jiang, Qin, Wu, Chen, Yang, Zhang, ICML 2023, arXiv 2306.07485; network, noise and step sizes are ours.

    Args:
        fit_on: ``seeds``; ``trimmed``, samples nearest to their own class mean; or ``plain``, all samples.
        dim: principal directions, 1 to 64; fewer, where the samples to train on do not suffice.
        hidden: units of the network; 0 = none, a Gaussian.
        steps: of the training.
        gamma: share of u that one step makes, above 0 and up to 1 (no memory).
        trim: share of the samples to train on that is left out.
        threshold: posterior above which a sample is flagged.
        seed: of the network, the noise, the mixture, and what is drawn of more than 50,000 samples to train on.
    """

    card = MethodCard(
        slug="energy-model",
        name="Energy model (MECO-style)",
        paper="Learning Unnormalized Statistical Models via Compositional Optimization "
        "(Jiang, Qin, Wu, Chen, Yang, Zhang; ICML 2023)",
        arxiv="2306.07485",
        year=2023,
        formula=r"s_i = \log Z - f(x_i),\quad \nabla\log Z \approx \tfrac1m\textstyle\sum_j "
        r"\frac{e^{f(y_j)}}{q(y_j)\,u}\nabla f(y_j)",
        summary="Learns where in feature space pictures are to be expected, from those that their neighbours confirm, "
        "and suspects what lies elsewhere.",
        fails_when="Foreign pictures of one kind were always filed under the same class: then they are expected. Or "
        "the samples are few, or foreign pictures differ in directions that the others hardly use.",
        finds={"ood"},
    )

    def __init__(
        self,
        fit_on: str = "seeds",
        dim: int = 32,
        hidden: int = 64,
        steps: int = 300,
        gamma: float = 0.1,
        trim: float = 0.05,
        threshold: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.fit_on = fit_on
        self.dim = dim
        self.hidden = hidden
        self.steps = steps
        self.gamma = gamma
        self.trim = trim
        self.threshold = threshold
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> EnergyModel:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels; they only say which samples to train on.
            neighbors: cosine neighbours, at least 10 of them; they choose the seeds.

        Raises:
            InputError: a parameter is out of range, no class has two samples, or all samples to train on are the same.
        """
        self._check()
        rows = fitted_rows(X, y, self.fit_on, None, neighbors, unit=True)
        rng, notes = np.random.default_rng(self.seed), []
        if len(rows) > LARGE:
            notes.append(f"trained on {LARGE:,} samples drawn from {len(rows):,}")
            rows = np.sort(rng.choice(rows, LARGE, replace=False))
        with blas_threads(1):
            bearable = max(1, len(rows) // ROWS)
            if bearable < min(self.dim, X.shape[1]):
                notes.append(f"{len(rows):,} samples to train on bear {bearable} directions, not {self.dim}")
            centre, axes = whitening(X, rows, min(self.dim, bearable))

            def coordinates(block: Array) -> Array:
                return np.asarray((block - centre) @ axes)

            x = np.concatenate([coordinates(block) for _, block in blocks(X, rows, unit=True)])
            model = Model(axes.shape[1], self.hidden, rng)
            losses, effective = train(model, x, steps=self.steps, gamma=self.gamma, trim=self.trim, rng=rng)
            log_z = log_normaliser(model, rng)
            self.scores_ = np.empty(len(X))
            for where, block in blocks(X, unit=True, width=self.hidden):
                self.scores_[where] = log_z - model(coordinates(block))
            gaussian = x.shape[1] / 2 * np.log(2 * np.pi) + np.einsum("nd,nd->n", x, x).mean() / 2
            gain = float(gaussian - (log_z - model(x).mean()))
        distance = np.sqrt(2 * (self.scores_ - self.scores_.min()))
        self.flags_ = fit_mixture(distance, seed=self.seed).monotone_posterior(distance) > self.threshold
        if gain < -1:  # trimming alone costs less
            notes.append(
                "the model found the samples less likely than one Gaussian does: take a smaller dim or more steps"
            )
        self.info_ = {
            "fit_on": self.fit_on,
            "fitted": len(rows),
            "dim": axes.shape[1],
            "log_z": log_z,
            "effective_noise": effective,
            "losses": losses,
            "gain": gain,
            "threshold": float(self.scores_[self.flags_].min()) if self.flags_.any() else None,
        }
        if notes:
            self.info_["note"] = "; ".join(notes)
        return self

    def _check(self) -> None:
        slug = self.card.slug
        if not 1 <= self.dim <= WIDEST:
            raise InputError(f"{slug}: dim must be from 1 to {WIDEST}, got {self.dim}")
        if self.hidden < 0:
            raise InputError(f"{slug}: hidden must be 0 (a Gaussian) or more, got {self.hidden}")
        if self.steps < 1:
            raise InputError(f"{slug}: steps must be at least 1, got {self.steps}")
        if not 0 < self.gamma <= 1:
            raise InputError(f"{slug}: gamma must be above 0 and up to 1, got {self.gamma}")
        if not 0 <= self.trim <= 0.5:
            raise InputError(f"{slug}: trim must be a share up to .5, got {self.trim}")


class Model:
    """f(x) = -|Lx|^2/2 + b.x + v.tanh(Wx + c), the negative energy; it starts as a standard Gaussian.

    Args:
        dim: length of x.
        hidden: units of the network.
        rng: draws W and c.

    Attributes:
        parameters: L (d, d), b (d,), W (h, d), c (h,), v (h,).
    """

    PENALISED = (2, 4)

    def __init__(self, dim: int, hidden: int, rng: np.random.Generator) -> None:
        self.parameters: list[Array] = [
            np.eye(dim),
            np.zeros(dim),
            rng.normal(size=(hidden, dim)) / np.sqrt(dim),
            rng.normal(size=hidden) / 2,
            np.zeros(hidden),
        ]

    def __call__(self, x: Array) -> Array:
        """(n,) of rows (n, d)."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Callable[[Array], list[Array]]]:
        """f (n,) of rows (n, d), and what gives the gradient of its sum, weighted by (n,), in every parameter."""
        L, b, W, c, v = self.parameters
        bent, unit = x @ L.T, np.tanh(x @ W.T + c)

        def gradient(weight: Array) -> list[Array]:
            back = weight[:, None] * v * (1 - unit**2)
            return [-(weight[:, None] * bent).T @ x, weight @ x, back.T @ x, back.sum(axis=0), weight @ unit]

        return x @ b + unit @ v - np.einsum("nd,nd->n", bent, bent) / 2, gradient


def whitening(X: Features, rows: Labels, dim: int) -> tuple[Array, Array]:
    """Mean (D,) and axes (D, d), d <= dim, so that (x - mean) @ axes has covariance 1, of unit rows.

    The axes are the principal ones, each turned to where the third moment is positive: the rows alone decide.

    Raises:
        InputError: the rows do not differ.
    """
    if len(rows) < 2:
        raise InputError("energy-model: at least two samples to train on are needed")
    fitted = fit_gaussians(X, np.zeros(len(X), np.int64), rows, unit=True)
    values, vectors = np.linalg.eigh(fitted.covariance)
    values, vectors = values[::-1][:dim], vectors[:, ::-1][:, :dim]
    used = values > 1e-6 * values[0]
    if not used.any():
        raise InputError("energy-model: the samples to train on are all the same; there is no density to learn")
    axes = vectors[:, used] / np.sqrt(values[used])
    third = sum((((block - fitted.means[0]) @ axes) ** 3).sum(axis=0) for _, block in blocks(X, rows, unit=True))
    return fitted.means[0], axes * np.where(np.asarray(third) < 0, -1.0, 1.0)


def train(
    model: Model, x: Array, *, steps: int, gamma: float, trim: float, rng: np.random.Generator
) -> tuple[list[float], float]:
    """Raise the likelihood of whitened rows (n, d) by MECO's gradient and Adam; the step size falls to 0.

    Returns:
        The mean of log u - f in each tenth of the steps; how many of the noise samples of the last one count.
    """
    n, d = x.shape
    x = x[np.argsort(x[:, 0], kind="stable")]
    kept, log_u = x, -np.inf
    first, second = ([np.zeros_like(p) for p in model.parameters] for _ in range(2))
    losses: list[list[float]] = [[] for _ in range(PHASES)]
    phase, effective = 0, 0.0
    for t in range(steps):
        if phase < (phase := t * PHASES // steps):
            f = model(x)
            kept = x[f >= np.quantile(f, trim)]
        stride = max(1, len(kept) // BATCH)
        f, data = model.forward(kept[t % stride :: stride])
        y, log_q = draw(NOISE, d, rng)
        g, noise = model.forward(y)
        log_w = g - log_q
        log_w = np.minimum(log_w, np.quantile(log_w, CLIP))
        log_u = track(log_u, log_w, gamma)
        weight = np.exp(log_w - log_u) / NOISE
        effective = float(weight.sum() ** 2 / (weight**2).sum())
        losses[phase].append(float(log_u - f.mean()))
        rate = RATE * min(1.0, 2 * (steps - t) / steps)
        gradients = zip(data(np.full(len(f), 1 / len(f))), noise(weight), strict=True)
        for k, (up, down) in enumerate(gradients):
            slope = down - up + (PRIOR / n * model.parameters[k] if k in Model.PENALISED else 0.0)
            first[k] = 0.9 * first[k] + 0.1 * slope
            second[k] = 0.999 * second[k] + 0.001 * slope**2
            step = first[k] / (1 - 0.9 ** (t + 1)) / (np.sqrt(second[k] / (1 - 0.999 ** (t + 1))) + 1e-8)
            model.parameters[k] = model.parameters[k] - rate * step
    return [float(np.mean(part)) for part in losses if part], effective


def draw(m: int, d: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Noise (m, d) and its log-density (m,)."""
    y = rng.standard_normal((m, d))
    return np.sqrt(INFLATION) * y, -(np.einsum("nd,nd->n", y, y) + d * np.log(2 * np.pi * INFLATION)) / 2


def log_normaliser(model: Model, rng: np.random.Generator) -> float:
    """log Z from fresh noise, no weight cut."""
    y, log_q = draw(DRAWS, len(model.parameters[0]), rng)
    return track(-np.inf, model(y) - log_q, 1.0)


def track(log_u: float, log_w: Array, gamma: float) -> float:
    """The moving average of Z with one more mean of weights, in logs; -inf = there was none before."""
    top = log_w.max()
    log_g = float(top + np.log(np.exp(log_w - top).mean()))
    if gamma == 1 or log_u == -np.inf:
        return log_g
    return float(np.logaddexp(np.log1p(-gamma) + log_u, np.log(gamma) + log_g))
