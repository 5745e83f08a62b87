"""Work that is shared among cores."""

import threading
import time

import numpy as np
import pytest
import torch

from chaffinch.base.files import asset
from chaffinch.encoders.checkpoint import load_encoder
from chaffinch.encoders.device import side_by_side


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    before, seen, told = torch.get_num_threads(), set(), []

    def work(i):
        time.sleep(0.02 * (i % 3 == 0))
        seen.add(threading.get_ident())
        told.append(torch.get_num_threads())
        return i * i

    assert list(side_by_side(work, range(12), workers)) == [i * i for i in range(12)]
    assert len(seen) == workers
    assert set(told) == {1}, "each operation keeps to its core"
    assert torch.get_num_threads() == before


def test_a_failure_ends_the_work():
    done = []

    def work(i):
        if i == 2:
            raise ValueError("third")
        time.sleep(0.01)
        done.append(i)

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="third"):
        list(side_by_side(work, range(1000), 2))
    assert len(done) < 100
    assert torch.get_num_threads() == before


def test_an_encoder_says_the_same_on_any_number_of_cores(monkeypatch):
    encoder = load_encoder(asset("encoders", "simclr.json").with_suffix(".safetensors"))
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    found = []
    for many in ("1", "2"):
        monkeypatch.setenv("CHAFFINCH_THREADS", many)
        shares = []
        found.append(encoder.embed(images, batch=16, progress=shares.append))
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(shares) == 7
    np.testing.assert_array_equal(*found)
