"""Cross-entropy with label smoothing, and what all losses of a classification head share."""

from __future__ import annotations

from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, wide


def log_probs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all classes (B, V, C), and of the given labels (B, V), in float32 or wider."""
    assert batch.y is not None
    log_p = wide(batch.z).log_softmax(-1)
    own = batch.y[:, None, None].expand(-1, log_p.shape[1], 1)
    return log_p, log_p.gather(-1, own).squeeze(-1)


def mean_of_views(loss: Tensor, log_own: Tensor, **parts: float) -> LossOut:
    """The loss of the batch from that of each view (B, V); every view counts as a picture of its own.

    Args:
        loss: (B, V).
        log_own: (B, V) log-probability of the given label; its mean probability is a part.
        parts: further ones.
    """
    per_sample = loss.mean(1)
    return LossOut(per_sample.mean(), per_sample.detach(), {"p_y": float(log_own.detach().exp().mean()), **parts})


class CrossEntropy(ContrastiveLoss):
    r"""Cross-entropy of a linear classifier on the features, with smoothed labels if wanted.

    With :math:`p = \operatorname{softmax}(z)` of C logits and the given label y,

    .. math:: \ell = -\sum_c t_c \log p_c, \qquad t = (1-\varepsilon)\,e_y + \varepsilon/C, \qquad
        \frac{\partial \ell}{\partial z} = p - t

    Smoothing 0 is plain cross-entropy, 1 ignores the label, and a negative one sharpens it (the loss can then be
    below 0). With several views, the loss is the mean over them.

    Source: label smoothing by Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv 1512.00567.

    Args:
        smoothing: epsilon, at most 1; share of the target that is spread evenly over all classes, 0.1 in the paper.
    """

    card = MethodCard(
        slug="ce",
        name="Cross-entropy",
        paper="Rethinking the Inception Architecture for Computer Vision (label smoothing; "
        "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna; CVPR 2016)",
        arxiv="1512.00567",
        year=2016,
        formula=r"\ell = -\sum_c t_c \log p_c,\qquad t = (1-\varepsilon)\,e_y + \varepsilon/C",
        summary="A classifier learns the given labels; each picture is pulled towards its label's class and away from "
        "all others. Pictures the classifier gets wrong pull hardest, so late in training the wrong labels lead and "
        "are learnt by heart.",
        fails_when="Many labels are wrong and the training is long: mislabelled pictures end up among those of their "
        "wrong label. Smoothing slows this down but does not prevent it.",
    )
    needs = frozenset({"logits", "y"})
    views = 1

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not -float("inf") < smoothing <= 1:
            raise InputError(f"smoothing must be finite and at most 1, got {smoothing}")
        self.smoothing = float(smoothing)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, C) logits and (B,) labels."""
        log_p, log_own = log_probs(batch)
        loss = -(1 - self.smoothing) * log_own - self.smoothing * log_p.mean(-1)
        return mean_of_views(loss, log_own)
