"""``python -m rewriter`` is the command ``rewriter``, and ``torchrun -m rewriter`` the same in several processes."""

from rewriter.cli.commands import main

if __name__ == "__main__":
    main()
