"""One sentence for everything that can go wrong: what it is, why it cannot be used, what to do
about it.

Every error a user can cause is one of these. They are raised where the fault is found and never
wrapped again; anything else that escapes is a bug of ours.
"""


class BindError(Exception):
    """Base of the package's errors.

    Args:
      where: the thing at fault: a file (and line), a config field, a tensor.
      reason: why it cannot be used.
      remedy: what to do about it.
    """

    def __init__(self, where: object, reason: str, remedy: str = ""):
        self.where, self.reason, self.remedy = str(where), reason, remedy
        super().__init__(f"{where}: {reason}" + (f" ({remedy})" if remedy else ""))

    def __reduce__(self):  # data workers send errors between processes
        return type(self), (self.where, self.reason, self.remedy)


class DataError(BindError):
    """A file, record or array that is missing, damaged or not what it claims to be."""


class ConfigError(BindError):
    """A config field, flag or name that does not exist or does not fit the others."""


class CheckpointError(BindError):
    """A checkpoint that is missing, damaged, or of another model."""


class TrainingError(BindError):
    """A run that must not go on: losses that are not finite, too much damaged data, a full disk."""
