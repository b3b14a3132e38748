"""The page's server: what it answers, and what it refuses."""

import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn: pip install 'semanticgan[app]'")

from semanticgan.config import DataConfig, ModelConfig
from semanticgan.data.dataset import read_mask
from semanticgan.data.sources import find_sources, list_images
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN, named_networks
from semanticgan.suggest import look_at_files
from semanticgan.web import pictures
from semanticgan.web.answers import _found
from semanticgan.web.app import STATIC, build_app
from semanticgan.web.folder import DataFolder
from semanticgan.web.guard import MAX_BODY, refusal

SIDE = 48


def as_png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def picture():
    return as_png(draw_scene(50, "a", 40)[0])


def unrolled(label):
    values, lengths = np.array(label["runs"]).reshape(-1, 2).T
    return np.repeat(values, lengths).astype(np.uint8).reshape(label["height"], label["width"])


def told(text):
    """The events of a stream: kind and content."""
    lines = text.strip().splitlines()
    kinds = [line[7:] for line in lines if line.startswith("event: ")]
    return list(zip(kinds, [json.loads(line[6:]) for line in lines if line.startswith("data: ")], strict=True))


def refused(response, status, *words):
    assert response.status_code == status, (response.status_code, response.text)
    text = response.json()["error"]
    assert all(word in text for word in words), text
    return text


# ---------------------------------------------------------------- what it answers


def test_first_mask_is_the_encoders(client, model, picture):
    found = client.post("/api/pictures", params={"name": "a.png"}, content=picture).json()
    assert found["size"] == [40, 40] and found["name"] == "a.png"
    wanted = model.segment([draw_scene(50, "a", 40)[0]], steps=0, views=False, zoom=False)[0]
    answer = found["answer"]
    # bfloat16 in batches of another size: a pixel between two classes may turn over
    assert (unrolled(answer["label"]) != wanted.label).mean() < 0.01
    assert answer["distance"] == pytest.approx(wanted.distance, abs=5e-3)
    assert answer["uncertainty"] == pytest.approx(float(wanted.uncertainty.mean()), abs=5e-3)
    assert answer["words"]


def test_one_object_keeps_one_piece(model):
    seg_logits = torch.zeros(1, 2, 16, 16)
    seg_logits[:, 0] = 3
    seg_logits[0, 1, 2:8, 2:8] = seg_logits[0, 1, 12:14, 12:14] = 6
    for single in (False, True):
        found = _found(model.configured(one_object=single), seg_logits, None, seg_logits, [(16, 16)])[0]
        assert found.label()[4, 4] == 1 and found.label()[12, 12] == (not single)


def test_large_pictures_are_answered_at_a_smaller_size(client):
    found = client.post("/api/pictures", content=as_png(np.zeros((1500, 3000, 3), np.uint8))).json()
    assert found["size"] == [3000, 1500]
    assert (found["answer"]["label"]["width"], found["answer"]["label"]["height"]) == (1024, 512)


def test_refining_tells_of_its_steps(client, picture):
    key = client.post("/api/pictures", content=picture).json()["id"]
    events = told(client.get("/api/refine", params={"id": key, "steps": 4}).text)
    kinds = [kind for kind, _ in events]
    assert kinds[:3] == ["waiting", "answer", "step"] and kinds[-2:] == ["done", "end"]
    steps = [content for kind, content in events if kind in ("step", "done")]
    assert steps[0]["step"] == 0 and steps[-1]["step"] == 4
    assert steps[-1]["reconstruction"].startswith("data:image/png;base64,")
    assert unrolled(steps[-1]["label"]).shape == (40, 40)


