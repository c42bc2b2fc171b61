"""`thinbox plan --verify` of an image's run: it is run as it was, by the same options; what differs fails the check."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.support.container_image import layer_with, write_docker_archive
from tests.support.rounds import thinbox
from tests.support.service_images import busybox_program
from thinbox.cli import group
from thinbox.errors import InputError

SCRIPT = 'test "$A" = "b c" && test "$PWD" = /new/place && test "$(id -u)" = 9 && exit 5; mkdir /tmp/astray'
AS_RUN = {"--entrypoint": "sh", "--user": "9:10", "--env": "A=b c", "--workdir": "/new/place"}

pytestmark = pytest.mark.usefixtures("guest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `image.tar`, and `run.json`, a run of it with every option given."""
    made = tmp_path_factory.mktemp("verify")
    files = {"bin/busybox": busybox_program(), **dict.fromkeys(("bin/sh", "bin/id", "bin/mkdir"), "busybox")}
    write_docker_archive(made / "image.tar", [layer_with(files)], Entrypoint=["mkdir"], Cmd=["/tmp/never"])
    words = [word for option in AS_RUN.items() for word in option]
    done = thinbox("run", "--image", made / "image.tar", *words, "--json", made / "run.json", "--", "-c", SCRIPT)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"", b"")
    return made


def plan_again(folder: Path, options: dict[str, str], *more: str) -> Result:
    words = [word for option in options.items() for word in option]
    made = str(folder / "plan.toml")
    return CliRunner().invoke(group, ["plan", "-q", str(folder / "run.json"), "-o", made, *words, *more])


@pytest.mark.parametrize("entrypoint", [{"--entrypoint": "sh"}, {"--entrypoint": '["sh", "-c"]'}, {}])
def test_a_run_with_options_is_run_again_with_them(folder: Path, entrypoint: dict[str, str]) -> None:
    options = {name: value for name, value in AS_RUN.items() if name != "--entrypoint"} | entrypoint
    done = plan_again(folder, options | {"--image": str(folder / "image.tar")}, "--verify")
    assert done.stderr.startswith("holds: sh -c test"), done.stderr
    assert "status 5 (recorded: 5)" in done.stderr
    assert done.exit_code == 0


@pytest.mark.parametrize("missing", ["--user", "--env", "--workdir"])
def test_without_one_of_them_the_check_fails_and_says_what_strayed(folder: Path, missing: str) -> None:
    options = {name: value for name, value in AS_RUN.items() if name != missing}
    done = plan_again(folder, options | {"--image": str(folder / "image.tar")}, "--verify")
    assert done.stderr.startswith("FAILS: sh -c test"), done.stderr
    assert "  mkdir was refused by plan, line " in done.stderr
    assert "status 1 (recorded: 5)" in done.stderr
    assert done.exit_code == 1


def test_options_that_do_not_fit_are_refused(folder: Path) -> None:
    image = {"--image": str(folder / "image.tar")}
    other = plan_again(folder, image | {"--entrypoint": "busybox"}, "--verify").exception
    assert isinstance(other, InputError)
    assert str(other) == "the recorded command begins with 'sh', not with what --entrypoint says"
    for options, more, said in (
        (image, (), "--image goes with --verify"),
        ({"--env": "A=b"}, (), "--env goes with --verify"),
        ({"--rootfs": "."}, (), "--rootfs goes with --verify"),
        (image | {"--rootfs": "."}, ("--verify",), "--image and --rootfs exclude each other"),
        ({"--entrypoint": "sh"}, ("--verify",), "--entrypoint goes with --image"),
    ):
        done = plan_again(folder, options, *more)
        assert done.exit_code == 2
        assert said in done.stderr


def test_a_policy_that_the_record_cannot_name_is_asked_for(tmp_path: Path) -> None:
    profile, record = str(tmp_path / "known.json"), str(tmp_path / "run.json")
    words = ["plan", "-q", record, "-o", str(tmp_path / "plan.toml"), "--verify"]
    assert thinbox("run", "--save-profile", profile, "--", "true").returncode == 0
    assert thinbox("run", "--policy", f"profile:{profile}", "--json", record, "--", "true").returncode == 0
    asked = CliRunner().invoke(group, words)
    assert isinstance(asked.exception, InputError) and "give --policy profile:FILE" in str(asked.exception)
    other = CliRunner().invoke(group, [*words, "--policy", "sci"])
    assert isinstance(other.exception, InputError) and "not sci" in str(other.exception)
    given = CliRunner().invoke(group, [*words, "--policy", f"profile:{profile}"])
    assert given.exit_code == 0 and "holds: true" in given.output
    alone = CliRunner().invoke(group, [*words[:-1], "--policy", "sci"])
    assert alone.exit_code == 2 and "--policy goes with --verify" in alone.output
