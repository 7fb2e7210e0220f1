"""What goes wrong in a training run for reasons that its user can do something about."""


class TrainingError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""
