"""`python -m skerry.agent`."""

from __future__ import annotations

import sys

from skerry.agent.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
