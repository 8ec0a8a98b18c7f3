"""Links that were given out: others can reach what they name, and no build ends them unasked."""

import ipaddress
import re
import socket
from pathlib import Path

import pytest
from made_up_images import study
from test_study_commands import SMALL, build, metalora

from metalora.core.errors import UserError
from metalora.reporting.user_study.server import StudyServer
from metalora.reporting.user_study.store import Store
from metalora.tasks.user_study_links import links_begin


def test_listening_everywhere_names_an_address_of_this_machine(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed for a phone is none of 0.0.0.0 and 127.0.0.1; the server itself stays on loopback here."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect(("198.51.100.1", 9))
    except OSError:
        pytest.skip("this machine has no network")
    store = study(tmp_path / "study.sqlite", made_up)
    store.invite(2)
    listening = StudyServer.__init__
    monkeypatch.setattr(StudyServer, "__init__", lambda self, store, **to: listening(self, store, consent=""))
    monkeypatch.setattr(StudyServer, "serve_forever", lambda server: None)
    metalora("serve", f"study={store.path}", "host=0.0.0.0", "port=0")
    said = capsys.readouterr().out
    assert re.search(r"note: 0\.0\.0\.0:\d+ is open to the network", said)
    hosts = re.findall(r"participant \d: http://([^/]*):\d+/p/", said)
    assert len(hosts) == 2
    for host in hosts:
        assert not ipaddress.ip_address(host).is_unspecified and not ipaddress.ip_address(host).is_loopback
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.bind((host, 0))  # only an address of this machine can be


@pytest.mark.parametrize(
    ("host", "address", "begin"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000"),
        ("localhost", None, "http://localhost:8000"),
        ("::1", None, "http://[::1]:8000"),
        ("192.168.7.5", None, "http://192.168.7.5:8000"),
        ("0.0.0.0", "192.168.7.5", "http://192.168.7.5:8000"),
        ("0.0.0.0", "fe80::1", "http://[fe80::1]:8000"),
        ("::", "laptop.local", "http://laptop.local:8000"),
        ("127.0.0.1", "https://study.example.org/", "https://study.example.org"),
        ("127.0.0.1", "https://example.org:8443/study", "https://example.org:8443/study"),
    ],
)
def test_an_address_can_be_named(host: str, address: str | None, begin: str) -> None:
    assert links_begin(host, port=8000, address=address) == begin


@pytest.mark.parametrize("address", ["laptop:9000", "laptop/study", "two words", "ftp://laptop", "https://"])
def test_what_no_link_can_begin_with_ends_in_one_line(address: str) -> None:
    with pytest.raises(UserError, match=r"no address that a link could begin with.*key: address"):
        links_begin("0.0.0.0", port=8000, address=address)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_a_machine_without_a_network_asks_for_its_address(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", nowhere)
    with pytest.raises(UserError, match=r"does not know by which address others reach it.*key: address"):
        links_begin(host, port=8000, address=None)


def test_the_named_address_stands_in_the_links(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = study(tmp_path / "study.sqlite", made_up)
    (invitation,) = store.invite(1)
    monkeypatch.setattr(StudyServer, "serve_forever", lambda server: None)
    metalora("serve", f"study={store.path}", "port=0", "address='https://study.example.org'")
    said = capsys.readouterr().out
    assert f"participant 1: https://study.example.org/p/{invitation.token}/" in said and "open to" not in said


def test_another_build_ends_no_link_unasked(made_up: Path, tmp_path: Path) -> None:
    """Refused while nobody has answered; asked for, the links end; with answers, never."""
    file = tmp_path / "study.sqlite"
    build(made_up, tmp_path, *SMALL, "participants=3")
    before = Store(file).invitations()
    with pytest.raises(UserError, match=r"is another one and has 4 links.*overwrite=true to end these links"):
        build(made_up, tmp_path, *SMALL, "participants=3", "seed=1")
    assert Store(file).invitations() == before
    build(made_up, tmp_path, *SMALL, "participants=3", "seed=1", "overwrite=true")
    after = Store(file).invitations()
    assert len(after) == 3 and not {i.token for i in after} & {i.token for i in before}
    metalora("simulate", f"study={file}", "participants=1")
    with pytest.raises(UserError, match="is another one and has 8 answers"):
        build(made_up, tmp_path, *SMALL, "overwrite=true")
