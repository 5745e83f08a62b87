"""The pieces of the Review page: the queue, one sample or many to decide about, and what the decisions teach."""

from __future__ import annotations

import base64
import getpass
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from html import escape

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from .. import benefit, checks, cleaned, exports, registry, reviews, views
from ..base.errors import InputError
from ..card import KINDS
from ..checks import CHECKS, ODD, Checks
from ..figures.palette import KIND_COLOURS
from ..reviews import Choice, Conflict, Decision, Reviews, State
from ..spec import Cut, Spec
from ..study import Detection, Study
from ..thumbnails import picture_png
from ..verdict import Verdict
from ..workspace import Workspace, readable
from . import cached, explore, jobs
from .gallery import Tile, gallery
from .pickers import CUTS
from .shell import begin, plain

MANY = 24
"""Samples of one page that are decided together."""

BY_DIGIT = 9
"""Up to so many classes each has a button and a digit; more are in a menu."""

RELATED = 5
"""Copies of a sample that are shown beside it."""

SHOWS = {
    "noisy": "All", "mislabelled": "Wrong label", "ood": "Foreign", "duplicates": "Copies", "leaks": "In test set",
    "odd": "Odd", "unsure": "Unsure",
}  # fmt: skip
WORDS = {"mislabelled": "wrong label", "ood": "foreign"}


@dataclass(frozen=True)
class Desk:
    """What the page needs of one study in one run; a decision changes the states and nothing else.

    Attributes:
        study, who: what is reviewed, and by whom.
        states: every sample that somebody has touched, by id.
        codes: (N,) decisions in force, see `chaffinch.reviews.coded`.
        proba: (N, 3) of the verdict; without one, the detectors' mean rank stands for P(mislabelled).
        verdict: the verdict, or None.
        suggestions: (N,) the label to give instead, -1 where nobody has an idea.
        skipped: positions that were put off in this session.
        found: what the checks found, or None where nobody has looked yet.
    """

    study: Study
    who: str
    states: dict[str, State]
    codes: reviews.Codes
    proba: NDArray[np.float64]
    verdict: Verdict | None
    suggestions: NDArray[np.int64]
    skipped: tuple[int, ...]
    found: Checks | None = None

    def choice(self, position: int, what: str, label: str = "") -> Choice:
        """A choice about a sample as it is seen now."""
        sample = self.study.name_of(position)
        state = self.states.get(sample)
        return Choice(sample, what, label, state.revision if state else 0)

    def labelled(self, position: int, label: str) -> Choice:
        """A choice of a label; of the given one, that is to keep it."""
        own = label == self.study.observed.classes[self.study.observed.labels[position]]
        return self.choice(position, "keep") if own else self.choice(position, "relabel", label)

    def suggested(self, position: int) -> str:
        """Name of the suggested label, or nothing."""
        label = int(self.suggestions[position])
        return self.study.observed.classes[label] if label >= 0 else ""

    @cached_property
    def _gone(self) -> NDArray[np.bool_]:
        return np.asarray(self.codes == reviews.CHOICES.index("drop"))

    @cached_property
    def spare(self) -> NDArray[np.bool_]:
        """(N,) copies that can go, since one more likely to be clean is left."""
        return self._gone & False if self.found is None else self.found.spare(self.proba[:, 0], ~self._gone)

    def urgency(self, queue: str) -> NDArray[np.float64] | None:
        """(N,) what a queue of the checks lists, see `chaffinch.reviews.queue`; None for other queues."""
        if self.found is None or queue not in reviews.CHECKED:
            return None
        return self.found.urgency(queue, self.study.observed.labels, self.proba[:, 0], self._gone)

    def reasons(self, position: int) -> tuple[checks.Reason, ...]:
        """What the checks say of a sample."""
        return () if self.found is None else checks.reasons(self.study, self.found, position)

    @cached_property
    def told(self) -> reviews.Codes:
        """(N,) what the decisions say of noise: that one was dropped which a check lists says nothing of its label."""
        if self.found is None:
            return self.codes
        silent = self._gone & self.found.listed
        return np.where(silent, np.int8(reviews.CHOICES.index("unsure")), self.codes)

    @cached_property
    def corrected(self) -> reviews.Recalibrated | None:
        """P(noisy) as the decisions have corrected it; None without a verdict."""
        return None if self.verdict is None else reviews.recalibrate(self.verdict.noise, self.told)


@lru_cache(maxsize=4)
def _positions(study: Study) -> dict[str, int]:
    return {str(name): i for i, name in enumerate(study.observed.ids)}


