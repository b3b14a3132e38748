import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semanticgan import __version__, export
from semanticgan.config import DataConfig, InversionConfig, ModelConfig
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.data.transforms import to_float
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN, build_networks, named_networks
from semanticgan.predict import GeneratorPredictor, NetworkPredictor, predict

CARD = "---\nlicense: other\nlicense_name: some-terms\n---\n# card\n"
BATCHES = [1, 3, 8]
PAGE = Path(__file__).parents[1] / "docs" / "export.md"

# Tracing does not go with the shape checks of the tests, so it happens in a process without them.
EXPORT = """
import sys
from pathlib import Path
from semanticgan.export import to_onnx, to_torch
from semanticgan.model import SemanticGAN
for folder in map(Path, sys.argv[1:]):
    model = SemanticGAN.load(folder)
    folder.with_suffix(".onnx").write_bytes(to_onnx(model))
    if folder.name != "residual":
        folder.with_suffix(".pt2").write_bytes(to_torch(model))
"""
LOAD = """
import sys
sys.modules["semanticgan"] = None  # an import would fail
import json, numpy, torch
extra = {"metadata.json": ""}
net = torch.export.load(sys.argv[1], extra_files=extra).module()
images = numpy.load(sys.argv[2])
with torch.no_grad():
    out = [[x.numpy() for x in net(torch.from_numpy(images[:n]))] for n in map(int, sys.argv[4:])]
numpy.savez(sys.argv[3], **{f"{k}_{name}": x for k, xs in enumerate(out) for name, x in zip(("p", "l", "r"), xs)})
print(json.loads(extra["metadata.json"])["classes"])
"""


def python(code, *args, cwd=None):
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def build(small_config, trunk="residual", channels=3, has_encoder=True):
    config = small_config(f"networks.encoder_trunk={trunk}", f"data.channels={channels}")
    described = ModelConfig(
        labels=LABELS, data=config.data, networks=config.networks, inversion=InversionConfig(), temperature=1.3,
        has_encoder=has_encoder,
    )  # fmt: skip
    torch.manual_seed(0)
    G, E = build_networks(described)
    torch.nn.init.normal_(G.synthesis.blocks[-1].to_seg.weight, std=3)  # label maps with structure
    if E is not None:
        torch.nn.init.normal_(E.rows.weight, std=0.3)
        E.w_avg.normal_()
        if trunk != "residual":
            E.trunk.load_imagenet()
    return SemanticGAN(described, G, E, card=CARD)


@pytest.fixture(scope="module")
def folders(small_config, tmp_path_factory):
    """Both kinds of trunk, one in colour and one in grey; and a student."""
    place = tmp_path_factory.mktemp("models")
    found = {"residual": place / "residual", "efficientnet-lite0": place / "efficientnet"}
    for (trunk, folder), channels in zip(found.items(), (3, 1), strict=True):
        build(small_config, trunk, channels).save(folder)
    config = ModelConfig(kind="student", labels=LABELS, data=DataConfig(resolution=16, channels=3), widths=(8, 16, 16),
                         trunk="efficientnet-lite0", teacher="t", temperature=1.3)  # fmt: skip
    S = named_networks(config)["S"]
    S.trunk.load_imagenet()
    SemanticGAN(config, None, S=S, card=CARD).save(place / "student")
    return found | {"student": place / "student"}


@pytest.fixture(scope="module")
def files(folders):
    """Beside each folder a file `.onnx`, and `.pt2` beside the last two, which have every kind of layer."""
    assert python(EXPORT, *folders.values()) == ""
    return folders


@pytest.fixture(params=["residual", "efficientnet-lite0"])
def case(request, files):
    """A model, its folder, and images with what the package says of them in float32: one view, no zoom."""
    folder = files[request.param]
    model = SemanticGAN.load(folder)
    images = np.stack([draw_scene(seed, "a", 16)[0] for seed in range(max(BATCHES))])[..., : model.config.data.channels]
    predictor = GeneratorPredictor(model.G, model.E, None, model.config.inversion, precision="fp32")
    found = predict(predictor, images, resolution=16, temperature=model.config.temperature)
    label, probs = (np.stack(maps) for maps in list(zip(*(f.maps() for f in found), strict=True))[:2])
    img = to_float(torch.from_numpy(images)).contiguous()
    reconstruction = predictor(img).reconstruction.clamp(-1, 1).numpy()
    assert len(np.unique(label)) > 1 and reconstruction.std() > 0.1
    return folder, img.numpy(), (probs, label, reconstruction)


def assert_equal(got, expected, n):
    """Equal to 1e-4, as promised; what the sums' other order makes is a hundredth of that."""
    probs, label, reconstruction = got
    assert probs.shape == expected[0][:n].shape and label.dtype == np.uint8
    assert np.abs(probs - expected[0][:n]).max() < 1e-4
    assert np.abs(reconstruction - expected[2][:n]).max() < 1e-4
    assert (label == probs.argmax(1)).all()
    assert (label == expected[1][:n]).mean() > 0.999  # ties may fall either way


