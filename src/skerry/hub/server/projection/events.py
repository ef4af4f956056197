"""Events of nodes and pods: those of the devices and workloads that they are pictures of.

Nothing is written twice: what is asked of a Node or a Pod is answered with what is known of its Device. Must not live
here: writing events (`hub.events`).
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry.core.events import part_of
from skerry.hub.server.projection import nodes, pods

Term = tuple[str, bool, str]
_ABOUT = "involvedObject."


def as_kept(terms: Sequence[Term]) -> list[Term]:
    """Return a field selector on events as it is of events in the store: of devices, where it names a node or a pod.

    `kubectl describe pod` names no kind: the pod's uid tells what it is. Whatever names neither stays as it is.
    """
    terms = [("source.component" if path == "source" else path, equal, value) for path, equal, value in terms]
    asked = {path.removeprefix(_ABOUT): value for path, equal, value in terms if equal and path.startswith(_ABOUT)}
    kind, name, uid = asked.get("kind", ""), asked.get("name", ""), asked.get("uid", "")
    workload, device = pods.parts_of(name)
    if kind == "Node":
        namespace, device = nodes.parts_of(name)
        about = {"namespace": namespace, "name": device}
    elif workload and device and (kind == "Pod" or (not kind and uid.endswith(f"-{workload}"))):
        about = {"name": device, "fieldPath": part_of(workload)}
        uid = uid.removesuffix(f"-{workload}")
    else:
        return terms
    if not device:
        return terms
    about |= {"kind": "Device"} | ({"uid": uid} if uid else {})
    gone = {f"{_ABOUT}{part}" for part in (*about, "apiVersion", "resourceVersion")}
    kept = [term for term in terms if not (term[1] and term[0] in gone)]
    return [*kept, *((f"{_ABOUT}{part}", True, value) for part, value in about.items())]
