"""``python -m kdgan_compress``, and the console script: nothing is imported before Ctrl-C is expected."""

import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from kdgan_compress.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules are imported
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