def checked(spec: Spec, study: Study) -> Checks | None:
    """What the checks found; where that is wanted and not known, they are made in the background, with progress."""
    if (found := cached.checks(study)) is not None:
        return found
    command = ("check", spec.dataset, "--encoder", study.encoder)
    job = jobs.Job(study.workspace, f"check-{checks.key(study)}", command, study.dataset.name, "check")
    if spec.queue in reviews.CHECKED:
        jobs.ensure(job, lambda: checks.known(study))
    elif job.at_work:
        jobs.follow(job)
    return None


def desk(
    study: Study,
    detections: Sequence[Detection],
    verdict: Verdict | None,
    who: str,
    found: Checks | None = None,
) -> Desk:
    """Everything as it is now, other people's decisions included.

    Raises:
        InputError: the file of the decisions cannot be read.
    """
    states = store(study).states(study.dataset.digest)
    given = study.observed.labels
    opinions = [] if verdict is None else [verdict.labels]
    opinions += [d.suggestions for d in detections if d.suggestions is not None]
    if verdict is None:
        rank = views.suspicion(detections, len(study))
        proba = np.stack([1 - rank, rank, np.zeros(len(study))], axis=1)
    else:
        proba = verdict.proba
    skipped = st.session_state.setdefault("_skipped", {}).setdefault(study.dataset.digest, [])
    codes = reviews.coded(states, _positions(study))
    return Desk(study, who, states, codes, proba, verdict, reviews.suggest(given, opinions), tuple(skipped), found)


def store(study: Study) -> Reviews:
    """Where the decisions about a study are."""
    return Reviews(study.workspace.decisions)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # such as a container without user names
        return "somebody"


def head(spec: Spec, study: Study, judged: bool) -> tuple[Spec, bool, str]:
    """Which queue, one by one or many together, and who decides."""
    a, b, c = st.columns([6, 3, 2], vertical_alignment="top")
    missing = checks.lacking(study)
    shows = [show for show in SHOWS if (judged or show not in KINDS) and show not in missing]
    shows = [show for show in shows if show != "odd" or not missing.keys() >= set(ODD)]
    show = a.segmented_control(  # no menu: it would keep the focus, and swallow the keys that decide
        "Queue, likeliest noise first",
        shows,
        key=begin("queue", spec.queue if spec.queue in shows else shows[0], shows),
        format_func=SHOWS.__getitem__,
        required=True,
        help="All samples; those that the verdict takes for one kind of noise; copies of one another, those under "
        "different labels first; training pictures that are in the test set too; blank, dark, over-bright, blurred, "
        "oddly sized pictures; or those somebody was unsure about.",
    )
    ways = ("one", "many")
    way = b.segmented_control(
        "Decide",
        ways,
        key=begin("way", "one", ways),
        format_func={"one": "One by one", "many": f"{MANY} together"}.__getitem__,
        required=True,
    )
    who = c.text_input(
        "Who decides",
        key=begin("who", st.session_state.get("_who", _user())),
        max_chars=60,
        help="Kept with every decision. Undo takes back decisions under this name only.",
    )
    st.session_state["_who"] = who
    return replace(spec, queue=show or shows[0]), way == "many", who


def tell() -> None:
    """What went wrong with the last click, and what to do: above all, somebody else's decision."""
    if message := st.session_state.pop("_told", ""):
        st.info(plain(message), icon=":material/info:")
    if trouble := st.session_state.pop("_trouble", ""):
        st.error(plain(trouble), icon=":material/error:")


def conflict(at: Desk) -> None:
    """Somebody has decided meanwhile: show what, and let the person leave it or knowingly replace it."""
    if "_conflict" not in st.session_state:
        return
    choices, found = st.session_state["_conflict"]
    lines = []
    for state in found:
        mine = next(c for c in choices if c.sample == state.sample)
        said = "withdrew their decision" if state.decision is None else f"decided **{plain(str(state.decision))}**"
        who = "Somebody" if state.decision is None else f"**{plain(state.decision.who)}**"
        at_ = "" if state.decision is None else f" ({_when(state.decision)})"
        yours = f"{mine.choice} → {mine.label}" if mine.label else mine.choice
        lines.append(f"{plain(state.sample)}: {who} {said}{at_} since you opened it. Yours: **{plain(yours)}**.")
    with st.container(border=True, key="conflict"):
        st.warning("Nothing of yours was kept yet.  \n" + "  \n".join(lines), icon=":material/group:")
        with st.container(horizontal=True):
            st.button("Leave it", key="leave", shortcut="n", on_click=_leave, type="primary")
            based = {state.sample: state.revision for state in found}
            again = [replace(c, based_on=based.get(c.sample, c.based_on)) for c in choices]
            st.button("Put mine in its place", key="override", shortcut="y", on_click=_decide, args=(at, again))


