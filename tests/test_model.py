import json
import os
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from semanticgan import model as model_module
from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN, build_networks, find_model, settings_in_words


def build(small_config, *, seed=0, **changes):
    config = small_config()
    described = ModelConfig(**{
        "labels": LABELS, "data": config.data, "networks": config.networks, "inversion": InversionConfig(), "temperature": 1.3,
        "distance_quantiles": (0.1, 0.2), "versions": {"torch": "x"}, **changes,
    })  # fmt: skip
    torch.manual_seed(seed)
    G, E = build_networks(described)
    torch.nn.init.normal_(G.synthesis.blocks[-1].to_seg.weight, std=3)  # label maps with structure
    if E is not None:
        torch.nn.init.normal_(E.rows.weight, std=0.3)
        E.w_avg.normal_()
    return SemanticGAN(described, G, E)


@pytest.fixture(scope="module")
def model(small_config):
    return build(small_config)


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model", "# card\n")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def images():
    """Mixed sizes, grey and colour, arrays and pictures."""
    random = np.random.default_rng(0)
    scene = [draw_scene(seed, "a", 24)[0] for seed in range(3)]
    return [
        scene[0],
        Image.fromarray(scene[1]).resize((31, 17)),
        random.integers(0, 256, (20, 45), dtype=np.uint8),
        Image.fromarray(scene[2]).convert("L"),
        np.asarray(Image.fromarray(scene[0]).resize((5, 60))),
        random.integers(0, 256, (16, 16, 1), dtype=np.uint8),
        Image.fromarray(scene[1]).convert("P"),
    ]


def size(image):
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def same(a, b):
    return (
        np.array_equal(a.label, b.label) and np.array_equal(a.probs, b.probs) and np.array_equal(a.uncertainty, b.uncertainty)
        and np.array_equal(a.reconstruction, b.reconstruction) and a.distance == b.distance
    )  # fmt: skip


# ---------------------------------------------------------------- files


def test_save_and_load_give_the_same_model(model, folder, assert_same):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # no temporary folder stays
    assert (folder / "README.md").read_text() == "# card\n"
    tensors = load_file(folder / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in tensors.values())
    loaded = SemanticGAN.load(folder)
    assert loaded.config == model.config and loaded.labels == LABELS
    for mine, theirs in ((loaded.G, model.G), (loaded.E, model.E)):
        assert_same(dict(mine.state_dict()), {key: value.half().float() for key, value in theirs.state_dict().items()})
        assert not mine.training and not any(p.requires_grad for p in mine.parameters())
    loaded.save(folder.parent / "again", "# card\n")
    for name in ("config.json", "model.safetensors"):
        assert (folder.parent / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_card_may_name_any_path(model, tmp_path):
    model.save(tmp_path / "m", "trained on data\udcff\n")
    assert (tmp_path / "m" / "README.md").read_text() == "trained on data?\n"


def test_a_model_is_saved_in_the_working_directory(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save(".", "")
    assert SemanticGAN.load(".").config == model.config and os.getcwd() == str(tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"views": True}, "the encoder, 0 steps of inversion, 8 views, softmax temperature 1"),
        ({"views": True, "contrast": 1.4, "zoom": True}, "8 views of 1.4 times the contrast, second pass on a crop,"),
        ({"views": False, "contrast": 1.4}, "0 steps of inversion, one view, softmax"),  # a single view is never changed
        ({"one_object": True, "convex": True, "temperature": 2.34567}, "one convex object, softmax temperature 2.346"),
        ({"has_encoder": False, "steps": 200}, "w_avg (there is no encoder), 200 steps of inversion, "),
    ],
)
def test_settings_in_words(model, settings, expected):
    assert expected in settings_in_words(model.config.model_copy(update=settings))


def test_a_model_is_saved_where_a_link_leads(model, tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    model.save(tmp_path / "link", "")
    assert (tmp_path / "place" / "model.safetensors").is_file() and (tmp_path / "link").is_symlink()


def test_a_model_without_encoder(small_config, tmp_path, images):
    build(small_config, has_encoder=False, inversion=InversionConfig(prior=0.0), views=False).save(tmp_path / "m", "")
    loaded = SemanticGAN.load(tmp_path / "m")
    assert loaded.E is None
    with pytest.raises(UserError, match="no encoder"):
        loaded.segment(images[:1], steps=0)
    assert loaded.segment(images[:1], steps=1)[0].label.shape == size(images[0])


def test_a_model_may_be_written_over_and_nothing_else(model, folder, tmp_path):
    model.save(folder, "new card")
    assert (folder / "README.md").read_text() == "new card"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "file").touch()
    places = {"other": "no model", "file": "is a file", "file/m": "cannot be written"}
    for place, message in ((tmp_path / name, message) for name, message in places.items()):
        with pytest.raises(UserError, match=message):
            model.save(place, "")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_the_old_model_whole(model, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_module, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        model.save(folder, "new")
    assert (folder / "model.safetensors").read_bytes() == before and (folder / "README.md").read_text() == "# card\n"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def refused(source):
    with pytest.raises(UserError) as caught:
        SemanticGAN.load(source)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refused(folder) == f"{folder}: has no {name}; expected a model folder or a run folder"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.999])
