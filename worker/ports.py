"""Addresses that the service listens on."""

import ipaddress
import socket

from mezzotint.worker.errors import ServiceError


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach `host`, which is a name or an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def http_address(host: str, port: int) -> str:
    """What a browser on this machine opens for a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int, *, option: str = "--port") -> None:
    """Raises ServiceError with one sentence when a server could not listen there; `option` names another port."""
    listen(host, port, option=option).close()


def listen(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """A bound socket. Raises ServiceError as `check_port` does."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise ServiceError(f"host {host} is not known; --host takes this machine's address.") from None
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ServiceError(
            f"port {port} on {host} cannot be used ({error.strerror}); stop the program that has "
            f"it, or give another {option}."
        ) from None
    return bound