@pytest.mark.parametrize(("chosen", "kinds"), [(0, {"answer", "step"}), (3, {"step", "done"})])
def test_words_on_the_distance_only_where_it_can_be_ranked(visiting, model, picture, chosen, kinds):
    quantiles = tuple(np.linspace(0.1, 0.5, 21))
    ranked = model.configured(steps=chosen, distance_quantiles=quantiles)
    with visiting(build_app(ranked, "ranked")) as client:
        found = client.post("/api/pictures", content=picture).json()
        assert ("words" in found["answer"]) == (chosen == 0) and "distance" in found["answer"]
        events = told(client.get("/api/refine", params={"id": found["id"], "steps": 3}).text)
        worded = [(kind, content.get("step")) for kind, content in events if isinstance(content, dict) and "words" in content]
        assert {kind for kind, _ in worded} == kinds
        assert all(step == chosen for kind, step in worded if kind == "step")


def test_deep_pictures_are_shown_as_the_model_sees_them(client, picture):
    assert client.post("/api/pictures", content=picture).json()["stretched"] is False
    deep = as_png(np.linspace(0, 4095, 1600).astype(np.uint16).reshape(40, 40))
    found = client.post("/api/pictures", content=deep).json()
    assert found["stretched"] is True
    with Image.open(io.BytesIO(client.get("/api/picture", params={"id": found["id"]}).content)) as shown:
        assert np.asarray(shown).max() == 255


def test_without_encoder_the_mask_comes_by_refining(visiting, model, picture):
    bare = SemanticGAN(model.config.model_copy(update={"has_encoder": False, "steps": 3}), model.G)
    with visiting(build_app(bare, "bare")) as client:
        found = client.post("/api/pictures", content=picture).json()
        assert "answer" not in found
        events = told(client.get("/api/refine", params={"id": found["id"], "steps": 3}).text)
        assert [kind for kind, _ in events][-2:] == ["done", "end"] and "answer" not in dict(events)
        assert "no encoder" in dict(told(client.get("/api/next").text))["failed"]  # a page cannot read why events are refused
        refused(client.get("/api/data"), 404, "--data")


def test_samples_are_the_models(client, model):
    found = client.get("/api/samples", params={"seed": 3, "psi": 0.5, "num": 2}).json()
    img, label = list(model.sample(2, 3, 0.5))[1]
    assert found[1]["image"] == pictures.data_url(pictures.png(img))
    assert found[1]["classes"] == [LABELS.names[k] for k in np.unique(label)]


def test_mask_to_take_away(client):
    label = draw_scene(1, "a", SIDE)[1]
    response = client.post("/api/mask.png", params={"width": SIDE, "height": SIDE, "name": 'a"\r\nX: y'}, content=label.tobytes())
    image = Image.open(io.BytesIO(response.content))
    assert image.mode == "P" and "x" not in response.headers
    np.testing.assert_array_equal(np.asarray(image), label)


def test_page_is_small_and_whole(client):
    total = 0
    for address in STATIC:
        response = client.get(address)
        assert response.status_code == 200
        assert not any(word in response.text for word in ("http://", "https://", "innerHTML", "eval(", " style=", " onclick="))
        total += len(response.content)
    assert total < 200_000


def test_every_answer_has_the_headers(client, picture):
    responses = [client.get("/"), client.get("/nothing"), client.post("/api/pictures", content=b"x"), client.get("/api/about")]
    responses.append(client.get("/api/about", headers={"host": "evil.example"}))
    for response in responses:
        assert "script-src 'self'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"


# ---------------------------------------------------------------- the folder


def save(client, label, image="images/01.png", size=(SIDE, SIDE)):
    return client.put("/api/data/mask", params={"image": image, "width": size[0], "height": size[1]}, content=label.tobytes())


def test_opening_shows_the_mask_that_is_there(client, data):
    listing = client.get("/api/data", params={"which": "labeled", "count": 2}).json()
    assert (listing["total"], listing["labeled"], listing["found"]) == (10, 4, 4)
    assert [row["name"] for row in listing["images"]] == ["images/00.png", "images/01.png"]
    found = client.post("/api/data/open", params={"image": "images/01.png"}).json()
    assert found["labeled"] and found["size"] == [SIDE, SIDE]
    mask = client.get("/api/data/mask", params={"image": "images/01.png"})
    assert mask.content == read_mask(data / "masks" / "01.png", LABELS).tobytes()
    whole = Image.open(io.BytesIO(client.get("/api/data/picture", params={"image": "images/01.png"}).content))
    np.testing.assert_array_equal(np.asarray(whole), draw_scene(1, "a", SIDE)[0])
    refused(client.get("/api/data/mask", params={"image": "images/09.png"}), 404, "no mask")


