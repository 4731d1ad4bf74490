"""The errors of Kvasir, by who can mend them.  A face turns each into one line or one 4xx body."""


class KvasirError(Exception):
    """What went wrong and where, and in `hint` what to do next."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(KvasirError):
    """The caller can mend it: a wrong option, an ill-typed field, a prompt over the limit."""


class ModelError(KvasirError):
    """Choosing another model mends it: not found, an unknown architecture, no chat template."""


class CheckpointError(KvasirError):
    """The file is damaged or inconsistent: cut short, lying offsets, missing or unused tensors."""


class CapacityError(KvasirError):
    """More room mends it, or asking for less: memory, cache blocks, a full queue."""


class Busy(CapacityError):
    """Waiting mends it, `wait_s` of it: a full queue, a model that does not get up."""

    def __init__(self, message: str, hint: str = "", wait_s: float = 1.0):
        super().__init__(message, hint)
        self.wait_s = wait_s


class Lost(KvasirError):
    """The process that computed the answer ended.  Asking again starts another."""


class Bug(KvasirError):
    """We must mend it: an internal law was broken."""
