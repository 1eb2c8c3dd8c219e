"""The built book, served on this machine, in a real browser; `make book` builds it. Fixtures for tests of the book."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from d3d.study.records import ROOT

HTML = ROOT / "book" / "_build" / "html"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Prints no line per request."""


def pages() -> list[str]:
    """Every page of the built book, by its path without `.html`."""
    paths = [path for path in HTML.rglob("*.html") if "_static" not in path.relative_to(HTML).parts]
    return sorted(path.relative_to(HTML).with_suffix("").as_posix() for path in paths)


def page_path(name: str) -> Path:
    """The file of a page."""
    return HTML / f"{name}.html"


@pytest.fixture(scope="module")
def browser():
    """Chromium; skips where it or the book is missing, unless in CI."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    missing = [name for name, exists in {"the built book": HTML.is_dir(), "Chromium": executable}.items() if not exists]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{' and '.join(missing)} missing")
    assert not missing
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address():
    """The address at which the book is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, address):
    """Opens a page of the book at a width in pixels; returns it, the URLs it requested, and its errors.

    Further arguments are those of a browser's context, such as color_scheme="dark".
    """
    contexts = []

    def visit_(name, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page, requests, errors = context.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: errors.append(f"{request.url} {request.failure}"))
        page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        path, _, query = name.partition("?")
        page.goto(f"{address}/{path}.html{'?' if query else ''}{query}")
        page.wait_for_load_state("networkidle")
        return page, requests, errors

    yield visit_
    for context in contexts:
        context.close()
