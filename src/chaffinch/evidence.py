"""What detectors may ask for. Each piece is computed once and shared by all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError, MissingEvidence
from .base.linear import Probe, linear_probe
from .base.neighbors import Neighbors, nearest
from .base.runs import History, train_quick_head
from .data import Observed
from .detectors.base import Trusted

Arrays = dict[str, NDArray[Any]]
Remember = Callable[[str, Callable[[], Arrays]], Arrays]
"""Called with the name of a piece and the function that computes it; gives the arrays, from a store if it has them."""

REMEDIES = {
    "features": "open pictures with an encoder (--encoder), or put 'features' into the arrays",
    "pred_probs": "open pictures with an encoder (--encoder), or put 'pred_probs' or 'features' into the arrays",
    "history": "a quick head records one from features: open pictures with an encoder (--encoder), or put 'features' "
    "into the arrays",
    "joint": "choose an encoder trained with Symile on these classes (train-encoder --loss symile)",
    "trusted": "mark rows known to be clean with 'trusted' (N,) in the arrays",
}


def _forget(name: str, make: Callable[[], Arrays]) -> Arrays:
    return make()


class Evidence:
    """The evidence about one dataset seen through one encoder.

    Args:
        observed: what may be seen.
        features: (N, D), or None if there are none.
        seed: of the probe's folds.
        k: how many neighbours are computed for everyone.
        remember: where computed pieces are kept; default: in this object only.
        trusted: gives the trusted samples, where there are any.
        joint: gives the joint scores (N, C) of every sample with every label, where the encoder has them.
        history: gives the record of a training; default: a quick head makes one.
    """

    K = 30

    def __init__(
        self,
        observed: Observed,
        features: NDArray[np.float32] | None,
        *,
        seed: int = 0,
        k: int = K,
        remember: Remember = _forget,
        trusted: Callable[[], Trusted] | None = None,
        joint: Callable[[], NDArray[np.float64]] | None = None,
        history: Callable[[], History] | None = None,
    ) -> None:
        self.observed, self.features, self.seed, self.k = observed, features, seed, k
        self._remember, self._give_trusted, self._give_joint = remember, trusted, joint
        self._give_history = history
        self._neighbors: Neighbors | None = None

    @property
    def neighbors(self) -> Neighbors:
        """Cosine neighbours, at most ``k`` of each sample."""
        if self._neighbors is None:
            features = self._features("neighbors")

            def make() -> Arrays:
                return {name: np.asarray(value) for name, value in vars(nearest(features, self.k)).items()}

            found = self._remember(f"neighbors-{self.k}", make)
            self._neighbors = Neighbors(found["indices"], found["similarity"], float(found.get("recall", 1.0)))
        return self._neighbors

    @cached_property
    def probe(self) -> Probe:
        """The linear probe: out-of-sample probabilities and logits, and its head."""
        features = self._features("pred_probs")

        def make() -> Arrays:
            probe = linear_probe(features, self.observed.labels, len(self.observed.classes), seed=self.seed)
            W, b = probe.head
            return {"logits": probe.scores, "W": W, "b": b, "penalty": np.array(probe.penalty)}

        found = self._remember(f"probe-{self.seed}", make)
        return Probe(found["logits"], (found["W"], found["b"]), float(found["penalty"]))

    @property
    def pred_probs(self) -> NDArray[np.float64]:
        """(N, C) out-of-sample probabilities: those that came with the data, or the probe's."""
        return self.probe.pred_probs if self.observed.pred_probs is None else self.observed.pred_probs

    @property
    def logits(self) -> NDArray[np.float64]:
        """(N, C) out-of-sample logits of the probe."""
        return self.probe.logits

    @property
    def head(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The probe's weights (C, D) and biases (C,), fitted on all samples."""
        return self.probe.head

    @cached_property
    def history(self) -> History:
        """What a classifier said about every sample while it learnt: a training's record, or a quick head's."""
        if self._give_history is not None:
            return self._give_history()
        features = self._features("history")

        def make() -> Arrays:
            return vars(train_quick_head(features, self.observed.labels, len(self.observed.classes), seed=self.seed))

        return History(**self._remember(f"history-{self.seed}", make))

    @cached_property
    def trusted(self) -> Trusted:
        """Samples whose labels are known to be right.

        Raises:
            MissingEvidence: there are none.
        """
        if self._give_trusted is None:
            raise MissingEvidence("trusted", "trusted", REMEDIES["trusted"])
        return self._give_trusted()

    @cached_property
    def joint(self) -> NDArray[np.float64]:
        """(N, C): how well each label fits each picture, by an encoder that was trained on both.

        Raises:
            MissingEvidence: this encoder was not, or not with these classes.
        """
        give = self._give_joint
        if give is None:
            raise MissingEvidence("joint", "joint", REMEDIES["joint"])
        return self._remember("joint", lambda: {"joint": give()})["joint"]

    def lacking(self, detector: Any) -> MissingEvidence | None:
        """The first piece that a detector (or its class) names and that cannot be had, and how to get it, or None.

        Nothing is computed for the answer.
        """
        features = self.features is not None
        there = dict.fromkeys(("features", "neighbors", "probe", "logits", "head"), features) | {
            "pred_probs": features or self.observed.pred_probs is not None,
            "history": features or self._give_history is not None,
            "trusted": self._give_trusted is not None,
            "joint": self._give_joint is not None,
        }
        for piece in detector.needs():
            if not there.get(piece, hasattr(type(self), piece)):
                unknown = "chaffinch does not know how to make it"
                remedy = REMEDIES.get(piece, REMEDIES["features"] if piece in there else unknown)
                return MissingEvidence(detector.card.slug, piece, remedy)
        return None

    def gather(self, detector: Any) -> dict[str, Any]:
        """The arguments of ``fit`` for a detector (or its class): X, y and the pieces it names.

        Raises:
            MissingEvidence: a piece is not there and cannot be computed.
        """
        if missing := self.lacking(detector):
            raise missing
        arguments = {"X": self.features, "y": self.observed.labels}
        if getattr(detector, "k", 0) > self.k:  # more neighbours than usual: find them once, for everyone
            self.k, self._neighbors = detector.k, None
        return arguments | {piece: getattr(self, piece) for piece in detector.needs() if piece != "features"}

    def _features(self, wanted_for: str) -> NDArray[np.float32]:
        if self.features is None:
            raise MissingEvidence(wanted_for, "features", REMEDIES.get(wanted_for, REMEDIES["features"]))
        if len(self.features) != len(self.observed):
            raise InputError(f"features have {len(self.features)} rows, labels {len(self.observed)}")
        return self.features
