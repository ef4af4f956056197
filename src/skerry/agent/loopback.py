"""The agent's way to its inference servers: `kit.loopback`, by the name its modules know it by."""

from __future__ import annotations

from skerry.kit.loopback import Answer, LoopbackClient

__all__ = ["Answer", "LoopbackClient"]
