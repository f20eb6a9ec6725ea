"""The one exception that is a user's to mend: what must hold, what was found, what to do."""


class KdganError(ValueError):
    """An input that can't be used, told in the three parts every message of this package has.

    Args:
        must: What must hold, as a clause without a full stop.
        found: What was found instead.
        do: What to do about it, as an imperative sentence without a full stop.
    """

    def __init__(self, must: str, found: str, do: str) -> None:
        super().__init__(f"{must}; {found}. {do}.")
        self.must, self.found, self.do = must, found, do

    def __reduce__(self) -> tuple[type["KdganError"], tuple[str, str, str]]:
        return type(self), (self.must, self.found, self.do)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
