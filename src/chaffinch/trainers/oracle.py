"""An upper bound: mixup on the truly clean samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..card import MethodCard
from ..data.dataset import CLEAN
from .base import Division, Site, kept_only
from .mixup import Mixup


class Oracle(Mixup):
    """Mixup on the samples that are clean in truth: what a perfect detection would give that leaves out the noise.

    Args:
        alpha: of mixup.
    """

    card = MethodCard(
        slug="oracle",
        name="Oracle",
        paper="An upper bound, told the truth; mixup by Zhang, Cisse, Dauphin, Lopez-Paz (ICLR 2018)",
        year=2018,
        formula=r"\text{flags} = [\mathrm{kind}_i \neq \mathrm{clean}]",
        summary="Mixup on the samples that are clean in truth. It shows how much there is to gain by leaving out "
        "noise; no method without the truth can know it.",
        fails_when="There is no truth to tell. And it is no bound for methods that also learn from noisy samples, by "
        "guessing their labels.",
    )
    wants = ("images", "labels", "truth")

    noisy: Tensor

    def setup(self, site: Site) -> None:
        """Flag what is not clean, from the first epoch on."""
        super().setup(site)
        assert site.kind is not None
        self.register_buffer("noisy", site.kind != CLEAN, persistent=False)
        self.flags.copy_(self.noisy)

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """Positions of the clean samples, again and again until there are N."""
        return kept_only(self.flags, rng)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """The truth does not change."""
        return Division(self.noisy, self.noisy.float(), "truth")
