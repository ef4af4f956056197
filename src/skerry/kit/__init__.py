"""Tools with no domain: clock, backoff, atomic files, logging set-up, processes that end together.

Lives here: what would be as useful in any other asyncio program. Must not live here: a word of the design's
vocabulary (device, rollout, variant).
"""
