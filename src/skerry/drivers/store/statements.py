"""The log's tables and every statement on them, in SQLAlchemy Core, neutral of the dialect.

One row is one write. Rows are only ever added; compaction alone removes them. The design to compare with is kine's.
Must not live here: connections, transactions, what a row means.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 2

metadata = sa.MetaData()

log = sa.Table(
    "log",
    metadata,
    sa.Column("revision", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    # Ranges need keys in byte order; elsewhere than in SQLite that has to be asked for.
    sa.Column("key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),  # revision of the key's creation
    sa.Column("previous", sa.BigInteger, nullable=False),  # revision of the write before this one, 0 for a creation
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),  # empty for a deletion
)
# `deleted` makes the index cover the counting of a list's remaining records.
sa.Index("log_key", log.c.key, log.c.revision, log.c.deleted)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)

_newer = log.alias("newer")
_before = log.alias("before")
_older = log.alias("older")

_in_range = (log.c.key >= sa.bindparam("start"), log.c.key < sa.bindparam("end"))
_living = (
    *_in_range,
    log.c.revision <= sa.bindparam("revision"),
    sa.not_(log.c.deleted),
    # The index finds a newer row of the same key in one step, so a page costs its own length, not the prefix's.
    ~sa.exists().where(
        _newer.c.key == log.c.key, _newer.c.revision > log.c.revision, _newer.c.revision <= sa.bindparam("revision")
    ),
)

READ_FACTS = sa.select(facts.c.name, facts.c.number)
ADD_FACT = sa.insert(facts)
SET_FACT = sa.update(facts).where(facts.c.name == sa.bindparam("fact")).values(number=sa.bindparam("value"))
SET_COMPACTED = (
    sa.update(facts)
    .where(facts.c.name == "compacted", facts.c.number < sa.bindparam("value"))
    .values(number=sa.bindparam("value"))
)
BEGIN_TERM = sa.update(facts).where(facts.c.name == "term").values(number=facts.c.number + 1).returning(facts.c.number)
"""Ends the term of whoever led before: what it still writes is refused."""

MIGRATIONS: dict[int, tuple[sa.Executable, ...]] = {1: (sa.insert(facts).values(name="term", number=0),)}
"""What leads from a schema version to the next one. Each is carried out once, in one transaction with the others."""


def _fact(name: str) -> sa.ScalarSelect[int]:
    return sa.select(facts.c.number).where(facts.c.name == name).scalar_subquery()


STAND = sa.select(
    sa.func.coalesce(sa.select(sa.func.max(log.c.revision)).scalar_subquery(), 0), _fact("compacted"), _fact("term")
)
"""The newest row's revision, the compacted revision, the term of whoever leads: as of one moment."""

_tip = log.alias("tip")
_one = sa.select(sa.literal(1).label("one")).subquery("one")
STAND_AT = STAND.add_columns(*_tip.c).select_from(
    _one.outerjoin(_tip, _tip.c.revision == sa.bindparam("tip", type_=sa.BigInteger))
)
"""The same, and the row at one revision, if it is there."""

APPEND = sa.insert(log)

GET = (
    sa.select(log)
    .where(log.c.key == sa.bindparam("name"), log.c.revision <= sa.bindparam("revision"))
    .order_by(log.c.revision.desc())
    .limit(1)
)

NEWEST = sa.select(log).where(
    log.c.revision.in_(
        sa.select(sa.func.max(_older.c.revision))
        .where(_older.c.key.in_(sa.bindparam("names", expanding=True)))
        .group_by(_older.c.key)
    )
)
"""The newest row of each of `names`, deletions included."""

LIST = sa.select(log).where(*_living).order_by(log.c.key)
LIST_PAGE = LIST.limit(sa.bindparam("limit"))
COUNT = sa.select(sa.func.count()).select_from(
    sa.select(log.c.revision).where(*_living).limit(sa.bindparam("limit")).subquery()
)
"""How many live in a range, counted up to a limit: each of them costs a step."""

HISTORY = (
    sa.select(log, _before.c.value.label("value_before"))
    .select_from(log.outerjoin(_before, _before.c.revision == log.c.previous))
    .where(*_in_range, log.c.revision > sa.bindparam("after"), log.c.revision <= sa.bindparam("revision"))
    .order_by(log.c.revision)
    .limit(sa.bindparam("limit"))
)
"""What happened in a range of keys after one revision and up to another, with the value each write replaced."""

NEWS = (
    sa.select(log, _before.c.value.label("value_before"))
    .select_from(log.outerjoin(_before, _before.c.revision == log.c.previous))
    .where(log.c.revision > sa.bindparam("after"))
    .order_by(log.c.revision)
    .limit(sa.bindparam("limit"))
)
"""What was written after a revision, whoever wrote it."""

ROWS = (
    sa.select(log)
    .where(log.c.revision > sa.bindparam("after"), log.c.revision <= sa.bindparam("upto"))
    .order_by(log.c.revision)
    .limit(sa.bindparam("limit"))
)
"""The log itself."""
SIZE = sa.select(sa.func.count()).select_from(log)

_obsolete = (
    log.c.revision <= sa.bindparam("before"),
    sa.or_(
        log.c.deleted,
        sa.exists().where(
            _newer.c.key == log.c.key,
            _newer.c.revision > log.c.revision,
            _newer.c.revision <= sa.bindparam("before"),
        ),
    ),
)
OBSOLETE = (
    sa.select(log.c.revision)
    .where(log.c.revision > sa.bindparam("cursor"), *_obsolete)
    .order_by(log.c.revision)
    .limit(sa.bindparam("limit"))
)
"""Rows nobody can ask for any more once `before` is compacted.

They must go in this order: were a deletion removed before the write it deleted, that write would live again.
"""
OBSOLETE_AMONG = sa.select(log.c.revision).where(
    log.c.revision.in_(sa.bindparam("revisions", expanding=True)), *_obsolete
)
REMOVE = sa.delete(log).where(log.c.revision.in_(sa.bindparam("revisions", expanding=True)))