def test_truncated_weights(folder, share):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    assert "cannot be read as safetensors" in refused(folder)


@pytest.mark.parametrize("content", [b"no safetensors" * 10, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}"])
def test_foreign_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert str(folder / "model.safetensors") in refused(folder)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_weights_of_another_model_name_the_tensor(folder, change):
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["E.rows.bias"]
    elif change == "more":
        tensors["E.rows.bias2"] = torch.zeros(1)
    else:
        tensors["E.rows.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    text = refused(folder)
    assert "E.rows.bias" in text and "got" in text and "expected" in text and "not of one model" in text


def write_config(folder, section, field, value):
    content = json.loads((folder / "config.json").read_text())
    (content[section] if section else content)[field] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("networks", "w_dim", 8192),
        ("networks", "z_dim", 8192),
        ("networks", "w_dim", 10**12),
        ("networks", "mapping_layers", 64),
        ("networks", "mapping_layers", 10**9),
        ("networks", "widths", {"4": 8192, "8": 8192, "16": 8192}),
        ("networks", "widths", {"4": 16}),
        ("networks", "widths", {"4": -16, "8": 16, "16": 16}),
        ("networks", "encoder_widths", [8192, 8192]),
        ("networks", "encoder_widths", [3]),
        ("networks", "encoder_widths", [8] * 1000),
        ("data", "resolution", 1024),
        ("data", "channels", 1),
        (None, "has_encoder", False),
    ],
)
def test_a_config_of_other_sizes_takes_no_memory(folder, monkeypatch, section, field, value):
    """8192 wide layers would take gigabytes: they are compared with the file before any network is built."""

    def built(config):
        assert torch.get_default_device().type == "meta", "memory was taken"
        return build_networks(config)

    monkeypatch.setattr(model_module, "build_networks", built)
    write_config(folder, section, field, value)
    text = refused(folder)
    assert str(folder) in text and ("expected" in text)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[]", b"{}"])
def test_an_unreadable_config(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refused(folder)


def test_a_run_folder_means_its_model(folder, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    assert "has exported no model yet" in refused(run) and f"`semanticgan info {run}`" in refused(run)
    folder.rename(run / "model")
    assert find_model(run) == find_model(run / "model") == run / "model"


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./owner/name", "/owner/name", "~/name"])
def test_what_is_no_model(name):
    assert f"{name}: no such model; expected a model folder, a run folder, or a Hugging Face id" in refused(name)


def test_a_hugging_face_id_without_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = refused("nobody/no-such-model")
    assert text.startswith("nobody/no-such-model: no such folder, and not to be had from the Hugging Face hub")


def test_a_hugging_face_id(monkeypatch, tmp_path, folder):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(folder))
    assert find_model("owner/name") == folder
    (folder / "config.json").unlink()
    assert "has no config.json" in refused("owner/name")


# ---------------------------------------------------------------- segment


@pytest.mark.parametrize("steps", [0, 2])
def test_every_image_gets_maps_of_its_own_size(model, images, steps):
    results = model.segment(images, steps=steps, views=steps == 0)
    assert len(results) == len(images)
    for image, r in zip(images, results, strict=True):
        assert r.label.shape == r.uncertainty.shape == size(image) and r.probs.shape == (4, *size(image))
        assert (r.label.dtype, r.probs.dtype, r.uncertainty.dtype) == (np.uint8, np.float32, np.float32)
        assert np.allclose(r.probs.sum(0), 1, atol=1e-5) and r.probs.min() >= 0
        assert (r.label == r.probs.argmax(0)).all()
        assert r.uncertainty.min() >= 0 and r.uncertainty.max() <= 1
        entropy = -(r.probs * np.log(r.probs.clip(1e-12))).sum(0) / np.log(4)
        assert np.allclose(r.uncertainty, entropy, atol=1e-5)
        assert r.reconstruction.shape == (16, 16, 3) and r.reconstruction.dtype == np.uint8
        assert isinstance(r.distance, float) and r.distance >= 0
    assert len({int(v) for r in results for v in np.unique(r.label)}) > 1


@pytest.mark.parametrize(("steps", "views"), [(0, True), (2, False)])
def test_results_do_not_depend_on_batch_mates_or_order(model, images, steps, views):
    together = model.segment(images, steps=steps, views=views)
    backwards = model.segment(images[::-1], steps=steps, batch=3, views=views)[::-1]
    alone = [model.segment([image], steps=steps, batch=1, views=views)[0] for image in images[:2]]
    assert all(same(a, b) for a, b in zip(together, backwards, strict=True))
    assert all(same(a, b) for a, b in zip(together, alone, strict=False))
    copies = model.segment([images[1]] * 9, steps=steps, views=views)
    assert all(same(r, together[1]) for r in copies)


def test_pictures_and_arrays_and_grey_and_repeated_grey_are_the_same(model):
    img = draw_scene(0, "a", 20)[0]
    as_array, as_picture = model.segment([img, Image.fromarray(img)])
    assert same(as_array, as_picture)
    grey = np.ascontiguousarray(img[..., 0])
    a, b, c = model.segment([grey, grey[..., None], np.repeat(grey[..., None], 3, 2)])
    assert same(a, b) and same(a, c)


def test_a_grey_model_takes_colour(small_config):
    grey = build(small_config, data=small_config("data.channels=1").data)
    (r,) = grey.segment([draw_scene(0, "a", 20)[0]])
    assert r.reconstruction.shape == (16, 16, 1)


def test_views_may_be_left_out(model, images):
    plain, averaged = (model.segment(images[:1], views=views)[0] for views in (False, True))
    assert not np.array_equal(plain.probs, averaged.probs) and plain.distance == averaged.distance
    turned = model.segment([np.rot90(images[0]).copy()], views=True)[0]
    same_views = np.abs(np.rot90(averaged.probs, axes=(1, 2)) - turned.probs).mean()  # in another order, in bfloat16
    assert same_views < 0.2 * np.abs(averaged.probs - plain.probs).mean()


def test_temperature_changes_probabilities_and_no_label(small_config, model, images):
    hot = build(small_config, temperature=10.0)
    a, b = model.segment(images[:2]), hot.segment(images[:2])
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x.label, y.label) and y.uncertainty.mean() > x.uncertainty.mean()


