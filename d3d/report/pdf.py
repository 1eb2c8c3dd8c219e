"""The whole book as one PDF, printed by Chromium from the built pages.

python -m d3d.report.pdf        after `make book`; writes book/_build/d3d-reproduced.pdf
"""

import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HTML, PDF = Path("book/_build/html"), Path("book/_build/d3d-reproduced.pdf")
# Training logs and what one looks up are for the screen.
LEFT_OUT = ("executed", "genindex", "search", "generated/api", "generated/parameters", "generated/status")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# The pages in the order of the list beside them.
LIST_PAGES = """() => [...new Set([...document.querySelectorAll("nav.bd-links a.internal")]
    .map(a => a.href.split("#")[0]).filter(url => url.endsWith(".html")))]"""
# The article of a page, with anchors that are unique in the book, and links and films made fit for paper.
TAKE_ARTICLE = """async (home) => {
    const named = (url) => { const [path, anchor] = url.slice(home.length).split("#");
        return path.replace(/\\.html$/, "").replaceAll("/", "-") + (anchor ? "--" + anchor : ""); };
    const article = document.querySelector("article");
    for (const video of article.querySelectorAll("video")) {
        video.preload = "auto"; video.load();
        await new Promise(done => { video.onloadeddata = done; setTimeout(done, 5000); });
        video.currentTime = video.duration / 2;
        await new Promise(done => { video.onseeked = done; setTimeout(done, 1000); });
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        canvas.getContext("2d").drawImage(video, 0, 0);
        const still = document.createElement("img");
        still.src = canvas.toDataURL("image/jpeg", 0.9);
        video.replaceWith(still);
    }
    article.querySelectorAll(".headerlink, .film-button, details.hide, script, button").forEach(e => e.remove());
    article.querySelectorAll("details").forEach(e => e.open = true);
    article.querySelectorAll("img").forEach(e => { e.src = e.src; e.loading = "eager"; });
    const here = location.href.split("#")[0];
    article.querySelectorAll("[id]").forEach(e => e.id = named(here + "#" + e.id));
    article.querySelectorAll("a[href]").forEach(a => { if (a.href.startsWith(home)) a.href = "#" + named(a.href); });
    const styles = document.querySelector("style#MJX-CHTML-styles");
    return [`<article class="bd-article" id="${named(here)}">${article.innerHTML}</article>`,
            styles ? styles.outerHTML : ""];
}"""
SHOW = """([articles, styles]) => {
    document.body.innerHTML = styles + articles;
    document.documentElement.dataset.theme = "light";
}"""
STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm; }
body { font-size: 10pt; background: white; padding: 0; }
article { max-width: none; padding: 0 !important; break-before: page; }
article:first-of-type { break-before: auto; }
h1, h2, h3, h4 { break-after: avoid; }
figure, img, tr, .admonition { break-inside: avoid; }
img { max-height: 200mm; max-width: 100%; object-fit: contain; }
table { font-size: 8pt; width: 100%; }
td, th, code { overflow-wrap: break-word; }
figcaption { font-weight: normal !important; color: black !important; }
h2 { margin-top: 1.2em; }
.pst-scrollable-table-container, .output, .output-box, .cell_output, pre { overflow: visible !important; }
pre { white-space: pre-wrap !important; font-size: 8pt; }
"""
FOOTER = (
    '<div style="font-size:8px;width:100%;text-align:center;color:#555">D3D, reproduced? · '
    '<span class="pageNumber"></span> / <span class="totalPages"></span></div>'
)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Prints no line per request."""


def print_book(html: Path = HTML, out: Path = PDF) -> int:
    """Prints the built book.

    Args:
        html: folder of the built pages.
        out: the file to write.

    Returns:
        The number of pages of the site that it has.

    Raises:
        FileNotFoundError: there is no built book, or no Chromium.
    """
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        raise FileNotFoundError("Chromium is needed to print the book: on Debian and Ubuntu, apt install chromium")
    if not (html / "index.html").is_file():
        raise FileNotFoundError(f"no built book in {html}: run make book first")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
            page = browser.new_page(viewport={"width": 1000, "height": 1400}, reduced_motion="reduce")
            page.goto(f"{home}index.html")
            urls = [f"{home}index.html", *page.evaluate(LIST_PAGES)]
            urls = [url for url in dict.fromkeys(urls) if not url.removeprefix(home).startswith(LEFT_OUT)]
            articles, styles = [], []
            for url in urls:
                page.goto(url)
                page.wait_for_load_state("networkidle")
                article, style = page.evaluate(TAKE_ARTICLE, home)
                articles.append(article)
                styles.append(style)
            page.goto(f"{home}index.html")
            page.evaluate(SHOW, ["".join(articles), "".join(dict.fromkeys(styles))])
            page.add_style_tag(content=STYLE)
            page.wait_for_load_state("networkidle")
            page.wait_for_function("[...document.images].every(i => i.complete)")
            page.pdf(
                path=str(out), prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
                display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
            )  # fmt: skip
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    return len(urls)


if __name__ == "__main__":
    try:
        count = print_book()
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(f"{count} pages of the book: {PDF}")
