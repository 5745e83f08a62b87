"""The card of a method: what it is, where it comes from, what it finds and when it fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = ("clean", "mislabelled", "ood")
"""The three kinds of sample, in the order of their codes 0, 1, 2."""

FINDS = frozenset({"mislabelled", "ood"})


@dataclass(frozen=True)
class MethodCard:
    """Everything pickers, the Methods page and the command line show about one method.

    Attributes:
        slug: kebab-case name, unique within its kind of method.
        name: the method's usual name.
        paper: title, authors and venue in one line.
        arxiv: arXiv identifier such as ``"2407.05528"``, or an empty string.
        year: year of publication.
        formula: the score (or loss) in LaTeX, with the letters of the code.
        summary: one or two plain sentences for the picker.
        fails_when: when not to believe it.
        finds: which kinds of noise a detector is made for; empty for losses and trainers.
    """

    slug: str
    name: str
    paper: str
    year: int
    formula: str
    summary: str
    fails_when: str
    arxiv: str = ""
    finds: Iterable[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        object.__setattr__(self, "finds", frozenset(self.finds))
        if not self.slug or self.slug != self.slug.lower().replace("_", "-").replace(" ", "-"):
            raise ValueError(f"slug must be kebab-case, got {self.slug!r}")
        if unknown := set(self.finds) - FINDS:
            raise ValueError(f"{self.slug}: finds must be among {sorted(FINDS)}, got {sorted(unknown)}")
        for name in ("name", "paper", "formula", "summary", "fails_when"):
            if not getattr(self, name).strip():
                raise ValueError(f"{self.slug}: the card's {name} is empty")
