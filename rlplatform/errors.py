"""The two ways in which a command ends badly, each with one sentence for the user."""


class UserError(ValueError):
    """What was asked for cannot be done as asked; the message says what would be right (exit code 2)."""


class RunError(RuntimeError):
    """Something failed while running: a run, a file or a gate; the message says what and what is safe (exit code 1)."""
