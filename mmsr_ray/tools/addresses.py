"""Which addresses of the open web may be reached: public ones, and the private ones that the user listed.

Promise: `allows` is true only for globally routable unicast addresses and for members of a listed network, however the
address is written. Pure: nothing here resolves a name. Names are judged by the addresses they are connected to (http.py),
so that a name which changes its address between two look-ups gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from yarl import URL

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PRIVATE_NAME = re.compile(r"(^|\.)(localhost|local|internal|intranet|lan|home\.arpa)$")
_WEB_PORTS = (80, 443)
_UNICAST6 = ipaddress.IPv6Network("2000::/3")  # all global unicast; mapped, NAT64, unique and link-local addresses lie outside
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo, ORCHID and other protocol assignments
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)


@dataclass(frozen=True, slots=True)
class Reach:
    """What pages and pictures may lie on, beyond public addresses. Build it with `parse`."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, listed: Iterable[str]) -> Self:
        """From host names, addresses and networks. Raises ValueError, naming the entry and the remedy."""
        names: set[str] = set()
        networks: list[Network] = []
        for entry in listed:
            text = entry.strip().lower().strip("[]").rstrip(".")
            network = _network(text)
            if network is not None:
                networks.append(network)
            elif _NAME.fullmatch(text) and not _numeric(text):
                names.add(text)
            else:
                raise ValueError(f"{entry!r} is neither a host name, an address nor a network: write it without scheme, port or *")
        return cls(frozenset(names), tuple(networks))

    def allows(self, address: str) -> bool:
        """Whether a connection to this address is permitted."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return _public(found) or any(found.version == network.version and found in network for network in self.networks)

    def lists(self, url: URL) -> bool:
        """Whether the host of `url` is a listed name: its addresses are the user's affair."""
        return _host(url) in self.names

    def refusal(self, url: URL) -> str:
        """Why `url` must not be asked for, judged by what it says; "" when that depends on its name's address alone."""
        if not url.is_absolute() or url.scheme not in ("http", "https"):
            return "only http and https are read"
        host = _host(url)
        if not host:
            return "no host"
        if url.raw_user is not None or url.raw_password is not None:
            return "an address with a user name or a password"
        if self.lists(url):
            return ""
        address = _literal(host)
        if address is None and _numeric(host):
            return "a number in place of a host"
        if address is None and ("." not in host or _PRIVATE_NAME.search(host)):
            return "a private host"
        if address is not None and not self.allows(host):
            return "a private address"
        if url.port is not None and url.port < 1024 and url.port not in _WEB_PORTS and not (address and not _public(address)):
            return "a port of another protocol"
        return ""


def _public(address: Address) -> bool:
    if address.version == 6 and address not in _UNICAST6:
        return False
    special = any(address.version == network.version and address in network for network in _NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not special


def _host(url: URL) -> str:
    return (url.raw_host or "").lower().rstrip(".")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _numeric(host: str) -> bool:
    """127.1, 0x7f.1, 2130706433: not an address by today's rules, yet the resolver of the system takes it for one."""
    try:
        socket.inet_aton(host)
    except (OSError, ValueError):
        return False
    return True
