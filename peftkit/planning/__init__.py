"""What a run would take, computed from the model configuration alone."""
