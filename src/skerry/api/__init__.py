"""The vocabulary: resource kinds, metadata, errors, selectors, quantities, durations, patches and their codecs.

Lives here: types and pure functions on them, shared by every tier. Must not live here: decisions, I/O, clocks,
anything that imports another tier.
"""
