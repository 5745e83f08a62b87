"""The number of threads is chosen, not left to the libraries."""

import pytest
from threadpoolctl import threadpool_info

from chaffinch.base.errors import InputError
from chaffinch.base.threads import blas_threads, cores


@pytest.mark.parametrize(("wanted", "expected"), [("3", 3), ("1", 1)])
def test_environment_decides(monkeypatch, wanted, expected):
    monkeypatch.setenv("CHAFFINCH_THREADS", wanted)
    assert cores() == expected


@pytest.mark.parametrize("wanted", ["0", "-2", "two", "1.5"])
def test_nonsense_is_refused_by_name(monkeypatch, wanted):
    monkeypatch.setenv("CHAFFINCH_THREADS", wanted)
    with pytest.raises(InputError, match="CHAFFINCH_THREADS must be a whole number"):
        cores()


def test_without_environment(monkeypatch):
    monkeypatch.delenv("CHAFFINCH_THREADS", raising=False)
    assert cores() >= 1


def test_blas_is_limited_inside_only():
    import numpy as np

    np.ones((4, 4)) @ np.ones((4, 4))
    before = [pool["num_threads"] for pool in threadpool_info()]
    with blas_threads(1):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert [pool["num_threads"] for pool in threadpool_info()] == before
