"""Clusters within each label in the spectrum of the neighbour graph (SNCF)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.neighbors import Neighbors, nearest, nearest_in, unit_rows
from ..base.threads import blas_threads
from ..card import KINDS, MethodCard
from .base import Array, Detector, Labels

Single = NDArray[np.float32]
Span = tuple[int, int]
"""Where a cluster starts and stops in the order of visits."""

CLEAN, MISLABELLED, OOD = range(3)

SENSES = {"class": "sparser", "dataset": "denser"}
"""Where groups are made, and which of them is OOD there according to the paper."""

CLASS_SHARE = 0.15
"""Largest neighbourhood, and smallest cluster, as a share of a label's samples: 75 of 500 in CIFAR-100."""

TOO_FEW = 10
"""A label with fewer samples is not clustered."""

AT_LEAST = 50
"""Samples of a label that a random subset keeps, where there are so many."""

FELLOWS = 100
"""Neighbourhood, itself included, in which the dataset rule measures its two components."""

STARTS = 5
"""Starts of the dataset rule's mixture (the paper: 50, at ten times the cost)."""

DENSE = 1000
"""Samples up to which a dense solver finds the eigenvectors."""

RESOLUTION = 1e-9
"""Cosine distances that differ by less are the same to OPTICS."""

BLOCK = 2**22
"""Numbers worked on at a time."""


