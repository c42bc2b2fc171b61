"""Container images packed from root file systems, for tests: docker-archive, OCI layout and OCI archive.

Why it exists: CI has no container engine, and no registry to pull from; an image is a few JSON documents around tar
archives. Written after image-spec 1.1 and moby's image/spec/v1.2.md, not after thinbox's reader.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

GZIP, ZSTD, PLAIN = "gzip", "zstd", "plain"
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    GZIP: lambda data: gzip.compress(data, 1, mtime=0),
    ZSTD: zstandard.ZstdCompressor(level=1).compress,
    PLAIN: bytes,
}
_MEDIA = {GZIP: "+gzip", ZSTD: "+zstd", PLAIN: ""}
_OCI = "application/vnd.oci.image"


def layer_of(root: Path, **owners: int) -> bytes:
    """Return a folder as a layer, everything owned by root; `owners` gives another uid (and gid) to top-level names."""
    out = io.BytesIO()

    def own(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = owners.get(info.name.split("/")[0], 0)
        info.uname = info.gname = ""
        return info

    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(os.listdir(root)):
            tar.add(root / name, name, filter=own)
    return out.getvalue()


def layer_with(files: Mapping[str, bytes | str], *, uid: int = 0, mode: int = 0o755) -> bytes:
    """Return a layer of files by path; a str is a symlink's target, a path that ends in a slash a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path.rstrip("/"))
            info.uid = info.gid = uid
            info.mode = mode
            if path.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return out.getvalue()


def config_of(layers: Sequence[bytes], *, architecture: str = "amd64", **config: Any) -> bytes:
    """Return the config blob; `config` holds Entrypoint, Cmd, Env, User, WorkingDir, Volumes."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    value = {"architecture": architecture, "os": "linux", "config": config}
    return json.dumps(value | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()


def write_docker_archive(path: Path, layers: Sequence[bytes], *, tag: str = "test:latest", **config: Any) -> Path:
    """Write what `docker save` writes (image/spec/v1.2.md)."""
    blob = config_of(layers, **config)
    name = f"{hashlib.sha256(blob).hexdigest()}.json"
    names = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in layers]
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": names}]
    files = {name: blob, **dict(zip(names, layers, strict=True)), "manifest.json": json.dumps(manifest).encode()}
    _write_files(path, files)
    return path


def oci_files(
    layers: Sequence[bytes], *, compression: str = GZIP, tag: str = "latest", **config: Any
) -> dict[str, bytes]:
    """Return the files of an OCI image layout, by name."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "config": blob(config_of(layers, **config), "config.v1+json"),
        "layers": [blob(_COMPRESSORS[compression](layer), f"layer.v1.tar{_MEDIA[compression]}") for layer in layers],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return files


def write_oci_archive(path: Path, layers: Sequence[bytes], **options: Any) -> Path:
    """Write an OCI image layout as one tar archive."""
    _write_files(path, oci_files(layers, **options))
    return path


def write_oci_layout(folder: Path, layers: Sequence[bytes], **options: Any) -> Path:
    """Write an OCI image layout as a folder."""
    for name, data in oci_files(layers, **options).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _write_files(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
