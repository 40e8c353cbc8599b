"""Load the base model, quantize it, and attach the task head and the strategy."""