def _leave() -> None:
    st.session_state.pop("_conflict", None)
    _open("")


def _open(sample: str) -> None:
    st.session_state["_spec"] = replace(st.session_state["_spec"], sample=sample)


def _decide(at: Desk, choices: list[Choice]) -> None:
    """Keep decisions; each callback carries the samples that its button was drawn for, so a late key hits nothing."""
    st.session_state.pop("_conflict", None)
    try:
        store(at.study).decide(at.study.dataset.digest, choices, at.who)
    except Conflict as refused:
        mine = {c.sample: (at.who, c.choice, c.label) for c in choices}
        found = [s for s in refused.found if _as_said(s) != mine[s.sample]]
        if found:  # else a key was pressed twice
            st.session_state["_conflict"] = (choices, found)
            _open(found[0].sample)
        return
    except InputError as error:
        st.session_state["_trouble"] = str(error)
        return
    if any(c.choice == "unsure" for c in choices):
        _later(at, [_positions(at.study)[c.sample] for c in choices])
    _open("")


def _as_said(state: State) -> tuple[str, str, str] | None:
    d = state.decision
    return None if d is None else (d.who, d.choice, d.label)


def _later(at: Desk, positions: Sequence[int]) -> None:
    kept = st.session_state["_skipped"][at.study.dataset.digest]
    for position in positions:
        if position in kept:
            kept.remove(position)
        kept.append(position)


def _skip(at: Desk, positions: Sequence[int]) -> None:
    st.session_state.pop("_conflict", None)
    _later(at, positions)
    _open("")


def _undo(at: Desk, batch: int | None = None) -> None:
    """Take back the person's own last decision and show its sample again."""
    st.session_state.pop("_conflict", None)
    try:
        undone = store(at.study).undo(at.study.dataset.digest, at.who, batch)
    except InputError as error:
        st.session_state["_trouble"] = str(error)
        return
    if not undone:
        st.session_state["_told"] = f"There is nothing of {at.who}'s to undo."
        return
    _open(undone[0].sample if len(undone) == 1 else "")


def progress(at: Desk, queue: str = "noisy") -> None:
    """How much of what the verdict takes for noise is decided, in all and by kind; or of what a check lists."""
    decided = int((at.codes >= 0).sum())
    if queue in reviews.CHECKED:
        urgency = at.urgency(queue)
        listed = np.zeros(0, bool) if urgency is None else urgency > 0
        if (total := int(listed.sum())) and at.found is not None:
            done = int((at.codes[listed] >= 0).sum())
            st.progress(done / total, text=f"{done:,} of {total:,} in this queue decided")
        return
    if at.verdict is None:
        st.progress(decided / len(at.study), text=f"{decided:,} of {len(at.study):,} samples decided")
        return
    kinds = reviews.progress(at.verdict.kinds, at.codes)
    done, total = (sum(pair[i] for pair in kinds.values()) for i in (0, 1))
    parts = ", ".join(f"{WORDS[kind]} {n:,} of {of:,}" for kind, (n, of) in kinds.items())
    besides = f"; {decided - done:,} others decided" if decided > done else ""
    words = f"{done:,} of {total:,} suspicious samples decided ({parts}){besides}"
    st.progress(done / total if total else 1.0, text=words)


def one(
    spec: Spec, at: Desk, detections: Sequence[Detection], votes: views.Votes, order: NDArray[np.int64]
) -> int | None:
    """One sample, large, with the buttons that decide about it. Returns a clicked neighbour."""
    study, opened = at.study, at.study.position(spec.sample)
    waiting = [i for i in order[:1].tolist() if at.codes[i] < 0 or spec.queue == "unsure"]
    if opened is None and not waiting:
        st.success("Nothing is left in this queue. Choose another, or look at what the decisions say below.")
        _buttons(at, [])
        return None
    position = waiting[0] if opened is None else opened
    seen = replace(views.inspect(study, position, detections, votes, at.verdict), true=None, kind=None)
    near = np.array([j for j, _, _ in seen.neighbours], np.int64)
    others = reviews.alike(position, near, at.proba, at.suggestions, at.codes) if len(near) else []
    others = others if at.codes[position] < 0 and spec.queue not in reviews.CHECKED else []
    together = bool(others) and st.session_state.get("_together") == study.name_of(position)
    chosen = [position, *(others if together else [])]
    left, right = st.columns([2, 3], gap="medium")
    with left:
        _pictures(at, position)
    with right:
        _title(at, seen)
        _buttons(at, chosen, len(others), together)
        _classes(at, chosen)
    clicked = None
    left, right = st.columns([2, 3], gap="medium")
    with left:
        if seen.neighbours:
            st.caption("Nearest neighbours, most similar first" + ("; decided together: !" if together else ""))
            tiles = explore.neighbour_tiles(seen.neighbours, seen.given)
            tiles = [replace(t, tone="flag") if together and t.index in others else t for t in tiles]
            clicked = gallery(tiles, cached.sheets(study), key="near", tile=56)
    with right:
        st.html(explore.told(seen, _cut_words(detections, votes, spec.detectors)))
    return clicked


