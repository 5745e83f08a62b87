"""Robust trainers, one file each: classifiers that learn from noisy labels and say which ones they doubt."""
