"""Drivers of the port `core.ports.Store`: one append-only log of revisions, in a database.

`statements` is the SQL, the same for every dialect; `log` is what a write means, pure; `feed` carries committed changes
to watchers; `sqlite` is the embedded default and joins them. Must not live here: what keys and values mean.
"""
