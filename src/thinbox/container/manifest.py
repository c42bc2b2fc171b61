"""Which config and which layers make up an image: the documents of docker-archive, OCI layout and `dir:` read.

Why it exists: an archive may hold several images, and an OCI index several platforms of one; the right one has
to be found, and a wrong choice said clearly.

Rules of this file:
- a document and a layer named by digest have that digest, or the image is refused;
- nothing named here is opened but by the `Store`.

Sources: image-spec 1.1 (image-layout.md, image-index.md, manifest.md, descriptor.md); moby, image/spec/v1.2.md
"Combined Image JSON + Filesystem Changeset Format" for `manifest.json`; containers/image, directory (skopeo's `dir:`).
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thinbox.container.config import ImageConfig, parse_config, parse_json, require_mapping
from thinbox.container.platform import ARCHITECTURE, is_ours, level_of
from thinbox.container.store import Store, read_document
from thinbox.errors import RootfsError
from thinbox.guest.rootfs_entry import show_path

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha384):([0-9a-f]{96})|(sha512):([0-9a-f]{128})")
"""The algorithms that go-digest knows."""
_REFERENCE = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_OCI_BLOBS = "blobs/{algorithm}/{digits}"
_DIR_BLOBS, _DIR_MANIFESTS = "{digits}", "{digits}.manifest.json"
_MAX_NESTING = 4
_MAX_LAYERS = 512
"""overlayfs takes 500 lower layers (fs/overlayfs/super.c, OVL_MAX_STACK), docker made 127 at most."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer: its file in the store, and the hash of what it is uncompressed (`sha256:…`)."""

    name: str
    diff_digest: str


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


def read_parts(store: Store, reference: str | None, level: int) -> ImageParts:
    """Return the image `reference` of `store`, or its only one, in the strongest variant for a CPU of `level`.

    Raises RootfsError if there are several and none is named, if none is for linux/amd64, and for documents that are
    missing, damaged or not what they should be.
    """
    if not store.has("manifest.json"):
        return _read_oci(store, reference, level)
    what = "manifest.json"
    manifest = parse_json(read_document(store, what), what)
    if isinstance(manifest, dict) and "schemaVersion" in manifest:
        if reference is not None:
            raise RootfsError(f"it holds one image without a name (skopeo's dir:), not {reference!r}")
        return _read_directory(store, manifest, level)
    return _read_docker(store, manifest, reference)


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
def _read_docker(store: Store, images: Any, reference: str | None) -> ImageParts:
    what = "manifest.json"
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
def _read_oci(store: Store, reference: str | None, level: int) -> ImageParts:
    what = "index.json"
    index = require_mapping(parse_json(read_document(store, what), what), what)
    descriptor = _choose(_candidates(index, what, level), reference)
    for _nesting in range(_MAX_NESTING):
        if descriptor.get("mediaType") not in _INDEX_TYPES:
            break
        name, data = _read_blob(store, descriptor)
        descriptor = _strongest(require_mapping(parse_json(data, name), name), name, level)
    name, data = _read_blob(store, descriptor)
    return _read_manifest(store, require_mapping(parse_json(data, name), name), name)


def _read_manifest(store: Store, manifest: Any, what: str, *, blobs: str = _OCI_BLOBS) -> ImageParts:
    if manifest.get("schemaVersion") == 1:
        raise RootfsError(f"{what}: is of schema 1, which engines no longer take; copy the image again (skopeo copy)")
    config_name, data = _read_blob(store, require_mapping(manifest.get("config"), what), blobs)
    config = parse_config(data, config_name)
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise RootfsError(f"{what}: layers is missing")
    return ImageParts(config, _layers([_layer_name(store, layer, what, blobs) for layer in layers], config))


# -- dir: -----------------------------------------------------------------------------------------------------
def _read_directory(store: Store, manifest: Any, level: int) -> ImageParts:
    """Blobs lie beside the manifest, named by their digits; the manifests of a list are DIGITS.manifest.json."""
    name = "manifest.json"
    for _nesting in range(_MAX_NESTING):
        if "manifests" not in manifest:
            break
        descriptor = _strongest(manifest, name, level)
        name, data = _read_blob(store, descriptor, _DIR_MANIFESTS)
        manifest = require_mapping(parse_json(data, name), name)
    return _read_manifest(store, manifest, name, blobs=_DIR_BLOBS)


