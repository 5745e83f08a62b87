"""The pieces of the Methods page: search and filters, the cards, and one card opened."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any

import streamlit as st

from .. import registry
from ..base.errors import InputError
from ..card import MethodCard
from ..detectors.base import FROM_FEATURES
from ..figures import methods as figures
from ..figures.methods import KIND_NAMES
from ..spec import Cut, Spec
from ..study import Detection, Study
from . import cached
from .shell import begin, keep, plain

SHOWN_ON = Spec()
"""The view whose dataset the detectors are shown on."""

KINDS = {"detector": "detectors", "loss": "losses", "trainer": "trainers"}
FINDS = {name: KIND_NAMES[name] for name in ("mislabelled", "ood")}
FOUND = {
    "mislabelled": "wrong labels: pictures of another class than the one they are filed under",
    "ood": "foreign pictures: pictures that belong to no class at all (out-of-distribution, OOD)",
}
GROUPS = {
    "features": "features",
    "labels-only": "labels only",
    "probabilities": "class probabilities",
    "neighbours": "neighbours",
    "record": "training record",
    "trusted": "trusted samples",
    "labels": "given labels",
    "images": "pictures",
    "joint": "Symile encoder",
    "truth": "the truth",
}
PIECES = {
    "features": ("features", "features of the pictures, from an encoder or from you"),
    "pred_probs": ("probabilities", "class probabilities by a model that was not trained on the picture in question"),
    "logits": ("probabilities", "what such a model says before it becomes probabilities (logits)"),
    "head": ("probabilities", "the weights of a linear classifier of the features"),
    "neighbors": ("neighbours", "the nearest neighbours of each picture among the features"),
    "history": ("record", "a training record: what a small network said of each picture, epoch by epoch"),
    "trusted": ("trusted", "some samples whose labels are known to be right"),
    "joint": ("joint", "an encoder that was trained on pictures and labels together (Symile)"),
    "images": ("images", "pictures"),
    "labels": ("labels", "the given labels"),
    "numbers": ("labels", "classes that are numbers, such as angles or ages"),
    "truth": ("truth", "the truth about every sample: it is no method, but shows what there is to gain"),
}
"""Piece of evidence -> the filter it belongs to, and what it is in plain words."""

MADE = {"pred_probs", "logits", "head", "neighbors", "history"}
"""Pieces that chaffinch makes from features."""


@dataclass(frozen=True)
class Method:
    """One method of the registry.

    Attributes:
        kind: its family, such as ``detector``.
        cls: the class that carries the card.
        needs: the pieces of evidence it takes, in order.
    """

    kind: str
    cls: Any
    needs: tuple[str, ...]

    @property
    def card(self) -> MethodCard:
        """What is known about it."""
        card: MethodCard = self.cls.card
        return card

    @property
    def link(self) -> str:
        """Its name in a link: a detector's slug, or ``loss:SLUG``."""
        return self.card.slug if self.kind == "detector" else f"{self.kind}:{self.card.slug}"

    @property
    def groups(self) -> frozenset[str]:
        """The filters by need that it passes."""
        found = frozenset(PIECES[piece][0] if piece in PIECES else piece for piece in self.needs)
        return found or frozenset({"labels-only"})

    @property
    def tags(self) -> frozenset[str]:
        """All filters that it passes."""
        return frozenset({self.kind, *self.card.finds}) | self.groups


@cache
def catalogue() -> tuple[Method, ...]:
    """Every method of every family, each family by name."""
    found = []
    for kind in registry.FAMILIES:
        for cls in registry.methods(kind).values():
            needs = getattr(cls, "asks", getattr(cls, "needs", tuple))
            found.append(Method(kind, cls, tuple(needs())))
    order = list(registry.FAMILIES)
    return tuple(sorted(found, key=lambda m: (order.index(m.kind), m.card.name.casefold())))


def matching(search: str, filters: str) -> list[Method]:
    """The methods that hold every word of the search and pass the filters; hits in the name come first.

    Of the filters, one of each sort that is used (kind, finds, needs) has to fit.
    """
    words, chosen = search.casefold().split(), set(filter(None, filters.split(",")))
    sorts = [chosen & tags for tags in (set(registry.FAMILIES), set(FINDS))]
    sorts.append(chosen - sorts[0] - sorts[1])
    found = []
    for method in catalogue():
        card = method.card
        text = f"{card.name} {card.slug} {card.paper} {card.arxiv} {card.year} {card.summary}".casefold()
        if all(word in text for word in words) and all(not tags or tags & method.tags for tags in sorts):
            found.append(method)
    return sorted(found, key=lambda m: not all(word in f"{m.card.name} {m.card.slug}".casefold() for word in words))


