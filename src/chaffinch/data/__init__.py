"""Datasets: what a method may see, what is known besides, where they come from, and how noise is made."""

from .dataset import CLEAN, MISLABELLED, OOD, NoisyDataset, Observed, Split, Truth
from .pictures import Images, PictureFiles
from .sources import open_dataset

__all__ = [
    "CLEAN",
    "MISLABELLED",
    "OOD",
    "Images",
    "NoisyDataset",
    "Observed",
    "PictureFiles",
    "Split",
    "Truth",
    "open_dataset",
]
