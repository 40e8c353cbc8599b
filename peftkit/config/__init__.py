"""Recipes: composed from files and overrides, validated, and described by a JSON schema."""
