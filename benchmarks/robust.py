"""How long an epoch of a robust trainer takes, beside the bare passes of the network that it needs.

python benchmarks/robust.py [--json] [--samples 12000] [--epochs 3] [--whole 14]

An epoch of PLS-LSA needs, for each batch: one forward pass (the guess), two forward passes and the backward passes
through both (the mixtures, and the views they are contrasted with); after it one forward pass over all training
pictures (losses and activations for the detector) and one over the test pictures (accuracy). Its overhead is all else:
reading, augmenting, mixing, losses, weight updates, detector, trust, the record on disk. Epochs of ours and bare ones
take turns in one process; both detectors have their turn. ``--whole`` then times a training of so many epochs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chaffinch.base.threads import cores
from chaffinch.data import open_dataset
from chaffinch.encoders.device import device_name, pick_device, pick_precision
from chaffinch.encoders.network import build, to_tensor
from chaffinch.trainers.train import Recipe, train

BATCH = 256


def bare(recipe: Recipe, steps: int, rest: int, images: torch.Tensor, device: str) -> None:
    """The passes of one epoch: ``steps`` batches, then ``rest`` pictures in evaluation mode."""
    network = build(recipe.architecture, 1).to(device=device, memory_format=torch.channels_last)
    x = to_tensor(images[: recipe.batch]).contiguous(memory_format=torch.channels_last).to(device)
    narrow = pick_precision("auto", device) == "bfloat16"
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=narrow):
        network.train()
        for _ in range(steps):
            with torch.no_grad():
                network.features(x)
            network.zero_grad(set_to_none=True)
            (network.features(x).float().square().mean() + network.features(x).float().square().mean()).backward()
        network.eval()
        with torch.no_grad():
            for _ in range(0, rest, BATCH):
                network.features(x[:BATCH])
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def epochs(recipe: Recipe, samples: int, folder: Path) -> Iterator[tuple[float, float, str]]:
    """Seconds of an epoch of ours and of a bare one beside it, and which detector divided the samples after it."""
    dataset, device = open_dataset(f"fashion-web:noise=0.6,n={samples}"), pick_device()
    images = torch.as_tensor(dataset.observed.images)
    assert dataset.test is not None
    training, rest = train(dataset, recipe, folder), samples + len(dataset.test.images)
    start = time.perf_counter()
    for p in training:
        if p.record is None:
            continue
        ours, start = time.perf_counter() - start, time.perf_counter()
        bare(recipe, samples // recipe.batch, rest, images, device)
        yield ours, time.perf_counter() - start, p.record.detector
        start = time.perf_counter()


def main() -> int:
    """Print the table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=5, help="that are compared, the first (a warm-up) left out")
    parser.add_argument("--whole", type=int, default=0, metavar="EPOCHS", help="also time a whole training")
    args = parser.parse_args()
    torch.set_num_threads(cores())
    found: dict[str, Any] = {"device": device_name(pick_device()), "samples": args.samples}
    with tempfile.TemporaryDirectory() as name:
        recipe = Recipe(trainer="pls-lsa", epochs=args.epochs + 1, batch=BATCH)
        rows = list(epochs(recipe, args.samples, Path(name) / "epochs"))[1:]
        ours, plain = (float(np.median([row[i] for row in rows])) for i in (0, 1))
        ratios = [row[0] / row[1] for row in rows]
        found |= {"epoch_s": ours, "bare_s": plain, "overhead": float(np.median(ratios)) - 1}
        found["turns"] = [row[2] for row in rows]
        if args.whole:
            dataset = open_dataset(f"fashion-web:noise=0.6,n={args.samples}")
            start = time.perf_counter()
            for _ in train(dataset, Recipe(trainer="pls-lsa", epochs=args.whole, batch=BATCH), Path(name) / "whole"):
                pass
            found |= {"whole_epochs": args.whole, "whole_s": time.perf_counter() - start}
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['device']}, {args.samples:,} pictures, batch {BATCH}")
    print(f"an epoch of PLS-LSA {ours:.2f} s, its bare passes {plain:.2f} s: overhead {found['overhead']:+.1%}")
    if args.whole:
        print(f"{args.whole} epochs: {found['whole_s'] / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
