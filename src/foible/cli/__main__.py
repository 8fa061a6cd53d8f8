"""`python -m foible.cli` is `foible`."""

from foible.cli import main

if __name__ == "__main__":
    main()
