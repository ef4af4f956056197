"""Model versions as OCI manifests: deterministic, after the specifications, and safe to parse."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError, InvalidError
from skerry.api.kinds.variants import Blob, NumericalError, Precision, Profile, Requirements, Variant
from skerry.core import manifest
from skerry.core.ports import Manifest


def variant(name: str = "onnx-fp32", precision: Precision = "fp32", digit: str = "a") -> Variant:
    return Variant(
        name=name,
        format="onnx",
        precision=precision,
        needs=Requirements(engine="onnxruntime", precision=precision, memory_bytes=50_000_000),
        blob=Blob(digest=f"sha256:{digit * 64}", size=1234, media_type="application/octet-stream"),
        metric=0.98,
        metric_drop=0.001,
        error=NumericalError(max_abs=0.1, mean_abs=0.01, cosine=0.999),
        profile=Profile(latency_p50_ms=1.5, latency_p95_ms=2.5, peak_memory_bytes=50_000_000, runs=100),
    )


def built(name: str = "onnx-fp32", digit: str = "a") -> manifest.BuiltVariant:
    return manifest.build_variant("digits", "1.0.0", variant(name, digit=digit), file=f"{name}.onnx")


def index() -> Manifest:
    return manifest.build_index("digits", "1.0.0", [built("onnx-int8", "b"), built("onnx-fp32", "a")])


def remade(original: Manifest, **changes: Any) -> Manifest:
    raw = json.dumps(json.loads(original.raw) | changes).encode()
    return Manifest(digest=manifest.digest_of(raw), media_type=original.media_type, raw=raw)


def test_a_variant_comes_back_as_it_was_with_its_manifest() -> None:
    pushed = built()
    read = manifest.read_variant(pushed.manifest)
    assert read.manifest == pushed.manifest.digest == manifest.digest_of(pushed.manifest.raw)
    assert msgspec.structs.replace(read, manifest=None) == variant()


def test_the_same_variant_gives_the_same_bytes() -> None:
    again = msgspec.structs.replace(variant(), manifest=f"sha256:{'f' * 64}")
    rebuilt = manifest.build_variant("digits", "1.0.0", again, file="onnx-fp32.onnx")
    assert (rebuilt.config, rebuilt.manifest) == (built().config, built().manifest)
    # If this digest changes, every model version that was ever pushed gets another one when it is pushed again.
    assert index().digest == "sha256:98809414016bc0e62633d03f56dfc247939e9109289be1dfce33a16a2724e5f4"


def test_a_variant_s_manifest_is_as_modelpack_wants_it() -> None:
    pushed = built()
    document = json.loads(pushed.manifest.raw)
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert document["config"] == {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": manifest.digest_of(pushed.config),
        "size": len(pushed.config),
    }
    assert document["layers"] == [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": f"sha256:{'a' * 64}",
            "size": 1234,
            "annotations": {
                "org.cncf.model.filepath": "onnx-fp32.onnx",
                "org.opencontainers.image.title": "onnx-fp32.onnx",
            },
        }
    ]
    assert json.loads(pushed.config) == {
        "descriptor": {"name": "digits", "version": "1.0.0"},
        "config": {"format": "onnx", "precision": "fp32"},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{'a' * 64}"]},
    }


def test_dynamic_quantisation_is_said_in_modelpack_s_words() -> None:
    pushed = manifest.build_variant("m", "1", variant("onnx-int8-dynamic", "int8-dynamic"), file="m.onnx")
    assert json.loads(pushed.config)["config"] == {"format": "onnx", "precision": "int8", "quantization": "dynamic"}


def test_an_index_lists_its_variants_by_name_whatever_their_order() -> None:
    turned = manifest.build_index("digits", "1.0.0", [built("onnx-fp32", "a"), built("onnx-int8", "b")])
    assert turned == index()
    read = manifest.read_index(turned)
    assert (read.model, read.version) == ("digits", "1.0.0")
    assert [entry.digest for entry in read.manifests] == [
        built("onnx-fp32", "a").manifest.digest,
        built("onnx-int8", "b").manifest.digest,
    ]
    assert [entry.size for entry in read.manifests] == [
        len(built("onnx-fp32", "a").manifest.raw),
        len(built("onnx-int8", "b").manifest.raw),
    ]


@pytest.mark.parametrize(
    ("build", "kind", "title"),
    [
        (manifest.build_golden, "application/vnd.skerry.golden.v1+npz", "golden.npz"),
        (manifest.build_card, "application/vnd.skerry.card.v1+json", "card.json"),
    ],
)
def test_what_belongs_to_a_version_refers_to_its_index(build: Any, kind: str, title: str) -> None:
    attached = build(index(), Blob(digest=f"sha256:{'c' * 64}", size=7))
    document = manifest.parse(attached.raw, attached.media_type)
    assert isinstance(document, manifest.ImageManifest)
    assert document.type == kind
    assert document.subject is not None
    assert (document.subject.digest, document.subject.size) == (index().digest, len(index().raw))
    assert [d.digest for d in document.content] == [manifest.digest_of(b"{}"), f"sha256:{'c' * 64}"]
    assert document.layers[0].annotations["org.opencontainers.image.title"] == title


def test_unknown_fields_are_no_reason_to_refuse() -> None:
    read = manifest.read_variant(remade(built().manifest, future={"a": [1, 2]}))
    assert read.name == "onnx-fp32"


def test_a_variant_that_speaks_of_another_file_is_refused() -> None:
    layers = json.loads(built(digit="b").manifest.raw)["layers"]
    with pytest.raises(IntegrityError, match="not the variant's file"):
        manifest.read_variant(remade(built().manifest, layers=layers))
    with pytest.raises(IntegrityError):
        manifest.read_variant(remade(built().manifest, layers=[]))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schemaVersion": 1}, "schema"),
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "was sent as"),
        ({"artifactType": "application/vnd.example"}, "artifact type"),
        ({"annotations": {}}, "has no annotation"),
        ({"annotations": {manifest.VARIANT_ANNOTATION: "{}"}}, "missing required field"),
        ({"annotations": {manifest.VARIANT_ANNOTATION: "no json"}}, "malformed"),
        ({"layers": [{"mediaType": "x", "digest": "sha256:../../etc", "size": 1}]}, "digest"),
        ({"layers": [{"mediaType": "x", "digest": f"sha256:{'a' * 64}", "size": -1}]}, "size"),
        ({"config": None}, "config"),
    ],
)
def test_a_wrong_variant_manifest_is_refused_with_the_reason(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidError, match=match):
        manifest.read_variant(remade(built().manifest, **changes))


@pytest.mark.parametrize("changes", [{"artifactType": "x"}, {"annotations": {}}, {"manifests": {}}])
def test_an_index_of_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        manifest.read_index(remade(index(), **changes))


def test_an_index_is_no_variant_and_a_variant_no_index() -> None:
    with pytest.raises(InvalidError):
        manifest.read_variant(index())
    with pytest.raises(InvalidError):
        manifest.read_index(built().manifest)


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidError, match="more than"):
        manifest.parse(b" " * (manifest.MAX_MANIFEST_BYTES + 1), manifest.INDEX_TYPE)
    entry = json.loads(index().raw)["manifests"][0]
    with pytest.raises(InvalidError, match="length"):
        manifest.read_index(remade(index(), manifests=[entry] * (manifest.MAX_ENTRIES + 1)))


def test_other_media_types_are_refused() -> None:
    with pytest.raises(InvalidError, match="not of a manifest"):
        manifest.parse(b"{}", "application/json")


_TYPES = st.sampled_from([manifest.MANIFEST_TYPE, manifest.INDEX_TYPE, "", "application/json"])


@given(raw=st.binary(max_size=300) | st.integers(1, 5000).map(lambda depth: b'{"a":' * depth), media_type=_TYPES)
def test_any_bytes_are_parsed_or_refused(raw: bytes, media_type: str) -> None:
    with pytest.raises(InvalidError):
        manifest.parse(raw, media_type)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    ["schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"]
)


@given(original=st.sampled_from([built().manifest, index()]), changes=st.dictionaries(_FIELDS, _JSON, max_size=3))
def test_any_json_in_any_field_is_read_or_refused(original: Manifest, changes: dict[str, Any]) -> None:
    changed = remade(original, **changes)
    for read in (manifest.read_index, manifest.read_variant):
        try:
            read(changed)
        except (InvalidError, IntegrityError):
            continue


@given(text=st.text(max_size=80))
def test_only_lower_case_sha256_is_a_digest(text: str) -> None:
    assert not manifest.is_digest(f"sha256:{text}") or len(text) == 64
    assert not manifest.is_digest(f"sha256:{'a' * 64}{text or 'x'}")
    assert manifest.is_digest(f"sha256:{'0123456789abcdef' * 4}")
