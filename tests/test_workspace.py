"""Results on disk: computed once, whole or not at all, and a damaged file is a miss."""

import multiprocessing
import os
import tempfile

import numpy as np
import pytest

from chaffinch.base.errors import InputError
from chaffinch.workspace import PARTS, Workspace, pack, readable, unpack

ARRAYS = {"x": np.arange(200.0).reshape(20, 10), "names": np.array(["é", "b\n"]), "info": pack({"a": [1, None]})}


class Maker:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


@pytest.fixture
def make():
    return Maker()


def everything(workspace):
    return sorted(str(p.relative_to(workspace.root)) for p in workspace.root.rglob("*") if p.is_file())


def same(found):
    assert found is not None
    assert list(found) == list(ARRAYS)
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert unpack(found["info"]) == {"a": [1, None]}


def test_where_it_is(home, monkeypatch, tmp_path):
    assert Workspace().root == home
    assert Workspace(tmp_path / "other").root == tmp_path / "other"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workspace("~/here").root == tmp_path / "here"
    monkeypatch.delenv("CHAFFINCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "chaffinch" in str(Workspace().root)
    assert not (tmp_path / "here").exists(), "asking where it is makes no folder"


def test_remember_computes_once(workspace, make):
    assert workspace.find("step", "k") is None
    for _ in range(3):
        same(workspace.remember("step", "k", make))
    same(Workspace(workspace.root).remember("step", "k", make))
    assert make.calls == 1
    assert everything(workspace) == ["results/step-k.npz"]


def test_step_and_key_both_count(workspace, make):
    workspace.remember("step", "k", make)
    workspace.remember("step", "l", make)
    workspace.remember("pets", "k", make)
    assert make.calls == 3
    assert len(everything(workspace)) == 3


DAMAGE = {
    "empty": lambda raw: b"",
    "garbage": lambda raw: b"\x93NUMPY" + bytes(range(256)) * 4,
    "text": lambda raw: b"not an archive",
    "truncated": lambda raw: raw[: len(raw) // 2],
    "end lost": lambda raw: raw[:-30],
    "byte flipped": lambda raw: raw[:300] + bytes([raw[300] ^ 255]) + raw[301:],
    "header flipped": lambda raw: raw.replace(b"'descr'", b"'d(scr'"),
}


def npy(path):
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_miss_and_is_replaced(workspace, make, damage):
    path = workspace.store("step", "k", ARRAYS)
    raw = path.read_bytes()
    path.write_bytes(DAMAGE[damage](raw))
    assert workspace.find("step", "k") is None
    same(workspace.remember("step", "k", make))
    assert make.calls == 1
    same(workspace.find("step", "k"))


def test_one_array_in_the_place_of_an_archive_is_a_miss(workspace, make):
    npy(workspace.store("step", "k", ARRAYS))
    same(workspace.remember("step", "k", make))


def test_no_flipped_byte_is_an_error(workspace):
    """With any byte changed: the right answer (the byte does not matter) or a miss; no error, no other data."""
    path = workspace.store("step", "k", ARRAYS, folder=workspace.folder("results"))
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    misses = 0
    for place in rng.choice(len(raw), 150, replace=False):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ int(rng.integers(1, 256))]) + raw[place + 1 :])
        found = workspace.find("step", "k")
        misses += found is None
        if found is not None and set(found) == set(ARRAYS):
            np.testing.assert_array_equal(found["x"], ARRAYS["x"])
    assert misses > 50


def test_pickled_objects_are_a_miss_unread(workspace, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(workspace.folder("results") / "step-k.npz", x=np.array([Bomb()], object))
    assert workspace.find("step", "k") is None
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_written_when_the_maker_raises(workspace):
    def fail():
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        workspace.remember("step", "k", fail)
    assert everything(workspace) == []


def test_nothing_half_written_when_writing_fails(workspace, monkeypatch):
    old = workspace.store("step", "k", {"x": np.zeros(3)}).read_bytes()

    def full(path, **arrays):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"results cannot be written \(No space left on device\); set CHAFFINCH_HOME"):
        workspace.store("step", "k", ARRAYS)
    assert everything(workspace) == ["results/step-k.npz"]
    assert (workspace.root / "results" / "step-k.npz").read_bytes() == old


def write_often(root, number, barrier):
    """In a process of its own: write and read one name again and again; a torn file would be a miss."""
    workspace, mine = Workspace(root), {"x": np.full(50_000, number)}
    workspace.store("step", "k", mine)
    barrier.wait(60)
    for _ in range(40):
        workspace.store("step", "k", mine)
        found = workspace.find("step", "k")
        if found is None or len(np.unique(found["x"])) != 1:
            raise SystemExit(3)


def test_writers_at_the_same_time_leave_one_whole_file(workspace):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=write_often, args=(workspace.root, i, barrier)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(90)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert everything(workspace) == ["results/step-k.npz"]
    assert np.unique(workspace.find("step", "k")["x"]) in ([0], [1], [2])


