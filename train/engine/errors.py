"""What goes wrong in a training run for reasons that its user can do something about."""


class TrainingError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do.

    Attributes:
        told: whether the log, and with it the standard error, has the message.
    """

    told = False
