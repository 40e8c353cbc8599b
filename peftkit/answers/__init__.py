"""Answers to questions: found in their contexts, read in windows, chosen and scored."""
