"""chaffinch: tell the grain from the chaff in noisy image datasets."""

__version__ = "0.1.0"
