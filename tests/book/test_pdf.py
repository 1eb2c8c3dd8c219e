"""The book as one PDF."""

import re
import subprocess
import sys

import pytest

from d3d.report.pdf import LEFT_OUT, print_book
from tests.book.conftest import HTML, pages

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("browser")
def test_the_book_is_printed(tmp_path):
    out = tmp_path / "book.pdf"
    # In a process of its own: a process drives one browser.
    code = f"from d3d.report.pdf import *; print(print_book(Path({str(HTML)!r}), Path({str(out)!r})))"
    printed = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    left_out = (*LEFT_OUT, "_modules", "py-modindex")
    assert printed == len([name for name in pages() if not name.startswith(left_out)])
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Outlines" in content
    (count,) = {max(map(int, re.findall(rb"/Type /Pages\s*/Count (\d+)", content)))}
    assert count >= printed


def test_without_a_book_nothing_is_printed(tmp_path):
    with pytest.raises(FileNotFoundError):
        print_book(tmp_path, tmp_path / "book.pdf")
    assert not list(tmp_path.iterdir())
