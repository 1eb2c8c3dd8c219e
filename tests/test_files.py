"""Files: messages about them, and folders that cannot be used."""

import pytest

from d3d.files import check_folder, check_writable, one_line, write_atomic


def test_a_message_is_one_printable_line_of_bounded_length():
    assert one_line("a sentence, as it is: é") == "a sentence, as it is: é"
    assert one_line("a\nb\x1b[31m\t") == "a\\nb\\x1b[31m\\t"
    line = one_line(ValueError(f"begins {'x' * 2**20} ends"))
    assert len(line) < 610
    assert line.startswith("begins xx")
    assert line.endswith("xx ends")


def test_a_missing_folder_a_folder_and_a_link_to_one_can_be_used(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "new/er", tmp_path / "link", tmp_path / "link/new"):
        check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("below", [".", "a", "a/b"])
def test_a_file_or_a_broken_link_in_place_of_a_folder_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, kind in {"file": "a file", "link": "a link to nothing"}.items():
        path = tmp_path / name / below
        with pytest.raises(NotADirectoryError, match=f"/{name} is {kind}, but it must be a folder"):
            check_folder(path)
        with pytest.raises(OSError, match=f"results cannot be written to .*/{name} is {kind}"):
            check_writable(path)
        with pytest.raises(OSError, match="x could not be written and any previous file is untouched"):
            write_atomic({path / "x": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