def _toggle(sample: str) -> None:
    st.session_state["_together"] = "" if st.session_state.get("_together") == sample else sample


def _pictures(at: Desk, position: int) -> None:
    """The sample, and beside it, as large, its copies: others of the training set, and one of the test set."""
    study, found, test = at.study, at.found, at.study.dataset.test
    images, labels, names = study.observed.images, study.observed.labels, study.observed.classes
    siblings = [] if found is None else found.siblings(position)
    leak = -1 if found is None or test is None else int(found.leak[position])
    if images is None or not (siblings or leak >= 0):
        _picture(study, position)
        return
    given = int(labels[position])
    shown = [(images[position], names[given], "this one", "")]
    for j in siblings[:RELATED]:
        state = at.states.get(study.name_of(j))
        decided = f", {state.decision}" if state is not None and state.decision is not None else ""
        shown.append((images[j], names[labels[j]], study.name_of(j) + decided, "differs" * bool(labels[j] != given)))
    if test is not None and leak >= 0:
        other, name = int(test.labels[leak]), checks.name_of_test(study.dataset, leak)
        shown.append((test.images[leak], names[other], f"test set: {name}", "differs" * (other != given)))
    figures = "".join(
        f'<figure class="{tone}"><img alt="picture {escape(told)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture_png(image, 224)).decode()}"><figcaption><b>{escape(label)}</b>{escape(told)}'
        "</figcaption></figure>"
        for image, label, told, tone in shown
    )
    more = f"<p>and {len(siblings) - RELATED} more copies</p>" if len(siblings) > RELATED else ""
    st.html(f'<div class="cf-copies">{figures}</div>{more}{_STYLE}')


def _picture(study: Study, position: int) -> None:
    if study.observed.images is None:
        st.html(f'<div class="cf-blank">no picture<b>{escape(study.name_of(position))}</b></div>' + _STYLE)
        return
    picture = base64.b64encode(picture_png(study.observed.images[position], 336)).decode()
    alt = escape(study.name_of(position))
    st.html(f'<img class="cf-large" alt="picture {alt}" src="data:image/png;base64,{picture}">' + _STYLE)


_STYLE = """<style>
.cf-large{display:block;width:min(100%,24rem);max-height:44vh;object-fit:contain;object-position:left top;
border-radius:6px}.cf-blank{display:grid;place-items:center;gap:.3rem;padding:2.4rem 1rem;border-radius:6px;
background:color-mix(in srgb,currentColor 8%,transparent);overflow-wrap:anywhere}.cf-blank b{font-size:1.3rem}
@media(max-width:640px){.cf-large{max-height:32vh}.cf-blank{padding:1rem}}
.cf-copies{display:flex;flex-wrap:wrap;gap:.6rem}.cf-copies figure{margin:0;width:min(47%,11rem)}
.cf-copies img{display:block;width:100%;border-radius:6px}.cf-copies figcaption{font-size:.8rem;overflow-wrap:anywhere;
line-height:1.3;margin-top:.2rem}.cf-copies b{display:block}.cf-copies .differs b::before{content:"≠ "}
@media(max-width:640px){.cf-copies figure{width:min(30%,8rem)}}
.cf-title{display:flex;flex-wrap:wrap;gap:.2rem .8rem;align-items:baseline;font-size:1.45rem;line-height:1.3}
.cf-title span{font-size:.9rem;opacity:.75}.cf-title i{font-style:normal;font-size:.9rem;padding:.1rem .55rem;
border-radius:1rem;border:1px solid}.cf-said{font-size:.9rem;margin-top:.3rem}
</style>"""


