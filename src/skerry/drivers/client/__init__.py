"""Clients of a hub, synchronous, for the command line and other programs: its API and its registry.

Lives here: connections, requests, and a server's errors turned back into ours. Must not live here: printing, arguments,
decisions.
"""
