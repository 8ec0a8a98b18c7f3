"""What a participant's link begins with: an address by which others reach this machine."""

import contextlib
import ipaddress
import re
import socket

from metalora.core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = {"": (socket.AF_INET,), "0.0.0.0": (socket.AF_INET,), "::": (socket.AF_INET6, socket.AF_INET)}
"""Hosts that mean every address of the machine, which none of them is."""
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Nobody has these addresses (RFC 5737, RFC 3849); only the way to them is asked for."""


def links_begin(host: str, *, port: int, address: str | None) -> str:
    """http://ADDRESS:PORT, without a slash at the end.

    Args:
        host: where the server listens.
        port: on which port.
        address: by what others reach it: a name, an IP address, or a whole address of a proxy's (https://...).

    Raises:
        UserError: `address` is none of these, or there is none and this machine does not know its own.
    """
    if address and re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", address):
        return address.rstrip("/")
    if address and not (_is_ipv6(address) or re.fullmatch(r"[^\s:/?#@\[\]]+", address)):
        raise UserError(
            "no address that a link could begin with",
            expected="a name, an IP address, or all of it: https://study.example.org",
            got=address,
            key="address",
        )
    name = address or (_own_address(*_EVERYWHERE[host]) if host in _EVERYWHERE else host)
    return f"http://{f'[{name}]' if _is_ipv6(name) else name}:{port}"


def _own_address(*families: socket.AddressFamily) -> str:
    """The address this machine would send from; a datagram socket that is connected sends nothing."""
    for family in families:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((_ELSEWHERE[family], 9))
            found = way.getsockname()[0]
            if not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
                return found
    raise UserError(
        "this machine does not know by which address others reach it",
        expected="its name or IP address in their network",
        got="no way out of it",
        key="address",
    )


def _is_ipv6(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).version == 6
    except ValueError:
        return False
