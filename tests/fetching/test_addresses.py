"""The addresses from which the file of a prediction may be fetched."""

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from fetching.addresses import AddressRefused, from_settings, is_public
from settings import SettingError
from tests.support.sites import running_site

PUBLIC = ["1.1.1.1", "93.184.215.14", "198.41.0.4", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
INTERNAL = [
    *["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
    *["169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1", "203.0.113.9"],
    *["224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"],
    *["::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1"],
    *["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"],
    *["64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:101:101::1", "2001:0:1::1", "3fff::1", "5f00::1"],
]


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address)) and from_settings().allow("a.example", ip_address(address))


@pytest.mark.parametrize("address", INTERNAL)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(ip_address(address)) and not from_settings().allow("a.example", ip_address(address))


@pytest.mark.parametrize(
    ("setting", "host", "address", "is_allowed"),
    [
        ("any", "a", "127.0.0.1", True),
        ("public, 10.0.0.0/8", "a", "10.1.2.3", True),
        ("public, 10.0.0.0/8", "a", "11.1.2.3", True),
        ("public, 10.0.0.0/8", "a", "192.168.0.1", False),
        ("10.0.0.0/8", "a", "11.1.2.3", False),
        ("10.1.2.3/8", "a", "10.200.0.1", True),
        ("fd00::/8,[::1]", "a", "::1", True),
        ("fd00::/8", "a", "fd12::1", True),
        ("Files.example", "files.example", "10.0.0.1", True),
        ("files.example", "other.example", "10.0.0.1", False),
        ("files.example", "files.example.evil.example", "10.0.0.1", False),
        ("none", "a", "1.1.1.1", False),
        (" ", "a", "1.1.1.1", True),
    ],
)
def test_the_setting_lists_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, setting: str, host: str, address: str, is_allowed: bool
) -> None:
    monkeypatch.setenv("FILE_ADDRESSES", setting)
    assert from_settings().allow(host, ip_address(address)) == is_allowed


@pytest.mark.parametrize("setting", ["public;any", "http://a.example", "10.0.0.0/40", "10.0.0", "a/b", "*", "-a"])
def test_a_setting_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("FILE_ADDRESSES", setting)
    with pytest.raises(SettingError, match=r"FILE_ADDRESSES: '.*' is neither public, any or none, nor a host"):
        from_settings()


def answering(*answers: list[tuple[str, int]]) -> Any:
    """Return a name server's successive answers, repeating the last."""
    left = list(answers)

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    return getaddrinfo


def test_what_was_checked_is_connected_to_whatever_a_name_server_says_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding, in which the first answer is of an allowed address and the next is not."""
    with running_site() as site, monkeypatch.context() as patch:
        port = int(site.url.rpartition(":")[2])
        patch.setenv("FILE_ADDRESSES", "127.0.0.1")
        patch.setattr(socket, "getaddrinfo", answering([("127.0.0.1", port)], [("127.0.0.2", port)]))
        with from_settings().connect("a.example", port, 1) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
        with pytest.raises(AddressRefused):
            from_settings().connect("a.example", port, 1)


def test_only_the_allowed_addresses_of_a_host_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("10.0.0.1", 80), ("127.0.0.1", 1), ("127.0.0.1", 2)]
    tried: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setenv("FILE_ADDRESSES", "127.0.0.0/8")
    monkeypatch.setattr(socket, "getaddrinfo", answering(found))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ConnectionRefusedError):
        from_settings().connect("a.example", 80, 1)
    assert tried == found[1:]


def test_this_machine_is_refused_by_its_public_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that keeps the world from a port does not see a connection from within."""
    monkeypatch.setattr("fetching.addresses.is_public", lambda _: True)
    with running_site() as site:
        port = int(site.url.rpartition(":")[2])
        with pytest.raises(AddressRefused):
            from_settings().connect("127.0.0.1", port, 1)
        assert site.ended.acquire(timeout=30) and site.heads == [b""]
        monkeypatch.setenv("FILE_ADDRESSES", "127.0.0.1")
        from_settings().connect("127.0.0.1", port, 1).close()
