"""What bad input gets: a line a problem (file, got, expected, what to do), exit code 2, and nothing half-written."""

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_scenes import add_pair, write_list

# A training that would be over at once; every test here stops before it.
SHORT = ("--preset", "tiny32", "--set", "gan.kimg=0.01", "--set", "encoder.kimg=0.01", "--device", "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def not_trained(refused, data, out):
    """`train` on the data must be refused, and leave nothing."""

    def call(*args, lines: int | None = 1) -> str:
        text = refused("train", "--data", data, "--out", out, *SHORT, *args, lines=lines)
        assert not out.exists(), sorted(out.rglob("*"))
        return text

    return call


def image(data: Path, name: str) -> Path:
    return data / "images" / f"{name}.png"


def mask(data: Path, name: str) -> Path:
    return data / "masks" / f"{name}.png"


def enormous_png() -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def spoil_image(path: Path, how: str) -> None:
    content = {
        "broken": path.read_bytes()[:40] + bytes(200) + path.read_bytes()[240:],
        "truncated": path.read_bytes()[:400],
        "empty": b"",
        "text": b"no image at all",
        "enormous": enormous_png(),
    }[how]
    path.write_bytes(content)


# ---------------------------------------------------------------- folders and images


def test_a_contact_sheet_among_the_images(refused, data):
    assert "would be taken for one of the images" in refused("check", data, "--sheet", data / "images" / "sheet.png")


@pytest.mark.parametrize("verb", ["check", "train", "evaluate"])
@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_data_folder(refused, model_folder, tmp_path, out, verb, what):
    data = tmp_path / "data"
    if what == "empty":
        data.mkdir()
    elif what == "a file":
        data.write_text("no folder")
    args = {
        "check": (data, "--sheet", out / "sheet.png"),
        "train": ("--data", data, "--out", out, *SHORT),
        "evaluate": (model_folder, "--data", data, "--list", data, "--json", out / "scores.json"),
    }[verb]
    assert str(data) in refused(verb, *args)
    assert not out.exists()


@pytest.mark.parametrize("how", ["broken", "truncated", "empty", "text", "enormous"])
def test_bad_labelled_image(refused, not_trained, model_folder, data, out, how):
    spoil_image(image(data, "03"), how)
    assert "03.png" in refused("check", data, "--sheet", out / "sheet.png")
    listed = write_list(data / "list.txt", ["images/03.png"])
    assert "03.png" in refused("evaluate", model_folder, "--data", data, "--list", listed)
    shutil.rmtree(out)
    assert "03.png" in not_trained(lines=None)


def test_too_many_broken_unlabelled_images(refused, data, out):
    for name in ("10", "11"):
        spoil_image(image(data, name), "text")
    text = refused("train", "--data", data, "--out", out, *SHORT, lines=None)
    assert "10.png" in text and "11.png" in text


@pytest.mark.parametrize("how", ["broken", "truncated", "empty", "text", "enormous"])
def test_segment_of_one_bad_image(refused, model_folder, data, out, how):
    spoil_image(image(data, "03"), how)
    assert "03.png" in refused("segment", model_folder, image(data, "03"), "--out", out)
    assert json.loads((out / "summary.json").read_text())["failed"]
    assert not (out / "masks").exists()


# ---------------------------------------------------------------- masks


def bad_mask(data: Path, how: str) -> None:
    path = mask(data, "03")
    label = np.asarray(Image.open(path).copy())
    if how == "size":
        Image.fromarray(label[:-1]).save(path)
    elif how == "JPEG":
        Image.fromarray(label).save(path, format="JPEG")
    elif how == "class id 7":
        Image.fromarray(label * 7).save(path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "colour":
        Image.fromarray(np.stack([label, label * 2, label * 3], 2)).save(path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", ["size", "JPEG", "class id 7", "truncated", "colour"])
def test_bad_mask(refused, not_trained, model_folder, data, out, how):
    bad_mask(data, how)
    name = str(Path("masks") / "03.png")
    assert name in refused("check", data, "--sheet", out / "sheet.png")
    listed = write_list(data / "list.txt", ["images/02.png", "images/03.png"])
    assert name in refused("evaluate", model_folder, "--data", data, "--list", listed)
    shutil.rmtree(out)
    assert name in not_trained(lines=None)


def test_mask_without_image(refused, data, out):
    image(data, "03").unlink()
    assert "03.png" in refused("check", data, "--sheet", out / "sheet.png")


def test_list_of_labelled_images_with_an_unlabelled_one(not_trained, refused, model_folder, data):
    listed = write_list(data / "list.txt", [f"images/{k:02d}.png" for k in (0, 1, 2, 3, 4, 15)])
    assert "15.png" in not_trained("--labeled", listed)
    assert "15.png" in not_trained("--val", listed)
    assert "15.png" in refused("evaluate", model_folder, "--data", data, "--list", listed)


def test_list_that_leads_nowhere(not_trained, refused, model_folder, data):
    listed = write_list(data / "list.txt", ["images/00.png", "images/nothing.png", "../../etc/passwd.png"])
    text = not_trained("--labeled", listed, lines=2)
    assert "list.txt:2" in text and "nothing.png" in text and "list.txt:3" in text
    refused("evaluate", model_folder, "--data", data, "--list", listed, lines=2)
    assert "no_list.txt" in not_trained("--unlabeled", "no_list.txt")
    assert "empty.txt" in not_trained("--val", write_list(data / "empty.txt", []))
    (data / "binary.txt").write_bytes(bytes(range(256)))
    assert "binary.txt" in not_trained("--labeled", data / "binary.txt", lines=None)


def test_no_labels_at_all(not_trained, data):
    shutil.rmtree(data / "masks")
    assert "no labelled images" in not_trained()


def test_class_that_is_never_labelled(refused, not_trained, data, out):
    classes = json.loads((data / "classes.json").read_text())
    classes["classes"].append({"name": "rare", "color": [1, 2, 3]})
    (data / "classes.json").write_text(json.dumps(classes))
    assert "rare" in refused("check", data, "--sheet", out / "sheet.png")
    shutil.rmtree(out)
    assert "rare" in not_trained()


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": 3}', '{"classes": [{"name": "one"}]}', '{"classes": [{}, {}]}'])
def test_bad_classes_file(refused, not_trained, data, out, content):
    (data / "classes.json").write_text(content)
    assert "classes.json" in not_trained()
    assert "classes.json" in refused("check", data, "--sheet", out / "sheet.png")


def test_fewer_images_than_a_batch(not_trained):
    text = not_trained("--set", "gan.batch=64")
    assert "64" in text and "gan.batch" in text


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--preset", "huge"), ["huge", "tiny32", "auto"]),
        (("--set", "gan.kimgs=3"), ["kimgs", "kimg"]),
        (("--set", "gun.kimg=3"), ["gun", "gan"]),
        (("--set", "gan.kimg"), ["gan.kimg", "section.field=value"]),
        (("--set", "kimg=3"), ["kimg=3", "section.field=value"]),
        (("--set", "gan.kimg=long"), ["gan.kimg", "long"]),
        (("--set", "gan.kimg=-1"), ["gan.kimg", "-1"]),
        (("--set", "gan.kimg=.nan"), ["gan.kimg", "nan"]),
        (("--set", "gan.batch=2.5"), ["gan.batch", "2.5"]),
        (("--set", "gan.batch=-16"), ["gan.batch", "-16"]),
        (("--set", "data.resolution=48"), ["48", "power of two"]),
        (("--set", "data.resolution=64"), ["networks.widths", "64"]),
        (("--set", "data.symmetry=some"), ["data.symmetry", "some"]),
        (("--set", "data.fit=[1, 2"), ["data.fit"]),
    ],
)
def test_bad_settings(not_trained, args, words):
    text = not_trained(*args)
    assert all(word in text for word in words), text


def test_two_bad_settings_are_two_lines(not_trained):
    not_trained("--set", "gan.kimg=-1", "--set", "encoder.batch=0", lines=2)


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("place", ["a file", "below a file", "no place"])
def test_unwritable_output(refused, model_folder, data, tmp_path, place):
    out = {"a file": tmp_path / "f", "below a file": tmp_path / "f" / "x", "no place": Path("/proc/semanticgan")}[place]
    if place == "no place" and not Path("/proc/self").exists():
        pytest.skip("needs a folder in which nobody can write")
    (tmp_path / "f").write_text("keep")
    checkpoint = Path(__file__).parents[1] / "golden" / "golden_rgb32_weights.safetensors"
    for args in (
        ("check", data, "--sheet", out / "sheet.png"),
        ("train", "--data", data, "--out", out, *SHORT),
        ("segment", model_folder, data, "--out", out),
        ("evaluate", model_folder, "--data", data, "--list", data, "--json", out / "scores.json"),
        ("evaluate", model_folder, "--data", data, "--list", data, "--csv", out / "scores.csv"),
        ("sample", model_folder, "--num", 1, "--out", out),
        ("import", checkpoint, "--out", out),
        ("demo", "--out", out),
    ):
        assert str(out) in refused(*args)
    assert (tmp_path / "f").read_text() == "keep"


def test_a_folder_where_a_file_is_wanted(refused, model_folder, data):
    assert "is a folder" in refused("evaluate", model_folder, "--data", data, "--list", data, "--json", data)
    assert "is a folder" in refused("check", data, "--sheet", data)


def test_run_folder_that_is_not_empty(refused, data, out):
    out.mkdir()
    (out / "thesis.txt").write_text("keep")
    assert "--resume" in refused("train", "--data", data, "--out", out, *SHORT)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("what", ["missing", "empty", "foreign"])
def test_resume_of_no_run(refused, out, what):
    if what != "missing":
        out.mkdir()
    if what == "foreign":
        (out / "config.json").write_text('{"kind": "other"}')
    before = sorted(out.rglob("*")) if out.exists() else None
    assert str(out) in refused("train", "--out", out, "--resume", "--device", "cpu")
    assert (sorted(out.rglob("*")) if out.exists() else None) == before


def test_train_without_data(refused, out):
    assert "--data" in refused("train", "--out", out, "--device", "cpu")


# ---------------------------------------------------------------- models and checkpoints


def copied(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def spoil_model(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "text for weights":
        weights.write_text("no weights")
    elif how == "pickle for weights":
        weights.write_bytes(pickle.dumps({"G": 1}))
    elif how == "foreign weights":
        save_file({"layer.weight": torch.zeros(3)}, weights)
    elif how == "one tensor missing":
        tensors = load_file(weights)
        tensors.pop(min(tensors))
        save_file(tensors, weights)
    elif how == "one shape wrong":
        tensors = load_file(weights)
        tensors[min(tensors)] = torch.zeros(1, 2, 3)
        save_file(tensors, weights)
    else:
        content = json.loads(config.read_text())
        if how == "foreign config":
            content = {"model_type": "bert"}
        elif how == "other sizes in config":
            content["networks"]["w_dim"] = 64
        elif how == "more classes in config":
            content["labels"]["names"].append("third")
            content["labels"]["palette"].append([1, 2, 3])
        elif how == "huge sizes in config":
            content["networks"]["w_dim"] = 2_000_000
        config.write_text("{" if how == "config no JSON" else json.dumps(content))


SPOILED = [
    "no weights", "no config", "truncated weights", "text for weights", "pickle for weights", "foreign weights",
    "one tensor missing", "one shape wrong", "foreign config", "other sizes in config", "more classes in config",
    "huge sizes in config", "config no JSON",
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_damaged_model(refused, model_folder, data, tmp_path, out, how):
    folder = copied(model_folder, tmp_path)
    spoil_model(folder, how)
    for args in (
        ("segment", folder, image(data, "00"), "--out", out),
        ("evaluate", folder, "--data", data, "--list", data, "--json", out / "scores.json"),
        ("sample", folder, "--num", 1, "--out", out),
        ("train", "--data", data, "--out", out, "--from", folder, *SHORT),
    ):
        assert str(folder) in refused(*args)
        assert not out.exists(), args


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "missing", "model.safetensors"])
def test_no_model(refused, data, out, name):
    for args in (("segment", name, data, "--out", out), ("sample", name, "--num", 1, "--out", out), ("info", name)):
        assert name in refused(*args)
    assert not out.exists()


def test_folder_that_is_no_model(refused, data, out):
    assert "config.json" in refused("segment", data, data, "--out", out)
    assert "config.json" in refused("info", data)


class Hostile:
    def __reduce__(self):
        return exec, ("open('executed', 'w').close()",)


@pytest.mark.parametrize("how", ["hostile", "hostile zip", "text", "empty", "missing", "folder", "other tensors"])
def test_bad_checkpoint(refused, tmp_path, out, how):
    path = tmp_path / "checkpoint.pt"
    if how == "hostile":
        path.write_bytes(pickle.dumps(Hostile()))
    elif how == "hostile zip":
        torch.save({"g_ema": Hostile()}, path)
    elif how == "other tensors":
        torch.save({"state_dict": {"conv.weight": torch.zeros(2)}}, path)
    elif how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(b"no checkpoint" if how == "text" else b"")
    assert "checkpoint.pt" in refused("import", path, "--out", out)
    assert not out.exists() and not Path("executed").exists()


def test_start_from_another_size(refused, model_folder, data, out):
    text = refused("train", "--data", data, "--out", out, "--from", model_folder, *SHORT)
    assert str(model_folder) in text and "expected" in text


def test_grey_scores_need_the_models_classes(refused, model_folder, tmp_path):
    """A data folder with a third class does not fit a model of two."""
    add_pair(tmp_path / "other", "a", 0)
    path = tmp_path / "other" / "masks" / "a.png"
    Image.fromarray(np.full((20, 20), 2, np.uint8)).save(path)
    text = refused("evaluate", model_folder, "--data", tmp_path / "other", "--list", tmp_path / "other")
    assert "class id 2" in text and "a.png" in text
