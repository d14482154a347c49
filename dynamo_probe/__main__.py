"""`python -m dynamo_probe` is the command `dynamo-probe`."""

import sys

from dynamo_probe.cli import main

if __name__ == "__main__":
    sys.exit(main())
