"""What people decided about suspicious samples: kept safely, and what can be learnt from it.

Decisions lie in one SQLite file of the workspace. Its table only ever grows: undoing adds a row that says which one
stands again. Every decision names the revision it was based on; if somebody else has decided meanwhile, it is refused
with what they said, and can be made again, knowingly, on top of theirs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError

CHOICES = ("keep", "relabel", "drop", "unsure")
"""What can be decided, in the order of their codes 0 to 3; -1 = nothing yet."""

SHOWS = ("noisy", "mislabelled", "ood", "duplicates", "leaks", "odd", "unsure")
"""Queues: all samples, those that the verdict takes for one kind of noise, those that a check lists (copies, also in
the test set, odd to look at; see `chaffinch.checks`), those somebody was unsure about."""

CHECKED = SHOWS[3:6]
"""The queues of the checks."""

AHEAD = 50
"""Advice speaks of so many samples at the head of the queue."""

ENOUGH = 0.05
"""It is time to stop when at most this share of all noisy samples is expected to be left."""

RARE = 0.1
"""It is also time when fewer than this share of the samples ahead are expected to be noisy."""

NEAR = 0.1
"""Samples whose probabilities of noise differ by no more than this count as judged alike."""

Array = NDArray[np.float64]
Codes = NDArray[np.int8]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reviews (
    revision INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset TEXT NOT NULL, sample TEXT NOT NULL,
    choice TEXT NOT NULL, label TEXT NOT NULL, who TEXT NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL,
    based_on INTEGER NOT NULL,  -- the sample's revision before this row; 0 = none
    batch INTEGER NOT NULL,     -- first revision of those decided together
    undoes INTEGER,             -- the revision that this row withdraws
    stands INTEGER              -- the revision in force after this row; NULL = no decision
);
CREATE INDEX IF NOT EXISTS by_sample ON reviews (dataset, sample, revision);
CREATE INDEX IF NOT EXISTS by_person ON reviews (dataset, who, revision);
PRAGMA user_version = 1;
"""
_LAST = """
SELECT last.sample, last.revision AS last, reviews.* FROM (
    SELECT sample, MAX(revision) AS revision, stands FROM reviews WHERE dataset = ? {} GROUP BY sample
) AS last LEFT JOIN reviews ON reviews.revision = last.stands
"""


@dataclass(frozen=True)
class Choice:
    """What somebody wants to decide.

    Attributes:
        sample: id.
        choice: one of `CHOICES`.
        label: name of the new class; empty unless it is ``relabel``.
        based_on: revision of the sample that they have seen; 0 = nobody had decided.
    """

    sample: str
    choice: str
    label: str = ""
    based_on: int = 0

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise InputError(f"sample {self.sample}: decide one of {', '.join(CHOICES)}, not {self.choice!r}")
        if bool(self.label) != (self.choice == "relabel"):
            raise InputError(f"sample {self.sample}: a label belongs to 'relabel', and only there")


@dataclass(frozen=True)
class Decision:
    """A decision that stands.

    Attributes:
        revision: its own number; numbers grow with time.
        sample: id.
        choice, label: see `Choice`.
        who, at, reason: who decided, when (UTC, ISO 8601), and why if they said so.
        batch: equal for all that were decided together.
    """

    revision: int
    sample: str
    choice: str
    label: str
    who: str
    at: str
    reason: str
    batch: int

    def __str__(self) -> str:
        return f"{self.choice} → {self.label}" if self.label else self.choice


@dataclass(frozen=True)
class State:
    """A sample that somebody has touched: its last revision, and the decision in force, if there is one."""

    sample: str
    revision: int
    decision: Decision | None


class Conflict(InputError):
    """Somebody has decided since; ``found`` is what the samples concerned are now, in the order asked for."""

    def __init__(self, found: Sequence[State]) -> None:
        self.found = tuple(found)
        now = found[0]
        said = f"{now.decision.who} decided {now.decision} at {now.decision.at}" if now.decision else "it was withdrawn"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        super().__init__(f"sample {now.sample}{more} has changed since you saw it: {said}; look again, then decide")


