"""How many threads numerical work may use.

On a busy two-core machine two BLAS threads were measured 5 to 28 times slower than one, because each
waits for the other at every step. chaffinch therefore sets the number itself: ``CHAFFINCH_THREADS``, or one
thread for many small operations and all cores for few large ones.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from .errors import InputError


def cores() -> int:
    """Cores this process may use, or ``CHAFFINCH_THREADS`` where that is set."""
    if wanted := os.environ.get("CHAFFINCH_THREADS"):
        if not wanted.isdigit() or int(wanted) < 1:
            raise InputError(f"CHAFFINCH_THREADS must be a whole number from 1, got {wanted!r}")
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def blas_threads(count: int) -> AbstractContextManager[Any]:
    """Limit the BLAS and OpenMP pools of this process to ``count`` threads inside a ``with`` block."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(limits=count)
    return limits
