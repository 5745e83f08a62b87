"""Digits 0 to 4 with swapped labels among foreign digits: the set-up in which the post-hoc OOD scores are compared."""

import warnings
from functools import cache

import numpy as np
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score


@cache
def contaminated(kind, share, seed):
    """Features (900, 32), labels with 20 % swapped, who is foreign, and logits of an in-sample linear head.

    Args:
        kind: of the foreigners. ``clustered``: digits 5 to 9 under random labels; ``diffuse``: shuffled pixels under
            random labels; ``consistent``: digits 5 to 9, each always under the same label.
        share: of foreigners.
        seed: of the draw.
    """
    X, truth = load_digits(return_X_y=True)
    rng, n = np.random.default_rng(seed), round(share * 900)
    inside = rng.choice(np.flatnonzero(truth < 5), 900 - n, replace=False)
    outside = rng.choice(len(truth) if kind == "diffuse" else np.flatnonzero(truth > 4), n, replace=False)
    foreign = rng.permuted(X[outside], axis=1) if kind == "diffuse" else X[outside]
    known = truth[inside]
    swapped = rng.random(len(known)) < 0.2
    known = np.where(swapped, (known + rng.integers(1, 5, len(known))) % 5, known)
    y = np.append(known, truth[outside] - 5 if kind == "consistent" else rng.integers(0, 5, n))
    features = PCA(32, random_state=0).fit_transform(np.vstack([X[inside], foreign]) / 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # close enough after 100 steps
        logits = LogisticRegression(C=1).fit(features, y).decision_function(features)
    return features, y, np.arange(900) >= 900 - n, logits


def mean_auroc(kind, share, score):
    """AUROC of the foreigners, mean of the sheet's five draws; ``score(y, logits, probabilities)`` gives scores."""
    found = []
    for seed in range(5):
        _, y, ood, logits = contaminated(kind, share, seed)
        found.append(roc_auc_score(ood, score(y, logits, np.exp(log_softmax(logits, axis=1)))))
    return np.mean(found)
