"""The addresses behind a host name, looked up once and checked before anything connects to them.

A URL comes from a stranger, and this machine can reach what strangers cannot: its own services, the
cloud's metadata service, the network around it. So every address of the host must be public, and the
connection goes to an address that was checked, not to the name, which may mean another one by then.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from staging.vocabulary.errors import StoreUnavailable, UsageError

Resolve = Callable[[str, int], Sequence[str]]
"""Turns a host and a port into addresses; raises OSError."""

_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""IPv4 addresses as hosts without IPv4 see them (NAT64): the last 32 bits are the address."""


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host by this machine's resolver, without duplicates. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def checked_addresses(
    host: str, port: int, *, resolve: Resolve, allow_private: bool
) -> tuple[str, ...]:
    """The addresses of a host, if all of them may be connected to.

    Raises UsageError when one of them is not public, unless `allow_private`; StoreUnavailable when the
    name cannot be looked up.
    """
    try:
        addresses = tuple(resolve(host, port))
    except (OSError, UnicodeError) as error:
        addresses, reason = (), getattr(error, "strerror", None) or "the name is not valid"
    else:
        reason = "the name has no address"
    if not addresses:
        raise StoreUnavailable(
            f"cannot look up the host {host}: {reason}",
            reference="connection",
            hint="check the URL's host, the network and the name server, then run again",
            side="source",
        )
    refused = [] if allow_private else [text for text in addresses if not is_public(text)]
    if refused:
        raise UsageError(
            f"the host {host} has the address {refused[0]}, which is not a public one",
            reference="url-address",
            hint="if this is a server of your own network, give --allow-private-address",
        )
    return addresses


_SPECIAL: Final = (ip_network("192.0.0.0/24"), ip_network("168.63.129.16/32"))
"""Where some clouds have the services of their machines, in ranges that count as public."""


def may_name(host: str) -> bool:
    """False for a host that is no public one by its very name, which a proxy would not be asked about."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost"):
        return False
    try:
        return is_public(host.strip("[]"))
    except ValueError:
        return True  # a name: whoever looks it up has to look at its addresses


def is_public(text: str) -> bool:
    """True for an address of the public internet, also for the IPv4 address inside an IPv6 one."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            address = inner
        elif address.is_site_local:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
    )


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
