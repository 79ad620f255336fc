"""`python -m hyperlane`: the command line, for where no script is installed."""

from hyperlane.cli.main import main

if __name__ == "__main__":
    main()