def test_unwritable_root(tmp_path, monkeypatch, make):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHAFFINCH_HOME", str(tmp_path / "file" / "home"))
    for ask in (
        lambda: Workspace().folder("encoders"),
        lambda: Workspace().remember("step", "k", make),
        lambda: Workspace().note("job", {}),
    ):
        with pytest.raises(InputError, match=r"file/home.* cannot be written .*set CHAFFINCH_HOME to another"):
            ask()
    assert Workspace().find("step", "k") is None
    assert Workspace().noted("job") is None


def test_folder_without_permission(workspace, monkeypatch):
    """The folders are there but nothing can be made in them."""
    for name in ("results", "notes"):
        workspace.folder(name)

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(InputError, match=r"results cannot be written \(Permission denied\); set CHAFFINCH_HOME"):
        workspace.store("step", "k", ARRAYS)
    with pytest.raises(InputError, match=r"notes cannot be written \(Permission denied\); set CHAFFINCH_HOME"):
        workspace.note("job", {})


class TestShipped:
    @pytest.fixture
    def assets(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CHAFFINCH_ASSETS", str(tmp_path / "assets"))
        return tmp_path / "assets"

    def test_is_looked_up_first(self, workspace, assets, make):
        workspace.store("step", "k", {"x": np.array([1])})
        workspace.store("step", "k", {"x": np.array([2])}, folder=assets / "results")
        assert workspace.find("step", "k")["x"] == [2]
        assert workspace.remember("step", "k", make)["x"] == [2]
        assert make.calls == 0

    def test_is_never_written(self, workspace, assets, make):
        workspace.store("step", "k", ARRAYS, folder=assets / "results")
        for path in (assets / "results").iterdir():
            path.write_bytes(path.read_bytes()[:-40])
        before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in assets.rglob("*.npz")}
        workspace.remember("step", "k", make)
        workspace.remember("step", "l", make)
        assert make.calls == 2, "what is shipped but damaged is computed again"
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in assets.rglob("*.npz")} == before
        assert everything(workspace) == ["results/step-k.npz", "results/step-l.npz"]

    def test_is_compressed(self, workspace, assets):
        same_bytes = {"x": np.zeros(10_000)}
        shipped = workspace.store("step", "k", same_bytes, folder=assets / "results")
        assert shipped.stat().st_size * 10 < workspace.store("step", "k", same_bytes).stat().st_size


def test_notes(workspace):
    assert workspace.noted("job") is None
    workspace.note("job", {"what": "naïve", "share": 0.5})
    assert workspace.noted("job") == {"what": "naïve", "share": 0.5}
    (workspace.root / "notes" / "job.json").write_text('{"what"')
    assert workspace.noted("job") is None


def test_asking_whether_a_result_is_there_reads_none_of_it(workspace, monkeypatch):
    assert not workspace.has("step", "k")
    path = workspace.store("step", "k", ARRAYS)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the arrays were read"))
    assert workspace.has("step", "k")
    path.write_bytes(path.read_bytes()[:-40])  # truncated: as good as not there
    assert not workspace.has("step", "k")


@pytest.fixture
def full(workspace):
    """A workspace with one file of every part, each of another size."""
    for i, name in enumerate(name for names in PARTS.values() for name in names):
        path = workspace.root / name
        path = path if "." in name else path / "deep" / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 2**i)
    return workspace


def test_sizes(workspace, full):
    assert full.sizes() == {
        "results": 7, "encoders": 8, "trainings": 48, "archives": 64, "notes": 128, "decisions": 1792,
    }  # fmt: skip
    assert sum(Workspace(workspace.root / "nowhere").sizes().values()) == 0


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ("results", {"results"}),
        ("encoders", {"encoders"}),
        ("archives", {"archives"}),
        ("all", {"results", "encoders", "trainings", "archives", "notes"}),
        ("decisions", {"decisions"}),
    ],
)
def test_clearing_removes_what_was_named(full, what, gone):
    before = full.sizes()
    assert full.clear(what) == sum(before[part] for part in gone)
    assert full.sizes() == {part: 0 if part in gone else size for part, size in before.items()}
    assert full.clear(what) == 0


def test_clearing_what_is_not_there_or_at_work(full):
    with pytest.raises(InputError, match="'everything' cannot be cleared; choose results, encoders, arch"):
        full.clear("everything")
    before = full.sizes()
    full.note("train-x", {"what": "epoch 1", "pid": os.getpid()})
    for what in ("encoders", "all"):
        with pytest.raises(InputError, match="train-x is at work"):
            full.clear(what)
    assert full.sizes()["encoders"] == before["encoders"]
    full.clear("results")
    full.note("train-x", {"done": True})
    full.clear("all")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_140_000, "3.1 MB"), (5.2e9, "5.2 GB")]
)
def test_sizes_for_people(size, text):
    assert readable(size) == text
