"""The cleaned dataset: a table, its pictures class by class, and a manifest from which the same can be made again.

One row a sample, dropped ones included. The columns, in their order (those that have nothing to say are missing):

=====================  ================================================================================================
``id``                 of the sample
``filepath``           its picture: in the exported folder if pictures go with it, else the original file, else empty
``given_label``        as the dataset has it (cleanlab's name)
``final_label``        after decisions and policy; empty = dropped
``ground_truth``       the same under FiftyOne's usual name
``tags``               for FiftyOne: the action, the verdict's kind where it is noise, and ``issues``, with commas
``action``             ``keep``, ``relabel`` or ``drop``
``action_by``          ``decision``, ``verdict``, ``check`` (also: its picture cannot be decoded), or empty: nobody
                       saw a reason to change it
``decision`` …         what a person decided, and ``who``, ``when`` (UTC), ``reason``
``suggestion``         the label to give instead, or empty
``verdict``            ``clean``, ``mislabelled`` or ``ood``; ``p_clean``, ``p_mislabelled``, ``p_ood`` are its reasons
``predicted_label``    the likeliest class if the sample has one (cleanlab's name)
``is_label_issue``     the verdict is not ``clean`` (cleanlab's name); ``is_outlier_issue``: it is ``ood``
``label_quality``      P(clean), low = bad (cleanlab's name and direction)
``issues``, ``why``    names of the checks that list it, with commas (see `chaffinch.checks`), and what they measured;
                       ``unreadable``: its picture cannot be decoded
``duplicate_of``       id of the copy most like it; ``duplicate_set``: number of its group of copies, -1 = none
``is_…_issue``         ``near_duplicate``, ``leak``, and cleanvision's names ``dark``, ``light``, ``low_information``,
                       ``blurry``, ``odd_size``, ``odd_aspect_ratio``, as far as that was checked
``true_label, kind``   where the truth is known
``x``, ``y``           place on the map, for Embedding Atlas (``--x x --y y --text given_label``)
``SLUG_score`` …       of each detector: score, chance (score as a probability), flag, suggestion
=====================  ================================================================================================
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import __version__, checks
from .base.errors import InputError
from .base.files import digest, read_json, sha256_file, write_json
from .base.methods import find_method, parameter_kinds
from .base.shapes import misfit
from .benefit import benefit, lacking
from .checks import CHECKS, Checks
from .data import NoisyDataset
from .data.pictures import PictureFiles, plain_file
from .exports import write_table
from .reviews import Choice, Decision, suggest
from .spec import MAPS, Cut
from .study import OWN_FEATURES, VERSIONS, Detection, Study
from .thumbnails import picture_png
from .verdict import Verdict

FORMATS = ("csv", "parquet")
PICTURES = ("none", "links", "copies")
NOISE = ("mislabelled", "ood")
ISSUES = {
    "near_duplicate": ("duplicates",), "leak": ("leaks",), "dark": ("dark",), "light": ("bright",),
    "low_information": ("blank", "flat"), "blurry": ("blurred",), "odd_size": ("odd-size",),
    "odd_aspect_ratio": ("odd-shape",),
}  # fmt: skip
"""Names that cleanlab and cleanvision give to what the checks find."""

MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest's layout."""

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Policy:
    """What happens to a sample: what a person decided; else what the verdict is sure enough of, or a check found; else
    it is kept.

    Attributes:
        drop: kinds of noise that the verdict may drop, and names of checks (see `chaffinch.checks.CHECKS`) that
            may drop what they list; of each group of ``duplicates`` one stays.
        relabel: the verdict may give wrongly labelled samples their suggested label.
        above: how probable the kind must be for that, 0 to 1.
        unsure: what happens to samples a person was unsure about, ``keep`` or ``drop``; the verdict has no say there.
    """

    drop: tuple[str, ...] = ()
    relabel: bool = False
    above: float = 0.9
    unsure: str = "keep"

    def __post_init__(self) -> None:
        if strange := sorted(set(self.drop) - {*NOISE, *CHECKS}):
            known = ", ".join((*NOISE, *CHECKS))
            raise InputError(f"drop: {strange[0]!r} is no kind of noise and no check; use some of {known}")
        if self.relabel and "mislabelled" in self.drop:
            raise InputError("wrongly labelled samples can be dropped or relabelled, not both; choose one")
        if not 0 <= self.above <= 1:
            raise InputError(f"above must be a probability between 0 and 1, got {self.above}")
        if self.unsure not in ("keep", "drop"):
            raise InputError(f"unsure must be keep or drop, got {self.unsure!r}")

    @property
    def automatic(self) -> bool:
        """Does the verdict have a say?"""
        return bool(set(self.drop) & set(NOISE)) or self.relabel

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that have a say."""
        return tuple(check for check in CHECKS if check in self.drop)


class _Dataset(TypedDict):
    name: str
    digest: str
    test: NotRequired[str]


class _Encoder(TypedDict):
    name: str
    sha256: str | None


class _Run(TypedDict):
    name: str
    digest: str


class _Detector(TypedDict):
    cut: str
    parameters: dict[str, Any]


class _Table(TypedDict):
    sha256: str


class _Manifest(TypedDict):
    """What a replay reads of a manifest; the first ones lacked some of it."""

    manifest: int
    chaffinch: str
    steps: dict[str, int]
    dataset: _Dataset
    encoder: _Encoder
    run: _Run | None
    seed: int
    detectors: list[_Detector]
    policy: Policy
    map: str
    pictures: str
    format: str
    decisions: list[Decision]
    checks: NotRequired[bool]
    accuracy: NotRequired[dict[str, Any] | None]
    table: NotRequired[_Table]


@dataclass(frozen=True)
class Settled:
    """What became of each sample.

    Attributes:
        labels: (N,) int64 final labels, -1 = dropped.
        by: (N,) text: ``decision``, ``verdict``, ``check`` or empty.
        suggestions: (N,) int64, -1 = none.
    """

    labels: NDArray[np.int64]
    by: NDArray[np.str_]
    suggestions: NDArray[np.int64]

    def counts(self, given: NDArray[np.int64]) -> dict[str, int]:
        """How many samples are kept, relabelled and dropped."""
        dropped, kept = int((self.labels < 0).sum()), int((self.labels == given).sum())
        return {"kept": kept, "relabelled": len(given) - dropped - kept, "dropped": dropped}


def settle(
    study: Study,
    detections: Sequence[Detection],
    verdict: Verdict | None,
    decisions: Sequence[Decision],
    policy: Policy,
    found: Checks | None = None,
) -> Settled:
    """Decisions first, then the verdict and the checks as far as the policy lets them.

    What cannot be decoded is dropped unless a person decided otherwise. Of the copies that are left when all else is
    settled one stays: one that a person kept, or else the one likeliest to be clean.

    Raises:
        InputError: the policy asks for a verdict or a check and there is none, or a decision names no sample or class
            of the data.
    """
    given, classes = study.observed.labels, study.observed.classes
    opinions = ([] if verdict is None else [verdict.labels]) + [
        d.suggestions for d in detections if d.suggestions is not None
    ]
    suggestions = suggest(given, opinions)
    labels, by = given.copy(), np.full(len(given), "", "<U8")
    if policy.automatic:
        if verdict is None:
            raise InputError("without features there is no verdict that could drop or relabel; leave it to decisions")
        sure = verdict.proba.max(axis=1) >= policy.above
        for code, kind in enumerate(NOISE, 1):
            here = sure & (verdict.kinds == code)
            if kind in policy.drop:
                labels[here], by[here] = -1, "verdict"
            elif kind == "mislabelled" and policy.relabel:
                here &= suggestions >= 0
                labels[here], by[here] = suggestions[here], "verdict"
    places = {str(name): i for i, name in enumerate(study.observed.ids)}
    for d in decisions:
        if d.sample not in places:
            raise InputError(f"decision {d.revision} is about sample {d.sample!r}, which {study.dataset.name} has not")
        if d.choice == "relabel" and d.label not in classes:
            raise InputError(f"decision {d.revision} ({d.sample}): {d.label!r} is not one of the classes")
        i = places[d.sample]
        what = policy.unsure if d.choice == "unsure" else d.choice
        labels[i] = -1 if what == "drop" else classes.index(d.label) if what == "relabel" else given[i]
        by[i] = "decision"
    lost = unreadable(study) & (by != "decision")
    labels[lost], by[lost] = -1, "check"
    if policy.checks:
        if found is None:
            raise InputError(f"{policy.checks[0]} were not looked for here; check the dataset first")
        if missing := [check for check in policy.checks if check in found.skipped]:
            raise InputError(f"{missing[0]} cannot be dropped: {found.skipped[missing[0]]}")
        free = by != "decision"
        for check in policy.checks:
            if check != "duplicates":
                gone = found.flags(check) & free & (labels >= 0)
                labels[gone], by[gone] = -1, "check"
        if "duplicates" in policy.checks:
            better = (np.zeros(len(given)) if verdict is None else verdict.proba[:, 0]) + 2.0 * ~free
            gone = found.spare(better, labels >= 0) & free
            labels[gone], by[gone] = -1, "check"
    return Settled(labels, by, suggestions)


@dataclass(frozen=True)
class Export:
    """A cleaned dataset, not written yet.

    Attributes:
        table: one row a sample; see the top of this file.
        manifest: plain values from which `replay` makes the same again.
        dataset: whose pictures go with it.
        names: (N,) where each sample's picture goes, relative to the folder; empty = nowhere.
    """

    table: pd.DataFrame
    manifest: dict[str, Any]
    dataset: NoisyDataset
    names: tuple[str, ...] = field(repr=False)


def files_of(dataset: NoisyDataset) -> tuple[str, ...] | None:
    """Paths of a dataset's pictures; None for pictures in memory, or inside a table."""
    images = dataset.observed.images
    return images.paths if isinstance(images, PictureFiles) else None