class Reviews:
    """The decisions of a workspace.

    A decision is on the disk before `decide` returns (write-ahead log, synchronous = FULL): neither a killed process
    nor a power cut takes it away. Every call opens the file anew, so any number of threads and processes may share it.

    Args:
        path: the SQLite file; it is made with the first decision.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection inside a transaction that only one process has at a time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                if db.execute("PRAGMA user_version").fetchone()[0] > 1:
                    raise InputError(f"{self.path} was written by a newer chaffinch; install that one to go on")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                if not db.execute("PRAGMA user_version").fetchone()[0]:
                    db.executescript(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        if "locked" in str(error):
            return InputError(f"{self.path} is held by another process; nothing was decided, try again")
        return InputError(f"{self.path} cannot be used ({error}); free or restore it, or move it away to start afresh")

    def _rows(self, question: str, *values: Any) -> list[sqlite3.Row]:
        """Read without waiting for writers; nothing where there is no file yet."""
        if not self.path.exists():
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                if not db.execute("PRAGMA user_version").fetchone()[0]:
                    return []
                return db.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def decide(self, dataset: str, choices: Sequence[Choice], who: str, reason: str = "") -> list[State]:
        """Decide about one sample or several together: all of it or, on any conflict, nothing.

        Args:
            dataset: its digest.
            choices: one a sample.
            who: the person.
            reason: why, if they say so.

        Raises:
            Conflict: a sample has another revision than the one a choice is based on.
            InputError: nobody is named, a sample comes twice, or the file cannot be written.
        """
        if not who.strip():
            raise InputError("say who decides: a decision without a name cannot be told from anybody else's")
        if len({c.sample for c in choices}) != len(choices):
            raise InputError("a sample comes twice among those decided together")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._open() as db:
            now = {c.sample: _state(db, dataset, c.sample) for c in choices}
            if changed := [now[c.sample] for c in choices if now[c.sample].revision != c.based_on]:
                raise Conflict(changed)
            first = _next(db)
            states = []
            for revision, c in enumerate(choices, first):
                row = (revision, dataset, c.sample, c.choice, c.label, who.strip(), at, reason, c.based_on, first)
                _add(db, *row, None, revision)
                d = Decision(revision, c.sample, c.choice, c.label, who.strip(), at, reason, first)
                states.append(State(c.sample, revision, d))
        return states

    def undo(self, dataset: str, who: str, batch: int | None = None) -> list[State]:
        """Withdraw a person's own last decision (with all that were decided together); what stood before stands again.

        Args:
            dataset: its digest.
            who: the person.
            batch: which of their decisions; None = the last that was not withdrawn yet.

        Returns:
            What the samples are now; empty where there is nothing to undo.

        Raises:
            Conflict: others have decided since about all of these samples.
            InputError: the file cannot be written.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._open() as db:
            mine = (
                "SELECT * FROM reviews AS r WHERE dataset = ? AND who = ? AND undoes IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM reviews AS u WHERE u.undoes = r.revision)"
            )
            if batch is None:
                last = db.execute(f"{mine} ORDER BY revision DESC LIMIT 1", (dataset, who.strip())).fetchone()
                if last is None:
                    return []
                batch = last["batch"]
            rows = db.execute(f"{mine} AND batch = ? ORDER BY revision", (dataset, who.strip(), batch)).fetchall()
            now = {row["revision"]: _state(db, dataset, row["sample"]) for row in rows}
            own = [row for row in rows if _in_force(now[row["revision"]]) == row["revision"]]
            if rows and not own:
                raise Conflict(list(now.values()))
            first, states = _next(db), []
            for revision, row in enumerate(own, first):
                before = db.execute("SELECT stands FROM reviews WHERE revision = ?", (row["based_on"],)).fetchone()
                stands = before["stands"] if before else None
                base = now[row["revision"]].revision
                told = (row["choice"], row["label"], who.strip(), at, "", base, first, row["revision"])
                _add(db, revision, dataset, row["sample"], *told, stands)
                states.append(_state(db, dataset, row["sample"]))
        return states

    def states(self, dataset: str) -> dict[str, State]:
        """Every sample that somebody has touched, by id."""
        return {row["sample"]: _read(row) for row in self._rows(_LAST.format(""), dataset)}

    def history(self, dataset: str, sample: str) -> list[dict[str, Any]]:
        """All that ever happened to one sample, oldest first; rows with ``undoes`` withdraw an earlier one."""
        question = "SELECT * FROM reviews WHERE dataset = ? AND sample = ? ORDER BY revision"
        return [dict(row) for row in self._rows(question, dataset, sample)]


def _state(db: sqlite3.Connection, dataset: str, sample: str) -> State:
    row = db.execute(_LAST.format("AND sample = ?"), (dataset, sample)).fetchone()
    return State(sample, 0, None) if row is None else _read(row)


def _in_force(state: State) -> int | None:
    return None if state.decision is None else state.decision.revision


def _read(row: sqlite3.Row) -> State:
    names = ("revision", "sample", "choice", "label", "who", "at", "reason", "batch")
    decision = None if row["revision"] is None else Decision(**{name: row[name] for name in names})
    return State(row[0], row["last"], decision)


