"""Cross-entropy on the given labels: the baseline that learns every wrong label by heart."""

from __future__ import annotations

from ..card import MethodCard
from ..losses.base import Batch as LossBatch
from ..losses.base import ContrastiveLoss, Sizes
from ..losses.ce import CrossEntropy as CrossEntropyLoss
from .base import Batch, Site, Step, Trainer


class ByLoss(Trainer):
    """One network that learns from one weak view of every sample, by a loss of a classification head.

    Args:
        loss: of logits and given labels; what it remembers of the samples is in the state of the training.
    """

    def __init__(self, loss: ContrastiveLoss) -> None:
        super().__init__()
        self.loss = loss

    def setup(self, site: Site) -> None:
        """Make the memory of the loss."""
        super().setup(site)
        self.loss.setup(sizes(site))

    def step(self, k: int, batch: Batch) -> Step:
        """The loss on weak views."""
        logits = self.nets[k](batch.weak())
        out = self.loss(LossBatch(z=logits[:, None], y=batch.y, index=batch.rows))
        return Step(out.total, logits, out.parts)


def sizes(site: Site) -> Sizes:
    """What a loss of logits must know; none of them asks for the shape of a picture."""
    return Sizes(site.dim, site.classes, site.classes, len(site.labels), (0, 0, 0))


class CrossEntropy(ByLoss):
    r"""Cross-entropy on weak views, with smoothed labels if wanted; nothing is detected.

    .. math:: L = -\frac1B \sum_i \sum_c t_{ic} \log p_{ic}, \qquad t_i = (1-\varepsilon)\,e_{y_i} + \varepsilon/C

    Its gradient with respect to the logits is p - t, so late in a training the wrong labels lead.

    Source: label smoothing by Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv 1512.00567.

    Args:
        smoothing: epsilon, at most 1; share of the target that is spread evenly over all classes. 0 is plain
            cross-entropy.
    """

    card = MethodCard(
        slug="ce",
        name="Cross-entropy",
        paper=CrossEntropyLoss.card.paper,
        arxiv="1512.00567",
        year=2016,
        formula=r"L = -\frac1B\sum_i\sum_c t_{ic}\log p_{ic},\qquad t_i = (1-\varepsilon)\,e_{y_i} + \varepsilon/C",
        summary="A classifier simply believes every label. It learns the right ones first, so its first epochs tell "
        "more about noise than its last; it is what every robust training is compared with.",
        fails_when="Many labels are wrong and the training is long: in the end the wrong labels are known by heart. "
        "Smoothing slows this down but does not prevent it.",
    )

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(CrossEntropyLoss(smoothing))
