"""The `peftkit` command: parser, commands and tables."""
