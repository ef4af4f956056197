"""What a device is told to measure is what the rollout would have it serve: fetched, checked and kept the same way."""

from __future__ import annotations

import msgspec
from tests.unit.core.class_world import VARIANTS, model, rollout

from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.variants import Blob, Delta
from skerry.core import benchmarks, delta, placement

OWN = {"name", "rollout", "revision", "deployment_uid", "serving", "memory_request_bytes", "cpu_request_millis"}


def protected(protection: str = "encrypted") -> Rollout:
    one = rollout(threads=2)
    template = msgspec.convert(
        msgspec.to_builtins(one.spec.template)
        | {
            "protection": protection,
            "link": {"requireUnmetered": True},
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"memory": "32Mi", "cpu": "250m"}},
        },
        type(one.spec.template),
    )
    return msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, template=template))


def signed() -> ModelVersion:
    one, variant = model(), VARIANTS[0]
    way = Delta(
        base=f"sha256:{'a' * 64}",
        target=variant.blob.digest,
        blob=Blob(digest=f"sha256:{'b' * 64}", size=9),
        encoding=delta.ENCODING,
    )
    status = msgspec.structs.replace(
        one.status,
        deltas=[way],
        signatures=[Blob(digest=f"sha256:{'c' * 64}", size=5)],
        card=Blob(digest=f"sha256:{'d' * 64}", size=7),
    )
    return msgspec.structs.replace(one, status=status)


def test_a_benchmark_is_the_workload_but_for_what_ties_it_to_a_rollout() -> None:
    built = placement.build_workload(protected(), signed(), VARIANTS[0])
    made = benchmarks.workload_of(protected(), signed(), VARIANTS[0])
    assert (built.protection, len(built.signatures), len(built.deltas)) == ("encrypted", 1, 1)
    assert built.card is not None
    differing = {name for name in built.__struct_fields__ if getattr(built, name) != getattr(made, name)}
    assert differing <= OWN
    assert made.serving == msgspec.structs.replace(built.serving, port=0)


def test_what_lies_in_another_form_has_another_name() -> None:
    plain, sealed = (benchmarks.workload_of(protected(kind), signed(), VARIANTS[0]) for kind in ("none", "encrypted"))
    assert plain.name != sealed.name
    assert len(plain.name) == len(sealed.name)
