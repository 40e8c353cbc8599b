"""Use a finished run: predict, chat, score files, serve several adapters on one base model."""
