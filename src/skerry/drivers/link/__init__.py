"""The device link's carriers: MQTT towards any broker, the embedded broker, and one in memory.

Start with `topics` (who may say what where) and docs/protocol.md (the wire contract). Lives here: connections, topics,
packets, and the translation of their errors. Must not live here: what a message means (`core.messages`, `hub.gateway`).
"""