def unreadable(study: Study) -> NDArray[np.bool_]:
    """(N,) which pictures turned out not to be decodable; known once they were embedded."""
    images, found = study.observed.images, np.zeros(len(study), bool)
    if isinstance(images, PictureFiles):
        found[list(images.undecoded)] = True
    return found


def make(
    study: Study,
    cuts: Sequence[Cut],
    decisions: Sequence[Decision] = (),
    policy: Policy | None = None,
    *,
    layout: str = "",
    pictures: str = "none",
    format: str = "csv",
    parameters: dict[str, dict[str, Any]] | None = None,
    checked: bool | None = None,
    measured: bool = False,
    report: Report | None = None,
) -> Export:
    """Put a cleaned dataset together.

    Args:
        study: the dataset and its encoder.
        cuts: detectors whose columns are wanted, and where they cut.
        decisions: those in force.
        policy: what happens to the samples nobody decided about.
        layout: the map of ``x`` and ``y``: ``umap``, ``pca``, ``none``; empty = what is at hand without waiting.
        pictures: ``none``, ``links`` to the original files, or ``copies``; dropped ones stay behind.
        format: ``csv`` or ``parquet``.
        parameters: of detectors, by slug; the rest are their defaults.
        checked: with what the checks found; None = if that is at hand without waiting, or the policy asks for it.
        measured: with the accuracy of a linear classifier before and after, where there is a test split.
        report: progress.

    Raises:
        InputError: a detector cannot run or cut, the policy asks for a verdict or a check and there is none, or there
            are no pictures or files for what is wanted.
    """
    policy, parameters = policy or Policy(), parameters or {}
    if pictures not in PICTURES or format not in FORMATS:
        raise InputError(f"pictures must be one of {', '.join(PICTURES)}, the format {' or '.join(FORMATS)}")
    files, images = files_of(study.dataset), study.observed.images
    if pictures == "copies" and images is None:
        raise InputError(f"{study.dataset.name} has no pictures to copy; use --pictures none")
    if pictures == "links" and files is None:
        raise InputError(f"{study.dataset.name} is not made of files to link to; use --pictures copies")
    tell = report or (lambda what, share: None)
    verdict = None
    if study.features is not None:
        try:
            verdict = study.verdict(report=tell)
        except InputError:
            if policy.automatic:
                raise
    found, flags, about = [], {}, []
    for i, c in enumerate(cuts):
        tell(c.detector, i / len(cuts))
        chosen = parameters.get(c.detector, {})
        detection = study.detect(c.detector, **chosen)
        try:
            flags[c.detector] = detection.flags(c)
        except InputError as error:
            raise InputError(f"{c.detector}: {error}") from error
        found.append(detection)
        detector = study.detector(c.detector, chosen)
        about.append({"cut": str(c), "parameters": detector.get_params(), "package": _package(detector)})
    if checked is None:
        checked = bool(policy.checks) or checks.known(study)
    listed = checks.find(study, report=tell) if checked else None
    settled = settle(study, found, verdict, decisions, policy, listed)
    if not layout:
        layout = "umap" if study.has_map("umap") else "pca" if study.can_map() else "none"
    names = _names(study, settled.labels, files) if pictures != "none" else ("",) * len(study)
    shown = names if pictures != "none" else files or names
    table = _table(study, found, flags, verdict, decisions, settled, layout, shown, listed)
    accuracy: dict[str, Any] | None = None
    if measured:
        reason = lacking(study)
        accuracy = {"skipped": reason} if reason else benefit(study, settled.labels, report=tell)
    own = study.encoder == OWN_FEATURES or images is None
    run = study.run
    manifest = {
        "manifest": VERSION,
        "chaffinch": __version__,
        "steps": VERSIONS,
        "dataset": {"name": study.dataset.name, "digest": study.dataset.digest, "samples": len(study),
                    "test": study.test_key},
        "encoder": {"name": study.encoder, "sha256": None if own else study.card()["sha256"]},
        "run": None if run is None else {"name": run.name, "digest": digest(run.about, run.epochs)},
        "seed": study.seed,
        "detectors": about,
        "policy": asdict(policy) | {"drop": list(policy.drop)},
        "map": layout,
        "pictures": pictures,
        "format": format,
        "checks": checked,
        "accuracy": accuracy,
        "counts": settled.counts(study.observed.labels),
        "decisions": [asdict(d) for d in decisions],
    }  # fmt: skip
    return Export(table, manifest, study.dataset, names)