def _title(at: Desk, seen: views.Inspection) -> None:
    """Given and suggested label, the likeliest kind, and what was decided before."""
    parts = [f"<b>{escape(seen.given)}</b>"]
    suggestion = at.suggested(seen.position)
    if suggestion and (at.verdict is None or KINDS[at.verdict.kinds[seen.position]] == "mislabelled"):
        parts.append(f"<span>rather</span><b>{escape(suggestion)}</b>")
    if at.verdict is not None:
        kind = KINDS[at.verdict.kinds[seen.position]]
        colour, chance = KIND_COLOURS[kind], at.verdict.proba[seen.position].max()
        words = WORDS.get(kind, kind)
        parts.append(f'<i style="border-color:{colour}">{words} {chance:.0%}</i>')
    state = at.states.get(seen.id)
    said = ""
    if state is not None and state.decision is not None:
        d = state.decision
        said = f'<div class="cf-said">Decided: <b>{escape(str(d))}</b> by {escape(d.who)}, {_when(d)}</div>'
    why = explore.why(at.reasons(seen.position))
    st.html(f'<div class="cf-title"><span>given</span>{"".join(parts)}</div>{said}{why}{_STYLE}')


def _when(d: Decision) -> str:
    return f"{d.at[:10]} {d.at[11:16]} UTC"


def _buttons(at: Desk, chosen: Sequence[int], others: int = 0, together: bool = False) -> None:
    """Keep, relabel, drop, unsure, skip, undo; each has a key. Their identity is the sample's: see `_decide`.

    Args:
        at: the desk.
        chosen: what they decide about.
        others: how many are like the first one.
        together: are those among the chosen?
    """
    first = chosen[0] if chosen else None
    count = f" {len(chosen)}" if len(chosen) > 1 else ""
    suggested = {i: at.suggested(i) for i in chosen}
    labels = {label for label in suggested.values() if label}
    to = f"to {next(iter(labels))}" if len(labels) == 1 else "as suggested"
    likely = "" if first is None or at.verdict is None else KINDS[at.verdict.kinds[first]]
    if first is not None and at.found is not None and (at.spare[first] or at.found.leak[first] >= 0):
        likely = "ood"  # whatever its label: it is there already, or must not be there
    mark = f"{first}-{len(chosen)}-{at.choice(first, 'keep').based_on}" if first is not None else "none"
    rows = [
        (f"Keep{count}", "keep", "k", ":material/check:", "clean"),
        (f"Relabel{count} {to}", "relabel", "l", ":material/sell:", "mislabelled"),
        (f"Drop{count}", "drop", "d", ":material/delete:", "ood"),
        (f"Unsure{count}", "unsure", "u", ":material/question_mark:", ""),
    ]
    with st.container(horizontal=True, key="decide", gap="small"):
        for words, what, key, icon, kind in rows:
            usable = [i for i in chosen if what != "relabel" or suggested[i]]
            choices = [at.choice(i, what, suggested[i] if what == "relabel" else "") for i in usable]
            st.button(
                words, key=f"{what}-{mark}", shortcut=key, icon=icon, on_click=_decide, args=(at, choices),
                disabled=not choices, type="primary" if kind and kind == likely else "secondary",
            )  # fmt: skip
        st.button(
            "Skip", key=f"skip-{mark}", shortcut="s", icon=":material/skip_next:", on_click=_skip, args=(at, chosen),
            disabled=not chosen, type="tertiary", help="Later, in this session.",
        )  # fmt: skip
        st.button(
            "Undo", key="undo", shortcut="z", icon=":material/undo:", on_click=_undo, args=(at,), type="tertiary",
            help="Takes back your own last decision.",
        )  # fmt: skip
        if others and first is not None:
            st.button(
                f"Without the {others} like it" if together else f"With the {others} like it",
                key=f"alike-{first}", shortcut="a", icon=":material/filter_none:", on_click=_toggle,
                args=(at.study.name_of(first),), type="primary" if together else "tertiary",
                help="Neighbours with the same suggestion, about which the verdict is as sure; marked below with !",
            )  # fmt: skip


def _classes(at: Desk, chosen: Sequence[int]) -> None:
    """Another label: a button and a digit each, or a menu where there are many classes."""
    names, first = at.study.observed.classes, chosen[0]
    st.caption("Another label (drop what belongs to no class)")
    if len(names) <= BY_DIGIT:
        with st.container(horizontal=True, key="classes", gap="small"):
            for digit, name in enumerate(names, 1):
                choices = [at.labelled(i, name) for i in chosen]
                st.button(
                    name, key=f"class-{first}-{len(chosen)}-{digit}", shortcut=str(digit), on_click=_decide,
                    args=(at, choices), disabled=name == names[at.study.observed.labels[first]],
                )  # fmt: skip
        return
    with st.container(horizontal=True, key="classes", vertical_alignment="bottom"):
        others = [name for name in names if name != names[at.study.observed.labels[first]]]
        name = st.selectbox("Another label", others, key=f"other-{first}", label_visibility="collapsed")
        choices = [at.labelled(i, name) for i in chosen]
        st.button(
            "Relabel to this", key=f"give-{first}-{len(chosen)}", shortcut="o", on_click=_decide, args=(at, choices)
        )


