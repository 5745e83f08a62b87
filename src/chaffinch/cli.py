"""The `chaffinch` command.

Exit codes: 0 done, 1 it failed, 2 bad usage or unusable input. Results go to standard output, progress to standard
error; with ``--json`` standard output holds one JSON document and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .base.errors import InputError

if TYPE_CHECKING:
    from .workspace import Workspace

DATASET_HELP = """fashion-web, a draw such as fashion-web:noise=0.6,ood=0.5,flips=asymmetric,seed=3,n=6000 (noise: share
of noisy pictures; ood: share of those that is foreign; flips: symmetric, asymmetric or instance); or folder:PATH with a
sub-folder of pictures for each class (below train and test, where both are there); or table:PATH.csv or .parquet (or a
folder of .parquet) with columns label and one or more of image (path relative to the table, or bytes), embedding and
pred_probs (lists); optional id, split, true_label, kind, x, y; or arrays:PATH.npz with labels (N,) and one or more of
images (N,H,W[,3]) uint8, features (N,D), pred_probs (N,C); optional classes, ids, true_labels (-1 = foreign), kind, xy
(N,2), trusted (N,) bool; or hf:PATH, a folder written by save_to_disk of Hugging Face datasets"""

RUN_HELP = "training (see 'train') whose record detectors read: its name in the workspace, or its folder (./NAME)"
ENCODER_HELP = """slug of an encoder ('methods' lists them), or 'features' of the data (default: simclr for small grey
pictures, efficientnet-lite0 for all others)"""


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"chaffinch: warning: {line}", file=sys.stderr)


class Meter:
    """One line on standard error that is rewritten: what is being done, how much of it, how long it will take."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.what, self.started, self.shown = "", 0.0, -1.0

    def __call__(self, what: str, share: float, left: float | None = None, detail: str = "") -> None:
        """Show progress; not on a terminal, one line every tenth is enough."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.started, self.shown = what, now, -1.0
        if self.quiet or (share < 1 and share - self.shown < (0.005 if self.live else 0.1)):
            return
        self.shown = share
        if left is None:
            left = (now - self.started) * (1 - share) / share if share > 0 else 0.0
        text = f"{what} {share:6.1%}{detail}" + (f", {clock(left)} left" if share < 1 and left >= 1 else "")
        end = "\n" if share >= 1 or not self.live else ""
        print(f"\r\x1b[K{text}" if self.live else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _run(args: argparse.Namespace) -> str | Path:
    """The run that ``--run`` names: in the workspace, or, with a slash, a folder anywhere."""
    return Path(args.run_name) if "/" in args.run_name or os.sep in args.run_name else str(args.run_name)


def _detect(args: argparse.Namespace) -> int:
    import numpy as np

    from . import registry
    from .card import KINDS
    from .exports import FORMATS, write_table
    from .spec import RULES, Cut
    from .study import Study, default_detectors, run_detectors
    from .workspace import Workspace

    out = Path(args.out) if args.out else None
    if out and out.suffix not in FORMATS:
        raise InputError(f"--out {out}: the file name must end in {' or '.join(FORMATS)}")
    meter = Meter(args.quiet)
    study = Study(args.dataset, args.encoder, workspace=Workspace(args.workspace), seed=args.seed, run=_run(args))
    wanted = args.detector or []
    every = "all" in wanted
    cuts = [Cut.parse(text) for text in wanted if text != "all"]
    if every:  # those that are named besides keep their cut
        named = {c.detector: c for c in cuts}
        cuts = [named.get(slug, Cut(slug)) for slug in sorted({*registry.methods("detector"), *named})]
    _warn(study.warnings)
    study.embed(meter, device=args.device)
    _warn(study.dataset.undecoded)
    cuts = cuts or [*default_detectors(study)]
    done, skipped = run_detectors(study, cuts, skip=every, report=meter)
    if any(c.rule == RULES[0] and c.budget is None and c.score is None for c in cuts):
        with suppress(InputError):  # without a verdict these cuts are the methods' own rules
            study.verdict(report=meter)
    chosen, flags = {c.detector: c for c in cuts}, {}
    for d in list(done):
        try:
            flags[d.slug] = d.flags(chosen[d.slug])
        except InputError as error:
            if not every:
                raise InputError(f"{d.slug}: {error}") from error
            done.remove(d)
            skipped[d.slug] = str(error)
    if not done:
        raise InputError("no detector could run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    results = {d.slug: study.figures(d, flags[d.slug]) for d in done}
    meter("detectors", 1.0)
    verdict, judged = None, {}
    if args.verdict or args.mislabelled is not None or args.ood is not None:
        try:
            verdict = study.verdict(mislabelled=args.mislabelled, ood=args.ood, report=meter)
            judged = {"verdict": study.judged(verdict)}
        except InputError as error:
            if not every:
                raise
            skipped["verdict"] = str(error)
    document = {"dataset": study.dataset.name, "n": len(study), "detectors": results, "skipped": skipped, **judged}
    if out:
        write_table(study.table(done, flags, verdict), out)
    if args.json:
        print(json.dumps(document, indent=2))
        return 0
    columns = ["auroc_ood", "auroc_mislabelled", "auroc_any", "precision", "recall", "clean_kept", "flagged"]
    columns = [c for c in columns if any(c in r for r in results.values())]
    print(f"{study.dataset.name}: {len(study)} samples, encoder {study.encoder}")
    print(" ".join([f"{'detector':22s}", *(f"{c:>17s}" for c in columns)]))
    for slug, row in results.items():
        print(" ".join([f"{slug:22s}", *(f"{_figure(row.get(c)):>17s}" for c in columns)]))
    if verdict is not None:
        counts = dict(zip(KINDS, np.bincount(verdict.kinds, minlength=len(KINDS)).tolist(), strict=True))
        print("verdict: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        if "macro_f1" in judged["verdict"]:
            best = judged["verdict"].get("ceiling_macro_f1")
            known = "" if best is None else f" (at best {best:.3f})"
            print(f"verdict: macro-F1 {judged['verdict']['macro_f1']:.3f}{known}")
    for name, info in [*((d.slug, d.info) for d in done), *([("verdict", verdict.info)] if verdict else [])]:
        if note := info.get("note"):
            print(f"{name}: {note}")
    for slug, reason in skipped.items():
        print(f"skipped: {reason}" if reason.startswith(slug) else f"skipped {slug}: {reason}")
    if out:
        print(f"written: {out}")
    return 0


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _methods(args: argparse.Namespace) -> int:
    rows = method_rows(args.workspace)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        finds = ", ".join(row["finds"])
        print(
            f"{row['kind']:9s} {row['slug']:20s} {row['year'] or '':4} {row['name']}" + (f" [{finds}]" if finds else "")
        )
    return 0


def method_rows(workspace: str | None = None) -> list[dict[str, Any]]:
    """Every method at hand, as ``chaffinch methods --json`` prints it."""
    from . import registry
    from .study import encoder_cards
    from .workspace import Workspace

    rows: list[dict[str, Any]] = []
    for kind in registry.FAMILIES:
        for slug, cls in registry.methods(kind).items():
            card, needs = cls.card, cls.needs() if kind == "detector" else cls.asks()
            rows.append(
                {
                    "slug": slug,
                    "kind": kind,
                    "name": card.name,
                    "paper": card.paper,
                    "arxiv": card.arxiv,
                    "year": card.year,
                    "needs": sorted(needs),
                    "finds": sorted(card.finds),
                }
            )
    losses = registry.methods("loss")
    for slug, (_, card) in encoder_cards(Workspace(workspace)).items():
        if reason := card.get("error"):
            print(f"warning: {reason}", file=sys.stderr)
            continue
        source = losses[card["loss"]].card if card["loss"] in losses else None
        row = {
            "slug": slug,
            "kind": "encoder",
            "name": f"{card['architecture']}, {card['loss']}, {card['dataset']}",
            "paper": source.paper if source else "",
            "arxiv": source.arxiv if source else "",
            "year": source.year if source else None,
            "needs": ["images"],
            "finds": [],
        }
        rows.append(row | {key: value for key, value in card.get("about", {}).items() if key in row})
    return rows


def _embed(args: argparse.Namespace) -> int:
    from .study import Study
    from .workspace import Workspace

    meter = Meter(args.quiet)
    workspace = Workspace(args.workspace)
    _for_ray(args, "workers", "address", "out", "block")
    study = Study(args.dataset, args.encoder, workspace=workspace, seed=args.seed)
    report = _reporter(workspace, args.job, meter)
    _warn(study.warnings)
    shards = None
    if args.engine == "ray":
        shards = study.spread(
            Path(args.out) if args.out else None, workers=args.workers or 0, address=args.address or "",
            block=args.block or 0, device=args.device, report=report,
        )  # fmt: skip
    study.embed(report, device=args.device)
    _warn(study.dataset.undecoded)
    report("neighbours", 0.0)
    study.map(args.map, report)
    with suppress(InputError):  # too few samples, or one class: there is none
        study.verdict(report=report)
    if args.job:
        workspace.note(args.job, {"done": True})
    if args.ship:
        features = workspace.find("features", study.key)
        stored = workspace.find("map", study.map_key(args.map))
        if features and stored:
            workspace.store("features", study.key, features, folder=Path(args.ship))
            workspace.store("map", study.map_key(args.map), stored, folder=Path(args.ship))
        if judged := workspace.find("verdict", study.verdict_key()):
            workspace.store("verdict", study.verdict_key(), judged, folder=Path(args.ship))
    figures = study.map_trust(args.map)
    if args.json:
        found = {"dataset": study.dataset.name, "n": len(study), "encoder": study.encoder, "map": args.map, **figures}
        places = {"workspace": str(workspace.root), "shards": str(shards) if shards else None}
        print(json.dumps(found | places, indent=2))
        return 0
    trust = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(
        f"{study.dataset.name}: features and {args.map} map are in {workspace.root}" + (f" ({trust})" if trust else "")
    )
    if shards:
        print(f"shards: {shards} (table:{shards} opens them)")
    return 0


def _for_ray(args: argparse.Namespace, *names: str) -> None:
    """Refuse options of Ray without it, and numbers below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and args.engine != "ray":
            raise InputError(f"--{name} is for --engine ray")
        if isinstance(value, int) and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")


