"""Tasks: what the model is trained to answer. Subclass `Task` to add one."""

from peftkit.tasks.base import EvalSplit, Predictions, Scored, Task

__all__ = ["EvalSplit", "Predictions", "Scored", "Task"]
