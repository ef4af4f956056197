"""The control plane: the API, the controllers, the gateway to the devices, and their wiring.

Start with `app` (which drivers, which tasks). Lives here: reading, asking `core` for the decision, writing.
Must not live here: the decisions themselves, or a database's, broker's or registry's own vocabulary.
"""