def _package(detector: Any) -> str:
    """Where a detector comes from, and which version of it."""
    name = type(detector).__module__.partition(".")[0]
    return f"{name} {__version__ if name == __package__ else getattr(sys.modules.get(name), '__version__', '')}".strip()


def _table(
    study: Study,
    found: Sequence[Detection],
    flags: dict[str, NDArray[np.bool_]],
    verdict: Verdict | None,
    decisions: Sequence[Decision],
    settled: Settled,
    layout: str,
    paths: Sequence[str],
    listed: Checks | None,
) -> pd.DataFrame:
    names = {"label": "given_label", "probable_label": "predicted_label"}
    rest = study.table(found, flags, verdict).rename(columns=names)
    given, classes = study.observed.labels, np.array([*study.observed.classes, ""])
    final = settled.labels
    action = np.where(final < 0, "drop", np.where(final == given, "keep", "relabel"))
    noise = np.array(["", *(f",{kind}" for kind in NOISE)])[0 if verdict is None else verdict.kinds]
    by_sample = {d.sample: d for d in decisions}
    made = [by_sample.get(str(name)) for name in study.observed.ids]
    columns: dict[str, Any] = {
        "id": rest.pop("id"),
        "filepath": list(paths),
        "given_label": rest.pop("given_label"),
        "final_label": classes[final],
        "ground_truth": classes[final],
        "tags": np.char.add(action, noise),
        "action": action,
        "action_by": settled.by,
        "decision": [d.choice if d else "" for d in made],
        "who": [d.who if d else "" for d in made],
        "when": [d.at if d else "" for d in made],
        "reason": [d.reason if d else "" for d in made],
        "suggestion": classes[settled.suggestions],
    }
    if verdict is not None:
        columns |= {name: rest.pop(name) for name in ("verdict", "p_clean", "p_mislabelled", "p_ood")}
        columns |= {
            "predicted_label": rest.pop("predicted_label"),
            "is_label_issue": verdict.kinds > 0,
            "is_outlier_issue": verdict.kinds == 2,
            "label_quality": verdict.proba[:, 0],
        }
    broken = unreadable(study)
    if listed is not None or broken.any():
        issues, why = ([""] * len(study),) * 2 if listed is None else checks.texts(study, listed)
        issues = _before("unreadable", broken, issues, ",")
        columns |= {"issues": issues, "why": _before("its picture cannot be decoded", broken, why, "; ")}
        columns["tags"] = [f"{tag},{told}" if told else tag for tag, told in zip(columns["tags"], issues, strict=True)]
    if listed is not None:
        ids = np.array([*study.observed.ids.tolist(), ""])
        columns |= {"duplicate_of": ids[listed.copy], "duplicate_set": listed.group}
        columns |= {
            f"is_{name}_issue": np.any([listed.flags(check) for check in made_of], axis=0)
            for name, made_of in ISSUES.items()
            if not set(made_of) & set(listed.skipped)
        }
    columns |= {name: rest.pop(name) for name in ("true_label", "kind") if name in rest}
    if layout != "none":
        columns |= dict(zip("xy", study.map(layout).T, strict=True))
    return pd.concat([pd.DataFrame(columns), rest], axis=1)


