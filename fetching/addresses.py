"""The addresses from which the `file` of a prediction may be fetched: FILE_ADDRESSES, by default public addresses.

The server may reach machines behind firewalls that its clients cannot. A URL in a request must not reach them either.
"""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import settings

Address = IPv4Address | IPv6Address

PUBLIC, ANY, NONE = "public", "any", "none"
HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?", re.ASCII)
# All addresses that are assigned to hosts of the Internet.
UNICAST = IPv6Network("2000::/3")
# Tunnels to IPv4 addresses within these, and networks that some versions of Python call public.
NOT_PUBLIC = tuple(map(ip_network, ("2001::/32", "2002::/16", "3fff::/20", "192.0.0.0/24")))
# The addresses by which a network without IPv4 reaches the IPv4 Internet.
NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefused(ValueError):
    """A host that the server may not connect to for a client."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The allowed addresses: `words` of PUBLIC and ANY, hosts as URLs name them, and networks."""

    words: frozenset[str]
    hosts: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    def are_listed(self, host: str, address: Address) -> bool:
        """Return whether an address or its host is allowed explicitly, public or not."""
        return ANY in self.words or host in self.hosts or any(address in network for network in self.networks)

    def allow(self, host: str, address: Address) -> bool:
        """Return whether an address of a host may be connected to."""
        return self.are_listed(host, address) or (PUBLIC in self.words and is_public(address))

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """Return a connection to an allowed address of `host`; each attempt ends after `timeout_s`.

        The connection goes to the very address that was checked, without asking a name server again. Raises
        AddressRefused if no address is allowed, OSError if none can be reached.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [(family, address) for family, *_, address in found if self.allow(host, _address(address))]
        if not allowed:
            raise AddressRefused
        for family, address in allowed[:-1]:
            try:
                return self._connect(host, family, address, timeout_s)
            except OSError:
                continue
        return self._connect(host, *allowed[-1], timeout_s)

    def _connect(self, host: str, family: int, address: Any, timeout_s: float) -> socket.socket:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(address)
            # A public address of this machine itself, whose firewall does not check calls from within.
            own, other = _address(connection.getsockname()), _address(connection.getpeername())
            if own == other and not self.are_listed(host, other):
                raise AddressRefused
        except BaseException:
            connection.close()
            raise
        return connection


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public Internet."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or (IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None)
        if inner is not None:
            return is_public(inner)
        if address not in UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)


def from_settings() -> Addresses:
    """Return the list in FILE_ADDRESSES, separated by commas: public, any or none; hosts, addresses or networks.

    Raises SettingError naming any other entry.
    """
    words, hosts, networks = set(), set(), []
    for part in _parts(settings.text("FILE_ADDRESSES") or PUBLIC):
        try:
            networks.append(ip_network(part.strip("[]"), strict=False))
            continue
        except ValueError:
            pass
        if part in (PUBLIC, ANY, NONE):
            words.add(part)
        elif HOST.fullmatch(part) and not re.fullmatch(r"[\d.]+", part):
            hosts.add(part)
        else:
            raise settings.SettingError(
                f"FILE_ADDRESSES: {part[:80]!r} is neither public, any or none, nor a host, an address or a network; "
                "give such, with commas between them, as public,10.1.0.0/16,files.example.org"
            )
    return Addresses(frozenset(words), frozenset(hosts), tuple(networks))


def _parts(value: str) -> Iterator[str]:
    return (part.strip().lower() for part in value.split(",") if part.strip())


def _address(sockaddr: Any) -> Address:
    return ip_address(sockaddr[0].partition("%")[0])  # without the interface of a link-local address
