"""Spec: what a person chose. A link, a command, a notebook call and a file are spellings of one Spec."""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .base.errors import InputError

MAPS = ("umap", "pca")

RULES = ("rate", "own", "mixture", "contradiction")
"""Cuts without a number: as many as there is noise by the verdict (or, without features to judge by, the own rule);
the method's own rule; the upper part of a two-component mixture on its scores; every sample for which the method would
give another label. The first is the default: it came nearest to the best cut on all kinds of data that were tried."""


@dataclass(frozen=True)
class Cut:
    """One detector that is switched on, and where it cuts.

    Spelled ``lsa``, ``lsa@mixture`` (or another of `RULES`), ``lsa@budget=0.2`` or ``lsa@score=1.5``.

    Attributes:
        detector: slug.
        budget: share of samples to flag, or None.
        score: score above which samples are flagged, or None.
        rule: one of `RULES`, in force where there is neither budget nor score.
    """

    detector: str
    budget: float | None = None
    score: float | None = None
    rule: str = RULES[0]

    def __post_init__(self) -> None:
        if (self.budget is not None) + (self.score is not None) + (self.rule != RULES[0]) > 1:
            raise InputError(f"{self.detector}: give one cut: a rule, a budget or a score")
        if self.rule not in RULES:
            raise InputError(f"{self.detector}: the cut must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise InputError(f"{self.detector}: budget must be a share between 0 and 1, got {self.budget}")

    @classmethod
    def parse(cls, text: str) -> Cut:
        """Read the spelling.

        Raises:
            InputError: it is none.
        """
        slug, at, rule = text.partition("@")
        name, _, value = rule.partition("=")
        if slug and not at:
            return cls(slug)
        if slug and rule in RULES:
            return cls(slug, rule=rule)
        number = math.nan
        with contextlib.suppress(ValueError):
            number = float(value)
        if slug and name in ("budget", "score") and math.isfinite(number):
            return cls(slug, budget=number) if name == "budget" else cls(slug, score=number)
        raise InputError(
            f"{text!r}: write DETECTOR, DETECTOR@RULE (one of {', '.join(RULES)}), DETECTOR@budget=SHARE or "
            "DETECTOR@score=VALUE"
        )

    def __str__(self) -> str:
        for name in ("budget", "score"):
            if (value := getattr(self, name)) is not None:
                short = f"{value:g}"
                return f"{self.detector}@{name}={short if float(short) == value else repr(float(value))}"
        return self.detector if self.rule == RULES[0] else f"{self.detector}@{self.rule}"


def check_seed(seed: int) -> None:
    """Check that every generator can start from a seed.

    Raises:
        InputError: it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be 0 to {2**32 - 1}, got {seed}")


@dataclass(frozen=True)
class Spec:
    """A view of a dataset.

    Attributes:
        dataset: name that `chaffinch.data.open_dataset` understands.
        encoder: slug of an encoder, or ``"features"`` for features that came with the data; empty = the one for such
            pictures (`chaffinch.study.default_encoder`).
        map: ``umap`` or ``pca``.
        detectors: which are on, and their cuts.
        votes: how many of them must flag a sample for it to count as flagged.
        colour: what colours the map: ``given``, ``votes``, ``verdict``, ``kind``, ``pull`` or a detector's slug.
        show: what the gallery lists: ``suspicious``, ``flagged`` or ``random``.
        label: only this class in the gallery, or empty.
        only: ``flagged`` greys out all other points of the map; empty = none.
        sort: the detector that orders the gallery; empty = all that are on.
        page: of the gallery, from 1.
        outline: the selection on the map, ``"x,y x,y x,y"`` in map coordinates, or empty.
        sample: id of the inspected sample, or empty.
        compared: slugs of the detectors whose maps are compared, ``lsa,knn-label``; empty = the first that are on.
        curves: the noise whose curves are compared: ``any``, ``mislabelled`` or ``ood``.
        contrast: the disagreement that is listed (see `chaffinch.comparison.Contrast`), or empty.
        method: the card that is open on the Methods page: a detector's slug, ``loss:SLUG``, or empty.
        search: what its search box holds.
        filters: what it lists: kinds of method, of noise and of evidence, with commas; empty = all.
        beside: the encoder that the Losses page puts beside the first; empty = the first other one at hand.
        beside_outline: the selection drawn on its map, as ``outline``.
        run: training of a classifier (see ``chaffinch train``) whose record detectors read; empty = a quick head.
        noise: the level that the Lesson page tells of; 0 = the first choice.
        accuracy: which accuracy counts there: ``best`` (of all epochs) or ``last``.
        epoch: the epoch that it shows, from 1; 0 = the first choice.
        queue: what the Review page goes through, one of `chaffinch.reviews.SHOWS`.
        seed: of everything that draws.
    """

    dataset: str = "fashion-web"
    encoder: str = ""
    map: str = "umap"
    detectors: tuple[Cut, ...] = (Cut("lsa"), Cut("small-loss"))
    votes: int = 1
    colour: str = "votes"
    show: str = "suspicious"
    label: str = ""
    only: str = ""
    sort: str = ""
    page: int = 1
    outline: str = ""
    sample: str = ""
    compared: str = ""
    curves: str = "any"
    contrast: str = ""
    method: str = ""
    search: str = ""
    filters: str = ""
    beside: str = ""
    beside_outline: str = ""
    run: str = ""
    noise: float = 0.0
    accuracy: str = "best"
    epoch: int = 0
    queue: str = "noisy"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.map not in MAPS:
            raise InputError(f"map must be one of {', '.join(MAPS)}, got {self.map!r}")
        if self.votes < 1:
            raise InputError(f"votes must be at least 1, got {self.votes}")
        if self.page < 1:
            raise InputError(f"page must be at least 1, got {self.page}")
        check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of everything that differs from the default."""
        default = Spec()
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != getattr(default, f.name):
                out[f.name] = [str(cut) for cut in value] if f.name == "detectors" else value
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """Read what `to_dict` wrote, or a hand-written part of it.

        Raises:
            InputError: an unknown field or a bad value, by name.
        """
        known: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"a view has no field {unknown[0]!r}; it has {', '.join(known)}")
        read: dict[str, Any] = {}
        for name, value in values.items():
            if name == "detectors":
                texts = value.split(",") if isinstance(value, str) else value
                if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                    raise InputError(f"{name} must be a list of texts, got {value!r}")
                read[name] = tuple(Cut.parse(text) for text in texts if text)
                continue
            try:
                if type(value) not in (str, known[name]):  # a link spells numbers as text
                    raise TypeError
                read[name] = known[name](value)
            except (TypeError, ValueError) as error:
                raise InputError(f"{name} must be {known[name].__name__}, got {value!r}") from error
        return cls(**read)

    def to_query(self) -> dict[str, str]:
        """The query string of a link to this view."""
        plain = self.to_dict()
        return {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in plain.items()}

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Spec:
        """Read a link. Unknown or unusable parts are ignored: an old link opens as well as it can."""
        spec = cls()
        for f in fields(cls):
            if f.name in query:
                try:
                    spec = replace(spec, **{f.name: getattr(cls.from_dict({f.name: query[f.name]}), f.name)})
                except InputError:
                    continue
        return spec

    @classmethod
    def from_toml(cls, text: str) -> Spec:
        """Read a TOML document.

        Raises:
            InputError: not TOML, or not a view.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"not TOML: {error}") from error

    def to_toml(self) -> str:
        """A TOML document of everything that differs from the default."""
        # strings, numbers and lists of strings have the same spelling in JSON and TOML, all but this one character
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.to_dict().items()]
        lines = [line.replace("\x7f", "\\u007f") for line in lines]
        return "\n".join(lines) + "\n"