def _next(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(MAX(revision), 0) + 1 FROM reviews").fetchone()[0])


def _add(db: sqlite3.Connection, *values: Any) -> None:
    db.execute(f"INSERT INTO reviews VALUES ({', '.join('?' * len(values))})", values)


def coded(states: Mapping[str, State], positions: Mapping[str, int]) -> Codes:
    """(N,) codes of the decisions in force, -1 where there is none; samples that are not in the dataset are left out.

    Args:
        states: see `Reviews.states`.
        positions: of every id of the dataset.
    """
    codes = np.full(len(positions), -1, np.int8)
    for sample, state in states.items():
        if state.decision is not None and sample in positions:
            codes[positions[sample]] = CHOICES.index(state.decision.choice)
    return codes


def suggest(given: Labels, opinions: Sequence[Labels]) -> Labels:
    """(N,) the label to give instead: the first opinion that differs from the given one; -1 where none does.

    Args:
        given: (N,).
        opinions: (N,) each, the most trusted first.
    """
    found = np.full(len(given), -1, np.int64)
    for labels in opinions:
        found = np.where((found < 0) & (labels != given), labels, found)
    return found


def queue(
    proba: Array, codes: Codes, show: str = "noisy", skipped: Sequence[int] = (), urgency: Array | None = None
) -> Labels:
    """Positions in the order in which to decide: undecided ones first, then the likeliest noise first.

    Args:
        proba: (N, 3) P(clean), P(mislabelled), P(ood).
        codes: (N,), see `coded`.
        show: one of `SHOWS`.
        skipped: positions that were put off; they come behind the other undecided ones.
        urgency: (N,) of a queue of `CHECKED`: what it lists, the highest first; 0 = not listed. None = nothing yet.
    """
    if show in CHECKED:
        chosen = np.zeros(len(proba), bool) if urgency is None else urgency > 0
    elif show == "unsure":
        chosen = codes == CHOICES.index("unsure")
    elif show in ("mislabelled", "ood"):
        chosen = proba.argmax(axis=1) == (1 if show == "mislabelled" else 2)
    else:
        chosen = np.ones(len(proba), bool)
    late = np.zeros(len(proba), np.int8) if show == "unsure" else 2 * (codes >= 0).astype(np.int8)
    later = np.asarray(skipped, np.int64)
    late[later] = np.maximum(late[later], 1)
    noise = 1 - proba[:, 0] if show not in ("mislabelled", "ood") else proba[:, 1 if show == "mislabelled" else 2]
    noise = noise if urgency is None or show not in CHECKED else urgency
    order = np.lexsort((-noise, late))
    return np.asarray(order[chosen[order]])


def alike(position: int, near: Labels, proba: Array, suggestions: Labels, codes: Codes) -> list[int]:
    """Undecided neighbours about which the same could be decided: same kind, same suggestion, near-equal verdict.

    What is foreign has no label to be suggested, so there the suggestion does not matter.

    Args:
        position: the sample.
        near: (k,) positions of its nearest neighbours.
        proba: (N, 3) of the verdict.
        suggestions: (N,), see `suggest`.
        codes: (N,), see `coded`.
    """
    kinds, noise = proba.argmax(axis=1), 1 - proba[:, 0]
    same = (suggestions[near] == suggestions[position]) | (kinds[position] == 2)
    same &= (kinds[near] == kinds[position]) & (codes[near] < 0)
    same &= (np.abs(noise[near] - noise[position]) <= NEAR) & (near != position)
    return [int(j) for j in near[same]]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a share of which ``hits`` of ``n`` were seen; 95% by default; 0 to 1 where nothing was seen.

    Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    if n == 0:
        return 0.0, 1.0
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / n + spread / (4 * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Recalibrated:
    """Probabilities of noise as the decisions have corrected them.

    Attributes:
        proba: (N,).
        slopes: (N, 2) their derivatives by the two parameters.
        covariance: (2, 2) of the parameters.
    """

    proba: Array
    slopes: Array
    covariance: Array

    def expect(self, rows: Flags | Labels) -> tuple[float, float]:
        """How many of these samples are noisy: expected number, and its standard deviation."""
        p, slope = self.proba[rows], self.slopes[rows].sum(axis=0)
        return float(p.sum()), float(np.sqrt((p * (1 - p)).sum() + slope @ self.covariance @ slope))


def recalibrate(noise: Array, codes: Codes) -> Recalibrated:
    r"""Correct the verdict by what people found: logit p' = a + b logit p.

    .. math:: \max_{a,b} \sum_i \log P(y_i \mid p'_i) - \frac{a^2}{2} - \frac{(b - 1)^2}{2 \cdot 0.5^2}

    The priors hold p' at p until there are decisions. That the likeliest noise is decided first does no harm: p' is
    conditional on p. ``unsure`` says nothing. Cox, Two further applications of a model for binary regression,
    Biometrika 1958; Platt, Probabilistic outputs for support vector machines, 1999.

    Args:
        noise: (N,) P(noisy) of the verdict.
        codes: (N,), see `coded`.
    """
    p = np.clip(noise, 1e-6, 1 - 1e-6)
    design = np.stack([np.ones(len(p)), np.log(p / (1 - p))], axis=1)
    told = _told(codes)
    X, y = design[told], _noisy(codes)[told].astype(float)
    start, weight = np.array([0.0, 1.0]), np.diag([1.0, 4.0])

    def cost(w: Array) -> float:
        z = X @ w
        return float((np.logaddexp(0, z) - y * z).sum() + (w - start) @ weight @ (w - start) / 2)

    w, hessian = start, weight
    for _ in range(50):
        q = 1 / (1 + np.exp(-X @ w))
        gradient = X.T @ (q - y) + weight @ (w - start)
        hessian = (X * (q * (1 - q))[:, None]).T @ X + weight
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and cost(w - size * step) > cost(w):
            size /= 2
        w = w - size * step
        if np.abs(step).max() < 1e-9:
            break
    out = 1 / (1 + np.exp(-design @ w))
    return Recalibrated(out, (out * (1 - out))[:, None] * design, np.linalg.inv(hessian))


def _told(codes: Codes) -> Flags:
    """Which samples somebody was sure about."""
    return np.asarray((codes >= 0) & (codes != CHOICES.index("unsure")))


def _noisy(codes: Codes) -> Flags:
    """Which samples were decided to be noisy."""
    return np.asarray((codes == CHOICES.index("relabel")) | (codes == CHOICES.index("drop")))


@dataclass(frozen=True)
class Precision:
    """How often a detector was right, as far as people have looked.

    Attributes:
        flagged: samples it flags.
        decided: those of them that somebody was sure about.
        noisy: those of them that are noisy.
        low, high: 95% interval of its precision on samples such as those decided (see `wilson`).
        expected: share of all it flags that is noisy: those decided, and the rest by the recalibrated verdict; None
            where it flags nothing.
    """

    flagged: int
    decided: int
    noisy: int
    low: float
    high: float
    expected: float | None


def precision(flags: Flags, codes: Codes, corrected: Recalibrated) -> Precision:
    """A detector's precision by the decisions so far.

    The queue begins with the surest noise, so the interval speaks of samples such as those seen; ``expected`` of all.

    Args:
        flags: (N,) of the detector.
        codes: (N,), see `coded`.
        corrected: see `recalibrate`.
    """
    seen = flags & _told(codes)
    n, hits = int(seen.sum()), int((seen & _noisy(codes)).sum())
    rest = corrected.expect(flags & ~seen)[0]
    total = int(flags.sum())
    return Precision(total, n, hits, *wilson(hits, n), (hits + rest) / total if total else None)


@dataclass(frozen=True)
class Advice:
    """Is it time to stop?

    Attributes:
        rest: samples nobody has decided about.
        left: how many of them are expected to be noisy.
        low, high: a 90% interval, widened to what the verdict itself expects: far below all that was decided, its
            correction is an extrapolation.
        ahead, soon: so many samples come next in the queue, and so many of them are expected to be noisy.
        more: further decisions until at most `ENOUGH` of all noisy samples are left.
        stop: few are left, or few are ahead.
    """

    rest: int
    left: float
    low: float
    high: float
    ahead: int
    soon: float
    more: int
    stop: bool


def advise(noise: Array, codes: Codes, corrected: Recalibrated) -> Advice:
    """What is expected to be left in the queue.

    Args:
        noise: (N,) P(noisy) of the verdict.
        codes: (N,), see `coded`.
        corrected: see `recalibrate`.
    """
    rows = np.flatnonzero(codes < 0)
    left, sd = corrected.expect(rows)
    p = np.sort(corrected.proba[rows])[::-1]
    remaining = np.concatenate([[left], left - np.cumsum(p)])
    most = ENOUGH * (left + float(_noisy(codes).sum()))
    ahead = min(AHEAD, len(rows))
    soon = float(p[:ahead].sum())
    more = int(np.argmax(remaining <= most + 1e-9)) if len(rows) else 0
    stop = left <= most or soon <= RARE * ahead
    before = float(noise[rows].sum())
    low, high = max(0.0, min(left - 1.645 * sd, before)), min(float(len(rows)), max(left + 1.645 * sd, before))
    return Advice(len(rows), left, low, high, ahead, soon, more, bool(stop))


def progress(kinds: NDArray[np.int8], codes: Codes) -> dict[str, tuple[int, int]]:
    """For each kind of noise: how many that the verdict takes for it are decided, and how many there are."""
    return {
        name: (int((codes[kinds == code] >= 0).sum()), int((kinds == code).sum()))
        for code, name in ((1, "mislabelled"), (2, "ood"))
    }
