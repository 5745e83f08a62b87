"""Linear separation alone: the near-perfect detector that does not help."""

from __future__ import annotations

from ..card import MethodCard
from .alternate import Alternate


class LinearOnly(Alternate):
    r"""Mixup on the samples that the linear detector kept, in every epoch; see `Alternate`.

    Source: the ablation of Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528.

    Args:
        alpha: of mixup.
        threshold: posterior of the small-loss rule above which a sample seeds the plane.
        layer: whose activations the plane cuts.
        warmup: epochs of plain mixup first, at least 1.
    """

    card = MethodCard(
        slug="lsa",
        name="Linear separation only",
        paper=Alternate.card.paper,
        arxiv="2407.05528",
        year=2024,
        formula=r"s_i = w^\top h_i + b,\qquad \text{flags}_{e+1} = [s_i > 0]",
        summary="Foreign pictures lie on one side of a plane through the features; what lies there is left out. An "
        "almost perfect detection, and yet the classifier gains little.",
        fails_when="Simple clean pictures lie on the foreign side: they are thrown away in every epoch, and the "
        "classifier never learns from them. Wrong labels inside the classes stay.",
    )
    turns = ("lsa",)
