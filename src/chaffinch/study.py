"""A Study: one dataset seen through one encoder, with everything computed once and kept in the workspace.

The app, the command line and notebooks all work through it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import projection, registry
from .base.errors import InputError, MissingEvidence
from .base.files import assets_dir, digest
from .base.methods import find_method
from .base.mixture import fit_mixture
from .base.record import Record, load_record
from .base.training_run import TrainingRun
from .card import KINDS
from .data import CLEAN, OOD, Images, NoisyDataset, Observed, PictureFiles, open_dataset
from .data.dataset import finite_rows
from .data.pictures import key_of, some
from .detectors.base import Trusted, cut, ranks
from .encoders.model_card import load_card
from .encoders.packaged import packaged_weights
from .evidence import REMEDIES, Evidence
from .metrics.detection import decision, ranking
from .metrics.embedding import map_quality
from .metrics.verdict import three_way
from .spec import MAPS, Cut, Spec, check_seed
from .verdict import Verdict, ceiling, judge
from .workspace import Arrays, Workspace, pack, unpack

OWN_FEATURES = "features"
"""The name that stands in place of an encoder where features come with the data."""

SMALL, PHOTOGRAPHS = "simclr", "efficientnet-lite0"
"""The encoders for those who choose none: for small grey pictures, and for all others."""

SMALL_SIDE = 28
"""Pictures of at most so many pixels a side are small: our own encoders were trained on such."""

JOINT = "joint"
"""The output of an encoder that is no embedding, but says how well each label fits."""

VERSIONS = {
    "features": 1, "neighbors": 2, "probe": 1, "history": 1, "joint": 1, "detect": 2, "verdict": 2, "map": 1,
    "measures": 2, "checks": 1, "benefit": 1,
}  # fmt: skip
"""Raised when a step would give another result for the same input, so that old results are not taken for it."""

Report = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""


@dataclass(frozen=True)
class Detection:
    """What one detector found.

    Attributes:
        slug: the detector.
        scores: (N,) float64, higher = more suspicious.
        own: (N,) bool, flags by the method's own rule.
        suggestions: (N,) int64, the label it would give, or None.
        info: how it came to the decision.
        seconds: how long its fit took, evidence not included.
        given: (N,) int64, the given labels.
        noise_rate: gives the estimated share of what the detector looks for, or None where it cannot be estimated.
    """

    slug: str
    scores: NDArray[np.float64]
    own: NDArray[np.bool_]
    suggestions: NDArray[np.int64] | None
    info: dict[str, Any]
    seconds: float
    given: NDArray[np.int64]
    noise_rate: Callable[[], float | None]

    def flags(self, where: Cut | None = None) -> NDArray[np.bool_]:
        """(N,) flags under a cut.

        Raises:
            InputError: the cut would flag every sample, or cannot be made for this detector.
        """
        where = where or Cut(self.slug)
        if where.budget is not None or where.score is not None:
            return cut(self.scores, self.own, budget=where.budget, threshold=where.score)
        own, budget = self.own, None
        if where.rule == "mixture":
            own = self._mixed
        elif where.rule == "rate":
            budget = self.noise_rate()
        elif where.rule == "contradiction":
            if self.suggestions is None:
                raise InputError("it suggests no labels, so there is nothing to contradict; choose another cut")
            own = self.suggestions != self.given
        return cut(self.scores, own, budget=budget)

    @cached_property
    def _mixed(self) -> NDArray[np.bool_]:
        return np.asarray(fit_mixture(self.scores).monotone_posterior(self.scores) > 0.5)

    @property
    def own_threshold(self) -> float:
        """The score above which as many samples lie as the method's own rule flags (ties aside)."""
        k = int(self.own.sum())
        return float(np.sort(self.scores)[max(0, len(self.scores) - 1 - k)])

    @cached_property
    def ranks(self) -> NDArray[np.float64]:
        """(N,) share of samples that are less suspicious, 0 to 1; the common scale of all detectors."""
        return ranks(self.scores)


