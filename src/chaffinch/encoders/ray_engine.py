"""Embedding and training in many processes, on one machine or several, by Ray. Nothing else imports ray, and lazily.

Encoder and pictures go once into Ray's object store, from which every process takes them; pictures in files of their
own go as paths, so that all machines need them under the same path (those in a Parquet or Arrow table go as they are).
The process that asks gets the features and writes them; of a training, the first process writes, into a folder that all
machines see.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.threads import cores
from ..data import Images, NoisyDataset, PictureFiles
from ..data.pictures import some

if TYPE_CHECKING:  # not now: not every process needs torch
    from .checkpoint import Encoder
    from .train import Progress, Recipe

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "CRITICAL", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Settings of Ray, for want of other ones: nothing is sent anywhere, and what goes wrong comes as an error, once."""

TRIES = 5
"""How often a block or a training is begun at most: what ends every process that takes it would go on for ever."""

LOOKED = 16
"""Of pictures in files, a process looks for so many before it believes that they are there."""


class Worker:
    """One process that embeds blocks of pictures; if it is lost, Ray starts another in its place.

    Args:
        shared: references to the encoder and the pictures.
        tally: counts how often each block is begun.
        options: of `Encoder.embed`.
    """

    def __init__(self, shared: Sequence[Any], tally: Any, options: dict[str, Any]) -> None:
        import ray

        self.ray, self.tally, self.options, self.looked = ray, tally, options, False
        self.encoder: Encoder
        self.images: Images
        self.encoder, self.images = (ray.get(reference) for reference in shared)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed the pictures of one block: ``{"block": (1,), "rows": (1, 2)}``, first row and the row after the last.

        Returns:
            ``block`` (1,), ``features`` (1, M, D) float32, ``undecoded`` (1, M) bool.

        Raises:
            InputError: the pictures are in files that this machine has not, or end every process that takes them.
        """
        start, stop = batch["rows"][0].tolist()
        if self.ray.get(self.tally.begin.remote(start)) > TRIES:
            raise InputError(
                f"pictures {start:,} to {stop - 1:,} (counted from 0) have ended {TRIES} processes that were to embed "
                "them; one of them may be damaged, or a machine short of memory"
            )
        if not self.looked:
            check_files(self.images)
            self.looked = True
        images = some(self.images, np.arange(start, stop))
        features = self.encoder.embed(images, **self.options)
        undecoded = np.zeros((1, len(images)), bool)
        if isinstance(images, PictureFiles):
            undecoded[0, list(images.undecoded)] = True
        return {"block": batch["block"], "features": features[None], "undecoded": undecoded}


class Tally:
    """Counts how often each block is begun."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def begin(self, block: int) -> int:
        """Count once more; the count."""
        self.begun[block] = self.begun.get(block, 0) + 1
        return self.begun[block]


def check_files(images: Images) -> None:
    """Look for some of the pictures that are in files.

    Raises:
        InputError: none of them is on this machine.
    """
    if not isinstance(images, PictureFiles):
        return
    rows = images.rows[np.unique(np.linspace(0, len(images) - 1, LOOKED).astype(int))]
    paths = [source for source in (images.sources[row] for row in rows.tolist()) if isinstance(source, str)]
    if paths and not any(Path(path).is_file() for path in paths):
        raise InputError(
            f"the machine {socket.gethostname()} does not see the pictures, such as {paths[0]}; all machines must have "
            "them under the same path, as on a shared disk"
        )


def embed_blocks(
    encoder: Encoder,
    images: Images,
    blocks: dict[int, slice],
    *,
    layer: str = "final",
    device: str = "auto",
    workers: int = 0,
    address: str = "",
) -> Generator[tuple[int, NDArray[np.float32], NDArray[np.int64]], None, None]:
    """Embed blocks of pictures; each comes once, in the order in which they get done.

    Args:
        encoder: what embeds.
        images: all pictures.
        blocks: number -> rows of each block.
        layer: see `Encoder.embed`.
        device: ``auto`` takes the GPUs that Ray knows of, one a process, or else the CPU.
        workers: processes at most; 0: one for each GPU, or for each core.
        address: ``HOST:PORT`` of a Ray cluster that this machine is part of, ``auto`` for the one that runs here, or
            empty: a Ray of its own on this machine, which ends with the work.

    Yields:
        Number of the block, features (M, D), positions in the block of pictures that could not be decoded.

    Raises:
        InputError: Ray is not installed, no cluster is at the address or it has no such device, the encoder cannot
            take the pictures, or a machine has not got them.
        ConnectionError: Ray could not finish the work.
    """
    encoder.embed(some(images, np.arange(1)), layer=layer)  # what cannot work fails before anything is started
    # Ray says on standard output, which is for results, that a process was lost
    with redirect_stdout(sys.stderr), connected(address, workers) as ray:
        device, most = _means(ray, device)
        options = {"layer": layer, "device": device}
        shared, tally = [ray.put(encoder), ray.put(images)], ray.remote(num_cpus=0, max_restarts=-1)(Tally).remote()
        rows = [{"block": block, "rows": [part.start, part.stop]} for block, part in blocks.items()]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        context = data.context
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        done = data.map_batches(
            Worker,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(workers or most, most, len(rows))),
            fn_constructor_args=(shared, tally, options),
            num_cpus=1,
            num_gpus=1 if device == "cuda" else None,
        )
        with _explained(ray):
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                yield int(batch["block"][0]), batch["features"][0], np.flatnonzero(batch["undecoded"][0])


