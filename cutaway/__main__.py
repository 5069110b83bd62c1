"""``python -m cutaway``, and ``torchrun … -m cutaway run …``: the same command line."""

import sys

from cutaway.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
