"""`python -m semanticgan` and the command `semanticgan`."""

import sys


def main() -> None:
    from semanticgan.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
