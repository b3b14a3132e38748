"""`python -m semanticgan` and the command `semanticgan`."""

import sys


def main() -> None:
    from semanticgan.cli.main import run

    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be in the terminal's coding
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