def test_saving_keeps_the_mask_before(client, data):
    before = (data / "masks" / "01.png").read_bytes()
    label = np.full((SIDE, SIDE), 2, np.uint8)
    label[0] = 255
    assert save(client, label).json()["kept"] == "masks/.kept/01.1.png"
    assert (data / "masks" / ".kept" / "01.1.png").read_bytes() == before
    np.testing.assert_array_equal(read_mask(data / "masks" / "01.png", LABELS), label)
    assert save(client, label * 0).json()["kept"] == "masks/.kept/01.2.png"
    assert save(client, label, "images/09.png").json() == {"mask": "masks/09.png", "kept": None, "labeled": 5, "total": 10}
    # What is kept is neither an image nor a mask for training.
    assert len(list_images(data, str(data))) == 10
    assert set(find_sources(data).labeled) <= {f"images/{k:02d}.png" for k in (0, 1, 2, 3, 9)}
    assert not [p for p in data.rglob("*") if p.name.startswith(".") and p.is_file()]


def test_keeping_without_links(client, data, monkeypatch):
    def refuse(*paths):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    before = (data / "masks" / "01.png").read_bytes()
    label = np.ones((SIDE, SIDE), np.uint8)
    assert [save(client, label).json()["kept"] for _ in range(2)] == ["masks/.kept/01.1.png", "masks/.kept/01.2.png"]
    assert (data / "masks" / ".kept" / "01.1.png").read_bytes() == before


def test_names_that_are_no_text_are_left_out(model, data):
    os.rename(os.fsencode(data / "images" / "00.png"), os.fsencode(data / "images") + b"/\xff.png")
    (data / "stray.png").write_bytes(b"")
    assert DataFolder(data, model.labels, 3).names == [f"images/{k:02d}.png" for k in range(1, 10)]


