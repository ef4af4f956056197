"""The real kubectl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

KUBECTL = shutil.which("kubectl")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
