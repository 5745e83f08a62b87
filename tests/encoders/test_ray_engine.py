"""Ray embeds what one process embeds, bit for bit, and trains as one does, also when a process of it is killed."""

import json
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chaffinch.base.errors import InputError
from chaffinch.cli import main
from chaffinch.data import NoisyDataset, Observed, open_dataset
from chaffinch.encoders import checkpoint, ray_engine
from chaffinch.encoders.checkpoint import Encoder, load_encoder
from chaffinch.encoders.train import Recipe, train_encoder
from chaffinch.study import Study

BLOCK, BLOCKS = 128, 6
N = BLOCK * (BLOCKS - 1) + 50


@pytest.fixture
def many(tmp_path):
    """The name of a set of several blocks of pictures; the first of block 3 is white."""
    rng = np.random.default_rng(1)
    labels = np.arange(N) % 3
    images = rng.integers(0, 200, (N, 12, 12), dtype=np.uint8)
    images[3 * BLOCK] = 255
    np.savez(tmp_path / "many.npz", images=images, labels=labels, ids=np.array([f"m{i:03d}" for i in range(N)]))
    return f"arrays:{tmp_path / 'many.npz'}"


def deadly(path: Path, mark: Path) -> Encoder:
    """An encoder whose process is killed, once, when half of the block with the white picture is embedded."""
    plain = load_encoder(path)

    class Deadly(Encoder):  # inside the function, so that it travels whole to processes that cannot import tests
        def embed(self, images, **options):
            if len(images) > 1 and (np.asarray(images[0]) == 255).all() and not mark.exists():
                super().embed(images[: len(images) // 2], **options)
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().embed(images, **options)

    return Deadly(plain.network, plain.card)


def children():
    """Processes below this one, with what they are called now."""
    return {child: child.name() for child in psutil.Process().children(recursive=True) if runs(child)}


def gone(processes, seconds=60):
    """Those of the processes (with names) that have not ended after a while: Ray's helpers look only now and then."""
    until = time.monotonic() + seconds
    while (left := [f"{p.pid} {name}" for p, name in processes.items() if runs(p)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def runs(process):
    """Is it at work, and not only waiting for somebody to ask how it ended?"""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def interrupted(many, save_encoder, workspace, tmp_path, monkeypatch):
    """A folder in which the work was stopped after two shards (without Ray), and when each shard was written."""
    save_encoder()
    ended, out = [], tmp_path / "shards"

    def plain(encoder, images, blocks, **options):
        try:
            for block in (4, 0, 2):
                yield block, encoder.embed(images[blocks[block]]), np.empty(0, np.int64)
        finally:
            ended.append(options)

    def stop(what, share):
        assert what == "embedding"
        if share > 1 / BLOCKS:
            raise KeyboardInterrupt

    study = Study(many, "tiny", workspace=workspace)
    with monkeypatch.context() as changed:
        changed.setattr(ray_engine, "embed_blocks", plain)
        with pytest.raises(KeyboardInterrupt):
            study.spread(out, workers=2, block=BLOCK, device="cpu", report=stop)
    assert ended == [{"layer": "final", "device": "cpu", "workers": 2, "address": ""}], "the engine ends with the work"
    assert not study.has_features()
    begun = written(out)
    assert list(begun) == ["shard-000000.parquet", "shard-000004.parquet"]
    return out, begun


def written(folder):
    """Shard -> when it was written; also what else there is, but for the manifest."""
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.iterdir()) if file.name != "manifest.json"}


@pytest.mark.slow
class TestProcesses:
    """What a killed process changes: nothing."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def ray(cls):
        """One Ray with room for two processes, of which nothing is left at the end."""
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'chaffinch[ray]'")
        with ray_engine.connected(workers=2) as ray:
            yield ray
            processes = children()
        assert len(processes) > 2
        assert gone(processes) == []

    def test_embedding(self, many, interrupted, workspace, tmp_path, monkeypatch, capfd):
        (out, begun), mark = interrupted, tmp_path / "killed"
        images, path = open_dataset(many).observed.images, workspace.root / "encoders" / "tiny.safetensors"
        expected = load_encoder(path).embed(images)
        monkeypatch.setattr(checkpoint, "load_encoder", lambda path: deadly(path, mark))
        command = ["embed", many, "--encoder", "tiny", "--map", "pca", "--engine", "ray", "--workers", "2", "--json"]
        assert main([*command, "--out", str(out), "--block", str(BLOCK)]) == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["n"], told["shards"]) == (N, str(out))
        assert int(mark.read_text()) != os.getpid(), "a process of its own was killed"

        done = written(out)
        assert sorted(done) == [f"shard-{block:06d}.parquet" for block in range(BLOCKS)], "and nothing half-written"
        assert begun.items() <= done.items(), "what was done is not done again"
        ids = [id for name in sorted(done) for id in pq.read_table(out / name)["id"].to_pylist()]
        assert ids == [f"m{i:03d}" for i in range(N)]
        monkeypatch.setattr(checkpoint, "load_encoder", None)  # whoever embeds again fails
        np.testing.assert_array_equal(Study(many, "tiny", workspace=workspace).embed(), expected)
        np.testing.assert_array_equal(open_dataset(f"table:{out}").observed.features, expected)

    def test_training(self, tmp_path):
        labels = np.arange(128) % 2
        images = np.random.default_rng(0).integers(0, 60, (128, 12, 12), dtype=np.uint8)
        images[labels == 0, ::3] += 150
        images[labels == 1, :, ::3] += 150
        ids = np.arange(128).astype(str)
        data = NoisyDataset("stripes", Observed(labels=labels, classes=("a", "b"), ids=ids, images=images))
        recipe = Recipe(epochs=15, batch=32, architecture="preact-resnet-8-16-32", device="cpu")
        for _ in train_encoder(data, recipe, tmp_path, "one"):
            pass
        epochs, processes = [], {}
        for p in ray_engine.train_in_processes(data, recipe, tmp_path, "two", workers=2):
            if p.snapshot:
                epochs.append(p.epoch)
                processes |= {child: name for child, name in children().items() if name.startswith("ray::Trainer")}
        assert epochs == list(range(15))
        assert len(processes) == 2
        assert gone(processes) == [], "they end with the training"
        one, two = (json.loads((tmp_path / f"{name}.json").read_text())["history"] for name in ("one", "two"))
        assert len(two) == 15
        fell = one[0] - np.mean(one[-3:])
        assert fell > 0.3, "it learns"
        assert np.mean(two[-3:]) == pytest.approx(np.mean(one[-3:]), abs=0.25 * fell)
        left = sorted(path.name for path in tmp_path.glob("two.*"))
        assert left == ["two.json", "two.record.safetensors", "two.safetensors"]

    def test_a_device_that_is_not_there(self, pictures, save_encoder):
        work = ray_engine.embed_blocks(load_encoder(save_encoder()), pictures.observed.images, {}, device="cuda")
        with pytest.raises(InputError, match="device 'cuda' is not available: Ray knows of no GPU"):
            next(work)


def test_shards_in_the_workspace(pictures, save_encoder, workspace, monkeypatch):
    """Where no folder is named, they are results among others; the app has the features at once."""
    save_encoder()
    X = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)

    def engine(encoder, images, blocks, **options):
        for block, rows in blocks.items():
            yield block, X[rows], np.empty(0, np.int64)

    monkeypatch.setattr(ray_engine, "embed_blocks", engine)
    study, told = Study(pictures, "tiny", workspace=workspace), []
    folder = study.spread(block=40, report=lambda *what: told.append(what))
    assert folder == workspace.root / "shards" / study.key
    assert told == [("embedding", 0.5), ("embedding", 1.0)]
    np.testing.assert_array_equal(Study(pictures, "tiny", workspace=workspace).embed(), X)
    monkeypatch.setattr(ray_engine, "embed_blocks", None)  # nothing is left to do
    assert study.spread(block=40) == folder
    assert workspace.sizes()["results"] > sum(path.stat().st_size for path in folder.iterdir())
    workspace.clear("results")
    assert not folder.exists()


def test_training_begins_again(pictures, tmp_path, monkeypatch):
    """After a lost process, though not for ever; and what the first process wrote has to be there."""
    begun = []

    def together(ray, world, gpus, what):
        begun.append((world, gpus, what[1].device, what[2:]))
        yield f"progress {len(begun)}"
        if len(begun) < lost:
            raise ConnectionError("lost")
        if written:
            (tmp_path / "two.safetensors").touch()

    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0}, put=lambda value: value)
    monkeypatch.setattr(ray_engine, "connected", lambda address, workers: nullcontext(ray))
    monkeypatch.setattr(ray_engine, "_together", together)
    lost, written = 3, False
    work = ray_engine.train_in_processes(pictures, Recipe(), tmp_path, "two", workers=2)
    with pytest.raises(InputError, match="is not the same on all machines"):
        list(work)
    written = True
    work = ray_engine.train_in_processes(pictures, Recipe(), tmp_path, "two")
    assert list(work) == ["progress 4"]
    assert begun == [*3 * [(2, 0, "cpu", (tmp_path, "two"))], (4, 0, "cpu", (tmp_path, "two"))]
    begun, lost = [], 1
    list(ray_engine.train_in_processes(pictures, Recipe(batch=5), tmp_path, "two"))
    assert begun[0][0] == 2, "each needs two pictures of a batch"
    begun, lost = [], 100
    with pytest.raises(ConnectionError, match="lost"):
        list(ray_engine.train_in_processes(pictures, Recipe(), tmp_path, "two"))
    assert len(begun) == ray_engine.TRIES


def test_errors_of_processes():
    ray = pytest.importorskip("ray")
    bad = ray.exceptions.RayTaskError("f", "Traceback ...", InputError("training needs two\nRay says more"))
    with pytest.raises(InputError, match=r"^training needs two$"), ray_engine._explained(ray):
        raise bad
    other = ray.exceptions.RayTaskError("f", "Traceback ...\nRuntimeError: no memory", RuntimeError("no memory"))
    with pytest.raises(ConnectionError, match="RuntimeError: no memory"), ray_engine._explained(ray):
        raise other
    with pytest.raises(ConnectionError, match="lost again and again"), ray_engine._explained(ray):
        raise ray.exceptions.ActorDiedError()


class TestWorker:
    @pytest.fixture
    def worker(self, monkeypatch, save_encoder):
        """A function that makes a worker in this process."""
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda value: value))
        encoder, tally = load_encoder(save_encoder()), ray_engine.Tally()
        remote = SimpleNamespace(begin=SimpleNamespace(remote=tally.begin))
        return lambda images: ray_engine.Worker([encoder, images], remote, {"layer": "final", "device": "cpu"})

    @staticmethod
    def block(start, stop):
        return {"block": np.array([7]), "rows": np.array([[start, stop]])}

    def files(self, folder, n=20):
        for i in range(n):
            (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12), 10 * i, np.uint8)).save(folder / "ab"[i % 2] / f"{i:02d}.png")
        return open_dataset(f"folder:{folder}").observed.images

    def test_a_block(self, worker, pictures):
        one = worker(pictures.observed.images)
        found = one(self.block(10, 30))
        assert found["block"].tolist() == [7]
        np.testing.assert_array_equal(found["features"], one.encoder.embed(pictures.observed.images[10:30])[None])
        assert not found["undecoded"].any()

    def test_a_block_that_ends_its_processes(self, worker, pictures):
        one = worker(pictures.observed.images)
        for _ in range(ray_engine.TRIES):
            one(self.block(10, 30))
            one(self.block(30, 60))
        with pytest.raises(InputError, match=r"pictures 10 to 29 .* have ended 5 processes"):
            one(self.block(10, 30))

    def test_files(self, worker, tmp_path):
        images = self.files(tmp_path / "set")
        Path(images.sources[images.rows[4]]).write_bytes(b"no picture any more")
        found = worker(images)(self.block(3, 9))
        assert found["undecoded"].tolist() == [[False, True, False, False, False, False]]
        assert found["features"].shape == (1, 6, 32)

    def test_a_machine_without_the_files(self, worker, tmp_path):
        images = self.files(tmp_path / "set")
        (tmp_path / "set").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=rf"{socket.gethostname()} does not see the pictures, such as .*00\.png"):
            worker(images)(self.block(3, 9))


class TestRefused:
    @pytest.fixture
    def refused(self, many, save_encoder, capsys, home):
        """A function that runs ``embed`` with options and gives the one line that it says."""
        save_encoder()

        def run(*options):
            assert main(["embed", many, "--encoder", "tiny", "--quiet", *options]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert not list(home.rglob("*.parquet"))
            return err

        return run

    def test_without_ray(self, refused, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert 'pip install "chaffinch[ray]"' in refused("--engine", "ray")

    def test_options_of_another_engine(self, refused):
        assert refused("--workers", "2") == "chaffinch: --workers is for --engine ray\n"
        assert refused("--out", "here") == "chaffinch: --out is for --engine ray\n"
        assert "--workers must be at least 1, got 0" in refused("--engine", "ray", "--workers", "0")

    def test_options_of_another_engine_in_training(self, many, capsys):
        assert main(["train-encoder", many, "--address", "auto"]) == 2
        assert capsys.readouterr().err == "chaffinch: --address is for --engine ray\n"
        assert main(["train-encoder", many, "--engine", "ray", "--workers", "-1"]) == 2
        assert "--workers must be at least 1, got -1" in capsys.readouterr().err

    def test_no_such_layer(self, many, save_encoder, capsys):
        save_encoder()
        assert main(["embed", many, "--encoder", "tiny:sideways", "--engine", "ray"]) == 2
        assert "has no layer 'sideways'" in capsys.readouterr().err, "before Ray is started"

    def test_no_pictures(self, arrays_file, capsys):
        assert main(["embed", f"arrays:{arrays_file()}", "--engine", "ray"]) == 2
        assert "there is nothing to embed" in capsys.readouterr().err

    @pytest.mark.parametrize("address", ["nowhere", "here:there", ":1"])
    def test_no_address(self, refused, address):
        pytest.importorskip("ray")
        assert f"--address {address}: write HOST:PORT" in refused("--engine", "ray", "--address", address)

    def test_nothing_at_the_address(self, refused):
        pytest.importorskip("ray")
        with socket.create_server(("127.0.0.1", 0)) as server:
            free = server.getsockname()[1]  # until the next line
        begun = time.monotonic()
        said = refused("--engine", "ray", "--address", f"127.0.0.1:{free}")
        assert f"--address 127.0.0.1:{free}: no Ray answers" in said
        assert time.monotonic() - begun < 30, "Ray itself tries for minutes"

    def test_no_ray_on_this_machine(self, refused, monkeypatch):
        ray = pytest.importorskip("ray")

        def init(**options):
            raise ConnectionError("Could not find any running Ray instance.")

        monkeypatch.setattr(ray, "init", init)  # there may be one, of others
        assert "--address auto: Could not find any running Ray" in refused("--engine", "ray", "--address", "auto")
