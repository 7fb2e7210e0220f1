"""The engine of training: networks, losses and optimisers of a step, the loop, checkpoints."""

from .trainer import TrainingError, train

__all__ = ["TrainingError", "train"]
