"""Serving the page: on this machine alone, without analytics, and with nothing fetched from elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segue.app.context import Context
from segue.app.folders import Folders
from segue.app.jobs import Jobs
from segue.app.models import Models
from segue.app.sessions import Sessions
from segue.devices import device_of
from segue.types import UserError, first_line, import_extra

HOST = "127.0.0.1"
# What a browser may load for this page: what this server sends. Fonts and scripts of other hosts are not asked for.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


def serve(
    folders: Sequence[Path],
    *,
    port: int = 7860,
    share: bool = False,
    upload_mb: int = 200,
    device: str = "auto",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGINT or SIGTERM; trainings that it started then save and end.

    Args:
        folders: what the page may use.
        share: also under a public address of Gradio's servers.
        upload_mb: largest upload.
        ready: called with the address.

    Raises:
        UserError: Gradio is not installed, the port is taken, or a folder is none.
    """
    allowed = Folders.of(folders)
    place = device_of(device)
    _refuse_taken(port)
    with tempfile.TemporaryDirectory(prefix="segue-app-", ignore_cleanup_errors=True) as temporary:
        base = Path(temporary)
        _quiet(base / "gradio")
        import_extra("gradio", "app")
        (base / "sessions").mkdir()
        context = Context(allowed, Sessions(base / "sessions"), Models(place), Jobs())
        page, address = _launch(context, port, share, upload_mb)
        ready(address)
        try:
            _wait()
        finally:
            if context.jobs.running:
                print("saving the runs that are being trained ...", file=sys.stderr)
            context.jobs.close()
            page.close(verbose=False)
            context.sessions.close()


def _launch(context: Context, port: int, share: bool, upload_mb: int) -> tuple[Any, str]:
    """The page, served from a thread of its own, and its address."""
    from segue.app.page import CSS, build_page, theme

    page = build_page(context, upload_mb)
    try:
        _, address, shared = page.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            theme=theme(),
            css=CSS,
            max_file_size=f"{upload_mb}mb",
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            app_kwargs={"middleware": _middleware()},
        )
    except OSError as error:
        raise UserError(f"--port {port}: cannot be served ({first_line(error)}); hint: another --port") from error
    if share and not shared:
        page.close(verbose=False)
        raise UserError("--share: no public address could be had; hint: leave --share away, the page is then local")
    return page, shared or address


class _Policy:
    """Adds a Content-Security-Policy to every answer (ASGI)."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)


def _middleware() -> list:
    middleware = import_extra("starlette.middleware", "app").Middleware
    return [middleware(_Policy)]


def _quiet(temporary: Path) -> None:
    """Set what Gradio reads when it is imported: no analytics, no look for newer versions, our own folder."""
    os.environ.update({
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(temporary),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_NUM_PORTS": "1",  # the port that was asked for, or none
    })  # fmt: skip


def _refuse_taken(port: int) -> None:
    """
    Raises:
        UserError: the port is taken, or may not be used.
    """
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: ends of old ones pass
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            with socket.socket() as other:
                other.bind((HOST, 0))
                free = other.getsockname()[1]
            raise UserError(f"--port {port}: taken or not allowed ({error}); hint: --port {free} is free") from error


def _wait() -> None:
    """Until SIGINT or SIGTERM."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # With a time limit: Windows takes no signal while it waits without one.
        while not ended.wait(0.5):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
