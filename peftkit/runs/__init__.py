"""Run a recipe from start to record."""