def _reporter(workspace: Workspace, job: str | None, meter: Meter) -> Any:
    """Where progress goes: to the meter, or where the app has started this, into the note of the job."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a stopped job leaves no temporary files behind
    if not job:
        return meter
    told: dict[str, float] = {}

    def report(what: str, share: float) -> None:
        if share >= 1 or what not in told or time.monotonic() - told[what] > 0.2:
            told[what] = time.monotonic()
            workspace.note(job, {"what": what, "share": share, "pid": os.getpid()})

    return report


def _train_encoder(args: argparse.Namespace) -> int:
    from . import registry
    from .base.methods import find_method, method_options
    from .data import open_dataset
    from .encoders.augment import Augment
    from .encoders.device import leave
    from .encoders.ray_engine import train_in_processes
    from .encoders.steps import lacking
    from .encoders.train import Recipe, train_encoder
    from .spec import check_seed
    from .study import encoder_cards
    from .workspace import Workspace

    check_seed(args.seed)
    _for_ray(args, "workers", "address")
    work: Any = train_encoder
    if args.engine == "ray":
        work = partial(train_in_processes, workers=args.workers or 0, address=args.address or "")
    parameters = ({"temperature": args.temperature} if args.temperature is not None else {}) | _settings(args.set)
    dataset = open_dataset(args.dataset)
    _warn(dataset.warnings)
    workspace = Workspace(args.workspace)
    folder = _folder(args.out) if args.out else workspace.folder("encoders")
    every = args.loss == "all"
    if every and (args.name or parameters):
        raise InputError("--name, --temperature and --set are for one loss; with --loss all each keeps its own")
    failed = 0
    for slug in registry.methods("loss") if every else [args.loss]:
        cls = find_method("loss", slug)
        seed = f"-s{args.seed}" if args.seed else ""
        name = args.name or f"{slug}{seed}" + ("" if args.out else f"-{dataset.digest[:8]}")
        path = folder / f"{_named(name)}.safetensors"
        if every and (reason := lacking(cls, dataset) or (path.exists() and f"{path} is trained already") or ""):
            print(f"skipped {slug}: {reason}", file=sys.stderr)
            continue
        if path.exists() and not args.overwrite:
            raise InputError(f"{path} is trained already; give it another --name, or --overwrite it")
        if not args.out and encoder_cards(workspace).get(name, (path,))[0] != path:
            raise InputError(f"--name {name}: a shipped encoder is called so; choose another")
        recipe = Recipe(
            loss=slug, parameters=method_options(cls, parameters), epochs=args.epochs, batch=args.batch, seed=args.seed,
            learning_rate=args.learning_rate, device=args.device, architecture=args.architecture, side=args.side,
            augment=Augment(flip=0.0 if args.no_flip else 0.5), half=args.half,
        )  # fmt: skip
        try:
            with closing(work(dataset, recipe, path.parent, path.stem)) as training:
                _train_one(training, recipe, path, Meter(args.quiet), workspace, args.job)
        except KeyboardInterrupt:
            print(f"\nstopped; the same command goes on from the last whole epoch in {folder}", file=sys.stderr)
            return 1
        except InputError as error:
            if not every:
                raise
            print(f"chaffinch: {slug}: {error}", file=sys.stderr)
            failed += 1
            continue
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(f"trained: {path}")
    leave()
    _warn(dataset.undecoded)
    return int(failed > 0)


def _add_encoder(args: argparse.Namespace) -> int:
    from .encoders.checkpoint import add_model
    from .workspace import Workspace

    model = args.model.removeprefix("timm:")
    folder = Workspace(args.workspace).folder("encoders")
    name = _named(args.name or f"timm-{model}")
    if (folder / f"{name}.safetensors").exists():
        raise InputError(f"there is an encoder called {name} already; choose another --name")
    path = add_model(model, folder, name, weights=Path(args.weights) if args.weights else None, side=args.side)
    print(f"added: {path}; use it with --encoder {name}")
    return 0


def _settings(texts: list[str]) -> dict[str, Any]:
    """Parameters from ``NAME=VALUE``."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write NAME=VALUE")
        found[key] = value
    return found