def named(link: str) -> Method:
    """The method of a link.

    Raises:
        InputError: there is none; the message names the near ones.
    """
    known = {method.link: method for method in catalogue()}
    if link not in known:
        near = get_close_matches(link, known, n=2)
        raise InputError(
            f"there is no method called {link!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return known[link]


def parameters(cls: Any) -> list[tuple[str, str, str]]:
    """Name, default and description of each parameter of a method, as its code has them."""
    described = sections(cls)[1]
    return [
        (name, repr(p.default), described.get(name, ""))
        for name, p in inspect.signature(cls).parameters.items()
        if p.default is not p.empty
    ]


def sections(cls: Any) -> tuple[str, dict[str, str]]:
    """What a docstring (Google style) says: its text without the sections, and the description of each argument."""
    text, *parts = re.split(r"^(Args|Attributes|Returns|Raises):\n", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    arguments = dict(zip(parts[::2], parts[1::2], strict=True)).get("Args", "")
    described: dict[str, str] = {}
    for names, words in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", arguments, flags=re.MULTILINE):
        described |= dict.fromkeys(re.split(r",\s*", names), " ".join(words.split()))
    return text.strip(), described


def to_markdown(text: str) -> str:
    """The mark-up of docstrings as markdown: formulas and code as such, all else as plain text."""
    out = []
    for paragraph in re.split(r"\n\s*\n", text):
        head, _, formula = paragraph.strip().partition(".. math::")
        if formula:
            out.append(f"{inline(head)}\n\n$$\n{stacked(' '.join(formula.split()))}\n$$".strip())
        else:
            out.append(inline(head))
    return "\n\n".join(out)


def stacked(formula: str) -> str:
    """A formula with its parts (between them is a ``\\quad``) under one another, so that it fits a narrow page."""
    parts = re.split(r"\\q?quad(?![a-z])\s*", formula)
    pairs = ((r"\{", r"\}"), (r"\\left(?![a-z])", r"\\right(?![a-z])"), (r"\\begin", r"\\end"))
    closed = all(len(re.findall(a, part)) == len(re.findall(b, part)) for part in parts for a, b in pairs)
    if len(parts) == 1 or not closed:
        return formula
    return r"\begin{gathered}" + r"\\".join(parts) + r"\end{gathered}"


def inline(text: str) -> str:
    """The mark-up of one paragraph of a docstring as markdown."""
    parts = re.split(r":math:`([^`]*)`|``([^`]*)``|`([^`]*)`", " ".join(text.split()))
    out = [plain(parts[0])]
    for formula, code, name, after in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4], strict=True):
        out += [f"${formula}$" if formula else f"`{code or name}`", plain(after)]
    return "".join(out)


def controls(spec: Spec) -> Spec:
    """The search box and the filters."""
    there = set().union(*(method.tags for method in catalogue()))
    extra = sorted(there - set(registry.FAMILIES) - set(FINDS) - set(GROUPS))
    sorts = {
        "Kind": {kind: KINDS.get(kind, f"{kind}s") for kind in registry.FAMILIES},
        "Finds": FINDS,
        "Needs": GROUPS | dict(zip(extra, extra, strict=True)),
    }
    chosen: list[str] = []
    with st.container(horizontal=True, key="method-filters"):
        search = st.text_input(
            "Search",
            key=begin("search", spec.search),
            placeholder="name, paper or summary",
            icon=":material/search:",
            width=320,
        )
        for name, words in sorts.items():
            options = [tag for tag in words if tag in there]
            start = [tag for tag in spec.filters.split(",") if tag in options]
            chosen += st.pills(
                name,
                options,
                selection_mode="multi",
                key=begin(f"filter-{name}", start),
                format_func=words.__getitem__,
                help=_HELP[name],
            )
    return replace(spec, search=search.strip(), filters=",".join(chosen))


