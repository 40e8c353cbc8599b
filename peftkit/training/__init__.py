"""Training: the Trainer, its optimizer, checkpoints and integrity checks."""
