import shutil
import sys
from pathlib import Path

import pytest


@pytest.fixture
def traced(monkeypatch):
    """In place of tracing, which `tests/test_export.py` does: the files hold their form's name."""
    from semanticgan import export

    monkeypatch.setattr(export, "to_onnx", lambda model: b"onnx")
    monkeypatch.setattr(export, "to_torch", lambda model: b"torch")


def test_export_says_what_goes_in_and_out(command, traced, model_folder, tmp_path):
    done = command("export", model_folder, "--out", tmp_path / "new" / "m.onnx")
    assert (done.code, done.errors) == (0, [])
    assert "img [n, 3, 16, 16] -> probs [n, 2, 16, 16], label [n, 16, 16], reconstruction [n, 3, 16, 16]" in done.out
    assert command("export", model_folder, "--format", "torch", "--out", tmp_path / "m.pt2").code == 0
    assert (tmp_path / "new" / "m.onnx").read_bytes() + (tmp_path / "m.pt2").read_bytes() == b"onnxtorch"


def test_export_writes_all_or_nothing(refused, traced, model_folder, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    (tmp_path / "m.onnx").write_text("before")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refused("export", model_folder, "--out", tmp_path / "m.onnx")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--out", "m.pt2"], ["m.pt2", ".onnx", "--format onnx"]),
        (["--out", "m.onnx", "--format", "torch"], ["m.onnx", ".pt2", "--format torch"]),
        (["--out", "m.onnx", "--format", "tflite"], ["--format", "tflite", "onnx", "torch"]),
        (["--out", "."], ["is a folder"]),
        ([], ["--out"]),
    ],
)
def test_export_refuses(refused, traced, model_folder, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    text = refused("export", model_folder, *args)
    assert all(word in text for word in words), text
    assert not list(tmp_path.iterdir())


def test_export_without_the_extra(refused, model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'semanticgan[onnx]'" in refused("export", model_folder, "--out", tmp_path / "m.onnx")


def test_push(command, refused, model_folder, tmp_path, monkeypatch):
    import huggingface_hub

    class Hub:
        def __init__(self, token):
            assert token is None

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            return f"https://hub/{repo_id}?private={private}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert command("push", model_folder, "me/small").out == "https://hub/me/small?private=False\n"
    assert command("push", model_folder, "me/small", "--private").out == "https://hub/me/small?private=True\n"
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "me" / "small" / name).read_bytes() == (model_folder / name).read_bytes()
    assert "owner/name" in refused("push", model_folder, "small")


def test_samples_in_another_format(command, model_folder, tmp_path):
    """`sample | convert`: G's own pairs as COCO, and back."""
    import numpy as np
    from small_scenes import load

    assert command("sample", model_folder, "--num", 4, "--out", tmp_path / "drawn").code == 0
    for source, target, form in (("drawn", "coco", "coco"), ("coco", "again", "data")):
        done = command("convert", tmp_path / source, "--to", form, "--out", tmp_path / target)
        assert (done.code, done.errors) == (0, [])
        assert "4 images" in done.out and "background, blob" in done.out
    masks = sorted((tmp_path / "drawn" / "masks").iterdir())
    assert any(np.asarray(load(mask)).any() for mask in masks)
    for mask in masks:
        if np.asarray(load(mask)).any():  # COCO cannot tell an empty image from an unlabelled one
            assert np.array_equal(load(mask), load(tmp_path / "again" / "masks" / mask.name))
