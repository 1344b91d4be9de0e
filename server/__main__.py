"""`duologue-server`, also `python -m server`: configuration, logging, signals, and the pieces put together."""

import asyncio
import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from server.config import ServerConfig, load_config
from server.errors import ConfigError, TokenError
from server.logs import LogThread

if TYPE_CHECKING:
    from server.tls import Tls

log = logging.getLogger("server")

_CEILING = {"cpu": 64, "cuda": 32}
"""The most slots that `auto` gives. One of a 7 B model with 3,000 frames of context takes 1.6 GB of a GPU's memory."""
_INT8_CEILING = 64
"""With int8 keys and values it takes 0.8 GB."""


def main() -> None:
    """Run the server. Exits with 0 after a drain, 1 when the model or the port failed, 2 for a bad setting."""
    try:
        config = load_config(sys.argv[1:])
        _check_doors(config)
    except (ConfigError, TokenError) as problem:
        sys.exit(_complain(str(problem), 2))
    lines = LogThread()
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[lines]
    )
    try:
        well = asyncio.run(_serve(config, lines))
    except OSError as problem:
        sys.exit(_complain(f"cannot listen on {config.host}:{config.port}: {problem.strerror}", 1))
    sys.exit(0 if well else 1)


def _check_doors(config: ServerConfig) -> None:
    """Find what is wrong with who may enter before torch is loaded, which takes seconds."""
    from server.addresses import Addresses  # noqa: PLC0415 - not for a mistake in a flag
    from server.auth import Auth  # noqa: PLC0415
    from server.origins import Origins  # noqa: PLC0415
    from server.secret import ServerSecret  # noqa: PLC0415
    from server.tls import open_tls  # noqa: PLC0415

    auth = Auth(config, ServerSecret(config.data_dir))
    Addresses(config.trusted_proxies)
    Origins(config.allow_origin, only_here=auth.open_house)
    open_tls(config)


async def _serve(config: ServerConfig, lines: LogThread) -> bool:
    from server.app import Server  # noqa: PLC0415 - torch takes seconds, and a bad setting should not
    from server.engine import Engine  # noqa: PLC0415

    def load(slots: int) -> Engine:
        _leave_a_core()
        return load_base(config.checkpoint, slots)

    def load_base(checkpoint: str, slots: int) -> Engine:
        return Engine.load(
            checkpoint,
            slots=slots,
            device=config.device,
            max_adapters=config.max_adapters,
            cache_dtype=config.cache_dtype,
        )

    server = Server(config, load, load_base=load_base, ceiling=_ceiling(config))
    lines.on_dropped = server.metrics.log_dropped.inc
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(server.end))
    if hasattr(signal, "SIGHUP"):
        reload = functools.partial(loop.run_in_executor, None, server.reload)
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(reload))
    return await server.run(on_listening=functools.partial(_announce, server.tls))


def _ceiling(config: ServerConfig) -> int:
    import torch  # noqa: PLC0415

    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    if on_gpu and config.cache_dtype == "int8":
        return _INT8_CEILING
    return _CEILING["cuda" if on_gpu else "cpu"]


def _leave_a_core() -> None:
    """Let the tick compute on all cores but one: the event loop and Opus need theirs.

    With as many threads as cores, a step whose threads meet other work waits at every barrier: measured on two
    cores, eight rows, a busy neighbour: median 24 ms and 95th percentile 453 ms, against 28 and 30 ms with one
    thread. OMP_NUM_THREADS, where set, decides instead.
    """
    import torch  # noqa: PLC0415

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() - 1))


def _cores() -> int:
    """Cores this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _announce(tls: "Tls | None", host: str, port: int) -> None:
    name = f"[{host}]" if ":" in host else host
    log.info("listening on %s://%s:%d, loading the model", "https" if tls else "http", name, port)
    if tls is not None:
        log.info("certificate %s, SHA-256 fingerprint %s", tls.cert, tls.fingerprint)


def _complain(sentence: str, status: int) -> int:
    print(f"duologue-server: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
