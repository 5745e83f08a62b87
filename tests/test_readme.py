"""The README says what is true: its Python runs, its commands exist, its table is the registry's."""

import re
from pathlib import Path

import pytest

from chaffinch import registry
from chaffinch.cli import _parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["detector", "loss", "trainer"])
def test_table_lists_every_method_with_its_paper(kind: str):
    (table,) = re.findall(rf"^\| {kind} \|.*\n((?:\|.*\n)+)", README, re.M)
    rows = dict(re.findall(r"^\| `([\w-]+)` \|[^[\n]*(?:\[([\d.]+)\].*)?\|$", table, re.M))
    assert rows == {slug: cls.card.arxiv for slug, cls in registry.methods(kind).items()}


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "flagged.csv").read_text().count("\n") > 1000


@pytest.mark.parametrize("line", re.findall(r"^chaffinch (.*?)(?:\s+#.*)?$", README, re.M))
def test_commands_parse(line: str):
    assert callable(_parser().parse_args(line.split()).run)


def test_pictures_it_shows_are_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).parents[1] / name).is_file()
