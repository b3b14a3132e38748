import subprocess
import sys

import pytest
from drawn import content, same, write_data
from PIL import Image

from semanticgan.cli import convert as command
from semanticgan.cli.main import run
from semanticgan.formats import READABLE, WRITABLE


def test_help_names_every_format():
    assert ", ".join(READABLE) == command.FORMATS
    assert set(command.TARGETS.split(", ")) == set(WRITABLE)


def test_relative_paths_and_what_is_said(tmp_path, monkeypatch, capsys):
    """Also a folder as `sample` writes it, with a sheet of pictures beside the images."""
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "drawn", unlabeled=0)
    Image.new("RGB", (50, 50)).save(data / "grid.png")
    assert run(["convert", "drawn", "--to", "nnunet", "--out", "deep/Dataset101_Cells"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "drawn: data, 3 images, 3 of them with label maps; classes: background, cell, vessel",
        "left out, since not in a folder called images: 1, such as sheets of pictures",
        "deep/Dataset101_Cells: written as nnunet",
    ]
    assert run(["convert", "deep/Dataset101_Cells", "--out", "back", "--from", "nnunet"]) == 0
    same(content(data), content(tmp_path / "back"))


def test_out_may_be_a_link_to_an_empty_folder(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "empty")
    assert run(["convert", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").is_symlink()
    same(content(tmp_path / "data"), content(tmp_path / "disk" / "empty"))
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "data"], "expected a new or empty one"),
        (["--out", "x", "--to", "png"], "--to png: no such format"),
        (["--out", "x", "--plane", "oblique"], "expected axial, coronal or sagittal"),
        (["--out", "x", "--window", "3"], "expected two numbers LOW,HIGH"),
        (["--out", "x", "--window", "3,1"], "expected two numbers LOW,HIGH"),
        (["--out", "x", "--window", "nan,1"], "expected two numbers LOW,HIGH"),
        (["--out", "x", "--window", "0,1", "--from", "coco"], "--window: means nothing for coco"),
    ],
)
def test_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    assert run(["convert", "data", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_converting_does_not_load_torch(tmp_path):
    write_data(tmp_path / "data")
    code = (
        "import sys; from semanticgan.cli.main import run; "
        f"code = run(['convert', {str(tmp_path / 'data')!r}, '--to', 'coco', '--out', {str(tmp_path / 'out')!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