class Sncf(Detector):
    r"""Under each label the loosest spectral cluster is out-of-distribution, and what joins no cluster is mislabelled.

    The graph joins each sample to its k cosine neighbours with weight :math:`(z_i \cdot z_j)^3`; the leading
    eigenvectors of its normalised affinity are new coordinates E. Within each label OPTICS finds clusters in E. The
    cluster whose members are farthest from each other in the features is called OOD, samples in no cluster are called
    mislabelled, the other clusters clean: :math:`g_i`. The score asks how sparse a sample's surroundings under its own
    label are, and lifts what is called OOD by as much as its cluster stands out:

    .. math::
        s_i = d^E_i + \bar d_i + [g_i = \text{OOD}]\,(1 - \rho_{y_i}), \qquad \text{flag}_i = [g_i \ne \text{clean}]

    :math:`d^E_i` = cosine distance in E to the m-th nearest sample of the same label, itself counted (OPTICS's core
    distance); :math:`\bar d_i` = mean cosine distance in the features to the m - 1 nearest of them; :math:`\rho` = that
    mean over the members of the label's tightest cluster / of its loosest.

    The paper gives groups but no score. Of nested clusters it takes the innermost, so that all around a dense core
    turns into strays; here it is the outermost within reason (see ``largest``). m and the smallest cluster shrink
    with the label (at most 15 % of it). As in the paper's guard for web data, no cluster is OOD where all are about
    equally tight or it outnumbers the others; but strays then stay mislabelled. A label without clusters is left clean.

    Source: Albert, Arazo, O'Connor, McGuinness, ECCV 2022, arXiv 2207.01573.

    Args:
        k: neighbours in the graph; cut to N - 1.
        dims: eigenvectors, the trivial one not counted.
        m: largest of three neighbourhood sizes of OPTICS, 25 apart, in samples; each label takes the largest unless a
            smaller one leaves fewer strays.
        min_cluster_size: in samples; like m at most 15 % of the label.
        xi: steepness that bounds a cluster of OPTICS.
        largest: of nested clusters the outermost is taken, but one that holds more than this share of its label gives
            way to those in it, if they hold half of it or more. None: always the innermost, as in the paper.
        guard: ρ from which on a label has no OOD cluster; 1: the loosest is always OOD.
        rule: ``class``, as above; or ``dataset``: two Gaussians on E of all samples, labels unused, one of them OOD,
            the score its log-odds (the paper's choice where little is mislabelled; blind where classes differ more
            from each other than from what is foreign). Its mixture starts from random rows.
        sense: is OOD the ``sparser`` or the ``denser`` cluster? None: sparser by class, denser by dataset, as in the
            paper.
        limit: samples above which a random subset is clustered and the rest are placed among it.
        seed: of the eigenvectors' start, the subset and the mixture.

    Attributes:
        groups_: (N,) 0 clean, 1 mislabelled, 2 OOD.
    """

    card = MethodCard(
        slug="sncf",
        name="Spectral clusters (SNCF)",
        paper="Embedding contrastive unsupervised features to cluster in- and out-of-distribution noise in corrupted "
        "image datasets (Albert, Arazo, O'Connor, McGuinness; ECCV 2022)",
        arxiv="2207.01573",
        year=2022,
        formula=r"s_i = d^E_i + \bar d_i + [g_i=\mathrm{OOD}]\,(1-\rho_{y_i})",
        summary="Looks for groups under each label: the loosest group is foreign, pictures that join no group are "
        "mislabelled, the rest are clean.",
        fails_when="A clean class falls into several groups (the loosest is taken for foreign), foreign pictures form "
        "several groups (only one per label is named), or a class is too small to cluster.",
        finds={"ood", "mislabelled"},
    )

    def __init__(
        self,
        k: int = 50,
        dims: int = 20,
        m: int = 75,
        min_cluster_size: int = 75,
        xi: float = 0.02,
        largest: float | None = 0.8,
        guard: float = 0.8,
        rule: str = "class",
        sense: str | None = None,
        limit: int = 20_000,
        seed: int = 0,
    ) -> None:
        self.k = k
        self.dims = dims
        self.m = m
        self.min_cluster_size = min_cluster_size
        self.xi = xi
        self.largest = largest
        self.guard = guard
        self.rule = rule
        self.sense = sense
        self.limit = limit
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> Sncf:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            neighbors: cosine neighbours, at least k of them; not used above ``limit``.

        Raises:
            InputError: a parameter is out of range, there are too few neighbours, all features are alike, no label has
                two samples, or the mixture of the dataset rule finds one component only.
        """
        self._check()
        n, Z = len(y), unit_rows(X)
        if np.ptp(Z, axis=0).max() < 1e-6:
            raise InputError("sncf: features: all rows point the same way, so there are no groups to find")
        if n > self.limit:
            drawn = draw(y, self.limit, self.seed)
            near = nearest(Z[drawn], self.k)
        else:
            drawn = np.arange(n)
            near = nearest(Z, self.k) if neighbors is None else neighbors
        k = min(self.k, len(drawn) - 1)
        near = near.first(k, "sncf")
        with blas_threads(1):
            values, vectors = spectral(affinity(near), self.dims, self.seed)
            E = place(Z, drawn, vectors, k)
            self.info_ = {"k": k, "clustered": len(drawn), "eigenvalues": values.tolist()}
            if self.rule == "class":
                self._by_class(Z, E, y, drawn)
            else:
                self._by_dataset(Z, E, drawn)
        self.flags_ = self.groups_ != CLEAN
        counts = np.bincount(self.groups_, minlength=3).tolist()
        self.info_["groups"] = dict(zip(KINDS, counts, strict=True))
        unclustered = sum(not found["sizes"] for found in self.info_.get("classes", []))
        notes = [
            f"k was cut from {self.k} to {k}: there are no more samples" if k < self.k else "",
            f"clusters were sought among {len(drawn):,} samples drawn at random from each label; the other "
            f"{n - len(drawn):,} were placed beside their nearest neighbours there"
            if len(drawn) < n
            else "",
            f"no cluster was found under {unclustered} of {y.max() + 1} labels; their samples are called clean"
            if unclustered
            else "",
        ]
        if any(notes):
            self.info_["note"] = "; ".join(filter(None, notes))
        return self

    def _check(self) -> None:
        for name, least in {"k": 1, "dims": 1, "m": 2, "min_cluster_size": 2, "limit": 100}.items():
            if getattr(self, name) < least:
                raise InputError(f"sncf: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("xi", "guard"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"sncf: {name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.largest is not None and not 0 < self.largest <= 1:
            raise InputError(f"sncf: largest must be above 0 and at most 1, or None, got {self.largest}")
        if self.rule not in SENSES:
            raise InputError(f"sncf: rule must be one of {', '.join(SENSES)}, got {self.rule!r}")
        if self.sense not in (None, *SENSES.values()):
            raise InputError(f"sncf: sense must be {', '.join(SENSES.values())} or None, got {self.sense!r}")

    def _by_class(self, Z: Single, E: Array, y: Labels, drawn: Labels) -> None:
        """Scores and groups, label by label."""
        E = E / np.maximum(np.linalg.norm(E, axis=1, keepdims=True), 1e-300)
        self.scores_, self.groups_ = np.full(len(y), np.nan), np.full(len(y), CLEAN)
        lift = np.zeros(len(y))
        chosen = np.zeros(len(y), bool)
        chosen[drawn] = True
        classes = []
        for label in np.unique(y):
            inside, outside = np.flatnonzero((y == label) & chosen), np.flatnonzero((y == label) & ~chosen)
            share = max(2, round(CLASS_SHARE * len(inside)))
            m = min(self.m, share)
            if len(inside) > 1:
                near = fellows(E[inside], m)
                self.scores_[inside] = near[:, -1] + fellows(Z[inside], m).mean(axis=1)
                inside = inside[np.argsort(near[:, -1], kind="stable")]  # OPTICS starts with the densest, not the first
            if len(inside) and len(outside):
                spread = fellows(E[outside], m, E[inside])[:, -1]
                self.scores_[outside] = spread + fellows(Z[outside], m, Z[inside]).mean(axis=1)
            clusters = np.full(len(inside), -1)
            if len(inside) >= TOO_FEW:
                sizes = [max(2, round(m * (self.m - less) / self.m)) for less in (0, 25, 50) if self.m - less > 1]
                clusters = best_clusters(E[inside], sizes, min(self.min_cluster_size, share), self.xi, self.largest)
            members = [inside[clusters == c] for c in range(clusters.max(initial=-1) + 1)]
            loose = [float(fellows(Z[rows], m).mean()) for rows in members]
            ood = name_ood(loose, [len(rows) for rows in members], self.sense or SENSES["class"], self.guard)
            if members:
                self.groups_[inside[clusters < 0]] = MISLABELLED
                lift[y == label] = 1 - min(loose) / max(*loose, 1e-12)
                if ood is not None:
                    self.groups_[members[ood]] = OOD
                if len(outside):  # as the nearest fellow that was clustered
                    self.groups_[outside] = self.groups_[inside[nearest_in(E[inside], E[outside], 1).indices[:, 0]]]
            classes.append(
                {"label": int(label), "sizes": [len(rows) for rows in members], "distances": loose, "ood": ood}
            )
        alone = np.isnan(self.scores_)
        if alone.all():
            raise InputError("sncf: no label has two samples, so there are no fellows to compare with")
        self.scores_[alone] = np.median(self.scores_[~alone])  # the only sample of a label: no opinion
        self.scores_ += lift * (self.groups_ == OOD)
        self.info_["classes"] = classes

    def _by_dataset(self, Z: Single, E: Array, drawn: Labels) -> None:
        """Scores and groups from two Gaussians on all samples."""
        from scipy.stats import multivariate_normal
        from sklearn.mixture import GaussianMixture

        E = E * np.sqrt(len(drawn))  # variances near 1, far above the mixture's floor
        mixture = GaussianMixture(2, n_init=STARTS, random_state=self.seed, reg_covar=1e-4).fit(E[drawn])
        parts = zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
        log = [np.log(weight) + multivariate_normal.logpdf(E, mean, covariance) for weight, mean, covariance in parts]
        second = log[1] > log[0]
        members = [drawn[~second[drawn]], drawn[second[drawn]]]
        if min(len(rows) for rows in members) < 2:
            raise InputError("sncf: the mixture finds one component only; take rule='class'")
        loose = [float(fellows(Z[rows], FELLOWS).mean()) for rows in members]
        ood = int(np.argmax(loose) if (self.sense or SENSES["dataset"]) == "sparser" else np.argmin(loose))
        self.scores_ = np.asarray(log[ood] - log[1 - ood])
        self.groups_ = np.where(self.scores_ > 0, OOD, CLEAN)
        self.info_ |= {"sizes": [len(rows) for rows in members], "distances": loose, "ood": ood}


def draw(y: Labels, size: int, seed: int) -> Labels:
    """Ascending positions of a random subset in proportion to the labels, but ``AT_LEAST`` samples of each."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    turn = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a sample among those of its label
    share = np.where(turn < AT_LEAST, -1, turn / counts[y[order]])
    return np.sort(order[np.lexsort((turn, share))[:size]])