def test_masks_of_0_and_255_stay_so(visiting, model, data):
    for path in (data / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    labels = LABELS.model_copy(update={"names": ("background", "cell"), "palette": LABELS.palette[:2]})
    (data / "classes.json").unlink()
    two = SemanticGAN(model.config.model_copy(update={"labels": LABELS}), model.G, model.E)
    folder = DataFolder(data, labels, 3)
    with visiting(build_app(two, "two", folder)) as client:
        label = np.zeros((SIDE, SIDE), np.uint8)
        label[:9] = 1
        assert save(client, label).status_code == 200
        np.testing.assert_array_equal(np.asarray(Image.open(data / "masks" / "01.png")), label * 255)
        label[9] = 255
        refused(save(client, label), 422, "no ignored pixels")
        assert not client.get("/api/about").json()["data"]["ignore"]


def test_masks_that_would_be_read_as_two_classes(model, data):
    """Background and ignored pixels alone, before any mask shows a class."""
    for path in (data / "masks").iterdir():
        path.unlink()
    folder, label = DataFolder(data, model.labels, 3), np.zeros((SIDE, SIDE), np.uint8)
    label[0] = 255
    with pytest.raises(UserError, match="save one with a class first"):
        folder.save("images/01.png", label)
    label[1] = 1
    folder.save("images/02.png", label)
    label[1] = 0
    folder.save("images/01.png", label)
    assert DataFolder(data, model.labels, 3).labels.coding == "index"


def test_an_old_mask_that_cannot_be_kept_stays(model, data):
    (data / "masks" / ".kept").touch()
    before = (data / "masks" / "01.png").read_bytes()
    with pytest.raises(UserError, match=r"cannot be made .* so the mask stays as it is"):
        DataFolder(data, model.labels, 3).save("images/01.png", np.zeros((SIDE, SIDE), np.uint8))
    assert (data / "masks" / "01.png").read_bytes() == before


def test_masks_of_0_and_255_need_two_classes(model, data):
    for path in (data / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    with pytest.raises(UserError, match=r"got masks of 0 and 255 alone, expected class ids of the 4 classes"):
        DataFolder(data, model.labels, 3)


def test_bad_masks_are_refused_and_nothing_is_written(client, data):
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    good = np.zeros((SIDE, SIDE), np.uint8)
    refused(save(client, good + 4), 422, "class id 4", "0 to 3, or 255")
    refused(save(client, good[:-1], size=(SIDE, SIDE - 1)), 422, f"expected {SIDE} x {SIDE}")
    refused(save(client, good[:-1]), 422, "bytes")
    refused(client.put("/api/data/mask", params={"image": "images/01.png", "width": 10**9, "height": 1}), 422)
    refused(client.put("/api/data/mask", params={"image": "images/01.png", "width": 10**4, "height": 10**4}), 413)
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "images/../../secret.png", "/etc/passwd", "images/01.png\0.png", "masks/01.png", "images", "",
     "..\\secret.png", "%2e%2e/secret.png", "images/%2e%2e/classes.json", "classes.json", "images/01.PNG", "./images/01.png"],
)  # fmt: skip
def test_names_that_are_no_images_lead_nowhere(client, data, name):
    (data.parent / "secret.png").write_bytes(as_png(np.zeros((SIDE, SIDE, 3), np.uint8)))
    before = sorted(data.parent.rglob("*"))
    label = np.zeros((SIDE, SIDE), np.uint8)
    for route in ("thumbnail", "picture", "mask"):
        refused(client.get(f"/api/data/{route}", params={"image": name}), 404)
    refused(client.post("/api/data/open", params={"image": name}), 404)
    refused(save(client, label, name), 404)
    assert sorted(data.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "address", ["/../pyproject.toml", "/%2e%2e/app.py", "/static/app.js", "/app.py", "/docs", "/openapi.json"]
)
def test_no_other_files_are_served(client, address):
    assert client.get(address).status_code == 404


def test_other_classes_are_refused(model, data):
    (data / "classes.json").write_text(json.dumps({"classes": [{"name": "background"}, {"name": "lung"}]}))
    with pytest.raises(UserError, match=r"got background, lung, expected the model's classes, background, cell"):
        DataFolder(data, model.labels, 3)


def test_proposals_are_unlabelled_images(client):
    events = told(client.get("/api/next", params={"num": 3}).text)
    found = dict(events)["proposals"]
    names = [row["name"] for row in found["images"]]
    assert len(set(names)) == 3 and found["of"] == 6 and all(name >= "images/04.png" for name in names)
    assert save(client, np.zeros((SIDE, SIDE), np.uint8), names[0]).status_code == 200
    again = dict(told(client.get("/api/next", params={"num": 9}).text))["proposals"]
    assert again["of"] == 5 and names[0] not in [row["name"] for row in again["images"]]


def test_what_gets_a_mask_while_images_are_looked_at_is_not_proposed(client, monkeypatch):
    def look(*args):
        for name, found in look_at_files(*args):
            if name == "images/07.png":
                save(client, np.zeros((SIDE, SIDE), np.uint8), name)
            yield name, found

    monkeypatch.setattr("semanticgan.web.session.look_at_files", look)
    found = dict(told(client.get("/api/next", params={"num": 9}).text))["proposals"]
    assert found["of"] == 5 and "images/07.png" not in [row["name"] for row in found["images"]]


# ---------------------------------------------------------------- bad files


