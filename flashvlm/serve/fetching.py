"""A video from the web: from a named host at a public address, without redirects, of bounded size."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from flashvlm.serve.refusals import TOO_LARGE, Refused, bad

CHUNK = 2**16
# Seconds without a byte, after which a host is given up.
SILENCE = 20.0
PORTS = {"http": 80, "https": 443}


def fetch(
    address: str,
    hosts: Collection[str],
    limit: int,
    write: Callable[[bytes], Any],
    deadline: float,
) -> None:
    """Read a web address and pass on its bytes.

    Args:
        hosts: the names that may be asked, with a port if it is another than the scheme's own.
        limit: the most bytes.
        deadline: when to give up, on the clock of `time.monotonic`.

    Raises:
        Refused: the host is none of them, its address is not public, or it does not send what is asked for.
    """
    scheme, host, port, path = _parted(address)
    if host not in hosts and f"{host}:{port}" not in hosts:
        raise Refused(HTTPStatus.FORBIDDEN, f"Videos are not fetched from {host}.", code="host_not_allowed")
    if host in hosts and port != PORTS[scheme] and f"{host}:{port}" not in hosts:
        raise Refused(HTTPStatus.FORBIDDEN, f"Videos are not fetched from port {port}.", code="host_not_allowed")
    connection: http.client.HTTPConnection | None = None
    try:
        connection = _connected(scheme, host, port)
        connection.request("GET", path, headers={"User-Agent": "flashvlm", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            told = "a redirect, which is not followed" if 300 <= response.status < 400 else f"status {response.status}"
            raise bad(f"{host} answered with {told}.", code="not_fetched")
        size = 0
        while chunk := response.read1(CHUNK):
            size += len(chunk)
            if size > limit:
                raise Refused(TOO_LARGE, f"The video is larger than {limit} bytes.")
            if time.monotonic() > deadline:
                raise bad(f"{host} was too slow.", code="not_fetched")
            write(chunk)
    except (OSError, http.client.HTTPException):
        # What exactly went wrong would tell how the network behind the server looks.
        raise bad(f"The video could not be fetched from {host}.", code="not_fetched") from None
    finally:
        if connection is not None:
            connection.close()


def _parted(address: str) -> tuple[str, str, int, str]:
    """The scheme, host, port and path of a web address."""
    try:
        parts = urlsplit(address)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise bad("This address makes no sense.") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if scheme not in PORTS or not host or parts.username is not None or not (path.isascii() and path.isprintable()):
        raise bad("This address makes no sense.")
    if " " in path:
        raise bad("A space in an address is written as %20.")
    return scheme, host, port or PORTS[scheme], path


def _connected(scheme: str, host: str, port: int) -> http.client.HTTPConnection:
    """A connection to the host, at the very address that was found public: asked again, a name may lead elsewhere."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not found or not all(public(str(address[0])) for *_, address in found):
        raise Refused(HTTPStatus.FORBIDDEN, f"{host} is not at a public address.", code="host_not_allowed")
    error: OSError | None = None
    for family, kind, protocol, _, address in found:
        plain = socket.socket(family, kind, protocol)
        plain.settimeout(SILENCE)
        try:
            plain.connect(address)
            wrapped = plain
            if scheme == "https":
                wrapped = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except OSError as failed:
            plain.close()
            error = failed
            continue
        made = http.client.HTTPConnection(host, port, timeout=SILENCE)
        made.default_port = PORTS[scheme]
        made.sock = wrapped
        return made
    raise error or OSError("no address")


def public(address: str) -> bool:
    """Whether an IP address is one of the internet's, and not of this machine or its networks."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address in IPv6's clothes; 6to4 and Teredo carry one, too.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is not None:
            return public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast
