"""The Methods page through app.py, without a browser: search, filters, every card, and what a card says."""

import importlib
import shlex
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from chaffinch import cli, registry
from chaffinch.base.errors import InputError
from chaffinch.card import MethodCard
from chaffinch.spec import Spec
from chaffinch.ui import methods

APP = str(Path(__file__).parents[2] / "app.py")
ALL = methods.catalogue()


def by(link: str) -> methods.Method:
    return methods.named(link)


@pytest.fixture
def small(arrays_file, blobs, monkeypatch) -> Spec:
    """The blobs, some of them trusted, in place of the bundled pictures."""
    trusted = np.zeros(180, bool)
    trusted[np.flatnonzero(blobs.truth.kind == 0)[:40]] = True
    spec = Spec(dataset=f"arrays:{arrays_file(trusted=trusted)}", encoder="features", map="pca")
    monkeypatch.setattr(methods, "SHOWN_ON", spec)
    return spec


@pytest.fixture
def visit(small, monkeypatch):
    """A function that opens the page on a view and returns it after its first run."""

    def go(**view: str) -> AppTest:
        spec = Spec(dataset=small.dataset, encoder="features", map="pca", detectors=(), **view)
        monkeypatch.setenv("CHAFFINCH_SPEC", spec.to_toml())
        app = AppTest.from_file(APP, default_timeout=120).run()
        app.switch_page("pages/methods.py").run()
        assert not app.exception, app.exception
        return app

    return go


def listed(app: AppTest) -> list[str]:
    return [b.key.removeprefix("card-") for b in app.button if b.key and b.key.startswith("card-")]


def text(app: AppTest) -> str:
    return "\n".join(m.value for m in [*app.markdown, *app.caption, *app.info, *app.warning])


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


class TestPage:
    def test_all_methods_are_listed_and_counted(self, visit):
        app = visit()
        assert sorted(listed(app)) == sorted(m.link for m in ALL)
        assert f"{len(ALL)} of {len(ALL)} methods" in text(app)
        assert not app.latex  # nothing is open, nothing is computed
        assert charts(app) == 0

    def test_every_card_opens(self, visit):
        app = visit()
        for method in ALL:
            app.button(key=f"card-{method.link}").click().run()
            assert not app.exception, (method.link, app.exception)
            assert app.query_params["method"] == method.link
            assert [latex.value.strip("$\n ") for latex in app.latex] == [methods.stacked(method.card.formula)]
            said = text(app).replace("\\", "")
            assert method.card.summary.replace("\\", "") in said
            assert method.card.fails_when.replace("\\", "") in said
            assert f"https://arxiv.org/abs/{method.card.arxiv}" in said or not method.card.arxiv
            assert [code.value for code in app.code] == list(methods.commands(method).values())
            if method.kind == "detector":
                assert charts(app) == 2 or app.info, f"{method.link} neither shows itself nor says why not"

    def test_a_detector_is_shown_with_its_figures_in_words(self, visit):
        app = visit(method="lsa")
        assert charts(app) == 2
        body = next(h.proto.body for h in app.get("html") if "cf-quality" in h.proto.body and "<b>" in h.proto.body)
        assert all(words in body for words in ("foreign pictures: found", "wrong labels: ", "any noise: "))
        assert "of 180 pictures" in text(app)

    def test_what_cannot_run_is_explained(self, visit, small, arrays_file, blobs, monkeypatch):
        p = np.random.default_rng(0).dirichlet(np.ones(3), len(blobs))
        only = Spec(dataset=f"arrays:{arrays_file('p.npz', features=None, pred_probs=p)}")
        monkeypatch.setattr(methods, "SHOWN_ON", only)
        app = visit(method="lsa")
        assert "It cannot be shown here: lsa needs features" in text(app).replace("\\", "")
        assert charts(app) == 0
        app.button(key="card-small-loss").click().run()  # it runs, but there is no map
        assert "there is no map" in text(app).replace("\\", "")
        assert app.latex

    def test_the_sample_dataset_is_opened_for_an_open_detector_only(self, visit, monkeypatch):
        monkeypatch.setattr(methods, "SHOWN_ON", Spec(dataset="arrays:/nowhere/none.npz"))
        assert "cannot be read" not in text(visit())
        assert "cannot be read" not in text(visit(method="loss:simclr"))
        assert "cannot be read" in text(visit(method="lsa"))

    def test_close_leads_back_to_all(self, visit):
        app = visit(method="small-loss", search="loss")
        app.button(key="close-method").click().run()
        assert "method" not in app.query_params
        assert app.query_params["search"] == "loss"
        assert not app.latex

    def test_search_and_filters_narrow_the_list_and_the_link(self, visit):
        app = visit()
        app.text_input(key="search").set_value("accurate detection ECCV albert").run()
        by_albert = listed(app)
        assert by_albert[0] == "lsa"
        assert set(by_albert) == {m.link for m in ALL if "An accurate detection" in m.card.paper}
        app.text_input(key="search").set_value("").run()
        app.button_group(key="filter-Kind").set_value(["loss"]).run()
        assert set(listed(app)) == {m.link for m in ALL if m.kind == "loss"}
        assert app.query_params["filters"] == "loss"
        app.button_group(key="filter-Finds").set_value(["ood"]).run()
        assert listed(app) == []
        assert "Nothing matches" in text(app)
        assert f"0 of {len(ALL)} methods" in text(app)

    def test_a_link_brings_its_search_and_filters(self, visit):
        app = visit(search="neighbour", filters="mislabelled,nonsense")
        assert app.text_input(key="search").value == "neighbour"
        assert app.button_group(key="filter-Finds").value == ["mislabelled"]
        assert 0 < len(listed(app)) < len(ALL)
        assert all("mislabelled" in by(link).card.finds for link in listed(app))

    def test_an_unknown_method_in_a_link_is_explained(self, visit):
        app = visit(method="smal-los")
        assert "did you mean small-loss" in text(app).replace("\\", "")
        assert len(listed(app)) == len(ALL)

    def test_try_it_switches_the_detector_on_and_goes_to_explore(self, visit):
        app = visit(method="knn-label")
        app.button(key="try-method").click().run()
        assert not app.exception
        assert app.toggle(key="on-knn-label").value is True
        assert "knn-label" in app.query_params["detectors"]


