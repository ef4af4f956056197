"""The audit log: who asked what of this hub, when, and what came of it; append-only, fsynced, chained.

Lives here: the log as it is kept and read. Must not live here: what is recorded (`core.audit_policy`), the chain
(`core.audit`), HTTP (`hub.server.audit`).
"""
