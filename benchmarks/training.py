"""How fast encoders are trained, beside the bare forward and backward passes of the same network.

python benchmarks/training.py [--json] [--loss simclr ...] [--batch 512] [--steps 8]
python benchmarks/training.py --cards assets/encoders [--loss simclr ...] [--json]

A step of ours reads pictures, augments them, runs network and loss, updates weights and keeps the record; the bare step
runs the same network forward and backward on views that are there already. Both take turns in one process. Where
lightly and torchvision are installed, its SimCLR pipeline (transforms, loader, loss) trains the same architecture.

With --cards, the recipe of every model card in a folder is followed for three epochs, one recipe after the other, and
the median epoch is written into the card: for encoders that were trained on a busy machine, the figure to be compared.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chaffinch.base.files import write_json
from chaffinch.base.methods import find_method
from chaffinch.base.threads import cores
from chaffinch.data import NoisyDataset, open_dataset
from chaffinch.encoders.augment import Augment
from chaffinch.encoders.device import keep_freed_memory, pick_device, pick_precision
from chaffinch.encoders.model_card import load_card
from chaffinch.encoders.network import build, to_tensor
from chaffinch.encoders.train import Recipe, train_encoder

Row = dict[str, Any]
BARE = "bare forward and backward"
NO_PEER = "lightly's row stays out: pip install lightly, and the torchvision that belongs to the torch that is here"


def seconds(work: Callable[[], object], device: str) -> float:
    """How long one call takes, the device's queue included."""
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bare(recipe: Recipe, views: int, images: torch.Tensor, device: str) -> Callable[[], None]:
    """A forward and backward pass on as many views as a step sees, and nothing else."""
    network = build(recipe.architecture, 1).to(device=device, memory_format=torch.channels_last).train()
    x = (
        to_tensor(images[: recipe.batch])
        .repeat(views, 1, 1, 1)
        .contiguous(memory_format=torch.channels_last)
        .to(device)
    )
    narrow = pick_precision("auto", device) == "bfloat16"

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=narrow):
            z = network(x)
        z.float().square().mean().backward()

    return step


def lightly_steps(recipe: Recipe, dataset: NoisyDataset, device: str) -> Iterator[None]:
    """SimCLR as lightly's examples write it: PIL transforms in a loader, then network (float32, RGB) and NT-Xent."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform = SimCLRTransform(input_size=28, cj_prob=0.8, gaussian_blur=0.0, random_gray_scale=0.0)

    class Pictures(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(dataset.observed)

        def __getitem__(self, i: int) -> Any:
            return transform(Image.fromarray(dataset.observed.images[i]).convert("RGB")), 0, str(i)

    wrapped = LightlyDataset.from_torch_dataset(Pictures())
    loader = DataLoader(wrapped, recipe.batch, shuffle=True, drop_last=True, num_workers=cores())
    network, loss = build(recipe.architecture, 3).to(device).train(), NTXentLoss(temperature=0.2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
    while True:
        for (one, other), *_ in loader:
            optimiser.zero_grad(set_to_none=True)
            loss(network(one.to(device)), network(other.to(device))).backward()
            optimiser.step()
            yield


def measure(slugs: list[str], batch: int, steps: int) -> Iterator[Row]:
    """One row a loss; then lightly's."""
    dataset, device = open_dataset("fashion-web"), pick_device()
    torch.set_num_threads(cores())
    if device == "cpu":
        keep_freed_memory()
    images = torch.as_tensor(dataset.observed.images)
    with tempfile.TemporaryDirectory() as folder:
        for slug in slugs:
            recipe, cls = Recipe(loss=slug, batch=batch, epochs=1000), find_method("loss", slug)
            training = train_encoder(dataset, recipe, Path(folder), slug)
            alone = bare(recipe, cls.views, images, device)
            next(step for step in training if step.share)  # what is decoded before the first step is none
            alone()
            taken = [(seconds(lambda t=training: next(t), device), seconds(alone, device)) for _ in range(steps)]
            training.close()
            ours, plain = (float(np.median(times)) for times in zip(*taken, strict=True))
            yield row(f"training step, {slug}, {cls.views} x {batch} pictures", ours, BARE, plain) | {
                "pictures_per_s": batch / ours, "overhead": ours / plain - 1,
            }  # fmt: skip
        if find_spec("lightly") is None or find_spec("torchvision") is None:
            print(NO_PEER, file=sys.stderr)
            return
        recipe = Recipe(batch=batch, epochs=1000)
        training, peer = train_encoder(dataset, recipe, Path(folder), "peer"), lightly_steps(recipe, dataset, device)
        next(training), next(peer)
        taken = [(seconds(lambda: next(training), device), seconds(lambda: next(peer), device)) for _ in range(steps)]
        ours, theirs = (float(np.median(times)) for times in zip(*taken, strict=True))
        yield row(f"training step, simclr, 2 x {batch} pictures", ours, "lightly", theirs)


def time_cards(folder: Path, slugs: list[str]) -> Iterator[Row]:
    """Write into model cards how long an epoch of their recipe takes; one row an encoder that was trained here."""
    for path in sorted(folder.glob("*.json")):
        card = load_card(path)
        if not card.epochs or card.loss not in (slugs or [card.loss]):
            continue
        recipe = Recipe(
            card.loss, card.loss_parameters, 3, card.batch, card.learning_rate, card.weight_decay, card.seed,
            architecture=card.architecture, side=max(card.sizes["shape"][1:]), augment=Augment.of(card.augment),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            deque(train_encoder(open_dataset(card.dataset), recipe, Path(scratch), "timed"), maxlen=0)
            timed = load_card(Path(scratch) / "timed.json")
        took: Row = {"seconds_per_epoch": timed.seconds_per_epoch, "timed_on": f"{timed.device}, {timed.precision}"}
        write_json(path, asdict(replace(card, **took)))
        yield {"encoder": card.name, **took}


def row(what: str, ours_s: float, peer: str, peer_s: float) -> Row:
    """One row of the table; ratio: how many times as long the peer takes."""
    return {
        "what": what, "ours_s": ours_s, "peer": peer, "peer_s": peer_s, "ratio": peer_s / ours_s, "peak_mb": None,
    }  # fmt: skip


def main() -> None:
    """Print the rows as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--loss", nargs="+", help="which losses (default: simclr, supcon and ce; with --cards, all)")
    parser.add_argument("--cards", metavar="FOLDER", type=Path, help="write the seconds of an epoch into model cards")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="of each; the median counts")
    options = parser.parse_args()
    rows = []
    if options.cards:
        work = time_cards(options.cards, options.loss)
    else:
        work = measure(options.loss or ["simclr", "supcon", "ce"], options.batch, options.steps)
    for found in work:
        rows.append(found)
        if not options.json and "encoder" in found:
            print("{encoder:20s} {seconds_per_epoch:7.2f} s an epoch ({timed_on})".format(**found))
        elif not options.json:
            more = ""
            if "overhead" in found:
                more = f", overhead {found['overhead']:+.1%}, {found['pictures_per_s']:.0f} pictures/s"
            print(f"{found['what']:50s} {found['ours_s']:7.3f} s, {found['peer']} {found['peer_s']:7.3f} s{more}")
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