def _cut_words(detections: Sequence[Detection], votes: views.Votes, cuts: Sequence[Cut]) -> dict[str, str]:
    """Where each detector cuts, in words: its rule, and the lowest score that it flags."""
    words, by_slug = {}, {c.detector: c for c in cuts}
    for found in detections:
        cut, flags = by_slug[found.slug], votes.flags[found.slug]
        rule = "budget" if cut.budget is not None else "score" if cut.score is not None else cut.rule
        from_ = f", from score {found.scores[flags].min():.3g}" if flags.any() and rule != "contradiction" else ""
        words[found.slug] = CUTS[rule] + from_
    return words


def many(at: Desk, order: NDArray[np.int64], queue: str) -> None:
    """The head of the queue as thumbnails; a click leaves one out, the buttons decide about the rest together."""
    study = at.study
    listed = order[at.spare[order]] if queue == "duplicates" else order
    page = [i for i in listed[:MANY].tolist() if at.codes[i] < 0 or queue == "unsure"]
    if not page:
        st.success("Nothing is left in this queue. Choose another, or look at what the decisions say below.")
    left_out: set[int] = st.session_state.setdefault("_left_out", {}).setdefault(study.dataset.digest, set())
    chosen = [i for i in page if i not in left_out]
    _buttons(at, chosen)
    if not page:
        return
    st.caption(
        "Click a picture to leave it out, or to take it in again. Relabel gives each its own suggestion."
        + (" Of each group of copies the likeliest to be clean is not among these." if queue == "duplicates" else "")
    )
    names, kinds = study.observed.classes, at.proba.argmax(axis=1)
    tiles = []
    for i in page:
        advice = f"→ {at.suggested(i)}" if at.suggested(i) and kinds[i] != 2 else ""
        if queue in reviews.CHECKED:
            advice = "; ".join(reason.words for reason in at.reasons(i))
        named = "" if study.observed.images is not None else study.name_of(i)
        told = "left out" if i in left_out else advice or named
        tiles.append(Tile(i, names[study.observed.labels[i]], told, "" if i in left_out else KINDS[kinds[i]]))
    clicked = gallery(tiles, cached.sheets(study), key="many", tile=84)
    if clicked is not None:
        left_out.symmetric_difference_update({clicked})
        st.rerun()


def recent(at: Desk) -> None:
    """The last decisions in force, one's own with a button that takes them back."""
    batches: dict[int, list[Decision]] = {}
    for state in at.states.values():
        if state.decision is not None:
            batches.setdefault(state.decision.batch, []).append(state.decision)
    if not batches:
        st.caption("No decisions yet. Keys: K keep, L relabel as suggested, D drop, U unsure, S skip, Z undo.")
        return
    st.markdown("##### Recent decisions")
    for batch in sorted(batches, reverse=True)[:6]:
        d, more = batches[batch][0], len(batches[batch]) - 1
        named = plain(d.sample) + (f" and {more} more" if more else "")
        with st.container(horizontal=True, vertical_alignment="center", key=f"recent-{batch}", gap="small"):
            st.markdown(f"**{plain(str(d))}** {named}  \n:small[{plain(d.who)}, {_when(d)}]", width="stretch")
            if d.who == at.who.strip():
                st.button("Undo", key=f"undo-{batch}", type="tertiary", on_click=_undo, args=(at, batch))