def encoder_cards(workspace: Workspace) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The encoders at hand: name -> (path of the weights, model card); the workspace's own come after the shipped.

    A card that cannot be read, or whose weights are not installed, is given as ``{"error": why}``, so that it disables
    its own encoder only.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (assets_dir() / "encoders", workspace.root / "encoders"):
        for path in sorted(folder.glob("[!.]*.json")):  # a dot begins what is just being written
            try:
                card = asdict(load_card(path))
                if not card["sha256"]:  # results are kept under it
                    raise InputError(f"{path} lacks sha256, the checksum of the weights; train the encoder again")
                if card["packaged"]:
                    packaged_weights(card["architecture"])
            except InputError as error:
                card = {"error": str(error)}
            found.setdefault(path.stem, (path.with_suffix(".safetensors"), card))
    return found


def find_encoder(workspace: Workspace, name: str) -> tuple[Path, dict[str, Any]]:
    """Path of the weights and model card of an encoder.

    Raises:
        InputError: there is none of this name, or its card cannot be read.
    """
    cards = encoder_cards(workspace)
    if name not in cards:
        raise InputError(
            f"there is no encoder called {name!r}; there are {', '.join(cards) or 'none'}. "
            "'chaffinch train-encoder DATASET' trains one, 'chaffinch add-encoder MODEL' fetches a model of timm"
        )
    if reason := cards[name][1].get("error"):
        raise InputError(reason)
    return cards[name]


def default_encoder(observed: Observed, cards: Mapping[str, tuple[Path, dict[str, Any]]]) -> tuple[str, str]:
    """The encoder for those who choose none, by the pictures it is to see; and why it is not the best one, or nothing.

    Args:
        observed: the dataset; features that came without pictures are used themselves.
        cards: the encoders at hand (`encoder_cards`).
    """
    images = observed.images
    if images is None and observed.features is not None:
        return OWN_FEATURES, ""
    if images is None or (images.ndim == 3 and max(images.shape[1:3]) <= SMALL_SIDE):
        return SMALL, ""
    if PHOTOGRAPHS in cards and "error" not in cards[PHOTOGRAPHS][1]:
        return PHOTOGRAPHS, ""
    why = cards[PHOTOGRAPHS][1]["error"] if PHOTOGRAPHS in cards else f"{PHOTOGRAPHS} is not there"
    return SMALL, f"{SMALL} stands in for the encoder for photographs: {why}"


def training_runs(workspace: Workspace, digest: str) -> dict[str, TrainingRun]:
    """Trainings of classifiers on one dataset, by name, that have a whole epoch; unreadable ones are left out.

    Args:
        workspace: where they are.
        digest: of the dataset.
    """
    found: dict[str, TrainingRun] = {}
    for path in sorted((workspace.root / "runs").glob("*/run.json")):
        with contextlib.suppress(InputError):
            run = TrainingRun(path.parent)
            run.check(digest, "")
            found[run.name] = run
    return found