def _folder(out: str) -> Path:
    """The folder that ``--out`` names, made if need be."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from error
    return folder


def _named(name: str) -> str:
    """A name that can be one of a file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"--name {name!r}: use letters, digits, '.', '_' and '-'")
    return name


def _train(args: argparse.Namespace) -> int:
    from .base.methods import find_method, method_options
    from .base.training_run import TrainingRun
    from .data import open_dataset
    from .encoders.augment import Augment, RandAugment, Shift
    from .encoders.checkpoint import load_encoder
    from .spec import check_seed
    from .study import find_encoder
    from .trainers.train import MODEL, Recipe, train
    from .workspace import Workspace

    check_seed(args.seed)
    parameters = method_options(find_method("trainer", args.trainer), _settings(args.set))
    dataset, workspace = open_dataset(args.dataset), Workspace(args.workspace)
    _warn(dataset.warnings)
    start = None if args.start == "scratch" else load_encoder(find_encoder(workspace, args.start)[0])
    seed = f"-s{args.seed}" if args.seed else ""
    name = _named(args.name or f"{args.trainer}{seed}-{dataset.digest[:8]}")
    folder = (_folder(args.out) if args.out else workspace.folder("runs")) / name
    if (folder / MODEL).exists() and not args.overwrite:
        raise InputError(f"{folder} is trained already; give it another --name, or --overwrite it")
    if args.overwrite:
        (folder / MODEL).unlink(missing_ok=True)
    flip = 0.0 if args.no_flip else 0.5
    recipe = Recipe(
        trainer=args.trainer, parameters=parameters, epochs=args.epochs, batch=args.batch, seed=args.seed,
        learning_rate=args.learning_rate, weight_decay=args.weight_decay, device=args.device,
        architecture=args.architecture, weak=Shift(flip=flip), strong=RandAugment(shift=Shift(flip=flip)),
        contrast=Augment(flip=flip),
    )  # fmt: skip
    meter = Meter(args.quiet)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a stopped job leaves no temporary files behind
    try:
        for p in train(dataset, recipe, folder, start):
            what = f"{recipe.trainer}: epoch {p.epoch + 1} of {p.epochs}"
            meter(what, p.share, left=p.seconds_left, detail=f", loss {p.loss:.4f}")
            if args.job:
                _tell(workspace, args.job, what, p)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from the last whole epoch in {folder}", file=sys.stderr)
        return 1
    _warn(dataset.undecoded)
    run = TrainingRun(folder)
    if args.job:
        workspace.note(args.job, {"done": True, "run": name} | _course(run.epochs))
    if args.json:
        print(json.dumps({"run": str(folder), **run.about, "epochs": run.epochs}, indent=2))
        return 0
    for epoch in run.epochs:
        if epoch["note"]:
            print(f"epoch {epoch['epoch'] + 1}: {epoch['note']}")
    if run.epochs[-1]["accuracy"] is not None:
        best = max(epoch["accuracy"] for epoch in run.epochs)
        print(f"accuracy on the test samples: {run.epochs[-1]['accuracy']:.4f} at the end, {best:.4f} at best")
    print(f"trained: {folder}")
    return 0


