"""`python -m skerry.hub`: one hub as one process.

Lives here: options, signals, logs, what is printed, the exit code. Must not live here: anything the hub does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import shlex
import signal
import sys
from collections.abc import Sequence

from skerry.api.errors import SkerryError
from skerry.hub import app
from skerry.hub.settings import HubSettings, default_state_dir
from skerry.kit import logs
from skerry.kit.settings import add_options, from_options

log = logging.getLogger("skerry.hub")  # not __name__, which is __main__

_COLLECT_AFTER = (50_000, 20, 10)
"""Containers made before Python looks for cycles among them; its own 700 cost more than reading a large fleet."""
_WANTED_FILES = 65536
"""Descriptors: one per connection; the usual soft limit of 1024 would be the first bound a fleet meets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a hub until SIGTERM or SIGINT. Returns the exit code: 0 ended in order, 1 could not start or failed."""
    parser = argparse.ArgumentParser(prog="skerry hub start", description="Run a Skerry hub in the foreground.")
    add_options(parser, HubSettings)
    settings: HubSettings = from_options(HubSettings, parser.parse_args(argv))
    logs.configure(level=settings.log_level, json_lines=settings.log_format == "json")
    os.umask(0o077)
    gc.set_threshold(*_COLLECT_AFTER)
    _allow_files()
    try:
        asyncio.run(_until_told(settings))
    except SkerryError as error:
        _explain(error)
    except BaseExceptionGroup as group:
        ours, others = group.split(SkerryError)
        if others is not None:
            log.critical("hub.failed", exc_info=others)
        for leaf in _leaves(ours) if ours is not None else ():
            _explain(leaf)
    except KeyboardInterrupt:  # asked twice
        return 130
    except OSError as error:
        _explain(SkerryError(error.strerror or str(error), element=str(error.filename or "system")))
    else:
        return 0
    return 1


async def _until_told(settings: HubSettings) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        log.info("hub.stopping")
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # whoever asks twice means it
        signal.alarm(settings.shutdown_seconds)  # its default action ends the process, whatever hangs
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await app.run_hub(settings, stop=stop, ready=_announce)


def _announce(ready: app.HubReady) -> None:
    usual = ready.state_dir == default_state_dir().absolute()  # where `skerry` looks by itself
    lines = [
        f"{'Set up and started' if ready.first_start else 'Started'} the hub at {ready.url}",
        f"  kubeconfig  {ready.kubeconfig}",
        f"  MQTT        {ready.mqtt_host}:{ready.mqtt_port}",
        "Next, in another terminal:",
        *([] if usual else [f"  export SKERRY_KUBECONFIG={shlex.quote(str(ready.kubeconfig))}"]),
        "  skerry hub token create --ttl 1h --uses 10     a token that lets devices join",
        f"  skerry agent enroll --hub {ready.url} --token ...",
        "  skerry get devices                             or: kubectl --kubeconfig ... get devices",
    ]
    with contextlib.suppress(OSError):  # nobody listens: no reason not to run
        print("\n".join(lines), flush=True)


def _explain(error: SkerryError) -> None:
    print(f"error: {f'{error.element}: ' if error.element else ''}{error.cause}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _leaves(group: BaseExceptionGroup[SkerryError]) -> list[SkerryError]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
