"""A label for every word, such as named entities."""