class TestMatching:
    def test_nothing_asked_is_everything(self):
        assert methods.matching("", "") == list(ALL)

    @pytest.mark.parametrize("method", ALL, ids=lambda m: m.link)
    def test_each_is_found_by_name_slug_and_paper(self, method):
        card = method.card
        for words in (card.name, card.slug, card.paper.upper(), str(card.year), card.summary):
            assert method in methods.matching(words, "")
        assert method not in methods.matching(card.name + " qqqq", "")

    @pytest.mark.parametrize(
        ("filters", "fits"),
        [
            ("detector", lambda m: m.kind == "detector"),
            ("ood,mislabelled", lambda m: m.card.finds),
            ("ood,detector", lambda m: "ood" in m.card.finds),
            ("features", lambda m: "features" in m.needs),
            ("probabilities", lambda m: {"pred_probs", "logits", "head"} & set(m.needs)),
            ("record,trusted", lambda m: {"history", "trusted"} & set(m.needs)),
            ("neighbours,ood", lambda m: "neighbors" in m.needs and "ood" in m.card.finds),
            ("loss,mislabelled", lambda m: False),
        ],
    )
    def test_filters_of_one_sort_add_up_and_sorts_narrow(self, filters, fits):
        assert methods.matching("", filters) == [m for m in ALL if fits(m)]

    def test_filters_are_told_apart_by_their_names(self):
        assert len({*registry.FAMILIES, *methods.FINDS, *methods.GROUPS}) == sum(
            map(len, (registry.FAMILIES, methods.FINDS, methods.GROUPS))
        )

    def test_hits_in_the_name_come_first(self):
        found = methods.matching("small loss", "")
        assert found[0].link == "small-loss"
        assert by("lsa") in found  # its summary speaks of small-loss seeds


