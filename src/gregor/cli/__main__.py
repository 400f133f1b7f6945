"""`python -m gregor.cli` is `gregor`."""

from gregor.cli.main import main

if __name__ == "__main__":
    main()
