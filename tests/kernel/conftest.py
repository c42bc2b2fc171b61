"""The room's tests run on made-up kernels of each shape, and on real ones: the default, and those THINBOX_KERNELS names.

THINBOX_KERNELS is a list of kernel files (bzImage, vmlinux, .deb) or releases, with ":" between them.
"""

import os

import pytest
from thinbox.image.facts import load_facts
from thinbox.image.source import resolve_kernel

OTHERS = [spec for spec in os.environ.get("THINBOX_KERNELS", "").split(":") if spec]


@pytest.fixture(
    scope="session", params=[None, *OTHERS], ids=lambda spec: spec.rsplit("/", 1)[-1] if spec else "default"
)
def real_kernel(request):
    """(KernelImage, KernelFacts) of each kernel of the matrix."""
    return load_facts(resolve_kernel(request.param))


@pytest.fixture
def real_facts(real_kernel):
    return real_kernel[1]


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "real_kernel" in item.fixturenames or item.get_closest_marker("newest"):
            item.add_marker(pytest.mark.guest)
    if "newest" not in config.getoption("markexpr"):
        # Of another kernel, which is fetched: only by `make test-newest`.
        others = [item for item in items if item.get_closest_marker("newest")]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def default_kernel():
    return load_facts(resolve_kernel(None))
