"""The one error that a user can cause."""


class UserError(Exception):
    """What was given cannot work. The message says got, expected and what to do, one line a problem.

    The command prints it and exits with code 2; a defect of ours keeps its traceback.
    """
