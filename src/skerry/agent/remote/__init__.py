"""Conversations that somebody at the hub has with a workload of this device: logs, forwarded ports, commands.

The device opens a connection for each, never the other way round, and only after a command that its hub has signed; its
owner's settings say which kinds it has at all. Lives here: `door` (what is allowed, how many, how long), one module a
kind. Must not live here: the verification of commands (`core.session`), running a command (`drivers.runtime`).
"""