_HELP = {
    "Kind": "Detectors find samples that do not belong where they are; losses train the encoder that makes features; "
    "trainers learn a classifier that resists noisy labels.",
    "Finds": f"{'; '.join(FOUND.values())}.",
    "Needs": "What a method looks at, besides the given labels. Choose several to see methods that need any of them.",
}


def clicked(spec: Spec) -> Spec:
    """The view after the click that caused this run: another card is open, or none."""
    if st.session_state.get("close-method"):
        return replace(spec, method="")
    return next((replace(spec, method=m.link) for m in catalogue() if st.session_state.get(f"card-{m.link}")), spec)


def opened(spec: Spec) -> Method | None:
    """The method whose card is open; a link to one that is not there says so."""
    try:
        return named(spec.method) if spec.method else None
    except InputError as error:
        st.warning(plain(str(error)), icon=":material/warning:")
        return None


def cards(found: Sequence[Method], opened: Method | None) -> None:
    """The cards that match, each a button: a grid, or a list while one is open."""
    if not found:
        st.info("Nothing matches. Use fewer words, or fewer filters.", icon=":material/filter_alt_off:")
    with st.container(key="methods-list" if opened else "methods-grid"):
        for method in found:
            card = method.card
            words = f"**{plain(card.name)}** :gray[{card.year}]\n\n{_badges(method)}\n\n"
            st.button(
                words + f":small[{plain(card.summary)}]",
                key=f"card-{method.link}",
                width="stretch",
            )


def opened_card(spec: Spec, method: Method) -> None:
    """One method in full; the figure is filled in last, since it may have to be computed."""
    card, tried = method.card, False
    with st.container(border=True, key="method"):
        st.markdown(f"### {plain(card.name)}")
        st.markdown(f"{_badges(method, 'finds ')} :gray-badge[{card.slug}]")
        st.markdown(plain(card.summary))
        with st.container(horizontal=True):
            if method.kind == "detector":
                tried = st.button(
                    "Try it on Explore",
                    key="try-method",
                    type="primary",
                    icon=":material/scatter_plot:",
                    help="Switches it on for the dataset you are looking at, and goes there.",
                )
            st.button("Close", key="close-method", icon=":material/close:", help="Back to all methods")
        st.latex(stacked(card.formula))
        link = f" — [arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else ""
        st.markdown(f":material/description: {plain(card.paper)}{link}")
        place = st.container()
        if card.finds:
            st.markdown("**Finds**\n" + "\n".join(f"- {FOUND[f]}" for f in sorted(card.finds)))
        st.markdown(_needs(method))
        st.markdown(f"**Fails when**  \n{plain(card.fails_when)}")
        with st.expander("How it works, and what differs from the paper", icon=":material/function:"):
            st.markdown(to_markdown(sections(method.cls)[0]))
        _parameters(method)
        _commands(method)
    _show(method)
    if tried:
        _on_explore(spec, card.slug)
    if method.kind == "detector":
        with place:
            _portrait(method)


def _badges(method: Method, before: str = "") -> str:
    """What it finds, or its kind where it finds nothing by itself, in the colours of the kinds of noise."""
    colours = {"mislabelled": "orange", "ood": "violet"}
    finds = [f":{colours[f]}-badge[{before}{FINDS[f]}]" for f in sorted(method.card.finds)]
    return " ".join(finds or [f":{'green' if method.kind == 'trainer' else 'blue'}-badge[{method.kind}]"])


def _needs(method: Method) -> str:
    made = "; made from the features where missing"
    lines = [
        (PIECES[piece][1] if piece in PIECES else f"`{piece}`") + (made if piece in MADE else "")
        for piece in method.needs
    ]
    if method.kind == "detector":
        lines.append("the given labels")
    return "**Needs**\n" + "\n".join(f"- {line}" for line in lines or ["nothing but the pictures"])


def _parameters(method: Method) -> None:
    rows = parameters(method.cls)
    st.markdown("**Parameters**" if rows else "It has no parameters.")
    if rows:
        lines = [
            f"- **{plain(name)}** = `{default}`" + (f": {inline(text)}" if text else "") for name, default, text in rows
        ]
        st.markdown("\n".join(lines))


