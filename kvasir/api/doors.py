"""Who may speak to the server: Host and Origin, against DNS rebinding and foreign web pages."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

OPEN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
LOCAL_NAMES = ("localhost", "127.0.0.1", "0.0.0.0")
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def host_allowed(header: str, own: str = "") -> bool:
    """May a request with this Host header be served?

    A page on a foreign name that was rebound to this machine sends that name; so names are refused but for
    local ones and this machine's own.  Addresses pass when they are private, loopback, unspecified, or the
    one that the server listens on (`own`).
    """
    host = _host_of(header).lower().rstrip(".")
    if not host:
        return header == ""
    if (address := _address(host)) is not None:
        return address.is_loopback or address.is_private or address.is_unspecified or host == own.lower()
    return host == "localhost" or host == socket.gethostname().lower() or host.endswith(LOCAL_SUFFIXES)


def origin_allowed(origin: str, host: str) -> bool:
    """May a web page of this origin call the server?  Ollama's default origins, and the same host's pages."""
    if re.search(r"[\s\x00-\x1f\x7f]", origin):
        return False
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
