"""Things that leave a mark when they are unpickled."""

import os
from pathlib import Path
from typing import Any


class Bomb:
    """Creates a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))