_COMMANDS = {
    "detector": "chaffinch detect fashion-web --detector {slug}",
    "loss": "chaffinch train-encoder fashion-web --loss {slug}",
    "trainer": "chaffinch train fashion-web --trainer {slug}",
}
_STUDY = """\
import chaffinch

study = chaffinch.Study("fashion-web")
found = study.detect("{slug}")
found.scores, found.flags()  # higher = more suspicious; its own rule
"""
_PYTHON = {
    "detector": _STUDY,
    "loss": """\
from pathlib import Path

import chaffinch
from chaffinch.encoders.train import Recipe, train_encoder

data = chaffinch.open_dataset("fashion-web")
for step in train_encoder(data, Recipe(loss="{slug}"), Path("."), "mine"):
    print(f"{{step.share:.0%}}, loss {{step.loss:.3f}}")
""",
    "trainer": """\
from pathlib import Path

import chaffinch
from chaffinch.trainers.train import Recipe, train

data = chaffinch.open_dataset("fashion-web")
for step in train(data, Recipe(trainer="{slug}"), Path("mine")):
    if step.record:
        print(f"epoch {{step.epoch + 1}}: accuracy {{step.record.accuracy:.3f}}")
""",
}
_ARRAYS = """
# or on arrays of your own: features (N, D), labels (N,)
from {module} import {name}

flags = {name}().fit(X, y).flags_
"""


def commands(method: Method) -> dict[str, str]:
    """Language -> what to type to run the method; empty for a family that has no command."""
    if method.kind not in _COMMANDS:
        return {}
    values = {"slug": method.card.slug, "module": method.cls.__module__, "name": method.cls.__name__}
    alone = method.kind == "detector" and set(method.needs) <= FROM_FEATURES | {"features"}
    python = _PYTHON[method.kind] + (_ARRAYS if alone else "")
    return {"sh": _COMMANDS[method.kind].format(**values), "python": python.format(**values).strip()}


def _commands(method: Method) -> None:
    for language, text in commands(method).items():
        st.markdown("**On the command line**" if language == "sh" else "**In Python**")
        st.code(text, language=language, wrap_lines=True)


def _on_explore(spec: Spec, slug: str) -> Spec:
    """Switch a detector on and go to the Explore page."""
    if slug not in {cut.detector for cut in spec.detectors}:
        spec = replace(spec, detectors=(*spec.detectors, Cut(slug)))
    st.session_state[f"on-{slug}"] = True
    keep(spec)
    st.switch_page("pages/explore.py")


def _portrait(method: Method) -> None:
    """The detector on the bundled data: where it is suspicious, its scores by kind, and how well it ranks them."""
    slug = method.card.slug
    refused: dict[str, str] = st.session_state.setdefault("_refused", {})
    try:
        study = cached.study(SHOWN_ON)
        if reason := refused.get(f"{study.key}-{slug}"):
            raise InputError(reason)
        if not study.knows(slug):
            with st.spinner(f"Running it on {len(study):,} pictures; this happens once …", show_time=True):
                try:
                    study.detect(slug)
                except InputError as error:
                    refused[f"{study.key}-{slug}"] = str(error)
                    raise
        found = study.detect(slug)
        xy = study.map("umap" if study.has_map("umap") else "pca")
    except InputError as error:
        st.info(f"It cannot be shown here: {plain(str(error))}", icon=":material/block:")
        return
    assert study.truth is not None  # it comes with the bundled data
    left, right = st.columns([2, 3])
    fixed = {"staticPlot": True}
    left.plotly_chart(figures.suspicion_map(xy, found.ranks), key="method-map", config=fixed)
    outlines = figures.score_outlines(found.scores, study.truth.kind, found.own_threshold)
    right.plotly_chart(outlines, key="method-scores", config=fixed)
    st.html(_quality(study, found))
    st.caption(_flagged(study, found))


def _quality(study: Study, found: Detection) -> str:
    """Three AUROC figures, each with what it means."""
    values = study.figures(found, found.own)
    cells = []
    for name, noise, others in (
        ("ood", "foreign pictures", "A foreign picture scores above any other one"),
        ("mislabelled", "wrong labels", "A wrongly labelled picture scores above a clean one"),
        ("any", "any noise", "A noisy picture of either kind scores above a clean one"),
    ):
        value = values[f"auroc_{name}"]
        number = "–" if value is None else f"{value:.2f}"
        title = f"{others} with this chance (AUROC); 0.5 is guessing, 1 is perfect."
        cells.append(f'<div title="{title}"><b>{number}</b><span>{noise}: {in_words(value)}</span></div>')
    return f'<div class="cf-quality">{"".join(cells)}</div>'


