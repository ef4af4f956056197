"""Skerry takes a trained model to a fleet of Linux edge devices and keeps it healthy there.

Read the packages from the bottom up: `api` (vocabulary), `kit` (domain-free tools), `core` (pure decisions, with all
ports in `core.ports`), `drivers` (the outside world), then the programs: `hub`, `agent`, `serve`, `optimize`, `cli`.
"""

import os

# From 1.29 on ONNX Runtime's Linux builds tell its maker which models run where: their graphs' names and hashes, the
# machine's lasting identifier. It asks this variable once, when it is loaded, so it is set before anything of ours can
# load it; whoever wants it otherwise sets it to 0 (docs/engines.md).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