class TestContract:
    @pytest.mark.parametrize("method", ALL, ids=lambda m: m.link)
    def test_parameters_are_those_of_the_code_and_described(self, method):
        rows = methods.parameters(method.cls)
        cls = registry.get(method.kind, method.card.slug)
        if hasattr(cls(), "get_params"):
            assert {name: default for name, default, _ in rows} == {k: repr(v) for k, v in cls().get_params().items()}
        assert [name for name, _, words in rows if not words] == []

    @pytest.mark.parametrize("method", ALL, ids=lambda m: m.link)
    def test_needs_have_plain_words(self, method):
        assert set(method.needs) <= set(methods.PIECES)
        assert method.groups <= set(methods.GROUPS)

    @pytest.mark.parametrize("method", ALL, ids=lambda m: m.link)
    def test_commands_are_ones_that_exist(self, method):
        shown = methods.commands(method)
        command, *words = shlex.split(shown["sh"])
        assert command == "chaffinch"
        args = vars(cli._parser().parse_args(words))
        assert method.card.slug in (args.get("loss"), args.get("trainer"), *args.get("detector", ()))
        for line in shown["python"].splitlines():
            if line.startswith("from chaffinch"):
                _, module, _, *names = line.replace(",", "").split()
                assert all(hasattr(importlib.import_module(module), name) for name in names)
        compile(shown["python"], "shown", "exec")

    @pytest.mark.parametrize("method", ALL, ids=lambda m: m.link)
    def test_docstrings_become_markdown(self, method):
        shown = methods.to_markdown(methods.sections(method.cls)[0])
        assert ":math:" not in shown
        assert ".. " not in shown
        assert shown.replace("\\$", "").count("$") % 2 == 0
        assert "Args:" not in shown


class Documented:
    r"""First line with ``code`` and :math:`a_i^2`.

    .. math:: a = \sum_i
        b_i

    See `module.name`; $5 *not* [a](b).

    Args:
        one: the first, which
            goes on.
        two, three: both, with :math:`x`.

    Raises:
        InputError: no: nothing.
    """

    card = MethodCard("toy", "Toy", "Toy (A. Author; 2020)", 2020, "x", "It does this.", "It fails then.")

    def __init__(self, one: int = 1, two: str = "a", three: float | None = None) -> None:
        pass


def test_docstrings_are_read():
    body, described = methods.sections(Documented)
    assert described == {
        "one": "the first, which goes on.",
        "two": "both, with :math:`x`.",
        "three": "both, with :math:`x`.",
    }
    assert methods.parameters(Documented) == [
        ("one", "1", "the first, which goes on."),
        ("two", "'a'", "both, with :math:`x`."),
        ("three", "None", "both, with :math:`x`."),
    ]
    first, block, last = methods.to_markdown(body).split("\n\n")
    assert first == r"First line with `code` and $a_i^2$\."
    assert block == "$$\na = \\sum_i b_i\n$$"
    assert last == r"See `module.name`; \$5 \*not\* \[a\]\(b\)\."


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        (r"a = b", r"a = b"),
        (r"a,\quad b,\qquad c", r"\begin{gathered}a,\\b,\\c\end{gathered}"),
        (r"\begin{cases} a & \text{if}\quad b \end{cases}", r"\begin{cases} a & \text{if}\quad b \end{cases}"),
        (r"a \leftarrow b,\quad c", r"\begin{gathered}a \leftarrow b,\\c\end{gathered}"),
        (r"\left(a \quad b\right)", r"\left(a \quad b\right)"),
        (r"x_{a \quad b}", r"x_{a \quad b}"),
    ],
)
def test_long_formulas_are_stacked_where_they_may_be_broken(formula, shown):
    assert methods.stacked(formula) == shown


def test_a_new_family_is_shown_too(visit, monkeypatch):
    real = registry.methods
    monkeypatch.setitem(registry.FAMILIES, "tutor", "tutors")
    monkeypatch.setattr(registry, "methods", lambda kind: {"toy": Documented} if kind == "tutor" else real(kind))
    methods.catalogue.cache_clear()
    try:
        app = visit(method="tutor:toy")
        assert "tutor:toy" in listed(app)
        assert app.latex[0].value.strip("$\n ") == "x"
        assert "nothing but the pictures" in text(app)
        assert not app.code  # no command is known for it
        app.button_group(key="filter-Kind").set_value(["tutor"]).run()
        assert listed(app) == ["tutor:toy"]
    finally:
        methods.catalogue.cache_clear()


def test_an_unknown_name_is_an_error_with_a_hint():
    with pytest.raises(InputError, match="did you mean loss:simclr"):
        methods.named("loss:simcl")
    with pytest.raises(InputError, match=r"no method called 'qqqq'$"):
        methods.named("qqqq")


@pytest.mark.parametrize(
    ("auroc", "words"),
    [(None, "there are none"), (0.996, "found very well"), (0.895, "found very well"), (0.8, "found well"),
     (0.7, "found a little"), (0.5, "no better than guessing"), (0.2, "taken for the opposite")],
)  # fmt: skip
def test_figures_in_words(auroc, words):
    assert methods.in_words(auroc) == words


def test_page_is_thin():
    assert len((Path(APP).parent / "pages" / "methods.py").read_text(encoding="utf-8").splitlines()) <= 80
