import pytest

from semanticgan.errors import UserError
from semanticgan.files import cache_folder, replacing


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("first half, ")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "file" / "a.txt") as temporary:
        temporary.write_text("")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("SEMANTICGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert cache_folder() == tmp_path / "y/semanticgan"


def test_long_names_in_any_script(tmp_path):
    path = tmp_path / f"{'図' * 78}.png"  # 238 bytes
    with replacing(path) as temporary:
        temporary.write_bytes(b"1")
    assert path.read_bytes() == b"1"
