"""Who may speak to the server: Host and Origin, against DNS rebinding and foreign web pages."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from kvasir.errors import UsageError

OPEN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
LOCAL_NAMES = ("localhost", "127.0.0.1", "0.0.0.0")
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class Welcome:
    """Names of hosts and origins of pages that pass beside those that always do; an origin "*" is any."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for host in self.hosts:
            if _host_of(host) != host:
                raise UsageError(f"{host[:60]!r} is not the name of a host", hint="write it without port")
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/]+", origin):
                raise UsageError(f"{origin[:60]!r} is not an origin", hint="write https://example.com")


def host_allowed(header: str, own: str = "", welcome: Collection[str] = ()) -> bool:
    """May a request with this Host header be served?

    A page on a foreign name that was rebound to this machine sends that name; so names are refused but for
    local ones and this machine's own.  Addresses pass when they are private, loopback, unspecified, or the
    one that the server listens on (`own`).  So do names that are `welcome`.
    """
    host = _host_of(header).lower().rstrip(".")
    if not host:
        return header == ""
    if host in welcome:
        return True
    if (address := _address(host)) is not None:
        return address.is_loopback or address.is_private or address.is_unspecified or host == own.lower()
    return host == "localhost" or host == socket.gethostname().lower() or host.endswith(LOCAL_SUFFIXES)


def origin_allowed(origin: str, host: str, welcome: Collection[str] = ()) -> bool:
    """May a web page of this origin call the server?  Ollama's default origins, the same host's pages, and
    those that are `welcome`.
    """
    if re.search(r"[\s\x00-\x1f\x7f]", origin):
        return False
    if origin in welcome or "*" in welcome:
        return True
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme in OPEN_SCHEMES and "://" in origin:
        return True
    if parts.scheme not in ("http", "https"):
        return False
    return name in LOCAL_NAMES or parts.netloc.lower() == host.lower() != ""


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets; empty when it is no host."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?", header, re.ASCII)
    return (found[1] or found[2]) if found else ""


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
