"""Run the command ``rewriter`` as ``python -m rewriter``, or in several processes as ``torchrun -m rewriter``."""

from rewriter.cli.commands import main

if __name__ == "__main__":
    main()