def in_words(auroc: float | None) -> str:
    """How well a detector ranks what it should find above the rest."""
    if auroc is None:
        return "there are none"
    words = {0.9: "found very well", 0.75: "found well", 0.6: "found a little", 0.4: "no better than guessing"}
    return next((how for least, how in words.items() if round(auroc, 2) >= least), "taken for the opposite")


def _flagged(study: Study, found: Detection) -> str:
    values = study.figures(found, found.own)
    text = f"Its own rule flags {values['flagged']:,} of {len(study):,} pictures of {plain(study.dataset.name)}"
    if values["precision"] is not None and values["recall"] is not None:
        text += f": {values['precision']:.0%} of these are noisy, and {values['recall']:.0%} of the noise is among them"
    if found.own.any() and not found.own.all() and found.scores[found.own].min() < found.scores[~found.own].max():
        text += "; these are not simply the highest scores, and the dashed line marks as many"
    note = f" Note: {plain(found.info['note'].rstrip('.'))}." if found.info.get("note") else ""
    return (
        "The large figures (AUROC) are the chance that such a picture scores above one that is not: 0.5 is guessing, "
        f"1 is perfect. {text}.{note}"
    )


def style(method: Method | None) -> None:
    """The looks of the page: cards as a grid or a list, the open one marked; formulas that scroll when too long."""
    mark = "" if method is None else f".{_class(method)} button{{box-shadow:inset .25rem 0 currentColor}}"
    st.html(f"<style>{_STYLE}{mark}</style>")


def _class(method: Method) -> str:
    """The class that Streamlit gives the card of a method."""
    return f"st-key-card-{method.link.replace(':', '-')}"


_STYLE = """
.st-key-methods-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:.7rem;
align-items:stretch}
.st-key-methods-grid .stButton{height:100%}
.st-key-methods-list{gap:.5rem;overflow-y:auto;max-height:calc(100vh - 5rem)}
.stColumn:has(.st-key-methods-list){position:sticky;top:4rem;align-self:flex-start}
@media(max-width:640px){.stColumn:has(.st-key-methods-list){position:static}.st-key-methods-list{max-height:15rem}
.st-key-method .katex-display{font-size:.85rem}}
.st-key-methods-grid button,.st-key-methods-list button{height:100%;align-items:flex-start;text-align:left;
padding:.6rem .8rem}
.st-key-methods-grid button>div,.st-key-methods-list button>div{width:100%;justify-content:flex-start}
.st-key-methods-list p:last-child{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
.st-key-method{scroll-margin-top:4rem;outline:none}
.st-key-method .katex-display{overflow-x:auto;overflow-y:hidden;padding:.2rem 0}
.st-key-method p:has(+ul){margin-bottom:.2rem}
.cf-quality{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem}
.cf-quality div{display:flex;flex-direction:column}
.cf-quality b{font-size:1.35rem;line-height:1.25;font-variant-numeric:tabular-nums}
.cf-quality span{font-size:.8rem;opacity:.75}
"""


def _show(method: Method) -> None:
    """Bring a card that was just opened into view, in the list too, and take the keyboard along if it was lost."""
    st.html(f"<script>(() => {{{_SHOW % _class(method)}}})()</script>", unsafe_allow_javascript=True)


_SHOW = """
const found = setInterval(() => {
  const card = document.querySelector(".st-key-method"), list = document.querySelector(".st-key-methods-list");
  const buttons = document.querySelectorAll(".st-key-methods-list button"), entry = document.querySelector(".%s");
  if (!card || !list || !buttons.length) return; // the browser has not drawn them yet
  clearInterval(found);
  const { top } = card.getBoundingClientRect();
  if (top < 0 || top > 0.6 * window.innerHeight) card.scrollIntoView({ block: "start" });
  if (document.activeElement === document.body) { card.tabIndex = -1; card.focus({ preventScroll: true }); }
  const away = entry ? entry.getBoundingClientRect().top - list.getBoundingClientRect().top : 0;
  if (away < 0 || away > list.clientHeight - 40) list.scrollTop += away;
}, 100);
setTimeout(() => clearInterval(found), 20000);
"""
