"""Train: the loop, its optimizer, checkpoints and integrity checks."""
