"""The model factory: a trained model in, a model package of measured variants out.

Runs on a powerful machine as a process of its own (`python -m skerry.optimize`), never imported by other programs, so
that its heavy libraries stay in here. Read `factory` first; then `importers` (a source becomes an ONNX graph), `passes`
(a graph becomes a variant), `evaluate` and `profile` (what a variant is worth and what it costs), `package` (the
directory that results). Must not live here: anything about hubs, devices or registries.
"""
