"""scikit-learn's own checks of an estimator, for every detector."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from chaffinch import registry
from chaffinch.base.runs import train_quick_head
from chaffinch.detectors.base import Trusted

SMALL = {"k": 3}
"""Parameters that suit the handful of samples which most checks fit on."""

EXCUSED: dict[str, dict[str, str]] = {}
"""slug -> check -> why the detector cannot pass it."""


def make(X, y, piece):
    """A piece of evidence that no detector computes for itself, out of the samples of a check."""
    if piece == "history":
        return train_quick_head(X, y, int(y.max()) + 1, hidden=8, epochs=8)
    if piece == "joint":
        return X @ np.random.default_rng(0).standard_normal((X.shape[1], max(2, int(y.max()) + 1)))
    rows = np.arange(0, len(y), 2)
    return Trusted(X[rows], y[rows], rows)


def standing_alone(cls):
    """The detector itself; one that cannot be fitted on X and y alone makes the rest from them first."""
    pieces = {"history", "joint", "trusted"} & set(cls.needs())
    if not pieces:
        return cls

    def fit(self, X, y=None):
        return cls.fit(self, X, y, **{piece: make(X, y, piece) for piece in pieces})

    name = f"{cls.__name__}Alone"
    globals()[name] = type(name, (cls,), {"fit": fit, "__module__": __name__})  # by name, so that it can be pickled
    return globals()[name]


def small(cls):
    return cls(**{name: value for name, value in SMALL.items() if name in cls().get_params()})


ESTIMATORS = [small(standing_alone(cls)) for cls in registry.methods("detector").values()]


@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda model: EXCUSED.get(model.card.slug, {}))
def test_check(estimator, check):
    check(estimator)