# -- indexes --------------------------------------------------------------------------------------------------
def _strongest(index: Any, what: str, level: int) -> Any:
    """Return the descriptor of an index that fits a CPU of `level` best; one that says nothing of platforms is last.

    Raises RootfsError if there is none.
    """
    fitting = list(_usable(index, what, level))
    if fitting:
        return max(fitting, key=lambda pair: pair[0])[1]  # of equals the first
    above = sorted({str(p.get("variant")) for p in _our_platforms(index, what)})
    if above:
        raise RootfsError(
            f"the image has variants for linux/{ARCHITECTURE} only of {_short(', '.join(above))}; the CPU is v{level}"
        )
    raise RootfsError(f"the image has no variant for linux/{ARCHITECTURE}, the only platform thinbox runs")


def _candidates(index: Any, what: str, level: int) -> list[_Candidate]:
    """Return the images of a layout's index: what has one name, or none and a platform, are variants of one."""
    groups: dict[tuple[str, ...], list[tuple[int, Any]]] = {}
    alone: list[_Candidate] = []
    for fit, descriptor in _usable(index, what, level):
        names = _names(descriptor)
        if names or fit:
            groups.setdefault(names, []).append((fit, descriptor))
        else:
            alone.append(_Candidate((), descriptor))
    for names, variants in groups.items():
        best = max(fit for fit, _descriptor in variants)
        equals = [_Candidate(names, descriptor) for fit, descriptor in variants if fit == best]
        alone += equals if not names else equals[:1]
    return alone


def _usable(index: Any, what: str, level: int) -> Iterator[tuple[int, Any]]:
    """Yield the descriptors of an index that a CPU of `level` runs, each with how strong it is (0: not said)."""
    for descriptor in _descriptors(index, what):
        platform = require_mapping(descriptor.get("platform") or {}, what)
        mine = level_of(platform)
        if is_ours(platform) and mine is not None and mine <= level:
            yield (mine if platform else 0), descriptor


def _our_platforms(index: Any, what: str) -> Iterator[Any]:
    for descriptor in _descriptors(index, what):
        platform = require_mapping(descriptor.get("platform") or {}, what)
        if is_ours(platform):
            yield platform


def _descriptors(index: Any, what: str) -> Iterator[Any]:
    """Yield the descriptors of an index but those of what BuildKit puts beside an image: provenance."""
    manifests = index.get("manifests")
    if not isinstance(manifests, list):
        raise RootfsError(f"{what}: manifests is missing")
    for descriptor in manifests:
        annotations = require_mapping(require_mapping(descriptor, what).get("annotations") or {}, what)
        if annotations.get("vnd.docker.reference.type") != "attestation-manifest":
            yield descriptor


def _names(descriptor: Any) -> tuple[str, ...]:
    annotations = descriptor.get("annotations") or {}
    return tuple(str(annotations[key]) for key in _REFERENCE if annotations.get(key))


# -- blobs ----------------------------------------------------------------------------------------------------
def _digest(value: Any, what: str) -> tuple[str, str]:
    """Return algorithm and digits of a digest; RootfsError for anything else."""
    found = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise RootfsError(f"{what} is {str(value)[:80]!r}, not sha256 and 64 hexadecimal digits, or sha512 and 128")
    algorithm, digits = (group for group in found.groups() if group)
    return algorithm, digits


def _read_blob(store: Store, descriptor: Any, blobs: str = _OCI_BLOBS) -> tuple[str, bytes]:
    algorithm, digits = _digest(descriptor.get("digest"), "a digest")
    name = blobs.format(algorithm=algorithm, digits=digits)
    data = read_document(store, name)
    if hashlib.new(algorithm, data).hexdigest() != digits:
        shown = algorithm.upper().replace("SHA", "SHA-")
        raise RootfsError(f"{name}: does not have the {shown} it is named after; fetch the image again")
    return name, data


def _layer_name(store: Store, descriptor: Any, what: str, blobs: str) -> str:
    kind = str(require_mapping(descriptor, what).get("mediaType") or "")
    algorithm, digits = _digest(descriptor.get("digest"), "a digest")
    name = blobs.format(algorithm=algorithm, digits=digits)
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
    pairs = zip(names, config.diff_ids, strict=True)
    return tuple(LayerFile(name, ":".join(_digest(diff_id, "a diff_id"))) for name, diff_id in pairs)
