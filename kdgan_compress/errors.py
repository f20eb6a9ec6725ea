"""The package's exception classes."""


class KdganError(ValueError):
    """An error that the user can fix. The message reads ``<problem>; <found>. <hint>.``

    Args:
        problem: What is wrong or required, as a clause without a full stop.
        found: What was found.
        hint: How to fix it, as an imperative sentence without a full stop.
    """

    def __init__(self, problem: str, found: str, hint: str) -> None:
        super().__init__(f"{problem}; {found}. {hint}.")
        self.problem, self.found, self.hint = problem, found, hint

    def __reduce__(self) -> tuple[type["KdganError"], tuple[str, str, str]]:
        return type(self), (self.problem, self.found, self.hint)


class Interrupted(KeyboardInterrupt):
    """A signal ended a command after its work was saved.

    Args:
        signal: Number of the signal, such as 15 for SIGTERM.
        message: What was kept and how to continue.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal, self.message = signal, message

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, str]]:
        return type(self), (self.signal, self.message)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