def bomb(side):
    """A small PNG file whose header promises side x side pixels of nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def test_broken_and_renamed_files(client, picture):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    gif = b"GIF89a" + bytes(100)
    for content in (
        b"",
        b"x",
        picture[:200],
        picture[:-30][:400],
        svg,
        gif,
        b"%PDF-1.7 ",
        b"PK\3\4" + bytes(99),
        b"<html>",
        bytes(5000),
    ):
        text = refused(client.post("/api/pictures", params={"name": "holiday.png"}, content=content), 422, "holiday.png")
        assert "/tmp" not in text and "semanticgan-" not in text
    assert client.post("/api/pictures", params={"name": "really.png.exe"}, content=picture).status_code == 200


@pytest.mark.parametrize("side", [7_000, 100_000])
def test_decompression_bombs(client, side):
    refused(client.post("/api/pictures", params={"name": "b.png"}, content=bomb(side)), 413, "b.png", "36 million")


def test_bombs_in_the_folder(visiting, model, data):
    (data / "images" / "bomb.png").write_bytes(bomb(30_000))
    (data / "images" / "text.png").write_text("no image")
    with visiting(build_app(model, "tiny", DataFolder(data, model.labels, 3))) as client:
        for route in ("thumbnail", "picture"):
            refused(client.get(f"/api/data/{route}", params={"image": "images/bomb.png"}), 413)
            refused(client.get(f"/api/data/{route}", params={"image": "images/text.png"}), 422)
        found = dict(told(client.get("/api/next", params={"num": 20}).text))["proposals"]
        assert found["of"] == 6


def test_two_images_of_one_name_share_no_mask(visiting, model, data):
    Image.open(data / "images" / "01.png").convert("RGB").save(data / "images" / "01.jpg")
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    with visiting(build_app(model, "tiny", DataFolder(data, model.labels, 3))) as client:
        for name in ("images/01.png", "images/01.jpg"):
            refused(save(client, np.zeros((SIDE, SIDE), np.uint8), name), 422, "images/01.jpg and images/01.png", "masks/01.png")
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("shape", [(10, 70_000), (70_000, 100)])
def test_strips_that_no_jpeg_holds(visiting, model, data, shape):
    Image.new("L", shape[::-1]).save(data / "images" / "strip.png")
    with visiting(build_app(model, "tiny", DataFolder(data, model.labels, 3))) as client:
        for route in ("thumbnail", "picture"):
            answer = client.get(f"/api/data/{route}", params={"image": "images/strip.png"})
            assert answer.status_code == 200 and max(Image.open(io.BytesIO(answer.content)).size) in (1024, 70_000)


def test_names_with_scripts_come_back_as_text(client, picture):
    name = "<img src=x onerror=alert(1)>.png"
    response = client.post("/api/pictures", params={"name": name}, content=picture)
    assert response.json()["name"] == name and response.headers["content-type"] == "application/json"
    response = client.post("/api/pictures", params={"name": name}, content=b"x")
    assert response.headers["content-type"] == "application/json"


def test_parameters_out_of_range(client, picture):
    key = client.post("/api/pictures", content=picture).json()["id"]
    for address in (
        "/api/samples?num=10000", "/api/samples?psi=nan", "/api/samples?psi=99", "/api/samples?seed=-1", "/api/samples?seed=x",
        f"/api/refine?id={key}&steps=100000", f"/api/refine?id={key}&steps=0", "/api/refine", "/api/data?count=100000",
        "/api/data?start=-1", "/api/data?which=everything", "/api/next?num=1000", f"/api/about/{'x' * 5000}?",
    ):  # fmt: skip
        assert 400 <= client.get(address).status_code < 500, address
    assert "drop it again" in dict(told(client.get("/api/refine", params={"id": "unknown"}).text))["failed"]
    refused(client.post("/api/pictures", params={"name": "a" * 5000}, content=picture), 422)


# ---------------------------------------------------------------- other sites, other hosts


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({"host": "127.0.0.1:8765"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:9"}, True),
        ({"host": "LOCALHOST:8765", "origin": "http://localhost:8765"}, True),
        ({"host": "evil.example:8765"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "localhost.evil.example:8765"}, False),
        ({"host": "127.0.0.1:8765.evil.example"}, False),
        ({"host": "127.0.0.1:"}, False),
        ({"host": "evil.example#127.0.0.1:8765"}, False),
        ({"host": ""}, False),
        ({"origin": "http://127.0.0.1:8765"}, True),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "https://127.0.0.1:8765"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
    ],
)
def test_other_hosts_and_sites(client, data, headers, good):
    before = (data / "masks" / "01.png").read_bytes()
    response = client.get("/api/about", headers=headers)
    saved = client.put(
        "/api/data/mask",
        params={"image": "images/01.png", "width": SIDE, "height": SIDE},
        content=bytes(SIDE**2),
        headers=headers,
    )
    assert (response.status_code, saved.status_code) == ((200, 200) if good else (403, 403))
    assert ((data / "masks" / "01.png").read_bytes() != before) is good
    assert "access-control-allow-origin" not in response.headers


def test_a_page_of_an_earlier_start_saves_nothing(client, data, picture):
    """On the same port, but perhaps for another folder."""
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    for start in ("another", ""):
        client.headers["x-start"] = start
        refused(save(client, np.zeros((SIDE, SIDE), np.uint8)), 409, "the server was started again; reload the page")
        refused(client.post("/api/data/open", params={"image": "images/01.png"}), 409)
        refused(client.post("/api/pictures", content=picture), 409)
        taken = client.post("/api/mask.png", params={"width": 2, "height": 2}, content=bytes(4))
        assert taken.status_code == 200  # what was drawn is not lost
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before


def test_two_hosts_are_none():
    assert refusal("/", [(b"host", "127.0.0.1"), (b"host", "evil.example")])[0] == 403
    assert refusal("/", [(b"host", "127.0.0.1"), (b"sec-fetch-site", "cross-site")]) is None  # a link to the page
    assert refusal("/", [(b"host", "127.0.0.1"), (b"content-length", "-1")])[0] == 400
    assert refusal("/", [(b"host", "127.0.0.1"), (b"content-length", "9" * 99)])[0] == 413


# ---------------------------------------------------------------- large, many, gone


def address_of(server):
    return "127.0.0.1", int(server.rpartition(":")[2])


def post(app, address, content, method="POST"):
    headers = {"x-start": app.state.session.start}
    with urlopen(Request(address, content, headers, method=method), timeout=60) as response:
        return json.load(response)


def test_huge_uploads_are_refused_before_they_come(server):
    with socket.create_connection(address_of(server), timeout=10) as line:
        line.sendall(b"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 209715200\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413 ")


def test_huge_uploads_without_a_length_are_refused(client, monkeypatch):
    monkeypatch.setattr("semanticgan.web.session.MAX_BODY", 10_000)

    def parts():
        for _ in range(20):
            yield bytes(1000)

    refused(client.post("/api/pictures", content=parts()), 413, "smaller")
    assert MAX_BODY < 200 * 10**6


def test_forty_uploads_at_once(server, app, picture):
    large = as_png(np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8))  # a MB

    def send(k):
        return post(app, f"{server}/api/pictures?name={k}.png&page={k % 3}", large if k % 2 else picture)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(send, range(40)))
    assert [answer["name"] for answer in answers] == [f"{k}.png" for k in range(40)]
    session = app.state.session
    assert session.picture_door.waiting == 0 and session.worker.waiting == 0
    assert not os.listdir(session.place.name)
    assert len(session.pictures._kept) <= pictures.KEPT


def comes_true(what, seconds=10):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return what()


def test_a_client_that_leaves_stops_its_inversion(server, app, picture, monkeypatch):
    running, steps = threading.Event(), []
    session = app.state.session

    def endless(job):
        running.set()
        while True:
            job.breathe()
            steps.append(time.monotonic())
            job.tell("step", {})
            time.sleep(0.01)

    monkeypatch.setattr("semanticgan.web.answers.refine", lambda model, picture, count, job: endless(job))
    key = post(app, f"{server}/api/pictures", picture)["id"]
    with urlopen(f"{server}/api/refine?id={key}", timeout=10) as response:
        assert response.readline() == b"event: waiting\n"
        assert running.wait(10)
        assert "answer" in post(app, f"{server}/api/pictures", picture)  # while it runs, others get their masks
        seen = len(steps)
        assert comes_true(lambda: len(steps) > seen)  # and then it goes on
    assert comes_true(lambda: session.worker._running is None)


def stalled(server, app):
    """A picture of which no more than the beginning comes."""
    line = socket.create_connection(address_of(server), timeout=10)
    head = f"POST /api/pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Start: {app.state.session.start}\r\nContent-Length: 1000\r\n\r\n"
    line.sendall(head.encode() + b"abc")
    return line


def test_slow_uploads_are_given_up(server, app, monkeypatch):
    monkeypatch.setattr("semanticgan.web.session.UPLOAD_SECONDS", 0.3)
    with stalled(server, app) as line:
        assert line.recv(100).startswith(b"HTTP/1.1 408 ")
    assert app.state.session.picture_door.waiting == 0


def test_slow_pictures_hold_up_no_mask(server, app, data):
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(stalled(server, app))
        assert comes_true(lambda: app.state.session.picture_door.waiting == 12)
        address = f"{server}/api/data/mask?image=images/09.png&width={SIDE}&height={SIDE}"
        assert post(app, address, bytes(SIDE**2), "PUT")["mask"] == "masks/09.png"


def test_too_many_at_the_door(client, app, picture):
    app.state.session.picture_door.waiting = 10**6
    response = client.post("/api/pictures", content=picture)
    refused(response, 503, "try again")
    assert response.headers["retry-after"]


def test_too_many_jobs(client, app, picture, monkeypatch):
    """A page cannot read why events are refused, so that is told as one."""
    monkeypatch.setattr(app.state.session.worker._long, "most", 0)
    assert told(client.get("/api/next").text) == [("failed", "too much is waiting already; try again in a moment")]


# ---------------------------------------------------------------- a student


@pytest.fixture
def student(visiting, data):
    config = ModelConfig(kind="student", labels=LABELS, data=DataConfig(resolution=16, channels=3), widths=(8, 16), teacher="t")
    model = SemanticGAN(config, None, S=named_networks(config)["S"])
    with visiting(build_app(model, "small", DataFolder(data, LABELS, 3)), "http://127.0.0.1:8765") as found:
        yield found, model


def test_a_student_answers_without_reconstruction(student, picture):
    client, model = student
    about = client.get("/api/about").json()
    assert about["student"] is True and "--from t --out" in about["data"]["train"]  # its teacher
    found = client.post("/api/pictures", params={"name": "a.png"}, content=picture).json()
    wanted = model.segment([draw_scene(50, "a", 40)[0]], views=False)[0]
    assert (unrolled(found["answer"]["label"]) != wanted.label).mean() < 0.01  # bfloat16 in batches of another size
    assert not {"reconstruction", "distance"} & found["answer"].keys() and "student" in found["answer"]["words"]
    events = told(client.get("/api/refine", params={"id": found["id"]}).text)
    (answer,) = [content for kind, content in events if kind == "answer"]
    assert (unrolled(answer["label"]) == model.segment([draw_scene(50, "a", 40)[0]])[0].label).all()
    assert not {"step", "done"} & {kind for kind, _ in events}


def test_a_student_has_no_samples_and_no_proposals(student):
    client, _ = student
    assert client.get("/api/data/following", params={"image": "images/04.png"}).json() == {"name": "images/05.png"}
    refused(client.get("/api/samples"), 422, "is a student", "teacher")
    assert "is a student" in dict(told(client.get("/api/next").text))["failed"]


def test_no_site_may_put_the_page_in_a_frame(client):
    policy = client.get("/").headers["content-security-policy"]
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= {*policy.split("; ")}
