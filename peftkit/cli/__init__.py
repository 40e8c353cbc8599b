"""The `peftkit` command: its parser, its commands, and the tables they print."""