def affinity(near: Neighbors) -> Any:
    """Sparse symmetric (N, N) weights: cubed cosines along the edges, in both directions, none to itself."""
    from scipy.sparse import csr_array

    n, k = near.indices.shape
    cubes = near.similarity.ravel().astype(np.float64) ** 3
    A = csr_array((cubes, near.indices.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    return A + A.T


def spectral(W: Any, dims: int, seed: int = 0) -> tuple[Array, Array]:
    """Smallest eigenvalues (dims,) and eigenvectors (N, dims) of the Laplacian of W, normalised twice as in the paper.

    The trivial eigenvector is known in closed form, the root of the degrees, and is taken out. Dropping whatever
    comes first would take out some mixture where the graph falls into parts and eigenvalue 0 is multiple. Degrees are
    sums of magnitudes: among few samples weights may be negative.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = W.shape[0]
    dims = min(dims, n - 1)
    for _ in range(2):
        roots = np.sqrt(np.asarray(abs(W).sum(axis=1)))
        inverse = diags_array(np.divide(1.0, roots, out=np.zeros(n), where=roots > 0))
        W = inverse @ W @ inverse
    if n <= DENSE:
        trivial = roots[:, None] / max(np.linalg.norm(roots), 1e-300)
        values, vectors = np.linalg.eigh(W.toarray() - 2 * trivial @ trivial.T)
        return 1 - values[: -dims - 1 : -1], vectors[:, : -dims - 1 : -1]
    parts = parts_of(W, roots, dims)  # Lanczos finds one vector of a multiple eigenvalue, by luck more
    known, missing = parts[:, 1:], dims - (parts.shape[1] - 1)
    if not missing:
        return np.zeros(dims), known
    rest = LinearOperator((n, n), lambda v: W @ v - 2 * parts @ (parts.T @ v), dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=n)
    values, vectors = eigsh(rest, missing, which="LA", v0=start, tol=1e-9, maxiter=5 * n)
    order = np.argsort(-values)
    return np.append(np.zeros(known.shape[1]), 1 - values[order]), np.hstack([known, vectors[:, order]])


def parts_of(W: Any, roots: Array, dims: int) -> Array:
    """Eigenvectors (N, up to dims + 1) of eigenvalue 0: the trivial one, then contrasts between unconnected parts.

    Args:
        W: (N, N) sparse normalised weights.
        roots: (N,) of the degrees.
        dims: contrasts at most, those of the largest parts.
    """
    from scipy.sparse.csgraph import connected_components

    W.eliminate_zeros()
    part = connected_components(W, directed=False)[1]
    part[roots == 0] = part.max() + 1  # zero features: no part of their own
    weights = np.bincount(part, weights=roots**2)
    large = np.argsort(-weights, kind="stable")[: np.clip((weights > 0).sum() - 1, 0, dims)]
    columns = roots[:, None] * np.column_stack([np.ones(len(part)), part[:, None] == large])
    return np.asarray(np.linalg.qr(columns)[0])


def place(Z: Single, drawn: Labels, vectors: Array, k: int) -> Array:
    """Spectral coordinates (N, dims): of the samples drawn, and means over their k neighbours among them for the rest.

    Args:
        Z: (N, D) unit features.
        drawn: positions of the samples that ``vectors`` (n, dims) belong to.
        vectors: their coordinates.
        k: neighbours; they count by the cubes of their cosines, as in the graph.
    """
    E = np.empty((len(Z), vectors.shape[1]))
    E[drawn] = vectors
    rest = np.setdiff1d(np.arange(len(Z)), drawn)
    step = max(1, BLOCK // (k * vectors.shape[1]))
    for start in range(0, len(rest), step):
        rows = rest[start : start + step]
        near = nearest_in(Z[drawn], Z[rows], k)
        weights = np.maximum(near.similarity.astype(np.float64), 1e-6) ** 3
        E[rows] = np.einsum("nk,nkd->nd", weights / weights.sum(axis=1, keepdims=True), vectors[near.indices])
    return E


def fellows(A: NDArray[np.floating], m: int, among: NDArray[np.floating] | None = None) -> Array:
    """Cosine distances from each unit row of A to its m - 1 nearest other rows, ascending.

    Args:
        A: (n, D) unit rows.
        m: size of the neighbourhood, the row itself counted.
        among: (b, D) other unit rows to look among, instead of A's own.

    Returns:
        (n, m - 1), or fewer columns where there are fewer rows.
    """
    bank = A if among is None else among
    count = min(m - 1, len(bank) - (among is None))
    out = np.empty((len(A), count))
    step = max(1, BLOCK // len(bank))
    for start in range(0, len(A), step):
        distance = 1 - (A[start : start + step] @ bank.T).astype(np.float64)
        if among is None:
            i = np.arange(len(distance))
            distance[i, start + i] = np.inf
        out[start : start + step] = np.sort(np.partition(distance, count - 1, axis=1)[:, :count], axis=1)
    return np.maximum(out, 0)


def best_clusters(E: Array, sizes: list[int], least: int, xi: float, largest: float | None) -> Labels:
    """OPTICS clusters (n,) from 0, strays -1, of the neighbourhood size that the paper's rule prefers.

    It starts with the first size; a later one takes over if it leaves fewer strays in more than one cluster, or if
    so far there was one cluster at most.

    Args:
        E: (n, dims) unit rows.
        sizes: of the neighbourhood, itself counted, the largest first.
        least: smallest cluster.
        xi: steepness that bounds a cluster.
        largest: cluster, as a share of the rows; see `optics`.
    """
    near = fellows(E, sizes[0])
    best: Labels | None = None
    for m in sizes:
        found = optics(E, near[:, m - 2], m, least, xi, largest)
        fewer = best is not None and (found < 0).sum() < (best < 0).sum() and found.max() > 0
        if best is None or fewer or best.max() < 1:
            best = found
    assert best is not None
    return best


def optics(E: Array, core: Array, m: int, least: int, xi: float, largest: float | None) -> Labels:
    """OPTICS by cosine with xi-steep clusters: cluster (n,) from 0, strays -1.

    The order of visits, sequential by nature, is found here: scikit-learn asks an index for all neighbours at each
    step, which takes sixty times as long. What is cut out of it is scikit-learn's.

    Args:
        E: (n, dims) unit rows; the first is visited first.
        core: (n,) distance to the m-th nearest, itself counted.
        m: size of the neighbourhood.
        least: smallest cluster.
        xi: steepness that bounds a cluster.
        largest: clusters are nested; `outer_clusters` takes the outermost up to about this share of the rows. With
            None it is the innermost, as in scikit-learn.
    """
    from sklearn.cluster import cluster_optics_xi

    n = len(E)
    core = np.maximum(np.rint(core / RESOLUTION), 1)  # rounding errors must neither break ties nor look steep
    reach, waiting = np.full(n, np.inf), np.full(n, np.inf)
    unseen, before, order = np.ones(n, bool), np.full(n, -1), np.empty(n, np.int64)
    here = 0
    for step in range(n):
        order[step] = here
        unseen[here], waiting[here] = False, np.inf
        distance = np.maximum(np.rint((1 - E @ E[here]) / RESOLUTION), core[here])
        nearer = unseen & (distance < reach)
        np.copyto(reach, distance, where=nearer)
        np.copyto(waiting, distance, where=nearer)
        before[nearer] = here
        here = int(waiting.argmin())
    found, spans = cluster_optics_xi(
        reachability=reach, predecessor=before, ordering=order, min_samples=m, min_cluster_size=least, xi=xi
    )
    if largest is None:
        return np.asarray(found, np.int64)
    nested: list[Span] = [(first, last + 1) for first, last in spans.reshape(-1, 2).tolist()]
    clusters = np.full(n, -1)
    for i, (first, stop) in enumerate(outer_clusters(nested, n, largest)):
        clusters[order[first:stop]] = i
    return clusters


def outer_clusters(nested: list[Span], n: int, largest: float) -> list[Span]:
    """The outermost of nested clusters; one that holds more than ``largest`` of all n rows is replaced by the outermost
    smaller ones in it, unless these hold less than half of it.
    """
    nested = sorted(nested, key=lambda span: (span[0] - span[1], span))

    def outermost(start: int, end: int, most: float) -> list[Span]:
        found: list[Span] = []
        for first, stop in nested:
            fits = start <= first and stop <= end and stop - first <= most
            if fits and all(stop <= a or b <= first for a, b in found):
                found.append((first, stop))
        return found

    out: list[Span] = []
    for first, stop in outermost(0, n, n - 1):  # all rows are no cluster
        inner = outermost(first, stop, largest * n)
        held = sum(b - a for a, b in inner)
        out += inner if 2 * held >= stop - first else [(first, stop)]
    return out


def name_ood(loose: list[float], sizes: list[int], sense: str, guard: float) -> int | None:
    """Which of some clusters is OOD, or None.

    Args:
        loose: mean cosine distance of each cluster's members to their nearest fellows.
        sizes: how many they are.
        sense: ``sparser`` takes the loosest, ``denser`` the tightest.
        guard: none is OOD if tightest / loosest reaches it, or if that one outnumbers the others; 1 asks neither.
    """
    if not loose:
        return None
    ood = int(np.argmax(loose) if sense == "sparser" else np.argmin(loose))
    alike = min(loose) >= guard * max(loose)
    return None if guard < 1 and (alike or sizes[ood] > sum(sizes) - sizes[ood]) else ood
