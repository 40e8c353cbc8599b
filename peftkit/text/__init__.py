"""Words, tokens, special tokens, conversations and chat templates."""
