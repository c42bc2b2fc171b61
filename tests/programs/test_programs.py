"""Real programs of Debian's archive do isolated what they do un-isolated: the short set of the corpus (`make programs`)."""

import pytest
from benchmarks.program_root import build_root, load_corpus
from benchmarks.programs import difference, run_cell
from tests.support.package_pool import PackagePool
from thinbox.errors import SourceError

SHORT = [program for program in load_corpus().values() if program.short]


@pytest.fixture(scope="module")
def pool():
    return PackagePool()


@pytest.fixture(params=SHORT, ids=lambda program: program.name, scope="module")
def prepared(request, pool):
    """The program, its root, and what it does un-isolated."""
    try:
        root = build_root(request.param, pool)
    except SourceError as error:
        pytest.skip(f"the packages of {request.param.name} cannot be had: {error}")
    plain = run_cell(request.param, root, "none")
    assert not plain.failure, plain.failure
    assert (plain.exit_code, plain.totals["isolated"]) == (0, 0), plain.stderr
    assert plain.stdout
    return request.param, root, plain


@pytest.mark.guest
@pytest.mark.parametrize("cell", ["live", "best"])
def test_a_program_does_isolated_what_it_does_unisolated(prepared, cell):
    program, root, plain = prepared
    ran = run_cell(program, root, cell)
    assert difference(plain, ran) == "", ran.stderr.decode(errors="replace")
    assert ran.stderr == plain.stderr
    assert ran.totals["isolated"] == ran.totals["calls"] > 500
    assert ran.totals["killed"] == 0
