"""Which config and which layers make up an image: docker-archive and OCI documents read.

Why it exists: an archive may hold several images, and an OCI index several platforms of one; the right one has
to be found, and a wrong choice said clearly.

Rules of this file:
- a document and a layer named by digest have that digest, or the image is refused;
- nothing named here is opened but by the `Store`.

Sources: image-spec 1.1 (image-layout.md, image-index.md, manifest.md, descriptor.md); moby, image/spec/v1.2.md
"Combined Image JSON + Filesystem Changeset Format" for `manifest.json`.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thinbox.container.config import ARCHITECTURE, ImageConfig, parse_config, parse_json, require_mapping
from thinbox.container.store import Store, read_document
from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import show_path

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_REFERENCE = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MAX_NESTING = 4
_MAX_LAYERS = 512
"""overlayfs takes 500 lower layers (fs/overlayfs/super.c, OVL_MAX_STACK), docker made 127 at most."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer: its file in the store, and the SHA-256 of what it is uncompressed (None: not known)."""

    name: str
    diff_sha256: str | None


@dataclass(frozen=True, slots=True)
class ImageParts:
    """One image of an archive or folder, layers from the lowest up."""

    config: ImageConfig
    layers: tuple[LayerFile, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One image to choose from: what it is called, and how it is described."""

    names: tuple[str, ...]
    value: Any


def read_parts(store: Store, reference: str | None) -> ImageParts:
    """Return the image `reference` of `store`, or its only one.

    Raises RootfsError if there are several and none is named, if none is for linux/amd64, and for documents that are
    missing, damaged or not what they should be.
    """
    if store.has("manifest.json"):
        return _read_docker(store, reference)
    return _read_oci(store, reference)


def _choose(found: list[_Candidate], reference: str | None) -> Any:
    if reference is not None:
        for candidate in found:
            if any(name == reference or name.endswith((f"/{reference}", f":{reference}")) for name in candidate.names):
                return candidate.value
    elif len(found) == 1:
        return found[0].value
    names = ", ".join(name for candidate in found for name in candidate.names[:1]) or "none has a name"
    if not found:
        raise RootfsError("it holds no image")
    if reference is not None:
        raise RootfsError(f"it holds no image {reference!r}; it has: {_short(names)}")
    raise RootfsError(f"it holds {len(found)} images; name one, as in --image FILE:NAME: {_short(names)}")


def _short(text: str) -> str:
    return show_path(text.encode("utf-8", "surrogateescape"))


# -- docker-archive ---------------------------------------------------------------------------------------
def _read_docker(store: Store, reference: str | None) -> ImageParts:
    what = "manifest.json"
    images = parse_json(read_document(store, what), what)
    if not isinstance(images, list):
        raise RootfsError(f"{what}: a list of images was expected")
    found = []
    for image in images:
        tags = require_mapping(image, what).get("RepoTags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise RootfsError(f"{what}: RepoTags is not a list of names")
        found.append(_Candidate(tuple(tags), image))
    image = _choose(found, reference)
    names, config_name = image.get("Layers"), image.get("Config")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or not isinstance(config_name, str):
        raise RootfsError(f"{what}: Config or Layers is missing")
    config = parse_config(read_document(store, config_name), _short(config_name))
    return ImageParts(config, _layers(names, config))


# -- OCI layout ---------------------------------------------------------------------------------------------
def _read_oci(store: Store, reference: str | None) -> ImageParts:
    what = "index.json"
    index = require_mapping(parse_json(read_document(store, what), what), what)
    descriptor = _choose([_Candidate(_names(each), each) for each in _usable(index, what)], reference)
    for _level in range(_MAX_NESTING):
        if descriptor.get("mediaType") not in _INDEX_TYPES:
            break
        name, data = _read_blob(store, descriptor)
        inner = list(_usable(require_mapping(parse_json(data, name), name), name))
        if not inner:
            raise RootfsError(f"the image has no variant for linux/{ARCHITECTURE}, the only platform thinbox runs")
        descriptor = inner[0]
    name, data = _read_blob(store, descriptor)
    manifest = require_mapping(parse_json(data, name), name)
    config_name, data = _read_blob(store, require_mapping(manifest.get("config"), name))
    config = parse_config(data, config_name)
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise RootfsError(f"{name}: layers is missing")
    return ImageParts(config, _layers([_layer_name(store, layer, name) for layer in layers], config))


def _usable(index: Any, what: str) -> Iterator[Any]:
    """Yield the descriptors of an index that are for our platform, or for none in particular."""
    manifests = index.get("manifests")
    if not isinstance(manifests, list):
        raise RootfsError(f"{what}: manifests is missing")
    for descriptor in manifests:
        platform = require_mapping(require_mapping(descriptor, what).get("platform") or {}, what)
        is_ours = platform.get("os", "linux") == "linux" and platform.get("architecture", ARCHITECTURE) == ARCHITECTURE
        annotations = require_mapping(descriptor.get("annotations") or {}, what)
        # BuildKit puts provenance beside each image, as a manifest of its own.
        if is_ours and annotations.get("vnd.docker.reference.type") != "attestation-manifest":
            yield descriptor


def _names(descriptor: Any) -> tuple[str, ...]:
    annotations = descriptor.get("annotations") or {}
    return tuple(str(annotations[key]) for key in _REFERENCE if annotations.get(key))


def _blob_name(descriptor: Any) -> str:
    digest = descriptor.get("digest")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise RootfsError(f"a digest is {str(digest)[:80]!r}, not sha256 and 64 hexadecimal digits")
    return f"blobs/sha256/{found[1]}"


def _read_blob(store: Store, descriptor: Any) -> tuple[str, bytes]:
    name = _blob_name(descriptor)
    data = read_document(store, name)
    if hashlib.sha256(data).hexdigest() != name.rpartition("/")[2]:
        raise RootfsError(f"{name}: does not have the SHA-256 it is named after; fetch the image again")
    return name, data


def _layer_name(store: Store, descriptor: Any, what: str) -> str:
    kind = str(require_mapping(descriptor, what).get("mediaType") or "")
    name = _blob_name(descriptor)
    if "encrypted" in kind:
        raise RootfsError(f"{name}: the layer is encrypted; decrypt the image first (skopeo copy --decryption-key)")
    if not store.has(name):
        raise RootfsError(f"{name}: the layer is not in the image; copy it with all its layers")
    return name


def _layers(names: list[str], config: ImageConfig) -> tuple[LayerFile, ...]:
    if len(names) > _MAX_LAYERS:
        raise RootfsError(f"the image has {len(names)} layers; engines take at most {_MAX_LAYERS}")
    if len(config.diff_ids) != len(names):
        raise RootfsError(f"the image has {len(names)} layers and its config the hashes of {len(config.diff_ids)}")
    layers = []
    for name, diff_id in zip(names, config.diff_ids, strict=True):
        found = _DIGEST.fullmatch(diff_id)
        if found is None:
            raise RootfsError(f"a diff_id is {diff_id[:80]!r}, not sha256 and 64 hexadecimal digits")
        layers.append(LayerFile(name, found[1]))
    return tuple(layers)
