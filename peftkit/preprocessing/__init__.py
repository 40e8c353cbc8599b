"""Turn rows into batches of token ids."""
