"""Drivers of the port `core.ports.Store`: one append-only log of revisions, in a database.

`statements` is the SQL, the same for every dialect; `log` is what a write means, pure; `writer` takes turns with both;
`feed` carries committed changes to watchers. `sqlite` is the embedded default and joins them for one hub; `postgresql`
does it for several, with `shared`, `notifications` and `election`. Must not live here: what keys and values mean.
"""
