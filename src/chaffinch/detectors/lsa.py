"""Linear separation of in-distribution from out-of-distribution, without ground truth (the W of LSA)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..base.neighbors import unit_rows
from ..base.threads import blas_threads, cores
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, own_label_loss, probabilities


class LinearSeparation(Detector):
    r"""A plane through feature space, fitted to the small-loss rule's own flags, finds what is foreign.

    Seeds: small-loss flags :math:`z_i = [P(\text{high} \mid -\log p_{i,y_i}) > t]`. The plane is an unpenalised,
    class-balanced logistic regression of z on standardised unit features h; it replaces the seeds:

    .. math:: s_i = w^\top h_i + b, \qquad \text{flag}_i = [s_i > 0]

    Unsupervised contrastive features make OOD almost linearly separable, so the plane corrects most errors of its
    seeds. Where the seeds are linearly separable (few samples, many dimensions) it would only repeat them; then the
    plane is cross-fitted with a penalty instead, and ``info_["note"]`` says so.

    Source: Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528.

    Args:
        seed_threshold: t, posterior above which a sample seeds the noisy side.
        collapse: agreement with the seeds from which on the plane counts as collapsed.
        seed: of the mixture and of the folds.
    """

    card = MethodCard(
        slug="lsa",
        name="Linear separation (LSA)",
        paper="An accurate detection is not all you need to combat label noise in web-noisy datasets "
        "(Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness; ECCV 2024)",
        arxiv="2407.05528",
        year=2024,
        formula=r"s_i = w^\top h_i + b,\quad "
        r"(w,b)=\arg\min \mathrm{LR}\big(h_i,\,[P(\mathrm{high}\mid -\log p_{i,y_i})>t]\big)",
        summary="Foreign pictures lie on one side of a plane in contrastive feature space; small-loss seeds, without "
        "any truth, are enough to find it.",
        fails_when="Most noise is wrong labels inside the classes (there is no foreign side to find), or simple clean "
        "pictures lie on the foreign side and are thrown away with it.",
        finds={"ood"},
    )

    def __init__(self, seed_threshold: float = 0.95, collapse: float = 0.995, seed: int = 0) -> None:
        self.seed_threshold = seed_threshold
        self.collapse = collapse
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> LinearSeparation:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            pred_probs: (N, C) out-of-sample probabilities; their losses make the seeds.

        Raises:
            InputError: all losses are equal, or features hold NaN.
        """
        losses = own_label_loss(probabilities(X, y, pred_probs), y)
        mixture = fit_mixture(losses, seed=self.seed)
        posterior = mixture.monotone_posterior(losses)
        seeds = posterior > self.seed_threshold
        self.info_ = {"seeds": int(seeds.sum()), "seed_agreement": 1.0, "cross_fitted": False}
        if seeds.all() or not seeds.any():
            self.scores_, self.flags_ = losses, seeds
            self.info_["note"] = (
                "the small-loss rule gave no seeds on one side, so no plane could be fitted; these are its own scores"
            )
            return self
        self.scores_ = separate(X, seeds)
        agreement = float(np.mean((self.scores_ > 0) == seeds))
        if agreement >= self.collapse:
            self.scores_ = separate(X, seeds, folds=5, C=0.01, seed=self.seed)
            self.info_["cross_fitted"] = bool(min(seeds.sum(), (~seeds).sum()) > 1)  # one sample makes no two folds
            self.info_["note"] = (
                f"the plane agreed with its seeds on {agreement:.1%} of the samples, so it would have added nothing; "
                f"it was {'cross-fitted' if self.info_['cross_fitted'] else 'fitted again'} with a penalty instead"
            )
        self.flags_ = self.scores_ > 0
        self.info_["seed_agreement"] = float(np.mean(self.flags_ == seeds))
        if "note" not in self.info_ and self.flags_.sum() > 1.75 * seeds.sum():  # a real foreign side flags fewer
            self.info_["note"] = (
                f"the plane flags {self.flags_.sum():,} samples where its seeds were {seeds.sum():,}: there may be no "
                "foreign side to find, only wrong labels; look at the pictures before you trust it"
            )
        return self


LARGE = 20_000_000
"""Values from which on torch finds the plane, on a GPU where there is one."""


def plane_on_device(H: Array, seeds: Flags, C: float, device: str = "") -> tuple[Array, float]:
    """The balanced logistic plane by torch's L-BFGS, on all cores or on a GPU.

    The same objective as scikit-learn's, solved to a tighter tolerance.

    Args:
        H: (N, D) standardised features.
        seeds: (N,) the two sides, neither empty.
        C: inverse penalty; infinite = none.
        device: default: a CUDA device where there is one.

    Returns:
        weights (D,) and bias.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(cores())
    X = torch.as_tensor(H, dtype=torch.float64, device=device)
    y = torch.as_tensor(seeds, dtype=torch.float64, device=device)
    shares = torch.where(y > 0, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    theta = torch.zeros(X.shape[1] + 1, dtype=torch.float64, device=device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [theta], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        loss = binary_cross_entropy_with_logits(X @ theta[:-1] + theta[-1], y, shares, reduction="sum")
        loss = loss + theta[:-1].square().sum() / (2 * C * len(y))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]
    found = theta.detach().cpu().numpy()
    return found[:-1], float(found[-1])


def separate(X: NDArray[np.floating], seeds: Flags, *, folds: int = 0, C: float = np.inf, seed: int = 0) -> Array:
    """Signed distance (N,) to the balanced logistic plane between seeds and the rest; above 0 = the seeds' side.

    Args:
        X: (N, D) features; brought to unit length, then standardised.
        seeds: (N,) the two sides.
        folds: 0 fits and scores all samples; otherwise each fold is scored by the plane of the others, on a common
            scale (unit weight vector).
        C: inverse penalty; infinite = none.
        seed: of the folds.

    Raises:
        InputError: one of the sides is empty.
    """
    from sklearn.linear_model import LogisticRegression

    if seeds.all() or not seeds.any():
        raise InputError("a plane needs seeds on both sides")
    H = unit_rows(X).astype(np.float64)
    mean, sd = H.mean(axis=0), np.maximum(H.std(axis=0), 1e-12)
    H -= mean  # in place: of a million samples it is a gigabyte
    H /= sd

    def plane(rows: Any) -> tuple[Array, float]:
        if H.size >= LARGE:
            return plane_on_device(H[rows], seeds[rows], C)
        model = LogisticRegression(C=C, max_iter=1000, class_weight="balanced")
        with warnings.catch_warnings(), blas_threads(1):
            warnings.simplefilter("ignore")  # separable seeds never converge; the caller checks the agreement
            model.fit(H[rows], seeds[rows])
        return model.coef_[0], float(model.intercept_[0])

    if not folds:
        w, b = plane(slice(None))
        return np.asarray(H @ w + b)
    from sklearn.model_selection import StratifiedKFold

    folds = int(min(folds, seeds.sum(), (~seeds).sum()))
    if folds < 2:
        w, b = plane(slice(None))
        return np.asarray((H @ w + b) / np.linalg.norm(w))
    scores = np.empty(len(H))
    for fit, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(H, seeds):
        w, b = plane(fit)
        scores[held] = (H[held] @ w + b) / np.linalg.norm(w)
    return scores
