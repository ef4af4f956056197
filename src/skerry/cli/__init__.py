"""The command line: one module per verb.

Lives here: arguments, tables, sentences for people. Everything goes through the hub's API (`drivers.client`); the
programs themselves (`hub`, `agent`, `optimize`) are started as processes. Must not live here: decisions, or anything
the API does not also offer to `kubectl`.
"""
