"""Relations between two marked parts of a text."""
