"""Encoders: networks, augmentation on the device, checkpoints, embedding, training."""
