"""Container images as engines take them and hardly anybody writes them: one index of variants, digests of other lengths,
layouts of `dir:`, layers of no bytes. Written after image-spec 1.1 and containers/image, not after thinbox's reader."""

import gzip
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.container_image import layer_with

_OCI = "application/vnd.oci.image"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class OddImage:
    """An image store in the making: blobs, and the manifests that were put in."""

    def __init__(self, *, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.blobs: dict[str, bytes] = {}
        self.manifests: set[str] = set()

    def blob(self, data: bytes, kind: str) -> dict[str, Any]:
        digest = digest_of(data, self.algorithm)
        self.blobs[digest] = data
        return {"mediaType": f"{_OCI}.{kind}", "digest": digest, "size": len(data)}

    def image(self, layers: Sequence[bytes], *, packed: bool = True, diff: str = "", **config: Any) -> dict[str, Any]:
        """Put one image in; return its descriptor. `config` are fields of the config beside `rootfs`."""
        diff_ids = [digest_of(layer, diff or self.algorithm) for layer in layers]
        value = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}} | config
        kind = "layer.v1.tar+gzip" if packed else "layer.v1.tar"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": self.blob(json.dumps(value).encode(), "config.v1+json"),
            "layers": [self.blob(gzip.compress(one, 1, mtime=0) if packed else one, kind) for one in layers],
        }
        return self.put_manifest(manifest, "manifest.v1+json")

    def index(self, manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put an index in; return its descriptor."""
        value = {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": list(manifests)}
        return self.put_manifest(value, "index.v1+json")

    def put_manifest(self, value: Mapping[str, Any], kind: str) -> dict[str, Any]:
        made = self.blob(json.dumps(value).encode(), kind)
        self.manifests.add(made["digest"])
        return made

    def write_layout(self, folder: Path, *entries: Mapping[str, Any]) -> Path:
        """Write an OCI layout whose index.json has `entries`."""
        for digest, data in self.blobs.items():
            algorithm, _colon, digits = digest.partition(":")
            (folder / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
            (folder / "blobs" / algorithm / digits).write_bytes(data)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries)}))
        return folder

    def write_dir(self, folder: Path, entry: Mapping[str, Any]) -> Path:
        """Write what `skopeo copy … dir:FOLDER` does (containers/image, directory)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text("Directory Transport Version: 1.1\n")
        for digest, data in self.blobs.items():
            digits = digest.partition(":")[2]
            is_inner = digest in self.manifests and digest != entry["digest"]
            if digest != entry["digest"]:
                (folder / (f"{digits}.manifest.json" if is_inner else digits)).write_bytes(data)
        (folder / "manifest.json").write_bytes(self.blobs[entry["digest"]])
        return folder


def some_odd_image(rng: random.Random, folder: Path, kind: str) -> tuple[Path, dict[str, bytes]]:
    """Write an image of the kind `layout` or `dir` with odd things in it; return it and the files it must come out as."""
    made = OddImage()
    variants = rng.sample((rng.choice((None, "v1")), "v2", "v3", "v4"), rng.randint(1, 4))
    entries, best = [], (-1, "")
    for variant in variants:
        name = f"level-{variant}"
        layers = [
            layer_with({"d/": b"", f"d/{name}": b"1", "gone": b"x"}),
            layer_with({"d/.wh.gone": b"", ".wh.gone": b""}),
        ]
        if rng.random() < 0.5:
            layers.insert(rng.randint(0, 2), b"")
        config = {"architecture": rng.choice(("amd64", "x86_64"))} if kind == "layout" else {}
        entry = made.image(layers, packed=rng.random() < 0.5, **config)
        platform = {"os": "linux", "architecture": "amd64"} | ({"variant": variant} if variant else {})
        entries.append(entry | {"platform": platform})
        level = int((variant or "v1")[1:])
        if level <= 2 and level > best[0]:
            best = (level, name)
    if rng.random() < 0.5:
        other = made.image([layer_with({"arm": b""})], architecture="arm64")
        entries.insert(0, other | {"platform": {"os": "linux", "architecture": "arm64"}})
    index = made.index(entries)
    path = made.write_layout(folder, index) if kind == "layout" else made.write_dir(folder, index)
    return path, ({"d": b"", f"d/{best[1]}": b"1"} if best[1] else {})