def _before(word: str, flags: NDArray[np.bool_], texts: Sequence[str], between: str) -> list[str]:
    """Texts with a word before those that are flagged."""
    return [between.join(filter(None, (word * flag, text))) for flag, text in zip(flags.tolist(), texts, strict=True)]


def _names(study: Study, final: NDArray[np.int64], files: tuple[str, ...] | None) -> tuple[str, ...]:
    """Where each picture goes: ``pictures/CLASS/ID.png`` (or with its file's ending); empty for dropped ones."""
    folders = safe_names(study.observed.classes)
    stems = safe_names([str(name) for name in study.observed.ids])
    endings = [Path(f).suffix.lower() for f in files] if files else [".png"] * len(stems)
    return tuple(
        f"pictures/{folders[label]}/{stem}{ending}" if label >= 0 else ""
        for label, stem, ending in zip(final.tolist(), stems, endings, strict=True)
    )


def safe_names(texts: Sequence[str]) -> list[str]:
    """A file name for each text, all different whatever the file system does to their case, none of them a path.

    Letters, digits, ``_``, ``-`` and inner dots stay; a name that had anything else, is long, or is one twice, ends in
    a hash of its text.
    """
    plain = [re.sub(r"[^A-Za-z0-9._-]|^[.-]|\.$", "_", text)[:80] or "_" for text in texts]
    folded = [name.lower() for name in plain]
    twice = {name for name, count in zip(*np.unique(folded, return_counts=True), strict=True) if count > 1}
    return [
        name if name == text and low not in twice else f"{name}-{digest(text)[:10]}"
        for name, text, low in zip(plain, texts, folded, strict=True)
    ]


