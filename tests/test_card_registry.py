"""Every method that the registry finds keeps the contract; whatever breaks it fails loudly."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import chaffinch
from chaffinch import registry
from chaffinch.card import MethodCard

CARD = {
    "slug": "toy",
    "name": "Toy",
    "paper": "Toy (A. Author; 2020)",
    "year": 2020,
    "formula": "x",
    "summary": "It does this.",
    "fails_when": "It fails then.",
}
SOURCE = """
from chaffinch.card import MethodCard

class {name}:
    card = MethodCard(slug="{slug}", name="Toy", paper="Toy (A. Author; 2020)", year=2020, formula="x",
                      summary="It does this.", fails_when="It fails then.")
"""


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """A function that adds a module to the losses for the length of one test."""
    losses = importlib.import_module("chaffinch.losses")
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    planted = []

    def add(module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        planted.append(module)
        importlib.invalidate_caches()
        registry.methods.cache_clear()

    yield add
    registry.methods.cache_clear()
    for module in planted:
        sys.modules.pop(f"chaffinch.losses.{module}", None)
        vars(losses).pop(module, None)


def pytest_generate_tests(metafunc):
    if {"kind", "slug"} <= set(metafunc.fixturenames):
        found = [(kind, slug) for kind in registry.FAMILIES for slug in registry.methods(kind)]
        metafunc.parametrize(("kind", "slug"), found, ids="-".join)


class TestContract:
    def test_card_is_complete(self, kind, slug):
        card = registry.get(kind, slug).card
        assert card.slug == slug
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
        assert 1950 <= card.year <= 2030
        assert card.arxiv == "" or re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
        for text in (card.summary, card.fails_when):
            assert text[0].isupper()
            assert text.rstrip().endswith((".", "!", "?"))
        assert card.formula.count("{") == card.formula.count("}")
        assert bool(card.finds) == (kind == "detector"), "detectors say what they find, losses find nothing"

    def test_defaults_are_enough(self, kind, slug):
        cls = registry.get(kind, slug)
        cls()
        kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}

    def test_docstring_cites(self, kind, slug):
        cls = registry.get(kind, slug)
        assert cls.__doc__
        assert not cls.card.arxiv or cls.card.arxiv in cls.__doc__


SHARED = {"base", "train", "classifier", "mixing", "dividing"}
"""Files of a family that hold no method."""


def test_every_module_is_found():
    """A file of a family holds a method, is known to be shared, or is private; nothing vanishes."""
    for kind, family in registry.FAMILIES.items():
        folder = Path(chaffinch.__file__).parent / family
        files = {p.stem for p in folder.glob("*.py") if p.stem not in SHARED and p.stem[0] != "_"}
        assert files == {cls.__module__.rpartition(".")[2] for cls in registry.methods(kind).values()}


def test_sorted_and_has_simclr():
    found = registry.methods("loss")
    assert list(found) == sorted(found)
    assert found["simclr"].__name__ == "NTXent"


def test_typo_gets_a_hint():
    with pytest.raises(KeyError, match=r"no loss called 'simclrr'; did you mean simclr"):
        registry.get("loss", "simclrr")


def test_nothing_near_lists_all():
    with pytest.raises(KeyError, match=r"there are: .*simclr"):
        registry.get("loss", "qqqqqqqqqq")


def test_new_file_is_found(plant):
    plant("planted_toy", SOURCE.format(name="PlantedToy", slug="planted-toy"))
    assert registry.get("loss", "planted-toy").__name__ == "PlantedToy"


def test_private_file_is_not_searched(plant):
    plant("_planted_helper", "raise RuntimeError('must not be imported')")
    assert "simclr" in registry.methods("loss")


def test_broken_module_fails_loudly(plant):
    plant("planted_broken", "import a_module_that_does_not_exist")
    for _ in range(2):  # the failure is not cached away
        with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
            registry.methods("loss")


def test_two_classes_with_one_slug(plant):
    plant("planted_twin", SOURCE.format(name="Twin", slug="simclr"))
    with pytest.raises(TypeError, match=r"two methods of kind loss are called 'simclr': .*simclr and .*planted_twin"):
        registry.methods("loss")


def test_imported_class_is_not_counted_twice(plant):
    plant("planted_import", "from chaffinch.losses.simclr import NTXent")
    assert registry.get("loss", "simclr").__module__ == "chaffinch.losses.simclr"


def test_entry_points_are_read(monkeypatch):
    class Foreign:
        card = MethodCard(**{**CARD, "slug": "foreign"})

    class Point:
        def __init__(self, value):
            self.value = value

        def load(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    def use(group, value):
        points = {group: [Point(value)]}
        monkeypatch.setattr(registry, "entry_points", lambda group: points.get(group, []))
        registry.methods.cache_clear()

    try:
        use("chaffinch.losses", Foreign)
        assert registry.get("loss", "foreign") is Foreign
        assert "foreign" not in registry.methods("detector")
        use("chaffinch.detectors", Foreign)
        assert registry.get("detector", "foreign") is Foreign
        use("chaffinch.losses", ImportError("plug-in is broken"))
        with pytest.raises(ImportError, match="plug-in is broken"):
            registry.methods("loss")
    finally:
        registry.methods.cache_clear()


@pytest.mark.parametrize("slug", ["", "Toy", "to_y", "to y"])
def test_slug_must_be_kebab_case(slug):
    with pytest.raises(ValueError, match="kebab-case"):
        MethodCard(**{**CARD, "slug": slug})


@pytest.mark.parametrize("field", ["name", "paper", "formula", "summary", "fails_when"])
def test_card_fields_must_be_filled(field):
    with pytest.raises(ValueError, match=f"toy: the card's {field} is empty"):
        MethodCard(**{**CARD, field: " "})


def test_finds_is_checked_and_frozen():
    assert MethodCard(**CARD, finds=["ood"]).finds == frozenset({"ood"})
    with pytest.raises(ValueError, match="finds must be among"):
        MethodCard(**CARD, finds={"noise"})
    with pytest.raises(AttributeError):
        MethodCard(**CARD).slug = "other"
    assert hash(MethodCard(**CARD)) == hash(MethodCard(**CARD))
