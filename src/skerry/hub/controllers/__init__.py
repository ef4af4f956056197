"""The controllers: each watches its kinds, asks `core` for the decision, and writes it.

`informer` keeps a local copy of stored things and says when they change; `reconciler` handles keys, one at a time each,
again after errors and when their time comes; `model_version` and `rollout` join them, one `run(context)` each. Lives
here: reading, waiting and writing. Must not live here: decisions (`core`), HTTP, device links.
"""
