"""The program on the device: fetches, verifies, installs, probes, supervises and reports models; works offline.

Lives here: the loop and its hands. `app` wires it and is the only place that chooses drivers; `engine` talks to the
hub; `installer` carries out the decisions of `core.workload` for one workload, by `work`; `disk` is the one door to the
disk.
Must not live here: decisions (`core`), any machine-learning library, any server framework: a device has little memory.
"""
