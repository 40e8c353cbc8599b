"""A report as Markdown, CSV, charts and an HTML page."""
