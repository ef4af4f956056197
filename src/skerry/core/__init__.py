"""Decisions, pure: `(state, now) -> actions`, and the ports through which drivers reach the world.

Start with `ports`. Lives here: placement, rollout, gates, the device protocol, the trust rules. Must not live here:
I/O, threads, clocks, randomness that the caller did not pass in, logging.
"""
