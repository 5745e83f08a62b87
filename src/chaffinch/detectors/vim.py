"""Virtual-logit matching: what the principal directions leave over, against what the classes say."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.gaussian import Array, Features, Labels, blocks, fitted_rows
from ..base.neighbors import Neighbors
from ..base.threads import blas_threads
from ..card import MethodCard
from .base import Detector, cut

ENERGY = 0.9
"""Share of the squared length that the principal directions hold by default."""


class Vim(Detector):
    r"""The part of a sample outside the principal space counts as the logit of a further, foreign class.

    .. math:: s_i = \alpha \lVert R^\top (x_i - o) \rVert - \log \sum_c e^{z_{ic}}, \qquad o = -W^+ b

    z = xWᵀ + b are the logits of a linear head, o is where they vanish. R holds the directions that the fitted samples
    use least: eigenvectors of the second moment about o, not about the mean. :math:`\alpha` brings the residual to the
    scale of the largest logit, both in the mean over the fitted samples. The paper's probability of the virtual class
    ranks the same.

    The paper fits on clean data; here foreigners would shape the principal space and so shrink their own residual, so
    R and :math:`\alpha` come from seeds: in each class the 30 % whose 10 nearest neighbours carry the same label most
    often. The paper's 512 principal directions are too many for short features (see ``dim``). Features stay as they
    are: the head knows no others. Where the mean largest logit is not positive, each row's mean is taken off its logits
    to find :math:`\alpha`, which would turn the residual's sign otherwise.

    Source: Wang, Li, Feng, Zhang, CVPR 2022, arXiv 2203.10807.

    Args:
        dim: number of principal directions, less than D; None = what holds 90 % of the squared length, at most D/2, but
            one for each class.
        fit_on: ``seeds``; ``trimmed``, samples nearest to their own class mean; or ``plain``, all samples.
        h: share of each class to fit on; None = .3 as seeds, .5 trimmed. It must not exceed the clean share of the set.
        budget: share of samples that its own rule flags; the paper's threshold needs clean data.
    """

    card = MethodCard(
        slug="vim",
        name="Virtual logit (ViM)",
        paper="ViM: Out-Of-Distribution with Virtual-logit Matching (Wang, Li, Feng, Zhang; CVPR 2022)",
        arxiv="2203.10807",
        year=2022,
        formula=r"s_i = \alpha\,\lVert R^\top (x_i-o)\rVert - \log\sum_c e^{z_{ic}},\quad o=-W^{+}b",
        summary="Suspects pictures that use directions of feature space which the classes do not, and that no class "
        "claims.",
        fails_when="Foreign pictures vary in the same directions as the classes, or those of one kind were always "
        "filed under the same class and so become one.",
        finds={"ood"},
    )

    def __init__(
        self, dim: int | None = None, fit_on: str = "seeds", h: float | None = None, budget: float = 0.1
    ) -> None:
        self.dim = dim
        self.fit_on = fit_on
        self.h = h
        self.budget = budget

    def fit(
        self, X: Any, y: Labels, *, head: tuple[Array, Array] | None = None, neighbors: Neighbors | None = None
    ) -> Vim:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            head: weights (C, D) and biases (C,) of a linear classifier of X.
            neighbors: cosine neighbours, at least 10 of them; they choose the seeds.

        Raises:
            InputError: a parameter is out of range, the head says nothing, or all samples are the same.
        """
        if head is None:
            from ..base.linear import linear_probe

            head = linear_probe(X, y, int(y.max()) + 1).head
        W, b = np.asarray(head[0], np.float64), np.asarray(head[1], np.float64)
        rows = fitted_rows(X, y, self.fit_on, self.h, neighbors, unit=True)
        with blas_threads(1):
            o = origin(W, b)
            values, vectors = principal(X, o, rows)
            dim = _dim(values, len(W), self.dim)
            R = np.ascontiguousarray(vectors[:, dim:])
            residual, largest, total, mean = (np.empty(len(X)) for _ in range(4))
            for where, block in blocks(X, width=len(W)):
                z = block @ W.T + b  # (n, C)
                r = (block - o) @ R
                residual[where] = np.sqrt(np.einsum("nd,nd->n", r, r))
                largest[where], mean[where] = z.max(axis=1), z.mean(axis=1)
                total[where] = largest[where] + np.log(np.exp(z - largest[where][:, None]).sum(axis=1))
        self.info_ = {"dim": dim, "fit_on": self.fit_on, "fitted": len(rows), "budget": self.budget}
        notes = []
        logit = float(largest[rows].mean())
        if logit <= 0:
            logit = float((largest - mean)[rows].mean())
            notes.append(
                "the largest logits are negative in the mean, so the logits were centred to weigh the residual"
            )
        if not logit > 0:
            raise InputError("vim: head gives all classes the same logit; it has learnt nothing")
        if self.dim is not None and dim < self.dim:
            notes.append(f"dim was cut from {self.dim} to {dim}: the fitted samples leave nothing beyond")
        typical = float(residual[rows].mean())
        alpha = logit / typical if typical > 0 else 0.0
        self.scores_ = alpha * residual - total
        if np.ptp(self.scores_) < 1e-9:
            raise InputError("vim: all samples are the same to the head; no feature differs")
        self.flags_ = cut(self.scores_, self.scores_ > 0, budget=self.budget)
        self.info_["alpha"] = alpha
        self.info_["threshold"] = float(self.scores_[self.flags_].min()) if self.flags_.any() else None
        if notes:
            self.info_["note"] = "; ".join(notes)
        return self


def origin(W: Array, b: Array) -> Array:
    """The point (D,) nearest to 0 where the logits vanish, or come closest to that.

    Class rows that sum to zero make W singular; heads in single precision, nearly so. Directions below that precision
    are left out: their inverse would be noise.
    """
    return np.asarray(-np.linalg.pinv(W, rcond=max(W.shape) * float(np.finfo(np.float32).eps)) @ b)


def principal(X: Features, o: Array, rows: Labels) -> tuple[Array, Array]:
    """Eigenvalues (D,), descending, and eigenvectors (D, D) of the second moment of some rows about o."""
    moment = np.zeros((X.shape[1],) * 2)
    for _, block in blocks(X, rows):
        block -= o
        moment += block.T @ block
    values, vectors = np.linalg.eigh(moment / len(rows))
    return values[::-1], vectors[:, ::-1]


def _dim(values: Array, n_classes: int, wanted: int | None) -> int:
    """Number of principal directions; always fewer than directions that the fitted samples use."""
    if wanted is not None and not 0 <= wanted < len(values):
        raise InputError(f"vim: dim must be 0 to {len(values) - 1}, less than the number of features, got {wanted}")
    used = max(1, int(np.sum(values > 1e-12 * values[0])))
    if wanted is None:
        holding = 1 + int(np.searchsorted(np.cumsum(values), ENERGY * values.sum()))
        wanted = max(n_classes, min(len(values) // 2, holding))
    return min(wanted, used - 1)
