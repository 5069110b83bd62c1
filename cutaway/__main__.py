"""``python -m cutaway``, and ``torchrun … -m cutaway run …``: the same command line."""

import os
import sys

from cutaway.cli.main import main

if __name__ == "__main__":
    code = main()
    if "LOCAL_RANK" in os.environ:
        # All is written and the group is left; gloo's threads now and then abort the interpreter's own way out
        # ("terminate called without an active exception"), which torchrun would report as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
