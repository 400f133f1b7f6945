"""The entry point of `gregor`, and of `python -m gregor.cli`."""

import sys

from gregor.cli.log_format import QUIET, log_failure, log_to_stderr, requested_log_format
from gregor.extras import MissingExtra, required_extra


def main() -> None:
    """Run the command line; without its extra, name it, and exit with status 1."""
    try:
        with required_extra("cli"):
            from gregor.cli.main import app
    except MissingExtra as error:
        log_to_stderr(requested_log_format(), QUIET)
        sys.exit(1 if log_failure(error.message) else f"gregor: {error.message}")
    app(prog_name="gregor")


if __name__ == "__main__":
    main()
