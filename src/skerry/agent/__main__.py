"""`python -m skerry.agent`."""

from __future__ import annotations

import sys

from skerry.agent.ending import Ending

if __name__ == "__main__":
    ending = Ending()
    ending.hold()  # before the rest is imported, which takes a moment
    from skerry.agent.app import main

    sys.exit(main(sys.argv[1:], ending))
