"""Names and numbers of users and groups mean what the root's own files say."""

import pytest
from thinbox.errors import InputError
from thinbox.guest.identity import Identity, resolve_identity

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:50::/home/app:/bin/sh\nbroken line\n:x:1:1::/:\nbig:x:99999999999:1::/:\n"
GROUP = b"root:x:0:\nstaff:x:50:\nextra:x:60:other,app\nwheel:x:10:root\n#c:x:1:app\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (0, 10), "/root")),
        ("0", Identity(0, 0, (0, 10), "/root")),
        ("app", Identity(1000, 50, (50, 60), "/home/app")),
        ("1000", Identity(1000, 50, (50, 60), "/home/app")),
        ("app:extra", Identity(1000, 60, (60,), "/home/app")),
        ("app:7", Identity(1000, 7, (7,), "/home/app")),
        ("77", Identity(77, 0, (0,), "/")),
        ("77:staff", Identity(77, 50, (50,), "/")),
        (":staff", Identity(0, 50, (50,), "/root")),
    ],
)
def test_users_are_resolved_as_container_engines_do(user: str, expected: Identity) -> None:
    assert resolve_identity(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize("user", ["nobody", "app:nogroup", "99999999999", "big", "77:99999999999", "app:-1", "٣"])
def test_unknown_users_are_refused(user: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_identity(user, PASSWD, GROUP)
    assert "\n" not in str(caught.value)


def test_without_files_numbers_still_work() -> None:
    assert resolve_identity("5:6", b"", b"") == Identity(5, 6, (6,), "/")
    assert resolve_identity("", b"", b"") == Identity(0, 0, (0,), "/")
