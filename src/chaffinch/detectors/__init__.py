"""Detectors: one file, one class, one card each; found by the registry."""
