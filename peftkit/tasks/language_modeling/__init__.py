"""Tasks whose answer is text."""
