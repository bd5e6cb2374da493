"""``python -m alloykit.cli``: the same as ``alloykit``."""

from alloykit.cli import main

if __name__ == "__main__":
    main()