def lessons(at: Desk, votes: views.Votes) -> None:
    """What the decisions teach: is it time to stop, and how far each detector can be believed."""
    st.markdown("##### Is it time to stop?")
    if at.verdict is None or at.corrected is None:
        st.caption("Without a verdict nobody can say how much noise is left.")
        return
    advice = reviews.advise(at.verdict.noise, at.told, at.corrected)
    left = f"about **{advice.left:,.0f}** ({advice.low:,.0f} to {advice.high:,.0f})"
    ahead = f"of the next {advice.ahead}, {advice.soon:.0f}"
    more = f" {advice.more:,} more decisions would leave at most {reviews.ENOUGH:.0%} of all noise."
    text = f"Of {advice.rest:,} undecided samples {left} are expected to be noisy; {ahead}."
    if advice.stop:
        st.success(f"You may stop here. {text}", icon=":material/flag:")
    else:
        st.info(text + more, icon=":material/trending_down:")
    st.caption("By the verdict, corrected by the decisions so far; the interval (90%) includes what it said before.")
    st.markdown("##### How far to believe each detector")
    rows = "".join(_belief(slug, reviews.precision(f, at.told, at.corrected)) for slug, f in votes.flags.items())
    st.html(_BELIEF_STYLE + (rows or "<p>Switch a detector on to see how often it is right.</p>"))
    st.caption(
        "Bar: Wilson's 95% interval of the share of noisy ones among its flagged samples that were decided; the queue "
        "begins with the surest, so it flatters. Mark: expected of all it flags, the rest by the corrected verdict."
    )


def _belief(slug: str, p: reviews.Precision) -> str:
    """One detector's precision: in words, its interval as a bar, and what is expected of all it flags as a mark."""
    seen = f"{p.noisy:,} of {p.decided:,} decided are noisy" if p.decided else "none decided yet"
    share = f": {p.noisy / p.decided:.0%} ({p.low:.0%} to {p.high:.0%})" if p.decided else ""
    bar = f'<i style="left:{p.low:.1%};width:{p.high - p.low:.1%}"></i>' if p.decided else ""
    mark = "" if p.expected is None else f'<u style="left:{p.expected:.1%}"></u>'
    told = "" if p.expected is None else f"of all: about {p.expected:.0%}"
    return (
        f'<div class="cf-belief"><div><b>{escape(registry.get("detector", slug).card.name)}</b>'
        f'<span>flags {p.flagged:,}</span></div><div class="cf-range">{bar}{mark}</div>'
        f"<div><span>{seen}{share}</span><span>{told}</span></div></div>"
    )


_BELIEF_STYLE = f"""<style>
.cf-belief{{font-size:.85rem;margin-bottom:.8rem}}.cf-belief>div{{display:flex;flex-wrap:wrap;
justify-content:space-between;gap:0 .8rem}}.cf-belief span{{opacity:.75}}.cf-belief>.cf-range{{position:relative;
height:.6rem;margin:.2rem 0;border-radius:3px;background:color-mix(in srgb,currentColor 12%,transparent)}}
.cf-range i,.cf-range u{{position:absolute;top:0;bottom:0;border-radius:3px}}
.cf-range i{{background:{KIND_COLOURS["flag"]}}}.cf-range u{{width:3px;margin-left:-1.5px;top:-3px;bottom:-3px;
background:currentColor}}
</style>"""


def export(spec: Spec, at: Desk, detections: Sequence[Detection], votes: views.Votes) -> None:
    """What becomes of the samples, and the table and manifest to take away."""
    cuts = [c for c in spec.detectors if c.detector in votes.flags and c.detector not in votes.problems]
    with st.expander("Export the cleaned dataset", icon=":material/download:", key="export"):
        a, b, c = st.columns([3, 3, 2], vertical_alignment="bottom")
        kinds = ("mislabelled", "ood")
        words = {"none": "keep as it is", "drop": "drop", "relabel": "relabel as suggested"}
        does = {}
        for column, kind in zip((a, b), kinds, strict=True):
            options = ["none", "drop", *(["relabel"] if kind == "mislabelled" else [])]
            does[kind] = column.selectbox(
                f"Undecided, verdict {WORDS[kind]}",
                options,
                key=begin(f"policy-{kind}", "none", options),
                format_func=words.__getitem__,
                disabled=at.verdict is None,
            )
        above = c.slider(
            "if at least so sure", 50, 100, key=begin("policy-above", 90), format="%d%%", disabled=at.verdict is None
        )
        dropped = _checks_that_drop(at)
        unsure = st.toggle("Drop what somebody was unsure about", key=begin("policy-unsure", False))
        policy = cleaned.Policy(
            drop=(*(kind for kind in kinds if does[kind] == "drop"), *dropped),
            relabel=does["mislabelled"] == "relabel",
            above=above / 100,
            unsure="drop" if unsure else "keep",
        )
        made = cleaned.decided(at.states)
        settled = cleaned.settle(at.study, detections, at.verdict, made, policy, at.found)
        counts = settled.counts(at.study.observed.labels)
        st.caption(
            ", ".join(f"{count:,} {what}" for what, count in counts.items())
            + f"; {len(made):,} decisions count first. The table has every sample; dropped ones have no final label."
        )

        _accuracy(at.study, settled.labels)

        def put() -> cleaned.Export:
            return cleaned.make(at.study, cuts, made, policy)

        with st.container(horizontal=True, gap="small"):
            for name, file, mime, data in (
                ("CSV", "chaffinch-cleaned.csv", "text/csv", lambda: exports.to_csv(put().table)),
                ("Parquet", "chaffinch-cleaned.parquet", None, lambda: put().table.to_parquet(index=False)),
                ("Manifest", cleaned.MANIFEST, "application/json", lambda: cleaned.as_json(put().manifest)),
            ):
                st.download_button(
                    name, data=data, file_name=file, mime=mime, on_click="ignore", key=f"export-{name.lower()}",
                    icon=":material/download:",
                )  # fmt: skip
        st.caption("Pictures, class by class, come with the command; so does the same again from a manifest:")
        st.code(_command(cuts, at.study, policy), language="sh", wrap_lines=True)