def write(export: Export, out: Path, report: Report | None = None) -> Path:
    """Write table, pictures and manifest into a new or empty folder: all of it, or nothing.

    Raises:
        InputError: the folder holds something, or cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is there and not an empty folder; name another, nothing was written")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            _fill(export, temporary, report or (lambda what, share: None))
            temporary.chmod(0o755)
            if out.exists():
                out.rmdir()
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    return out


def _fill(export: Export, folder: Path, report: Report) -> None:
    manifest, images, files = export.manifest, export.dataset.observed.images, files_of(export.dataset)
    for i, name in enumerate(export.names):
        if not name:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if manifest["pictures"] == "links" and files:
            target.symlink_to(os.path.abspath(files[i]))
        elif files:
            try:
                source = plain_file(files[i])
            except OSError as error:
                raise InputError(f"{files[i]} has gone or become a link since the dataset was opened") from error
            with source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        elif images is not None:
            target.write_bytes(picture_png(images[i], max(images.shape[1:3])))
        if i % 500 == 0:
            report("pictures", i / len(export.names))
    table = folder / f"table.{manifest['format']}"
    write_table(export.table, table)
    write_json(folder / MANIFEST, {**manifest, "table": {"name": table.name, "sha256": sha256_file(table)}})


def decided(states: Any) -> list[Decision]:
    """The decisions in force, in the order in which they were made (see `chaffinch.reviews.Reviews.states`)."""
    return sorted((s.decision for s in states.values() if s.decision), key=lambda d: d.revision)


def replay(
    path: Path, open_study: Callable[[dict[str, Any]], Study], report: Report | None = None
) -> tuple[Export, dict[str, Any]]:
    """Make again what a manifest describes; whatever its rows depend on must be as it was.

    Args:
        path: the manifest.
        open_study: opens the study that a manifest's values name.
        report: progress.

    Returns:
        the export, and the manifest as it was read.

    Raises:
        InputError: it is no manifest, or dataset, encoder, training record or a step is another one now.
    """
    told = read_json(path)
    if not isinstance(told, dict) or not {"manifest", "steps", "dataset", "policy", "decisions"} <= set(told):
        raise InputError(f"{path} is not a manifest of 'chaffinch export'")
    if told["manifest"] != VERSION:
        raise InputError(f"{path} is a manifest of layout {told['manifest']}; this chaffinch reads layout {VERSION}")
    if wrong := misfit(told, _Manifest):
        raise InputError(f"{path}: a field is not as 'chaffinch export' writes it: {wrong}")
    if told["map"] not in (*MAPS, "none"):
        raise InputError(f"{path}: there is no map {told['map']!r}")
    changed = [step for step, version in told["steps"].items() if VERSIONS.get(step) != version]
    made_by, digests = told["chaffinch"], (told["dataset"]["digest"], told["encoder"]["sha256"])
    checked, tested = told.get("checks", False), told["dataset"].get("test")
    measured = told.get("accuracy") is not None
    run = told["run"] and (told["run"]["name"], told["run"]["digest"])
    cuts = [Cut.parse(d["cut"]) for d in told["detectors"]]
    parameters = {c.detector: d["parameters"] for c, d in zip(cuts, told["detectors"], strict=True)}
    for slug, given in parameters.items():
        kinds = parameter_kinds(find_method("detector", slug))
        if wrong := next(filter(None, (misfit(v, kinds.get(name, Any), name) for name, v in given.items())), ""):
            raise InputError(f"{path}: {slug}: {wrong}")
    policy = Policy(**{**told["policy"], "drop": tuple(told["policy"].get("drop", ()))})
    decisions = [Decision(**d) for d in told["decisions"]]
    for d in decisions:
        Choice(d.sample, d.choice, d.label)  # refuses what is none
    pictures, format = told["pictures"], told["format"]
    if changed:
        raise InputError(
            f"{path} was made by chaffinch {made_by}, whose step {changed[0]!r} gave other results; "
            "install that version to replay it"
        )
    study = open_study(told)
    now, encoder = study.dataset.digest, told["encoder"]["name"]
    if now != digests[0]:
        raise InputError(
            f"{path} is about {told['dataset']['name']} with digest {digests[0]}, but {study.dataset.name} has {now}: "
            "the data have changed; name the ones it was made from as DATASET"
        )
    if (checked or measured) and tested != study.test_key:
        raise InputError(
            f"{path} was made with another test split than {study.dataset.name} has now; "
            "name the data it was made from as DATASET"
        )
    if digests[1] is not None and (have := study.card()["sha256"]) != digests[1]:
        raise InputError(
            f"{path} was made with encoder {encoder!r} of SHA-256 {digests[1][:16]}…, but the one of this name is "
            f"{have[:16]}…; put the weights it was made with in its place"
        )
    if run and (study.run is None or digest(study.run.about, study.run.epochs) != run[1]):
        raise InputError(f"{path} was made with run {run[0]!r}, whose record is another one now")
    export = make(
        study, cuts, decisions, policy, layout=told["map"], pictures=pictures, format=format, parameters=parameters,
        checked=checked, measured=measured, report=report,
    )  # fmt: skip
    return export, told


def as_json(manifest: dict[str, Any]) -> str:
    """A manifest as text."""
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
