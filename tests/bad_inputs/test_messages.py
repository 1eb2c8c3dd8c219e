"""Messages about files are one printable line; files are written whole or not at all."""

import pytest

from d3d.files import write_atomic
from d3d.messages import one_line, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("плавание.mp4", "плавание.mp4"),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("\u202egpj", r"\u202egpj"),
        ("\udcff.mp4", r"\xff.mp4"),  # a byte of a name that is no UTF-8
        ("\ud800", r"\ud800"),  # from JSON or YAML
    ],
)
def test_what_cannot_be_printed_is_escaped(text, expected):
    assert printable(text) == one_line(text) == expected


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = one_line("the file " + "x" * 5000 + " is damaged", longest=100)
    assert len(line) <= 103
    assert line.startswith("the file xx")
    assert line.endswith("xx is damaged")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a could not be written and any previous file is untouched: File exists"):
        write_atomic({tmp_path / "file" / "a": b""})
