"""Where to compute, in which precision, and in how many processes."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ..base.errors import InputError
from ..base.threads import cores

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Item = TypeVar("Item")
Result = TypeVar("Result")


def pick_device(wanted: str = "auto") -> str:
    """The device to compute on: CUDA, then MPS, then the CPU.

    Raises:
        InputError: the device that was asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(wanted.split(":")[0], False):
        raise InputError(f"device {wanted!r} is not available; there are {[n for n, ok in there.items() if ok]}")
    return wanted


def device_name(device: str) -> str:
    """What to write on the model card: the accelerator's name, or the processor and its cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device == "mps":
        return "Apple GPU (MPS)"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU, {cores()} cores ({model or platform.processor() or platform.machine()})"


def pick_precision(wanted: str, device: str) -> str:
    """bfloat16 autocast where it pays: on GPUs that have it and on processors that multiply it.

    Forward and backward pass of the network took 0.55 of their float32 time with AVX-512 BF16 (AMD EPYC, 1 and 2
    threads). AVX-512 alone is not enough: there a bfloat16 product was measured at half the speed of a float32 one.
    ``torch.compile`` is not used: on the CPU it took 18 to 29 s to compile and then a tenth off the time of a step.
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    narrow = device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return "bfloat16" if narrow else "float32"


def local_processes() -> int:
    """How many processes ``torchrun`` has started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def engine(device: str, precision: str) -> Fabric:
    """What runs the training: one process, or those that ``torchrun`` has started."""
    from lightning_fabric import Fabric

    # it would say at every start which precision it uses, on the terminal of somebody who has asked for --quiet
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    accelerator, _, number = device.partition(":")
    mixed = "bf16-mixed" if precision == "bfloat16" else "32-true"
    world, local = int(os.environ.get("WORLD_SIZE", "1")), local_processes()
    fabric = Fabric(
        accelerator=accelerator,
        # parts of a network that a loss does not use get no gradient
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        devices=local if world > 1 or not number else [int(number)],
        num_nodes=world // local,
        precision=mixed,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """Let go of the other processes, where there are any; without that one may abort when it ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results of a function, in the order of its items; every worker does an item of its own on one core.

    Workers never wait for one another. Threads that share each operation do, at every step: on two cores with six times
    as many processes, two such threads embedded 2 photographs (112 × 112) a second, and two workers 23.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from map(work, items) if workers == 1 else pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the system after every operation.

    A training step on the CPU allocates the same 100 MB activations again and again; faulting their pages in
    each time took 40 % of the step. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
