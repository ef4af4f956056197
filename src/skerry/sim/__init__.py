"""The fleet simulator: thousands of devices in one process, for trying rollouts at their real size.

A simulated device is the agent's own session (`core.session`) and state machine (`core.workload`), enrolled through the
hub's API and connected by MQTT over TLS with a certificate of its own. What it does not have is a machine: fetching,
starting and probing take seeded times and give seeded measurements. Must not live here: rules of the protocol or of a
workload (`core`), anything of the hub.
"""
