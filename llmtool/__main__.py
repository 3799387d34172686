"""`python -m llmtool`, and the entry point of the `llmtool` script."""

from llmtool.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        # Where Ctrl-C met an `exec` (a dataclass being made), Python keeps that and ends `python -m` by the
        # signal instead of our exit code, although we caught it. Until the next `exec`.
        exec("")  # noqa: S102