def test_nothing_in_nothing_out(model):
    assert model.segment([]) == []


def test_bad_requests(model, images):
    for request in ({"steps": -1}, {"batch": 0}):
        with pytest.raises(UserError, match="expected"):
            model.segment(images[:1], **request)
    for image in (np.zeros((3, 4, 5), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(UserError):
            model.segment([image])


def test_segmentation_changes_nothing(model, images, assert_same):
    before = {name: value.clone() for name, value in model.G.state_dict().items()}
    random_state = torch.get_rng_state()
    model.segment(images[:2], steps=2, views=False)
    assert_same(dict(model.G.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(p.requires_grad or p.grad is not None for p in model.G.parameters())


# ---------------------------------------------------------------- sample, G


def test_a_sample_depends_on_its_seed_and_number_alone(model):
    few, many = list(model.sample(2, seed=3)), list(model.sample(4, seed=3))
    for (img, label), (img2, label2) in zip(few, many, strict=False):
        assert img.shape == (16, 16, 3) and label.shape == (16, 16) and img.dtype == label.dtype == np.uint8
        assert np.array_equal(img, img2) and np.array_equal(label, label2) and label.max() < 4
    assert not np.array_equal(many[0][0], many[1][0])
    assert not np.array_equal(next(model.sample(1, seed=4))[0], many[0][0])
    assert not np.array_equal(next(model.sample(1, seed=3, truncation_psi=0.5))[0], many[0][0])
    assert list(model.sample(0)) == []
    with pytest.raises(UserError, match="num: got -1"):
        list(model.sample(-1))


def test_g_computes_in_float32(model):
    z = torch.randn(2, model.G.z_dim)
    ws = model.G.mapping(z)
    maps = model.G.noise_maps(2)
    for noise in (maps, "random", "none"):
        img, seg_logits = model.G.synthesis(ws, noise=noise)
        assert ws.dtype == img.dtype == seg_logits.dtype == torch.float32
    exact = build_double(model.G)
    reference = exact.synthesis(ws.double(), noise=[m.double() for m in maps])[0]
    img = model.G.synthesis(ws, noise=maps)[0]
    assert (img - reference).abs().max() < 1e-3 * reference.abs().max()  # bfloat16 would be off by 1e-2


def build_double(G):
    import copy

    return copy.deepcopy(G).double()


# ---------------------------------------------------------------- to the hub


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine in place of the hub, which answers everything with `hub.status`."""
    import huggingface_hub.constants

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push_refused(model, repo_id="me/small"):
    with pytest.raises(UserError) as info:
        model.push(repo_id)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_push_without_permission(hub, folder, status):
    hub.status = status
    text = push_refused(SemanticGAN.load(folder))
    assert text.startswith("me/small: cannot be pushed (") and str(status) in text and "hf auth login" in text


def test_push_without_network(hub, folder, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert push_refused(SemanticGAN.load(folder)).startswith("me/small: cannot be pushed (")


def test_push_needs_a_name_and_a_card(model, folder):
    assert "owner/name" in push_refused(SemanticGAN.load(folder), "small")
    assert "cannot be pushed" in push_refused(SemanticGAN.load(folder), "me/a small one")
    assert "no card" in push_refused(model)


def test_settings_that_cannot_be_are_off(model, small_config):
    """So what is recorded beside scores is what was done."""
    on = model.configured(views=True, zoom=True).config
    assert on.views and not on.zoom  # four classes
    upright = build(small_config, data=small_config("data.symmetry=none").data)
    assert not upright.configured(views=True).config.views


def test_the_card_stays_with_the_model(folder, tmp_path):
    loaded = SemanticGAN.load(folder).configured(temperature=2.0)
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "# card\n"
