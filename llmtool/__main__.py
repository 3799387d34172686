"""`python -m llmtool`, and the entry point of the `llmtool` script."""

from llmtool.cli import main

if __name__ == "__main__":
    main()
