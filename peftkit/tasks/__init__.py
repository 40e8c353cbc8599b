"""Tasks: what the model is trained to answer. Subclass `Task` to add one."""

from peftkit.tasks.base import Given, Predictions, Scored, Task

__all__ = ["Given", "Predictions", "Scored", "Task"]
