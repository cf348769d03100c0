"""What python -m swapjax.cli runs."""

import sys

from swapjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
