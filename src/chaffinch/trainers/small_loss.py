"""The small-loss rule alone: what costs much is left out."""

from __future__ import annotations

from ..card import MethodCard
from .alternate import Alternate


class SmallLossOnly(Alternate):
    r"""Mixup on the samples of small loss, in every epoch; see `Alternate`.

    Source: the rule is DivideMix's (Li, Socher, Hoi, ICLR 2020, arXiv 2002.07394); alone it is an ablation of Albert,
    Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528.

    Args:
        alpha: of mixup.
        threshold: posterior above which a sample is flagged.
        warmup: epochs of plain mixup first, at least 1.
    """

    card = MethodCard(
        slug="small-loss",
        name="Small loss only",
        paper="DivideMix: Learning with Noisy Labels as Semi-supervised Learning (Li, Socher, Hoi; ICLR 2020)",
        arxiv="2002.07394",
        year=2020,
        formula=r"\text{flags}_{e+1} = [P(\mathrm{high}\mid -\log p_{i,y_i}) > t]",
        summary="Right labels are learnt first, so a sample whose label costs much after an epoch is left out of the "
        "next.",
        fails_when="Rare and hard clean pictures cost much too, and are left out; foreign pictures that the network "
        "has learnt by heart cost little, and stay.",
    )
    turns = ("small-loss",)

    def __init__(self, alpha: float = 1.0, threshold: float = 0.95, warmup: int = 1) -> None:
        super().__init__(alpha, threshold, warmup=warmup)
