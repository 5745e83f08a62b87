"""Contrastive losses: one file each, one signature for all (`base.Batch` -> `base.LossOut`)."""
