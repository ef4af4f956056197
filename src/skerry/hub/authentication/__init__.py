"""Ways to say who calls besides a certificate of the hub's own CA: bearer tokens, an issuer elsewhere, a front proxy.

Lives here: from what a request carries to a `core.access.Identity`, one module for each way; `chain` has their order.
Must not live here: the hub's own certificates (`hub.identity`), or what an identity may do (`hub.authorization`).
"""
