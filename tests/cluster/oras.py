"""`oras` for tests where the tool itself is not installed: push, pull and manifest fetch, of one directory each.

It speaks to a real registry, and lays an artifact out as the tool does: the directory is one tar+gzip layer, with its
name as the title and an annotation that says to unpack it; pull unpacks over what is there.
Source: oras.land/docs, "oras push", "oras pull"; OCI image and distribution specifications 1.1.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import httpx

TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2}


class Repository:
    """One repository of a registry, over HTTP."""

    def __init__(self, reference: str) -> None:
        place, _, self.tag = reference.rpartition(":")
        host, _, name = place.partition("/")
        self.http = httpx.Client(base_url=f"http://{host}/v2/{name}/", timeout=60, trust_env=False)

    def put_blob(self, content: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        where = self.http.post("blobs/uploads/").raise_for_status().headers["Location"]
        self.http.put(httpx.URL(where).copy_merge_params({"digest": digest}), content=content).raise_for_status()
        return {"digest": digest, "size": len(content)}

    def manifest(self) -> dict[str, list[dict[str, object]]]:
        answer = self.http.get(f"manifests/{self.tag}", headers={"Accept": MANIFEST})
        if answer.status_code == httpx.codes.NOT_FOUND:
            sys.exit(f"Error: {self.tag}: not found")
        return answer.raise_for_status().json()


def push(repository: Repository, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(name, arcname=name)
    layer = {"mediaType": LAYER, **repository.put_blob(packed.getvalue())}
    layer["annotations"] = {TITLE: name, UNPACK: "true"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.unknown.artifact.v1",
        "config": {**EMPTY, **repository.put_blob(b"{}")},
        "layers": [layer],
    }
    body, headers = json.dumps(manifest).encode(), {"Content-Type": MANIFEST}
    repository.http.put(f"manifests/{repository.tag}", content=body, headers=headers).raise_for_status()


def pull(repository: Repository, output: Path) -> None:
    for layer in repository.manifest()["layers"]:
        content = repository.http.get(f"blobs/{layer['digest']}").raise_for_status().content
        assert layer["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            # Python before 3.11.4 has no filters. What is unpacked here is what the tests packed.
            tar.extractall(output, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="oras")
    parser.add_argument("--plain-http", action="store_true", required=True)
    parser.add_argument("--output", "-o", type=Path, default=Path())
    parser.add_argument("words", nargs="+")
    options = parser.parse_intermixed_args()
    match options.words:
        case ["push", reference, name]:
            push(Repository(reference), name)
        case ["pull", reference]:
            pull(Repository(reference), options.output)
        case ["manifest", "fetch", reference]:
            print(json.dumps(Repository(reference).manifest()))
        case words:
            sys.exit(f"Error: unknown command {words}")


if __name__ == "__main__":
    main()
