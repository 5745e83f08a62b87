"""Every spelling of a view - dictionary, link, TOML - reads back as the same view, and bad values are named."""

import tomllib
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.spec import MAPS, RULES, Cut, Spec

FULL = Spec(
    dataset="arrays:/data/my file, 2.npz", encoder="dcl", map="pca",
    detectors=(Cut("lsa", budget=0.2), Cut("knn-label", score=1.5), Cut("small-loss", rule="own")),
    votes=2, colour="a-detector", show="random", label="T-shirt/top", only="flagged",
    sort="lsa", page=3, outline="0.00,1.00 2.00,3.00 4.00,-5.00", sample="fw-1", seed=11,
    compared="lsa,knn-label", curves="ood", contrast="only:lsa", method="lsa", search="margin", filters="ood",
    beside="ce", beside_outline="1.00,1.00 2.00,2.00 3.00,0.00", run="pls-lsa-abc",
    noise=0.6, accuracy="last", epoch=3, queue="ood",
)  # fmt: skip

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
slugs = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True)
cuts = st.one_of(
    st.builds(Cut, slugs),
    st.builds(Cut, slugs, budget=st.floats(0, 1)),
    st.builds(Cut, slugs, score=numbers),
    st.builds(Cut, slugs, rule=st.sampled_from(RULES)),
)
specs = st.builds(
    Spec,
    dataset=texts, encoder=texts, map=st.sampled_from(MAPS), detectors=st.lists(cuts, max_size=4).map(tuple),
    votes=st.integers(1, 9), colour=texts, show=texts, label=texts, only=texts,
    sort=texts, page=st.integers(1, 999), outline=texts, sample=texts, seed=st.integers(0, 2**32 - 1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("lsa", Cut("lsa")),
        ("lsa@budget=0.2", Cut("lsa", budget=0.2)),
        ("knn-label@score=-1.5", Cut("knn-label", score=-1.5)),
        ("lsa@score=0", Cut("lsa", score=0.0)),
        ("lsa@score=1e-07", Cut("lsa", score=1e-7)),
        ("lsa@score=1.23456789", Cut("lsa", score=1.23456789)),
        ("lsa@own", Cut("lsa", rule="own")),
        ("knn-label@mixture", Cut("knn-label", rule="mixture")),
        ("small-loss@contradiction", Cut("small-loss", rule="contradiction")),
    ],
)
def test_cut_spelling(text, cut):
    assert Cut.parse(text) == cut
    assert str(cut) == text


@given(cuts)
def test_cut_round_trip(cut):
    assert Cut.parse(str(cut)) == cut


@pytest.mark.parametrize(
    "text",
    [
        "lsa@",
        "lsa@0.2",
        "lsa@budget",
        "lsa@budget=",
        "lsa@budget=much",
        "lsa@share=0.2",
        "lsa@score=nan",
        "",
        "@score=1",
        "@own",
        "lsa@Own",
        "lsa@own=1",
        "lsa@own@mixture",
    ],
)
def test_bad_cut(text):
    with pytest.raises(InputError, match=r"write DETECTOR, DETECTOR@RULE .* or DETECTOR@score=VALUE") as caught:
        Cut.parse(text)
    assert repr(text) in str(caught.value)


def test_the_default_cut_may_be_spelled_out():
    assert Cut.parse("lsa@rate") == Cut("lsa") == Cut("lsa", rule="rate")
    assert RULES[0] == "rate"
    assert str(Cut.parse("lsa@rate")) == "lsa"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": 0.1, "score": 1.0}, "a: give one cut: a rule, a budget or a score"),
        ({"budget": 0.1, "rule": "own"}, "a: give one cut: a rule, a budget or a score"),
        ({"score": 0.0, "rule": "mixture"}, "a: give one cut: a rule, a budget or a score"),
        ({"rule": "guess"}, "a: the cut must be one of rate, own, mixture, contradiction, got 'guess'"),
        ({"budget": 1.01}, r"a: budget must be a share between 0 and 1, got 1\.01"),
    ],
)
def test_a_cut_has_one_rule(values, message):
    with pytest.raises(InputError, match=message):
        Cut("a", **values)


def test_the_default_view_is_spelled_by_nothing():
    assert Spec().to_dict() == Spec().to_query() == {}
    assert tomllib.loads(Spec().to_toml()) == {}
    assert Spec.from_dict({}) == Spec.from_query({}) == Spec.from_toml("") == Spec()


def test_full_view():
    """Every field is changed, so a field that a spelling forgets is noticed here."""
    plain = FULL.to_dict()
    assert list(plain) == [f.name for f in fields(Spec)]
    assert plain["detectors"] == ["lsa@budget=0.2", "knn-label@score=1.5", "small-loss@own"]
    assert FULL.to_query()["detectors"] == "lsa@budget=0.2,knn-label@score=1.5,small-loss@own"
    assert all(isinstance(value, str) for value in FULL.to_query().values())
    assert tomllib.loads(FULL.to_toml()) == plain


@given(specs)
def test_round_trips(spec):
    assert Spec.from_dict(spec.to_dict()) == spec
    assert Spec.from_query(spec.to_query()) == spec
    assert Spec.from_toml(spec.to_toml()) == spec


def test_no_detector_is_not_the_default():
    none = Spec(detectors=())
    assert none.to_query() == {"detectors": ""}
    assert Spec.from_query(none.to_query()) == Spec.from_toml(none.to_toml()) == none


def test_hand_written():
    assert Spec.from_dict({"detectors": "lsa@budget=0.1,,small-loss", "seed": "4"}) == Spec(
        detectors=(Cut("lsa", budget=0.1), Cut("small-loss")), seed=4
    )
    assert Spec.from_toml('votes = 2\ndetectors = ["lsa"]') == Spec(votes=2, detectors=(Cut("lsa"),))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colours": "kind"}, "a view has no field 'colours'; it has dataset, encoder"),
        ({"map": "tsne"}, "map must be one of umap, pca, got 'tsne'"),
        ({"seed": "three"}, "seed must be int, got 'three'"),
        ({"seed": None}, "seed must be int, got None"),
        ({"seed": [1]}, r"seed must be int, got \[1\]"),
        ({"seed": float("inf")}, "seed must be int, got inf"),
        ({"votes": 1.5}, "votes must be int, got 1.5"),
        ({"votes": True}, "votes must be int, got True"),
        ({"dataset": 5}, "dataset must be str, got 5"),
        ({"seed": -1}, "seed must be 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be 0 to 4294967295, got 4294967296"),
        ({"votes": 0}, "votes must be at least 1, got 0"),
        ({"detectors": 5}, "detectors must be a list of texts, got 5"),
        ({"detectors": [5]}, "detectors must be a list of texts"),
        ({"detectors": ["lsa@x=1"]}, "'lsa@x=1': write DETECTOR"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        Spec.from_dict(values)


def test_bad_toml():
    with pytest.raises(InputError, match=r"not TOML: .*line 1"):
        Spec.from_toml("seed = = 3")
    with pytest.raises(InputError, match="no field 'sead'"):
        Spec.from_toml("sead = 3")


def test_an_old_link_opens_as_well_as_it_can():
    query = {"map": "tsne", "seed": "-3", "votes": "2", "utm_source": "mail", "detectors": "lsa@x=1", "label": "ant"}
    assert Spec.from_query(query) == Spec(votes=2, label="ant")


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Spec)]) | texts, texts))
def test_no_link_raises(query):
    Spec.from_query(query)
