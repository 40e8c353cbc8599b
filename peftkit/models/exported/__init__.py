"""Code that exported folders contain: plain torch and transformers, without peftkit."""