def _checks_that_drop(at: Desk) -> list[str]:
    """Which checks may drop what they list."""
    options = [check for check in CHECKS if at.found is not None and at.found.flags(check).any()]
    key = begin("policy-checks", [])
    st.session_state[key] = [check for check in st.session_state[key] if check in options]  # another study has others
    if at.found is None:
        look = "Choose the queue of copies, or of odd pictures, and they are looked for."
    else:
        look = "" if options else "The checks found nothing here."
    return st.multiselect(
        "Undecided, listed by a check: drop", options, key=key, disabled=not options, placeholder=look or "keep all",
        format_func=lambda check: f"{CHECKS[check]}{' (all but one)' * (check == 'duplicates')}",
    )  # fmt: skip


def _accuracy(study: Study, final: NDArray[np.int64]) -> None:
    """What cleaning does to a linear classifier's test accuracy; measured when somebody wants to know."""
    if reason := benefit.lacking(study):
        st.caption(plain(f"No accuracy before and after: {reason}."))
    elif benefit.known(study, final):
        words = benefit.in_words(benefit.benefit(study, final))
        st.caption(plain(words[0].upper() + words[1:] + "."))
    elif st.button("Accuracy before and after", key="benefit", icon=":material/query_stats:"):
        bar = st.progress(0.0, text="Training a linear classifier before and after …")

        def report(what: str, share: float) -> None:
            bar.progress(share, text=f"{what} …")

        try:
            benefit.benefit(study, final, report=report)
        except InputError as error:
            st.warning(plain(str(error)), icon=":material/block:")
            return
        st.rerun()


def _command(cuts: Sequence[Cut], study: Study, policy: cleaned.Policy) -> str:
    """The command line that exports the same."""
    words = ["chaffinch", "export", study.dataset.name, "--out", "cleaned", "--pictures", "copies"]
    words += ["--encoder", study.encoder, *(word for c in cuts for word in ("--detector", str(c)))]
    words += ["--drop", ",".join(policy.drop)] * bool(policy.drop) + ["--relabel"] * policy.relabel
    words += ["--above", f"{policy.above:g}"] * policy.automatic + ["--unsure", "drop"] * (policy.unsure == "drop")
    words += ["--run", study.run.name] if study.run else []
    words += ["--seed", str(study.seed)] * (study.seed != 0)
    return shlex.join(words)


def room(study: Study) -> None:
    """How large the workspace is, and a button that clears what can be computed again."""
    root = str(study.workspace.root)
    sizes = _sizes(root)
    with st.container(horizontal=True, vertical_alignment="center", key="room"):
        parts = ", ".join(f"{part} {readable(size)}" for part, size in sizes.items() if size)
        st.caption(
            plain(f"The workspace holds {readable(sum(sizes.values()))}{f' ({parts})' if parts else ''}."),
            width="stretch",
        )
        with st.popover("Clear results", icon=":material/cleaning_services:", disabled=not sizes["results"]):
            st.write(
                f"Removes {readable(sizes['results'])} of features, maps, scores and thumbnails; they are computed "
                "again when they are wanted. Decisions, encoders and trainings stay."
            )
            st.button("Clear them", key="clear-results", type="primary", on_click=_clear, args=(root,))


@st.cache_data(ttl=60, max_entries=4, show_spinner=False)
def _sizes(root: str) -> dict[str, int]:
    return Workspace(root).sizes()


def _clear(root: str) -> None:
    try:
        freed = Workspace(root).clear("results")
    except InputError as error:
        st.session_state["_trouble"] = str(error)
        return
    cached.forget()
    _sizes.clear()
    st.session_state["_told"] = f"Cleared: {readable(freed)}."