@pytest.mark.slow
def test_onnx_says_what_the_package_says(case):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, images, expected = case
    session = onnxruntime.InferenceSession(folder.with_suffix(".onnx"))
    for n in BATCHES:
        assert_equal(session.run(None, {"img": images[:n]}), expected, n)
    told = session.get_modelmeta().custom_metadata_map
    channels = images.shape[1]
    assert [x.shape for x in session.get_inputs()] == [["n", channels, 16, 16]]
    assert [x.name for x in session.get_outputs()] == ["probs", "label", "reconstruction"]
    assert tuple(json.loads(told["classes"])) == LABELS.names
    assert tuple(map(tuple, json.loads(told["palette"]))) == LABELS.palette
    assert (told["resolution"], told["channels"], told["fit"]) == ("16", str(channels), "squash")
    assert (told["licence"], told["version"]) == ("some-terms", f"semanticgan {__version__}")
    assert "uint8 / 127.5 - 1" in told["normalisation"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["efficientnet-lite0"], indirect=True)
def test_a_program_of_torch_export_needs_no_semanticgan(case, tmp_path):
    folder, images, expected = case
    np.save(tmp_path / "images.npy", images)
    said = python(LOAD, folder.with_suffix(".pt2"), tmp_path / "images.npy", tmp_path / "out.npz", *BATCHES)
    assert said == f"{json.dumps(LABELS.names)}\n"
    with np.load(tmp_path / "out.npz") as out:
        for k, n in enumerate(BATCHES):
            assert_equal([out[f"{k}_{name}"] for name in "plr"], expected, n)


@pytest.mark.slow
def test_a_student_says_what_the_package_says(files, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = files["student"]
    model = SemanticGAN.load(folder)
    images = np.stack([draw_scene(seed, "a", 16)[0] for seed in range(max(BATCHES))])
    found = predict(NetworkPredictor(model.S, precision="fp32"), images, resolution=16, temperature=model.config.temperature)
    expected = np.stack([f.maps()[1] for f in found])
    img = to_float(torch.from_numpy(images)).contiguous().numpy()
    np.save(tmp_path / "images.npy", img)
    python(LOAD, folder.with_suffix(".pt2"), tmp_path / "images.npy", tmp_path / "out.npz", *BATCHES)
    session = onnxruntime.InferenceSession(folder.with_suffix(".onnx"))
    assert [x.name for x in session.get_outputs()] == ["probs", "label"]
    with np.load(tmp_path / "out.npz") as out:
        for k, n in enumerate(BATCHES):
            for probs, label in (session.run(None, {"img": img[:n]}), (out[f"{k}_p"], out[f"{k}_l"])):
                assert np.abs(probs - expected[:n]).max() < 1e-4 and (label == probs.argmax(1)).all()


@pytest.mark.slow
def test_the_page_works_as_written(files, tmp_path):
    pytest.importorskip("onnxruntime")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    (tmp_path / "skin.onnx").write_bytes(files["residual"].with_suffix(".onnx").read_bytes())
    photo = Image.fromarray(draw_scene(0, "a", 64)[0])
    photo.save(tmp_path / "photo.jpg")
    said = python(code, cwd=tmp_path)
    assert all(name in said for name in LABELS.names)
    model = SemanticGAN.load(files["residual"])
    with Image.open(tmp_path / "photo.jpg") as photo:
        predictor = GeneratorPredictor(model.G, model.E, None, model.config.inversion, precision="fp32")
        (found,) = predict(predictor, [np.asarray(photo)], resolution=16, temperature=1.3)
    small = found.log_probs.argmax(0)
    shares = [float((small == k).float().mean()) for k in range(LABELS.num_classes)]
    assert json.loads(said.replace("'", '"')) == {n: round(s, 3) for n, s in zip(LABELS.names, shares, strict=True)}


def test_a_model_without_encoder(small_config):
    for form in (export.to_onnx, export.to_torch):
        with pytest.raises(UserError, match="no encoder"):
            form(build(small_config, has_encoder=False))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_what_is_not_installed(small_config, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{package} is not installed.*pip install 'semanticgan\[onnx\]'$"):
        export.to_onnx(build(small_config))


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (CARD, "some-terms"),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\ntags: []\n---\nlicense: mit\n", "not stated"),
        ("", "not stated"),
    ],
)
def test_licence(card, words):
    assert words in export.licence(card)


def test_the_network_to_be_exported_says_what_the_package_says(small_config):
    """Before it is traced, which takes longer: temperature and all; and reconstructions are images."""
    model = build(small_config)
    images = np.stack([draw_scene(seed, "a", 16)[0] for seed in range(2)])
    found = predict(GeneratorPredictor(model.G, model.E, None, model.config.inversion, precision="fp32"), images, resolution=16,
                    temperature=1.3)  # fmt: skip
    expected = np.stack([f.maps()[1] for f in found])
    model.G.synthesis.blocks[-1].to_img.bias += 3  # white and beyond
    with torch.no_grad():
        probs, label, reconstruction = export.EncoderWithGenerator(model)(to_float(torch.from_numpy(images)))
    assert np.abs(probs.numpy() - expected).max() < 1e-4 and (label.numpy() == probs.numpy().argmax(1)).all()
    assert reconstruction.max() == 1


def test_a_student_to_be_exported_has_its_temperature():
    config = ModelConfig(kind="student", labels=LABELS, data=DataConfig(resolution=16, channels=3), widths=(8, 16), trunk="none",
                         teacher="t", temperature=1.3)  # fmt: skip
    torch.manual_seed(0)
    model = SemanticGAN(config, None, S=named_networks(config)["S"])
    torch.nn.init.normal_(model.S.head.weight)
    img = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(export.Student(model)(img)[0], (model.S(img) / 1.3).softmax(1))


def test_metadata_say_how_images_are_fitted(small_config):
    model = build(small_config).configured(data=small_config("data.fit=pad").data)
    assert export.metadata(model)["fit"] == "pad"