def embeddings(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under which the features of an encoder go: its own, and ``NAME:OUTPUT`` for what its loss gives."""
    return (name, *(f"{name}:{output}" for output in card.get("outputs", ()) if output != JOINT))


class Study:
    """One dataset, one encoder, one workspace.

    Args:
        dataset: a name for `open_dataset`, or a dataset.
        encoder: slug of an encoder, or ``SLUG:LAYER`` for other features than its final ones; empty = the one for such
            pictures (`default_encoder`). Data that come without pictures use their own features instead.
        workspace: where results are kept.
        seed: of everything that draws.
        run: training of a classifier whose record stands in place of a quick head's: its name in the workspace, or as
            a `Path` its folder anywhere. A name may come with a link or a manifest, so it leads nowhere else.

    Raises:
        InputError: the dataset cannot be opened, the seed is negative, or there is no such run on this dataset.

    Attributes:
        advice: what would let it see the pictures better, or empty.
    """

    def __init__(
        self,
        dataset: str | NoisyDataset = "fashion-web",
        encoder: str = "",
        *,
        workspace: Workspace | None = None,
        seed: int = 0,
        run: str | Path = "",
    ) -> None:
        check_seed(seed)
        self.dataset = open_dataset(dataset) if isinstance(dataset, str) else dataset
        self.workspace = workspace or Workspace()
        self.seed = seed
        self.observed, self.truth = self.dataset.observed, self.dataset.truth
        self.advice = ""
        if not encoder:
            encoder, self.advice = default_encoder(self.observed, encoder_cards(self.workspace))
        own = self.observed.features is not None and (encoder == OWN_FEATURES or self.observed.images is None)
        self.encoder = OWN_FEATURES if own else encoder
        if self.encoder == OWN_FEATURES and self.observed.features is None and self.observed.images is not None:
            raise InputError(f"{self.dataset.name} has pictures but no features of its own; choose an encoder")
        self.run = self._run(run) if run else None
        self.lock = threading.RLock()  # the app shares one study among its sessions
        self._detections: dict[str, Detection] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._chances: dict[str, NDArray[np.float64]] = {}
        self._maps: dict[str, Arrays] = {}

    def __len__(self) -> int:
        return len(self.observed)

    def _run(self, name: str | Path) -> TrainingRun:
        if isinstance(name, str) and (name == ".." or set(name) & set("/\\")):
            raise InputError(f"{name!r} is no name of a run; a run elsewhere can be named on the command line only")
        try:
            run = TrainingRun(name if isinstance(name, Path) else self.workspace.root / "runs" / name)
        except InputError as error:
            there = ", ".join(training_runs(self.workspace, self.dataset.digest)) or "none"
            raise InputError(
                f"there is no readable run called {str(name)!r} ({error}); on this dataset: {there}"
            ) from error
        run.check(self.dataset.digest, self.dataset.name)
        return run

    def position(self, id: str) -> int | None:
        """Position of the sample with this id, or None."""
        found = np.flatnonzero(self.observed.ids == id)
        return int(found[0]) if len(found) else None

    def name_of(self, position: int) -> str:
        """Id of the sample at this position."""
        return str(self.observed.ids[position])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What opening the dataset had to leave out, and the advice."""
        return (*self.dataset.warnings, *filter(None, [self.advice]))

    @cached_property
    def key(self) -> str:
        """A hash of dataset and encoder: every result of this study depends on both."""
        if self.encoder == OWN_FEATURES or self.observed.images is None:
            return digest(self.dataset.digest, self.encoder, VERSIONS["features"])
        return digest(self.dataset.digest, self._weights(), VERSIONS["features"])

    def _weights(self) -> str:
        """A hash of everything that decides what the encoder says about a picture."""
        card, layer = self._encoder()[1], self.encoder.partition(":")[2]
        if card.get("about"):  # the same weights may be told to look at pictures of another size
            return digest(card["sha256"], card["sizes"], layer)
        return digest(card["sha256"], layer) if layer else str(card["sha256"])

    def _encoder(self) -> tuple[Path, dict[str, Any]]:
        return find_encoder(self.workspace, self.encoder.partition(":")[0])

    def embed(self, report: Report | None = None, *, device: str = "auto") -> NDArray[np.float32] | None:
        """Features (N, D): those of the data, stored ones, or computed now. None if there is nothing to embed.

        Raises:
            InputError: no such encoder, a damaged checkpoint, or pictures it cannot take.
        """
        if self.encoder == OWN_FEATURES:
            return self.observed.features
        images = self.observed.images
        if images is None:
            return None
        make = partial(self._embed, images, report, device=device)
        found = self.workspace.remember("features", self.key, make)
        if isinstance(images, PictureFiles) and "undecoded" in found:
            images.recall(found["undecoded"])
        finite_rows(found["features"], "features")
        return found["features"]

    def spread(
        self,
        folder: Path | None = None,
        *,
        workers: int = 0,
        address: str = "",
        block: int = 0,
        device: str = "auto",
        report: Report | None = None,
    ) -> Path:
        """Let Ray compute the features, in processes here or on other machines; then `embed` has them at once.

        Each block of pictures becomes a shard in a folder as soon as it is done, and is not computed again when the
        work was interrupted.

        Args:
            folder: of the shards (see `Shards`); default: in the workspace.
            workers, address, device: see `embed_blocks`.
            block: pictures in a shard; 0: `shards.BLOCK`.
            report: progress.

        Returns:
            The folder.

        Raises:
            InputError: there are no pictures to embed, the folder holds something else, or see `embed_blocks`.
        """
        from .encoders.checkpoint import load_encoder
        from .encoders.ray_engine import embed_blocks
        from .encoders.shards import BLOCK, Shards

        images = self.observed.images
        if self.encoder == OWN_FEATURES or images is None:
            raise InputError(f"{self.dataset.name} has features of its own, or no pictures: there is nothing to embed")
        shards = Shards(folder or self.workspace.root / "shards" / self.key, self.observed, self.key, block or BLOCK)
        encoder = load_encoder(self._encoder()[0])
        shards.begin({"dataset": self.dataset.name, "dataset_digest": self.dataset.digest, "encoder": self.encoder})
        todo = shards.missing()
        if todo:
            blocks = {block: shards.rows(block) for block in todo}
            work = embed_blocks(
                encoder, images, blocks, layer=self._layer(), device=device, workers=workers, address=address
            )
            with contextlib.closing(work):
                for done, (block, features, undecoded) in enumerate(work, len(shards) - len(todo) + 1):
                    shards.write(block, features, undecoded)
                    if report:
                        report("embedding", done / len(shards))
        self.workspace.remember("features", self.key, shards.read)
        return shards.folder

    def _layer(self) -> str:
        return self.encoder.partition(":")[2] or "final"

    def _embed(self, images: Images, report: Report | None = None, *, device: str = "auto", layer: str = "") -> Arrays:
        from .encoders.checkpoint import load_encoder
        from .encoders.device import pick_device

        encoder = load_encoder(self._encoder()[0])
        tell = (lambda share: report("embedding", share)) if report else None
        layer = layer or self._layer()
        found: Arrays = {"features": encoder.embed(images, layer=layer, device=pick_device(device), progress=tell)}
        if isinstance(images, PictureFiles) and (undecoded := images.undecoded):
            found["undecoded"] = np.array(sorted(undecoded))
        return found

    @cached_property
    def features(self) -> NDArray[np.float32] | None:
        """Features (N, D), or None where the data have neither pictures nor features."""
        return self.embed()

    @cached_property
    def evidence(self) -> Evidence:
        """What detectors may ask for."""

        run = self.run

        def remember(name: str, make: Callable[[], Arrays]) -> Arrays:
            step = name.partition("-")[0]
            return self.workspace.remember(step, digest(self.key, name, VERSIONS[step]), make)

        return Evidence(
            self.observed,
            self.features,
            seed=self.seed,
            remember=remember,
            trusted=self._trusted(),
            joint=self._joint(),
            history=None if run is None else lambda: run.history,
        )

    def _joint(self) -> Callable[[], NDArray[np.float64]] | None:
        """Where the joint scores of pictures and labels come from, if the encoder gives any."""
        images = self.observed.images
        if self.encoder == OWN_FEATURES or images is None:
            return None
        sizes, outputs = (self._encoder()[1].get(key, ()) for key in ("sizes", "outputs"))
        if JOINT not in outputs or sizes["classes"] != len(self.observed.classes):
            return None
        return lambda: self._embed(images, layer=JOINT)["features"].astype(np.float64)

    def _trusted(self) -> Callable[[], Trusted] | None:
        """Where the features of trusted samples come from: marked rows, or the test samples set aside."""
        rows = self.observed.trusted
        if rows is not None and rows.any():
            place = np.flatnonzero(rows)
            features = self.features
            if features is None:
                return None
            return lambda: Trusted(features[place], self.observed.labels[place], place)
        aside = self._aside()
        if aside is None or self.encoder == OWN_FEATURES:
            return None
        images, labels = aside

        def embed() -> Trusted:
            key = digest(self._weights(), key_of(images), VERSIONS["features"])
            features = self.workspace.remember("trusted", key, lambda: self._embed(images))["features"]
            return Trusted(features, labels, np.full(len(labels), -1))

        return embed

    def _aside(self) -> tuple[Images, NDArray[np.int64]] | None:
        """Pictures and labels of the test samples that are set aside as trusted."""
        test, places = self.dataset.test, self.dataset.trusted
        return None if test is None or not len(places) else (some(test.images, places), test.labels[places])

    def card(self) -> dict[str, Any]:
        """The model card of the encoder.

        Raises:
            InputError: there is no such encoder, or its card cannot be read.
        """
        return self._encoder()[1]

    def record(self) -> Record | None:
        """How the encoder's training treated its samples; None without an encoder, or where it left no record."""
        if self.encoder == OWN_FEATURES or self.observed.images is None:
            return None
        path = self._encoder()[0]
        path = path.with_name(f"{path.stem}.record.safetensors")
        return load_record(path) if path.exists() else None

    @cached_property
    def pull_ranks(self) -> NDArray[np.float64] | None:
        """How hard each sample pulled at the end of the encoder's training, if that was on this dataset.

        (N,) share of the samples that pulled less, 0 to 1; NaN for those that were not followed. None where there is no
        readable record of such a training.
        """
        try:
            record = self.record()
        except InputError:
            return None
        if record is None or not len(record.epochs) or self.card().get("dataset_digest") != self.dataset.digest:
            return None
        last = record.last_pulls
        rows, found = record.rows[~np.isnan(last)], np.full(len(self), np.nan)
        found[rows] = ranks(last[~np.isnan(last)])
        return found

    def test_rows(self) -> NDArray[np.int64]:
        """Positions of the test samples that are not set aside as trusted; none where there is no test split."""
        test = self.dataset.test
        return np.setdiff1d(np.arange(0 if test is None else len(test)), self.dataset.trusted)

    @property
    def test_key(self) -> str:
        """A key that changes with the test samples, or with which are set aside; empty where there are none."""
        test = self.dataset.test
        return "" if test is None else digest(test.digest, self.dataset.trusted)

    def test_features(self) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Features and labels of the test samples (without those set aside as trusted); None if there are none."""
        test, rows = self.dataset.test, self.test_rows()
        if test is None or self.encoder == OWN_FEATURES or not len(rows):
            return None
        images = some(test.images, rows)
        key = digest(self._weights(), key_of(images), VERSIONS["features"])
        return self.workspace.remember("test", key, lambda: self._embed(images))["features"], test.labels[rows]

    def two_views(self, most: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Features of two augmented views of at most ``most`` pictures, as in training; None without an encoder."""
        images = self.observed.images
        if self.encoder == OWN_FEATURES or images is None:
            return None
        rng = np.random.default_rng([self.seed, 31])
        rows = np.sort(rng.permutation(len(images))[:most])

        def make() -> Arrays:
            from .encoders.augment import Augment, augmented

            augment = Augment.of(self.card().get("augment", {}))
            one, other = (self._embed(augmented(images[rows], augment, self.seed * 2 + i)) for i in range(2))
            return {"one": one["features"], "other": other["features"]}

        found = self.workspace.remember("views", digest(self.key, self.seed, most, VERSIONS["features"]), make)
        return found["one"], found["other"]

    def detect(self, slug: str, **parameters: Any) -> Detection:
        """Run one detector, or take its stored result.

        Args:
            slug: the detector.
            parameters: of its ``__init__``; the rest are its defaults.

        Raises:
            InputError: no such detector or parameter, missing evidence, or data it cannot work on.
        """
        detector = self.detector(slug, parameters)
        key = self._detection_key(detector)

        def make() -> Arrays:
            arguments = self.evidence.gather(detector)
            started = time.perf_counter()
            detector.fit(arguments.pop("X"), arguments.pop("y"), **arguments)
            info = {"info": detector.info_, "seconds": time.perf_counter() - started}
            return {
                "scores": detector.scores_.astype(np.float64),
                "flags": detector.flags_,
                "suggestions": getattr(detector, "suggestions_", np.empty(0, np.int64)),
                "info": pack(info),
            }

        if key in self._detections:  # known results wait for nobody
            return self._detections[key]
        with self.lock:
            if key not in self._detections:
                found = self.workspace.remember("detect", key, make)
                info = unpack(found["info"])
                self._detections[key] = Detection(
                    slug,
                    found["scores"],
                    found["flags"],
                    found["suggestions"] if len(found["suggestions"]) else None,
                    info["info"],
                    info["seconds"],
                    self.observed.labels,
                    partial(self.noise_rate, slug),
                )
            return self._detections[key]

    def verdict(
        self, *, mislabelled: float | None = None, ood: float | None = None, report: Report | None = None
    ) -> Verdict:
        """Clean, mislabelled or OOD: the verdict on every sample (see `chaffinch.verdict`), stored or made now.

        Args:
            mislabelled: share of wrong labels, if known.
            ood: share of foreign samples, if known.
            report: progress.

        Raises:
            MissingEvidence: there are no features.
            InputError: data it cannot work on, or rates out of range.
        """
        key = self.verdict_key(mislabelled, ood)
        if key in self._verdicts:
            return self._verdicts[key]
        features = self.features
        if features is None:
            raise MissingEvidence("verdict", "features", REMEDIES["features"])

        def make() -> Arrays:
            tell = (lambda share: report("judging", share)) if report else None
            started = time.perf_counter()
            found = judge(
                features,
                self.observed.labels,
                len(self.observed.classes),
                mislabelled=mislabelled,
                ood=ood,
                seed=self.seed,
                progress=tell,
            )
            rest = {"rates": found.rates, "info": found.info | {"seconds": time.perf_counter() - started}}
            arrays = {name: getattr(found, name) for name in ("proba", "labels", "sureness", "transition")}
            return {**arrays, "rest": pack(rest)}

        with self.lock:
            if key not in self._verdicts:
                stored: dict[str, Any] = dict(self.workspace.remember("verdict", key, make))
                rest = unpack(stored.pop("rest"))
                self._verdicts[key] = Verdict(**stored, rates=rest["rates"], info=rest["info"])
            return self._verdicts[key]

    def knows_verdict(self) -> bool:
        """Can the verdict be had without computing it?"""
        key = self.verdict_key()
        return key in self._verdicts or self.workspace.has("verdict", key)

    def verdict_key(self, mislabelled: float | None = None, ood: float | None = None) -> str:
        """The key under which a verdict is stored."""
        return digest(self.key, self.seed, [mislabelled, ood], VERSIONS["verdict"])

    def noise_rate(self, slug: str) -> float | None:
        """The share of samples that the verdict takes for what a detector looks for: OOD only, or any noise.

        None where there are no features to judge by, or too few samples.
        """
        try:
            kinds = self.verdict().kinds
        except InputError:
            return None
        only_ood = registry.get("detector", slug).card.finds == {"ood"}
        return float(np.mean(kinds == OOD if only_ood else kinds != CLEAN))

    def chance(self, found: Detection, verdict: Verdict | None = None) -> NDArray[np.float64] | None:
        """(N,) a detector's scores as probabilities of what it looks for, or None without a verdict.

        Isotonic regression of the verdict's probabilities on the scores: whatever their scale, scores become
        comparable, and keep their order.

        Args:
            found: what the detector found.
            verdict: whose probabilities; default: the one without told rates.
        """
        try:
            proba = (verdict or self.verdict()).proba
        except InputError:
            return None
        only_ood = registry.get("detector", found.slug).card.finds == {"ood"}
        wanted = proba[:, 2] if only_ood else 1.0 - proba[:, 0]
        key = digest(found.scores, wanted)  # not the slug: its parameters may differ
        if key not in self._chances:
            from sklearn.isotonic import IsotonicRegression

            model = IsotonicRegression(y_min=0.0, y_max=1.0).fit(found.scores, wanted)
            self._chances[key] = model.predict(found.scores)
        return self._chances[key]

    def judged(self, verdict: Verdict) -> dict[str, Any]:
        """Figures of a verdict: rates and seconds, and against the truth where it is known."""
        out: dict[str, Any] = {"rates": verdict.rates, "seconds": round(verdict.info["seconds"], 4)}
        if self.truth is None or self.features is None:
            return out
        out = {**three_way(verdict.proba, self.truth.kind), **out}
        labels, k = self.observed.labels, len(self.observed.classes)
        if (self.truth.labels[self.truth.kind != OOD] < 0).any():  # only kinds are known: nothing to learn classes from
            return out
        best = ceiling(self.features, labels, self.truth.labels, k, seed=self.seed)
        return {**out, "ceiling_macro_f1": three_way(best, self.truth.kind)["macro_f1"]}

    def knows(self, slug: str) -> bool:
        """Can the detector's result (with default parameters) be had without computing it?"""
        key = self._detection_key(self.detector(slug, {}))
        return key in self._detections or self.workspace.has("detect", key)

    def lacking(self, slug: str) -> MissingEvidence | None:
        """What a detector needs that is not there, and how to get it (`Evidence.lacking`); None if it can run."""
        return self.evidence.lacking(find_method("detector", slug))

    def detector(self, slug: str, parameters: dict[str, Any] | None = None) -> Any:
        """A detector with these parameters, not fitted; the study's seed unless they name one.

        Raises:
            InputError: no such detector or parameter; the message names the ones there are.
        """
        parameters = parameters or {}
        cls = find_method("detector", slug)
        if "seed" in cls().get_params() and "seed" not in parameters:
            parameters = {"seed": self.seed, **parameters}
        check_seed(parameters.get("seed", self.seed))
        try:
            return cls(**parameters)
        except TypeError as error:
            raise InputError(f"{slug}: {error}; it has {', '.join(cls().get_params())}") from error

    def _detection_key(self, detector: Any) -> str:
        parts: list[Any] = [self.seed, detector.card.slug, detector.get_params(), VERSIONS["detect"]]
        if "trusted" in detector.needs() and (aside := self._aside()):  # not part of what is observed
            parts += aside
        if "history" in detector.needs() and self.run:
            parts += [self.run.about, self.run.epochs]
        package = type(detector).__module__.partition(".")[0]
        if package != __package__:  # another package's detector changes with that package
            parts.append(getattr(sys.modules.get(package), "__version__", ""))
        return digest(self.key, *parts)

    def detection_keys(self) -> list[str]:
        """The keys under which the results of all detectors (with default parameters) are stored."""
        return [self._detection_key(self.detector(slug)) for slug in registry.methods("detector")]

    def map_key(self, kind: str) -> str:
        """The key under which a map is stored."""
        return digest(self.key, kind, self.seed, VERSIONS["map"])

    def map(self, kind: str = "umap", report: Report | None = None) -> NDArray[np.float32]:
        """Map coordinates (N, 2): those of the data, stored ones, or computed now.

        Args:
            kind: ``umap`` or ``pca``.
            report: progress of the layout.

        Raises:
            InputError: there are no features to draw, or no such map.
        """
        if kind not in MAPS:
            raise InputError(f"map must be one of {', '.join(MAPS)}, got {kind!r}")
        if self.observed.xy is not None:
            return self.observed.xy
        features = self.features
        if features is None:
            raise InputError(f"{self.dataset.name} has neither pictures nor features, so there is no map")

        def make() -> Arrays:
            if kind == "pca":
                xy = projection.pca(features)
            else:
                tell = (lambda share: report("drawing the map", share)) if report else None
                xy = projection.umap(features, self.evidence.neighbors, seed=self.seed, progress=tell)
            k = min(10, (len(xy) - 1) // 2)
            quality = map_quality(features, xy, k=k, seed=self.seed) if len(xy) > 4 else {}
            return {"xy": xy, "quality": pack(quality)}

        if kind in self._maps:
            return self._maps[kind]["xy"]
        with self.lock:
            if kind not in self._maps:
                self._maps[kind] = self.workspace.remember("map", self.map_key(kind), make)
            return self._maps[kind]["xy"]

    def map_trust(self, kind: str = "umap") -> dict[str, float]:
        """Trustworthiness, continuity and neighbour preservation of a stored map; empty where it came with the data."""
        if self.observed.xy is not None or not self.has_map(kind):
            return {}
        self.map(kind)
        return unpack(self._maps[kind]["quality"])

    def can_map(self) -> bool:
        """Is there anything to draw a map from?"""
        return self.observed.xy is not None or self.features is not None

    def has_map(self, kind: str) -> bool:
        """Can the map be shown without computing it?"""
        there = self.observed.xy is not None or kind in self._maps
        return there or self.workspace.has("map", self.map_key(kind))

    def has_features(self) -> bool:
        """Can features be had without embedding pictures?"""
        if self.encoder == OWN_FEATURES or self.observed.images is None or "features" in vars(self):
            return True
        return self.workspace.has("features", self.key)

    def figures(self, detection: Detection, flags: NDArray[np.bool_]) -> dict[str, Any]:
        """Figures of the command line and the app: against the truth where it is known, and always the count."""
        count = {"flagged": int(flags.sum()), "seconds": round(detection.seconds, 4)}
        if self.truth is None:
            return count
        return {**ranking(detection.scores, self.truth.kind), **decision(flags, self.truth.kind), **count}

    def table(
        self,
        detections: Sequence[Detection],
        flags: Mapping[str, NDArray[np.bool_]] | None = None,
        verdict: Verdict | None = None,
    ) -> pd.DataFrame:
        """One row a sample: id, given label, true label and kind where known, the verdict, each detector's columns.

        Args:
            detections: whose columns.
            flags: slug -> (N,) flags in force; a detector that is not in it has those of its own rule.
            verdict: whose columns come before those of the detectors.
        """
        flags = flags or {}
        names = np.array([*self.observed.classes, "(none)"])
        columns: dict[str, Any] = {"id": self.observed.ids, "label": names[self.observed.labels]}
        if self.truth is not None:
            known = np.where(self.truth.kind == OOD, "(none)", "")  # empty: only the kind is known
            columns["true_label"] = np.where(self.truth.labels >= 0, names[self.truth.labels], known)
            columns["kind"] = np.array(KINDS)[self.truth.kind]
        if verdict is not None:
            columns["verdict"] = np.array(KINDS)[verdict.kinds]
            columns["probable_label"] = names[verdict.labels]
            columns |= {f"p_{kind}": verdict.proba[:, i] for i, kind in enumerate(KINDS)}
        for found in detections:
            columns[f"{found.slug}_score"] = found.scores
            if verdict is not None and (chance := self.chance(found, verdict)) is not None:
                columns[f"{found.slug}_chance"] = chance
            columns[f"{found.slug}_flag"] = flags.get(found.slug, found.own)
            if found.suggestions is not None:
                columns[f"{found.slug}_suggestion"] = names[found.suggestions]
        return pd.DataFrame(columns)


def default_detectors(study: Study) -> tuple[Cut, ...]:
    """The detectors for those who choose none: those of the default view that have what they need."""
    return tuple(cut for cut in Spec().detectors if study.lacking(cut.detector) is None)


def run_detectors(
    study: Study, cuts: Sequence[Cut], *, skip: bool = False, report: Report | None = None
) -> tuple[list[Detection], dict[str, str]]:
    """Run several detectors.

    Args:
        study: on what.
        cuts: which, with their cuts.
        skip: collect what cannot run, with the reason, instead of raising.
        report: progress.

    Returns:
        The detections, and slug -> reason for those skipped.

    Raises:
        InputError: a detector cannot run and ``skip`` is False.
    """
    done, skipped = [], {}
    for c in cuts:
        study.detector(c.detector)  # a misspelt name is an error, never "skipped"
    for i, c in enumerate(cuts):
        if report:
            report(c.detector, i / len(cuts))
        try:
            done.append(study.detect(c.detector))
        except (MissingEvidence, InputError) as error:
            if not skip:
                raise
            skipped[c.detector] = str(error)
    return done, skipped