class Trainer:
    """One of the processes that train an encoder together; it finds the others as those of ``torchrun`` do."""

    def __init__(self, rank: int, world: int) -> None:
        # each counts as a machine of its own, with the core and the GPU that Ray gave it
        alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CHAFFINCH_THREADS": "1", "TORCHELASTIC_RUN_ID": "ray"}
        os.environ |= {"RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": str(world), **alone}

    def meeting(self) -> tuple[str, int]:
        """Address and a free port of this machine."""
        import ray

        with socket.create_server(("", 0)) as server:
            address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return address, server.getsockname()[1]

    def train(
        self, meeting: tuple[str, int], dataset: NoisyDataset, recipe: Recipe, folder: Path, name: str
    ) -> Iterator[Progress]:
        """Take part; see `train_encoder`."""
        from .train import train_encoder

        if dataset.observed.images is not None:
            check_files(dataset.observed.images)
        os.environ |= {"MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
        yield from train_encoder(dataset, recipe, folder, name)

    def follow(self, *what: Any) -> None:
        """Take part, and tell nobody of progress, which is the same everywhere."""
        for _ in self.train(*what):
            pass


def train_in_processes(
    dataset: NoisyDataset, recipe: Recipe, folder: Path, name: str, *, workers: int = 0, address: str = ""
) -> Generator[Progress, None, None]:
    """`train_encoder` in several processes, each of which takes its share of every batch.

    If one is lost, all of them begin again at the last whole epoch.

    Args:
        dataset, recipe, folder, name: see `train_encoder`; all machines must see the folder.
        workers, address: see `embed_blocks`.

    Raises:
        InputError: as of `train_encoder` and `embed_blocks`, or the folder is not the same on all machines.
        ConnectionError: Ray could not finish the work.
    """
    folder = folder.resolve()
    with redirect_stdout(sys.stderr), connected(address, workers) as ray:
        device, most = _means(ray, recipe.device)
        world = min(workers or most, most, max(1, min(recipe.batch, len(dataset)) // 2))  # two pictures for each
        what = (ray.put(dataset), replace(recipe, device=device), folder, name)
        for left in reversed(range(TRIES)):
            try:
                yield from _together(ray, world, int(device == "cuda"), what)
                break
            except ConnectionError:
                if not left:
                    raise
    if not (folder / f"{name}.safetensors").exists():
        raise InputError(f"{folder} is not the same on all machines: the first process wrote elsewhere what it trained")


def _together(ray: Any, world: int, gpus: int, what: tuple[Any, ...]) -> Iterator[Progress]:
    """Train with processes that end together; see `train_in_processes`."""
    remote = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(Trainer)
    team = [remote.remote(rank, world) for rank in range(world)]
    try:
        meeting = team[0].meeting.remote()
        first = team[0].train.options(num_returns="streaming").remote(meeting, *what)
        pending = [first, *(other.follow.remote(meeting, *what) for other in team[1:])]
        with _explained(ray):
            while pending:
                (ready,), pending = ray.wait(pending, num_returns=1)
                if ready is not first:
                    ray.get(ready)  # raises what went wrong there
                elif (told := next(first, None)) is not None:
                    pending.append(first)
                    yield ray.get(told)
    finally:
        for one in team:
            ray.kill(one)


def _means(ray: Any, device: str) -> tuple[str, int]:
    """The device of every process, and how many of them there can be.

    Raises:
        InputError: Ray knows of no such device.
    """
    there = ray.cluster_resources()
    gpus, wanted = int(there.get("GPU", 0)), device.partition(":")[0]
    if wanted == "cuda" and not gpus:
        raise InputError(f"device {device!r} is not available: Ray knows of no GPU")
    if wanted == "cuda" or (wanted == "auto" and gpus):
        return "cuda", gpus
    return "cpu" if wanted == "auto" else device, int(there.get("CPU", 1))


@contextmanager
def _explained(ray: Any) -> Iterator[None]:
    """Errors of Ray as ours: what a process said of its input, or that one was lost."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            raise InputError(str(cause).splitlines()[0]) from None  # Ray adds lines of its own
        lost = isinstance(error, ray.exceptions.RayActorError)
        why = "processes were lost again and again" if lost else str(error).strip().splitlines()[-1]
        raise ConnectionError(f"Ray gave up ({why}); the same command goes on from what is done") from error


@contextmanager
def connected(address: str = "", workers: int = 0) -> Iterator[Any]:
    """The ray module, connected to a cluster (see `embed_blocks`); one that is connected already stays so.

    Raises:
        InputError: Ray is not installed, or no cluster is at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f'--engine ray needs Ray ({error}); pip install "chaffinch[ray]" installs it') from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if not address:
        options = {"address": "local", "num_cpus": max(workers, cores()), "include_dashboard": False}
    elif address != "auto":
        _answers(address)
    try:
        with _hushed(), _sigterm_as_it_is():
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "; on all machines RAY_AUTH_MODE and the token must be the same" if ":" in address else ""
        raise InputError(f"--address {address or 'local'}: {error}{hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Does anything listen there? Ray would try for minutes, and then end the process.

    Raises:
        InputError: nothing does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address {address}: write HOST:PORT, as 'ray start --head' shows it, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: no Ray answers ({error}); 'ray start --head' starts one") from error


@contextmanager
def _sigterm_as_it_is() -> Iterator[None]:
    """Undo what Ray does to the signal that ends jobs: its handler would abort the process and clean up nothing."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on standard error meanwhile, not even from C++, which tells there which log level it was told."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
