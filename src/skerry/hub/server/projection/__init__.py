"""Devices as Kubernetes' own Nodes and Pods, read-only: for the tools that know nothing but these.

A device is a Node named `<device>.<namespace>` (nodes have no namespace), a workload on it a Pod `<workload>.<device>`
in the device's namespace. Lives here: the picture and its verbs. Must not live here: anything that is stored; the
truth is the Device.
"""
