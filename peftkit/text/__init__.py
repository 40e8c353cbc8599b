"""Text and tokens: words, special tokens, conversations and chat templates."""
