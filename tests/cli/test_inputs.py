from pathlib import Path

import pytest
from PIL import Image
from small_scenes import add_pair

from semanticgan.cli.inputs import distinct_names, find_inputs
from semanticgan.errors import UserError


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ([("/d/a.jpg", 1)], ["a"]),
        ([("/d/site/a.jpg", 2)], ["site/a"]),
        ([("/d/a.jpg", 1), ("/d/b.jpg", 1)], ["a", "b"]),
        ([("/d/a.jpg", 1), ("/d/a.png", 1)], ["a.jpg", "a.png"]),
        ([("/x/a.jpg", 1), ("/y/a.jpg", 1), ("/y/b.jpg", 1)], ["x/a", "y/a", "b"]),
        ([("/x/images/a.jpg", 1), ("/y/images/a.jpg", 1)], ["x/images/a", "y/images/a"]),
        ([("/d/a.jpg", 1), ("/d/a.png", 1), ("/d/a.jpg.png", 1)], ["d/a", "a.png", "a.jpg.png"]),
        ([("/d/a.JPG", 1), ("/d/A.png", 1)], ["a.JPG", "A.png"]),
        ([("/d/a.jpg", 1), ("/d/A.jpg", 1)], ["a", "A"]),
        ([("/d/scan.001", 1), ("/d/scan.002", 1)], ["scan.001", "scan.002"]),
        ([("/a.jpg", 1), ("/x/a.jpg", 1)], ["a", "x/a"]),
    ],
)
def test_names_keep_results_apart(files, names):
    found = distinct_names([(Path(path), parts) for path, parts in files])
    assert found == names
    assert len(set(found)) == len(files)


def test_folders_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, folder in enumerate(("one", "two/deep")):
        add_pair(Path(folder), "a", k)
        add_pair(Path(folder), "b", k + 10)
    Image.new("L", (4, 4)).save("single.bmp")
    Path("one/notes.txt").write_text("no image")
    found = find_inputs([Path("one"), Path("two"), Path("single.bmp"), Path("one/images/a.png")], Path("out"))
    assert [i.name for i in found.images] == ["images/a", "images/b", "deep/images/a", "deep/images/b", "single"]
    assert not found.problems
    assert not Path("out").exists()


def test_results_of_an_earlier_call_are_no_inputs(tmp_path):
    add_pair(tmp_path, "a", 0)
    add_pair(tmp_path / "out" / "overlays", "a", 0)
    assert [i.name for i in find_inputs([tmp_path], tmp_path / "out").images] == ["images/a"]
    with pytest.raises(UserError, match="no images but those below"):
        find_inputs([tmp_path / "out"], tmp_path / "out")


def test_problems_beside_good_files(tmp_path):
    add_pair(tmp_path, "a", 0)
    (tmp_path / "empty").mkdir()
    found = find_inputs([tmp_path / "images", tmp_path / "empty", tmp_path / "missing.png"], tmp_path / "out")
    assert len(found.images) == 1
    assert sorted(found.problems) == [str(tmp_path / "empty"), str(tmp_path / "missing.png")]


def test_nothing_at_all(tmp_path):
    with pytest.raises(UserError, match=r"missing\.png: no such file or folder"):
        find_inputs([tmp_path / "missing.png"], tmp_path / "out")