def _course(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the note of a job says of a training so far."""
    return {"history": [e["loss"] for e in epochs], "accuracy": [e["accuracy"] for e in epochs]}


def _tell(workspace: Workspace, job: str, what: str, p: Any) -> None:
    """Leave word in the note of a job how far a training of a classifier is."""
    state = workspace.noted(job) or {}
    live = {key: state[key] for key in ("history", "accuracy") if key in state}
    if p.record:
        live = {"history": [*live.get("history", []), p.record.loss],
                "accuracy": [*live.get("accuracy", []), p.record.accuracy]}  # fmt: skip
    share = (p.epoch + p.share) / p.epochs
    workspace.note(job, {"what": what, "share": share, "left": p.seconds_left, "pid": os.getpid()} | live)


def _compare_encoders(args: argparse.Namespace) -> int:
    from .base.files import write_json
    from .data import open_dataset
    from .lineup import FIGURES, figures_key, line_up, measure
    from .study import Study, find_encoder
    from .workspace import Workspace

    workspace = Workspace(args.workspace)
    dataset = open_dataset(args.dataset)
    _warn(dataset.warnings)
    report = _reporter(workspace, args.job, Meter(args.quiet))
    rows, failed = line_up(
        dataset, args.encoder, workspace=workspace, seed=args.seed, report=report, skip=not args.encoder
    )
    _warn(dataset.undecoded)
    if args.job:
        workspace.note(args.job, {"done": True, "skipped": failed})
    if args.ship:
        for first, name in ((row["encoders"][0], name) for row in rows.values() for name in row["encoders"]):
            study = Study(dataset, name, workspace=workspace, seed=args.seed)
            keys = {"encoder": figures_key(study)}
            if name == first:  # of further seeds nothing but the figures is needed: they enter the mean
                study.map("umap")
                keys |= {"map": study.map_key("umap"), "verdict": study.verdict_key()}
            for step, key in keys.items():
                if found := workspace.find(step, key):
                    workspace.store(step, key, found, folder=Path(args.ship))
            path, card = find_encoder(workspace, name.partition(":")[0])
            if path.stem == name and path.parent.resolve() == (Path(args.ship).parent / "encoders").resolve():
                command = f"chaffinch compare-encoders {args.dataset} --encoder {name} --seed {args.seed} --json"
                figures = {
                    key: value for key, value in measure(study).items() if key not in ("skipped", "seconds_per_epoch")
                }
                short = json.loads(json.dumps(figures), parse_float=lambda number: round(float(number), 4))
                write_json(path.with_suffix(".json"), card | {"metrics": {"command": command, **short}})
    if args.json:
        print(json.dumps({"encoders": rows, "skipped": failed}, indent=2))
        return 0
    print(" ".join([f"{'encoder':24s}", *(f"{f.name:>22s}" for f in FIGURES)]))
    for name, row in rows.items():
        cells = [_figure(row.get(f.key)) + (f" ±{row['sd'][f.key]:.3f}" if f.key in row["sd"] else "") for f in FIGURES]
        print(" ".join([f"{name:24s}", *(f"{cell:>22s}" for cell in cells)]))
    for name, reason in failed.items():
        print(f"skipped {name}: {reason}")
    return 0


def _experiment(args: argparse.Namespace) -> int:
    from .base.files import digest, replacing
    from .experiment import COLUMNS, find_plan, run
    from .lesson import tell_all
    from .workspace import Workspace

    given: dict[str, Any] = {
        "trainers": args.trainer, "noises": args.noise, "samples": args.samples, "epochs": args.epochs,
        "start_epochs": args.start_epochs,
    }  # fmt: skip
    changes: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value
    }
    changes |= {"seeds": tuple(range(args.seed, args.seed + args.seeds))} if args.seeds else {}
    plan = replace(find_plan(args.name), **changes)
    share = re.fullmatch(r"(\d+)/(\d+)", args.share)
    if not share or not 1 <= int(share[1]) <= int(share[2]):
        raise InputError(f"--share {args.share}: write I/N, such as 1/2 for the first half")
    workspace = Workspace(args.workspace)
    name = plan.name + (f"-{digest(json.dumps(changes))[:6]}" if changes else "")
    folder = _folder(args.out) if args.out else workspace.folder("experiments") / name
    report = _reporter(workspace, args.job, Meter(args.quiet))
    try:
        found = run(plan, folder, (int(share[1]), int(share[2])), report)
        stories = tell_all(plan, folder, report)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on where it stood in {folder}", file=sys.stderr)
        return 1
    if args.job:
        workspace.note(args.job, {"done": True})
    if args.ship:
        for path in (folder / f"{plan.name}.json", *stories):
            with replacing(_folder(args.ship) / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(" ".join([f"{'trainer':14s} {'noise':>5s} {'seeds':>5s}", *(f"{words:>18s}" for words in COLUMNS.values())]))
    for row in found["table"]:
        cells = [_figure(row[key]) + (f" ±{row[f'{key}_sd']:.3f}" if row[f"{key}_sd"] else "") for key in COLUMNS]
        print(f"{row['trainer']:14s} {row['noise']:5.0%} {row['seeds']:5d} " + " ".join(f"{c:>18s}" for c in cells))
    print(f"written: {folder / (plan.name + '.json')}")
    return 0


def _train_one(training: Any, recipe: Any, path: Path, meter: Meter, workspace: Any, job: str | None) -> None:
    """Train one encoder; tell the meter, and where the app has started it, the job's note, how far it is."""
    from .workspace import LIVE

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a stopped job leaves no temporary files behind
    noted = (workspace.noted(job) if job else None) or {}
    told, live = 0.0, {key: noted[key] for key in LIVE if key in noted}
    for p in training:
        if p.decoded is not None:
            what = f"{recipe.loss}: reading the pictures"
            meter(what, p.decoded)
            if job:
                workspace.note(job, {"what": what, "share": p.decoded, "pid": os.getpid()} | live)
            continue
        what = f"{recipe.loss}: epoch {p.epoch + 1} of {p.epochs}"
        meter(what, p.share, left=p.seconds_left, detail=f", loss {p.loss:.4f}")
        if p.snapshot:
            live |= {"history": p.snapshot.history, "parts": p.snapshot.parts, "speed": p.snapshot.speed}
            if job:
                workspace.store("live", job, {"rows": p.snapshot.rows, "xy": p.snapshot.xy})
        if job and (p.snapshot or time.monotonic() - told > 0.5):
            told = time.monotonic()
            share = (p.epoch + p.share) / p.epochs
            state = {"what": what, "share": share, "left": p.seconds_left, "loss": p.loss, "pid": os.getpid()}
            workspace.note(job, state | live)
    if job:
        workspace.note(job, {"done": True, "encoder": path.stem} | live)


def _check(args: argparse.Namespace) -> int:
    from .checks import CHECKS, find, summary
    from .study import Study
    from .workspace import Workspace

    if args.show < 0:
        raise InputError(f"--show must be a number from 0, got {args.show}")
    workspace = Workspace(args.workspace)
    study = Study(args.dataset, args.encoder, workspace=workspace)
    report = _reporter(workspace, args.job, Meter(args.quiet))
    _warn(study.dataset.warnings if args.identical else study.warnings)
    if not args.identical:
        study.embed(report, device=args.device)
    found = find(study, identical=args.identical, report=report)
    _warn(study.dataset.undecoded)
    if args.job:
        workspace.note(args.job, {"done": True})
    document = summary(study, found, args.show)
    if args.json:
        print(json.dumps(document, indent=2))
        return 0
    encoder = "" if args.identical else f", encoder {study.encoder}"
    print(f"{study.dataset.name}: {len(study)} samples{encoder}")
    for check, told in document["checks"].items():
        more = ""
        if check == "duplicates":
            differ = told["groups_of_different_labels"]
            more = f", {told['groups']} groups ({differ} of them under different labels), {told['spare']} could go"
        if check == "leaks":
            more = f", copies of {told['test_samples']} of {told['of']} test samples"
        name = CHECKS[check] if check.replace("-", " ") == CHECKS[check] else f"{CHECKS[check]} ({check})"
        print(f"{name}: {told['flagged']}{more}")
        for sample in told["samples"]:
            print(f"  {sample['id']}: {sample['why']}")
    for check, reason in document["skipped"].items():
        print(f"skipped {check}: {reason}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from . import benefit, cleaned
    from .reviews import Reviews
    from .spec import Cut
    from .study import Study, default_detectors
    from .workspace import Workspace

    workspace, meter, out = Workspace(args.workspace), Meter(args.quiet), Path(args.out)
    told: dict[str, Any] = {}
    if args.replay:

        def opened(manifest: dict[str, Any]) -> Study:
            name, run = args.dataset or manifest["dataset"]["name"], manifest["run"] or {"name": ""}
            encoder, seed = manifest["encoder"]["name"], manifest["seed"]
            study = Study(name, encoder, workspace=workspace, seed=seed, run=run["name"])
            _warn(study.warnings)
            return study

        export, told = cleaned.replay(Path(args.replay), opened, meter)
    elif args.dataset:
        kinds = tuple(kind for kind in args.drop.split(",") if kind)
        cuts = [Cut.parse(text) for text in args.detector or ()]
        policy = cleaned.Policy(drop=kinds, relabel=args.relabel, above=args.above, unsure=args.unsure)
        study = Study(args.dataset, args.encoder, workspace=workspace, seed=args.seed, run=_run(args))
        _warn(study.warnings)
        study.embed(meter, device=args.device)
        decisions = cleaned.decided(Reviews(workspace.decisions).states(study.dataset.digest))
        export = cleaned.make(
            study, cuts or default_detectors(study), decisions, policy,
            layout=args.map or "", pictures=args.pictures, format=args.format, checked=True,
            measured=not args.no_accuracy, report=meter,
        )  # fmt: skip
    else:
        raise InputError("name a DATASET, or a manifest to --replay")
    _warn(export.dataset.undecoded)
    cleaned.write(export, out, meter)
    written = json.loads((out / cleaned.MANIFEST).read_text(encoding="utf-8"))
    if told.get("table") and told["table"]["sha256"] != written["table"]["sha256"]:
        print("warning: the rows differ from those of the manifest in their last digits: other libraries or another "
              "machine rounded otherwise", file=sys.stderr)  # fmt: skip
    if args.json:
        print(json.dumps({"out": str(out), **written}, indent=2))
        return 0
    counts = ", ".join(f"{count} {what}" for what, count in written["counts"].items())
    print(f"{written['dataset']['name']}: {counts} ({len(written['decisions'])} decisions)")
    if accuracy := written["accuracy"]:
        print(f"accuracy: {accuracy['skipped'] if 'skipped' in accuracy else benefit.in_words(accuracy)}")
    print(f"written: {out}")
    return 0


def _workspace(args: argparse.Namespace) -> int:
    from .workspace import CLEARED, PARTS, Workspace, readable

    workspace = Workspace(args.workspace)
    sizes = workspace.sizes()
    if args.clear and not args.yes:
        what = ", ".join(f"{part} ({readable(sizes[part])})" for part in CLEARED[args.clear])
        raise InputError(f"this would remove {what} from {workspace.root}; add --yes to do it")
    freed = workspace.clear(args.clear) if args.clear else 0
    sizes = workspace.sizes()
    if args.json:
        print(json.dumps({"workspace": str(workspace.root), "bytes": sizes, "freed": freed}, indent=2))
        return 0
    print(f"{workspace.root}: {readable(sum(sizes.values()))}")
    for part in PARTS:
        print(f"  {part:10s} {readable(sizes[part]):>10s}")
    if args.clear:
        print(f"freed: {readable(freed)}")
    return 0


def _failed(args: argparse.Namespace, error: Exception) -> None:
    """Where the app has started this, leave word why it cannot go on, beside what a training has shown so far."""
    from .workspace import LIVE, Workspace

    workspace = Workspace(args.workspace)
    noted = workspace.noted(args.job) or {}
    with suppress(InputError, OSError):  # the workspace itself may be what is wrong, or the disk is full
        workspace.note(args.job, {"error": str(error)} | {key: noted[key] for key in LIVE if key in noted})


def _app(args: argparse.Namespace) -> int:
    from .spec import Spec

    environment = dict(os.environ)
    if args.workspace:
        environment["CHAFFINCH_HOME"] = args.workspace
    for name in ("CHAFFINCH_HOME", "CHAFFINCH_ASSETS"):  # the server changes its folder
        if environment.get(name):
            environment[name] = str(Path(environment[name]).expanduser().resolve())
    spec = Spec(encoder=args.encoder, seed=args.seed)
    if args.dataset:
        from .data.sources import fingerprint, resolved

        name = resolved(args.dataset)
        fingerprint(name)  # a file that is not there is an error now, not in the browser
        spec = replace(spec, dataset=name)
    environment["CHAFFINCH_SPEC"] = spec.to_toml()
    url = f"http://{args.host}:{args.port}"
    print(f"chaffinch is at {url} (stop it with Ctrl-C)", flush=True)
    # -P: what lies in the current folder is not code of ours
    command = [sys.executable, "-P", "-m", "chaffinch.ui.serve", args.host, str(args.port)]
    command += ["--browser"] * args.browser
    if os.name == "posix":
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment)


def _build_pool(args: argparse.Namespace) -> int:
    from .base.files import assets_dir
    from .data.fashion_web import build

    target = Path(args.out) if args.out else assets_dir() / "fashion-web"
    build(Path(args.original), target)
    print(f"written: {target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chaffinch", description="Tell the grain from the chaff in noisy image datasets."
    )
    parser.add_argument("--version", action="version", version=f"chaffinch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--workspace",
        metavar="DIR",
        help="where results are kept (default: CHAFFINCH_HOME or the user cache)",
    )
    common.add_argument("--quiet", action="store_true", help="no progress on standard error")
    seeded = argparse.ArgumentParser(add_help=False)
    seeded.add_argument("--seed", type=int, default=0, help="of everything that draws (default 0)")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("dataset", help=DATASET_HELP)
    encoded = argparse.ArgumentParser(add_help=False)
    devices = argparse.ArgumentParser(add_help=False)
    devices.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    encoded.add_argument("--encoder", default="", help=ENCODER_HELP)

    shared = [seeded, devices, common]
    app = commands.add_parser("app", parents=[common, encoded, seeded], help="serve the app")
    app.add_argument("dataset", nargs="?", help="dataset to open (default: the bundled one)")
    app.add_argument("--host", default="127.0.0.1")
    app.add_argument("--port", type=int, default=8501)
    app.add_argument("--browser", action="store_true", help="open a browser window too")
    app.set_defaults(run=_app)

    detect = commands.add_parser("detect", parents=[data, encoded, *shared], help="score and flag samples")
    detect.add_argument(
        "--detector", action="append", metavar="SLUG[@CUT]",
        help="which (repeat for several), or 'all'; default lsa and small-loss, if there is what they need. CUT: own, "
        "mixture, rate, contradiction, budget=SHARE or score=VALUE",
    )  # fmt: skip
    detect.add_argument("--run", dest="run_name", default="", metavar="NAME", help=RUN_HELP)
    detect.add_argument("--verdict", action="store_true", help="also judge: clean, mislabelled or out-of-distribution")
    detect.add_argument("--mislabelled", type=float, metavar="SHARE", help="for the verdict, if known (else estimated)")
    detect.add_argument("--ood", type=float, metavar="SHARE", help="for the verdict, if known (else estimated)")
    detect.add_argument("--out", metavar="FILE", help="write ids, labels, scores and flags to .parquet or .csv")
    detect.add_argument("--json", action="store_true", help="one JSON document on standard output")
    detect.set_defaults(run=_detect)

    methods = commands.add_parser("methods", parents=[common], help="list detectors, losses and encoders")
    methods.add_argument("--json", action="store_true", help="one JSON document on standard output")
    methods.set_defaults(run=_methods)

    engines = argparse.ArgumentParser(add_help=False)
    engines.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="what does the work: this process, or Ray, in many processes here or on other machines",
    )  # fmt: skip
    engines.add_argument("--workers", type=int, metavar="N", help="of Ray, at most (default: one for each GPU or core)")
    engines.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: Ray on this machine only)"
    )

    embed = commands.add_parser("embed", parents=[data, encoded, engines, *shared], help="compute features and the map")
    embed.add_argument("--map", choices=("umap", "pca"), default="umap")
    embed.add_argument("--ship", metavar="DIR", help="also write them, compressed, into this folder")
    embed.add_argument("--out", metavar="FOLDER", help="of the Parquet shards that Ray's work becomes (resumable)")
    embed.add_argument("--block", type=int, metavar="N", help="pictures in a shard (default 1,024)")
    embed.add_argument("--json", action="store_true", help="one JSON document on standard output")
    embed.add_argument("--job", help=argparse.SUPPRESS)
    embed.set_defaults(run=_embed)

    train = commands.add_parser("train-encoder", parents=[data, engines, *shared], help="train a contrastive encoder")
    train.add_argument("--loss", default="simclr", help="which, or 'all' that apply, one after the other")
    train.add_argument("--epochs", type=int, default=40)
    train.add_argument("--batch", type=int, default=512)
    train.add_argument("--temperature", type=float, help="of the loss (default: its own)")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the loss")
    train.add_argument("--learning-rate", type=float, default=3e-3)
    train.add_argument("--architecture", default="preact-resnet-32-64-128")
    train.add_argument("--side", type=int, default=64, help="shrink pictures larger than so many pixels (default 64)")
    train.add_argument("--no-flip", action="store_true", help="no horizontal flips (for digits and text)")
    train.add_argument("--half", action="store_true", help="store the weights as float16, in half the space")
    train.add_argument("--name", help="of the encoder (default: the loss and the dataset's key)")
    train.add_argument("--overwrite", action="store_true", help="train again what is trained already")
    train.add_argument("--out", metavar="DIR", help="folder of the checkpoint (default: the workspace)")
    train.add_argument("--job", help=argparse.SUPPRESS)
    train.set_defaults(run=_train_encoder)

    adding = commands.add_parser(
        "add-encoder", parents=[common], help="fetch a model of the timm library, to be used like encoders trained here"
    )
    adding.add_argument("model", help="its name in timm, such as resnet18.a1_in1k")
    adding.add_argument(
        "--weights", metavar="FILE", help="take its weights from this .safetensors file instead of fetching them"
    )
    adding.add_argument("--side", type=int, help="pixels a side of what it sees (default: those it was trained on)")
    adding.add_argument("--name", help="of the encoder (default: timm-MODEL)")
    adding.set_defaults(run=_add_encoder)

    robust = commands.add_parser("train", parents=[data, *shared], help="train a classifier that resists noisy labels")
    robust.add_argument("--trainer", default="pls-lsa", help="which (default pls-lsa); 'methods' lists them")
    robust.add_argument(
        "--start", default="scratch", metavar="ENCODER", help="encoder to start from (default: from scratch)"
    )
    robust.add_argument("--epochs", type=int, default=14)
    robust.add_argument("--batch", type=int, default=256)
    robust.add_argument("--learning-rate", type=float, default=0.1)
    robust.add_argument("--weight-decay", type=float, default=5e-4)
    robust.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the trainer")
    robust.add_argument(
        "--architecture", default="half-preact-resnet-32-64-128", help="of the network, from scratch only"
    )
    robust.add_argument("--no-flip", action="store_true", help="no horizontal flips (for digits and text)")
    robust.add_argument("--name", help="of the run (default: the trainer and the dataset's key)")
    robust.add_argument("--overwrite", action="store_true", help="train again what is trained already")
    robust.add_argument("--out", metavar="DIR", help="folder of the run (default: the workspace)")
    robust.add_argument("--json", action="store_true", help="one JSON document on standard output")
    robust.add_argument("--job", help=argparse.SUPPRESS)
    robust.set_defaults(run=_train)

    experiment = commands.add_parser(
        "experiment", parents=[common], help="compare trainers over noise levels and seeds, as one resumable whole"
    )
    experiment.add_argument("name", help="which: lesson")
    experiment.add_argument("--trainer", action="append", metavar="SLUG", help="only these (repeat)")
    experiment.add_argument("--noise", action="append", type=float, metavar="SHARE", help="only these levels (repeat)")
    experiment.add_argument("--seeds", type=int, metavar="N", help="how many (default: the experiment's)")
    experiment.add_argument("--seed", type=int, default=0, help="the first of them, with --seeds (default 0)")
    experiment.add_argument("--samples", type=int, metavar="N", help="of each draw")
    experiment.add_argument("--epochs", type=int, help="of each training")
    experiment.add_argument("--start-epochs", type=int, help="of the encoder that all on a draw start from")
    experiment.add_argument(
        "--share", default="1/1", metavar="I/N", help="every N-th training from the I-th on, for N processes at once"
    )
    experiment.add_argument("--out", metavar="DIR", help="folder of rows and runs (default: in the workspace)")
    experiment.add_argument("--ship", metavar="DIR", help="also copy the results, without the runs, into this folder")
    experiment.add_argument("--json", action="store_true", help="one JSON document on standard output")
    experiment.add_argument("--job", help=argparse.SUPPRESS)
    experiment.set_defaults(run=_experiment)

    compare = commands.add_parser(
        "compare-encoders", parents=[seeded, common], help="measure what each training loss did to the features"
    )
    compare.add_argument("dataset", nargs="?", default="fashion-web", help=DATASET_HELP)
    compare.add_argument("--encoder", action="append", metavar="NAME[:OUTPUT]", help="which (repeat; default: all)")
    compare.add_argument("--json", action="store_true", help="one JSON document on standard output")
    compare.add_argument(
        "--ship", metavar="DIR",
        help="also write figures, map and verdict of each into this folder; of further seeds the figures only. The "
        "figures go into the model cards too, if these lie in a folder 'encoders' beside it",
    )  # fmt: skip
    compare.add_argument("--job", help=argparse.SUPPRESS)
    compare.set_defaults(run=_compare_encoders)

    check = commands.add_parser(
        "check", parents=[data, encoded, devices, common],
        help="look for copies, for training pictures that are in the test set too, and for odd pictures",
    )  # fmt: skip
    check.add_argument(
        "--identical", action="store_true", help="of copies only identical ones, for which no encoder is needed"
    )
    check.add_argument("--show", type=int, default=5, metavar="N", help="samples listed of each check (default 5)")
    check.add_argument("--json", action="store_true", help="one JSON document on standard output")
    check.add_argument("--job", help=argparse.SUPPRESS)
    check.set_defaults(run=_check)

    export = commands.add_parser(
        "export", parents=shared, help="write the cleaned dataset: table, pictures, and a manifest that replays it"
    )
    export.add_argument("dataset", nargs="?", help=DATASET_HELP)
    export.add_argument("--out", required=True, metavar="FOLDER", help="new or empty")
    export.add_argument("--encoder", default="", help=ENCODER_HELP)
    export.add_argument("--format", choices=("csv", "parquet"), default="csv", help="of the table (default csv)")
    export.add_argument(
        "--pictures", choices=("none", "links", "copies"), default="none",
        help="also a folder of pictures, class by class, under the final labels and without the dropped ones",
    )  # fmt: skip
    export.add_argument(
        "--drop", default="", metavar="KINDS",
        help="what may be dropped where nobody has decided, with commas: kinds by the verdict (mislabelled, ood), and "
        "what 'check' lists (duplicates, of which one of each group stays, leaks, blank, dark, bright, flat, blurred, "
        "odd-size, odd-shape); default: none, only decisions count",
    )  # fmt: skip
    export.add_argument(
        "--relabel", action="store_true", help="the verdict may give wrongly labelled samples their suggested label"
    )
    export.add_argument("--above", type=float, default=0.9, metavar="P", help="how probable that must be (default 0.9)")
    export.add_argument(
        "--unsure", choices=("keep", "drop"), default="keep", help="samples somebody was unsure about (default keep)"
    )
    export.add_argument(
        "--detector", action="append", metavar="SLUG[@CUT]",
        help="whose columns (repeat; default lsa and small-loss, if there is what they need)",
    )  # fmt: skip
    export.add_argument("--run", dest="run_name", default="", metavar="NAME", help=RUN_HELP)
    export.add_argument(
        "--no-accuracy", action="store_true", help="do not measure a classifier's test accuracy before and after"
    )
    export.add_argument("--map", choices=("umap", "pca", "none"), help="of x and y (default: what is at hand)")
    export.add_argument(
        "--replay", metavar="MANIFEST",
        help="make again what this manifest.json describes; only DATASET (where the data are now) and --out count then",
    )  # fmt: skip
    export.add_argument("--json", action="store_true", help="the manifest on standard output")
    export.set_defaults(run=_export)

    room = commands.add_parser("workspace", parents=[common], help="show how large the workspace is, or clear it")
    room.add_argument(
        "--clear", choices=("results", "encoders", "archives", "all", "decisions"),
        help="remove computed results, trained encoders, unpacked archives, or all but decisions; with the app "
        "stopped. Decisions go only if they are named",
    )  # fmt: skip
    room.add_argument("--yes", action="store_true", help="yes, remove it")
    room.add_argument("--json", action="store_true", help="one JSON document on standard output")
    room.set_defaults(run=_workspace)

    pool = commands.add_parser("build-pool", help="rebuild the bundled pictures from the original Fashion-MNIST files")
    pool.add_argument("original", help="folder with the four .gz files")
    pool.add_argument("--out", metavar="DIR", help="default: assets/fashion-web")
    pool.set_defaults(run=_build_pool)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except InputError as error:
        print(f"chaffinch: {error}", file=sys.stderr)
        if getattr(args, "job", None):
            _failed(args, error)
        return 2
    except KeyboardInterrupt:
        print("\nchaffinch: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a full disk
        print(f"chaffinch: {error}", file=sys.stderr)
        if getattr(args, "job", None):
            _failed(args, error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
