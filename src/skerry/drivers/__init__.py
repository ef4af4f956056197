"""The outside world behind the ports of `core.ports`; one sub-package a port, one module a technology.

Lives here: databases, brokers, registries, processes, and the translation of their errors into `api.errors`.
Must not live here: decisions. Every driver passes its port's contract suite in `tests/contract`.
"""
