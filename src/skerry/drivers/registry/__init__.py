"""Drivers of the artifact ports: `directory` keeps them for the hub, `oci` brings them to a device.

Must not live here: HTTP's server side (`hub.server.registry`), names and manifests (`core.manifest`).
"""
