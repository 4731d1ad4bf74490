"""`kvasir serve`: the HTTP server, on this machine unless told otherwise."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import kvasir
from kvasir.api.doors import Welcome, is_loopback
from kvasir.api.keys import Keyring, keys_path
from kvasir.api.measures import Measures
from kvasir.cli.parser import Parser
from kvasir.errors import UsageError
from kvasir.runner.spawn import Started
from kvasir.settings import GRACE_S, MAX_REQUESTS, Address, Settings, parse_address

LISTENING = "0A"  # a state in /proc/net/tcp


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command until a signal ends it.  Raises UsageError when it cannot listen."""
    values = options().read(words)
    memory = 1.0 if values.memory is None else values.memory
    if not 0 < memory <= 1e6 or values.queue < 1 or not 0 <= values.grace <= 1e6:
        raise UsageError("--memory, --max-queue and --grace take positive numbers")
    address = parse_address(values.host) if values.host else settings.host
    if values.port is not None:
        if not 0 <= values.port < 65536:
            raise UsageError(f"--port {values.port} must be between 0 and 65535")
        address = Address(address.host, values.port)
    hosts = tuple(name.lower().rstrip(".") for name in values.allow_host)
    welcome = Welcome(hosts, tuple(values.allow_origin))
    keyring = None if values.no_keys else Keyring(keys_path(), always=not is_loopback(address.host))
    if keyring and keyring.always and not keyring.keys:
        raise UsageError(
            f"{address} can be reached by others and there are no API keys: anyone could use your models",
            hint="`kvasir keys add NAME` makes one; --no-keys serves all who come",
        )
    names = None
    if values.alias or values.adapter:
        from kvasir.cli.served import served  # noqa: PLC0415  numpy, only where it is needed

        names = served(values.alias, values.adapter)
    if values.adapters_from and not Path(values.adapters_from).is_dir():
        raise UsageError(f"--adapters-from {values.adapters_from[:60]!r} is no folder")
    listener = listen(address)
    # The server ends its answers first and then lets the signal through to us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    spare = Started("the first model")  # it imports what a model needs while we import what a server needs
    bound = Address(address.host, listener.getsockname()[1])
    print(f"Kvasir {kvasir.__version__} listens on http://{bound}", file=sys.stderr, flush=True)
    if told := admission(address, keyring):
        print(f"kvasir: {told}", file=sys.stderr, flush=True)
    from kvasir.cli.serving import Open, run  # noqa: PLC0415  clients may already knock

    def open_house(measures: Measures) -> Open:
        from kvasir.cli.opening import Opened  # noqa: PLC0415  half a second, in which the server answers
        from kvasir.cli.served import Served  # noqa: PLC0415

        return Opened(bound, names or Served(), values, settings, spare, keyring, welcome, measures)

    run(listener, bound, welcome, settings.debug > 0, values.grace, open_house)
    return 0


def options() -> Parser:
    """What the command takes."""
    it = Parser(
        "serve", "Answer over HTTP: Ollama's /api/generate, /api/chat, /api/tags, /api/version and more."
    )
    it.add_argument("--host", help="address to listen on, HOST or HOST:PORT; default 127.0.0.1")
    it.add_argument("--port", type=int, help="port; default 11434")
    it.add_argument(
        "--no-keys",
        action="store_true",
        help="ask nobody for an API key, on any address; see `kvasir keys`",
    )
    it.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name that requests may come under, as behind a reverse proxy",
    )  # fmt: skip
    it.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="a web page that may call, https://example.com; '*' for any",
    )  # fmt: skip
    it.add_argument(
        "--debug-state",
        action="store_true",
        help="serve /kvasir/debug/state to this machine: blocks, queues, open files; for tests",
    )
    it.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="serve MODEL (a path too) as NAME; '*' for any",
    )
    it.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="MODEL:NAME=PATH",
        help="a LoRA adapter of MODEL, asked for as MODEL:NAME; may be repeated",
    )
    it.add_argument(
        "--adapters-from",
        metavar="FOLDER",
        help="clients may load adapters that lie there: /v1/load_lora_adapter",
    )
    it.add_argument(
        "--memory", type=float, metavar="GB", help="for all models together; default 85 %% of the machine's"
    )
    it.add_argument(
        "--max-queue", "--queue", dest="queue", type=int, default=MAX_REQUESTS, metavar="N",
        help=f"requests under way and waiting, more are refused; default {MAX_REQUESTS}",
    )  # fmt: skip
    it.add_argument(
        "--grace", type=float, default=GRACE_S, metavar="SECONDS",
        help=f"for answers under way when the server is told to stop; default {GRACE_S:.0f}",
    )  # fmt: skip
    return it


def admission(address: Address, keyring: Keyring | None) -> str:
    """Who may use the server, in words; nothing where it is as everybody expects."""
    if keyring and keyring.needed:
        n = len(keyring.keys)
        return f"every request needs one of {n} API keys" if n > 1 else "every request needs the API key"
    if is_loopback(address.host):
        return ""
    return f"--no-keys: WHOEVER REACHES {address} MAY USE THE MODELS"


def listen(address: Address) -> socket.socket:
    """A socket that listens.  Raises UsageError that names who holds the port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno not in (98, 48, 10048):  # address in use, on Linux, macOS, Windows
            raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from None
        who = holder(address.port)
        text = f"port {address.port} is taken" + (f" by {who}" if who else "")
        raise UsageError(text, hint=f"choose another with --port {_other(address.port)}") from None
    listener.set_inheritable(False)
    return listener


def holder(port: int, proc: Path = Path("/proc")) -> str:
    """The program that listens on a port, "ollama (pid 123)"; empty where the system does not tell."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == LISTENING and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in proc.glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                name = Path(words[0].decode("utf-8", "replace")).name or (folder / "comm").read_text().strip()
                script = next(
                    (w for w in words[1:2] if name.startswith("python") and not w.startswith(b"-")), b""
                )
                name = Path(script.decode("utf-8", "replace")).name or name
                return f"{name} (pid {folder.name})"
        except OSError:
            continue  # another user's process, or one that has just ended
    return ""


def _other(port: int) -> int:
    return port + 1 if port < 65535 else 11435
