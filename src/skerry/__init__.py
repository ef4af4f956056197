"""Skerry takes a trained model to a fleet of Linux edge devices and keeps it healthy there.

Read the packages from the bottom up: `api` (vocabulary), `kit` (domain-free tools), `core` (pure decisions, with all
ports in `core.ports`), `drivers` (the outside world), then the programs: `hub`, `agent`, `serve`, `optimize`, `cli`.
"""

__version__ = "0.1.0"
