"""Drivers of `core.ports.Runtime`: what supervises a server on a device.

Lives here: starting, finding again, watching and stopping servers, in the terms of one operating mechanism each
(`process`: plain Linux processes). Must not live here: which server to run, or what to do when it dies.
"""
