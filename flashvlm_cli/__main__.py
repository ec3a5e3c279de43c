"""`python -m flashvlm_cli` is `flashvlm`."""

import sys

from flashvlm_cli.app import main

if __name__ == "__main__":
    sys.exit(main())
