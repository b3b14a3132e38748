"""The one error that a user can cause, and what it says of others."""


class UserError(Exception):
    """What was given cannot work. The message says got, expected and what to do, one line a problem.

    The command prints it and exits with code 2; a defect of ours keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, for a message of ours; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
