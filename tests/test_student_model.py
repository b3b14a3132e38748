"""A student behind the same class: files, segmenting, and what it cannot do."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from semanticgan.config import DataConfig, ModelConfig, read_model_config
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN, named_networks
from semanticgan.precision import has_bf16


def described(**changes):
    values = {"kind": "student", "labels": LABELS, "data": DataConfig(resolution=16, channels=3), "widths": (8, 16),
              "teacher": "runs/first", "temperature": 1.3, "views": False}  # fmt: skip
    return ModelConfig(**(values | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = described()
    return SemanticGAN(config, None, S=named_networks(config)["S"], card="# card\n")


@pytest.fixture
def images():
    return [draw_scene(0, "a", 24)[0], Image.fromarray(draw_scene(1, "a", 30)[0]).resize((31, 17)), draw_scene(2, "a", 16)[0]]


def test_it_comes_back_from_its_folder(model, images, tmp_path, assert_same):
    model.save(tmp_path / "student")
    content = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (content["kind"], content["teacher"], content["widths"]) == ("student", "runs/first", [8, 16])
    loaded = SemanticGAN.load(tmp_path / "student")
    assert loaded.config == model.config and loaded.card == "# card\n" and loaded.E is None
    assert_same(dict(loaded.S.state_dict()), {key: value.half().float() for key, value in model.S.state_dict().items()})
    assert not loaded.S.training and not any(p.requires_grad for p in loaded.S.parameters())
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "student" / name).read_bytes()


@pytest.mark.parametrize("trunk", ["none", "efficientnet-lite0"])
def test_both_kinds_of_u_net_come_back(images, tmp_path, trunk):
    config = described(trunk=trunk)
    S = named_networks(config)["S"]
    if trunk != "none":
        S.trunk.load_imagenet()
    SemanticGAN(config, None, S=S, card="# card\n").save(tmp_path)
    loaded = SemanticGAN.load(tmp_path)
    assert type(loaded.S) is type(S) and loaded.config.trunk == trunk
    shapes = [result.label.shape for result in loaded.segment(images)]
    assert shapes == [np.asarray(image).shape[:2] for image in images]


def test_a_student_of_before_there_were_trunks_is_a_plain_one(model, tmp_path):
    model.save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["trunk"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert SemanticGAN.load(tmp_path).config.trunk == "none"


def test_it_segments_without_reconstruction(model, images):
    results = model.segment(images)
    for image, result in zip(images, results, strict=True):
        height, width = np.asarray(image).shape[:2]
        assert result.label.shape == (height, width) and result.probs.shape == (4, height, width)
        assert result.probs.sum(0) == pytest.approx(1, abs=1e-5)
        assert result.reconstruction is None and result.distance is None
    alone = model.segment(images[1:2])[0]
    assert np.array_equal(alone.probs, results[1].probs)  # whatever its batch mates
    turned = model.segment(images, views=True)
    assert any((a.probs != b.probs).any() for a, b in zip(results, turned, strict=True))
    again = model.configured(views=True).segment(images)
    assert all(np.array_equal(a.probs, b.probs) for a, b in zip(turned, again, strict=True))


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.G,
        lambda m: list(m.sample(1)),
        lambda m: m.segment([np.zeros((16, 16, 3), np.uint8)], steps=3),
        lambda m: m.prior,
    ],
)
def test_what_needs_g_says_so(model, use):
    with pytest.raises(UserError, match=r"is a student: .* use its teacher, runs/first"):
        use(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": None}, "widths"),
        ({"widths": []}, "got 0 levels"),
        ({"widths": [8] * 6}, "got 6 levels, expected 1 to 5"),
        ({"widths": [0]}, "greater than or equal to 1"),
        ({"widths": [10**9]}, "less than or equal to 8192"),
        ({"kind": "pupil"}, "'semanticgan' or 'student'"),
        ({"kind": "semanticgan"}, "networks: missing"),
    ],
)
def test_a_foreign_config_is_refused(change, message):
    text = json.dumps(json.loads(described().to_json()) | change)
    with pytest.raises(UserError) as caught:
        read_model_config(text, "m/config.json")
    assert message in str(caught.value) and str(caught.value).startswith("m/config.json: ")


def test_the_other_kinds_files_name_what_is_missing():
    content = json.loads(described().to_json())
    for name in ("widths", "teacher"):
        with pytest.raises(UserError, match=rf"m: {name}: missing"):
            read_model_config(json.dumps({k: v for k, v in content.items() if k != name}), "m")


def test_weights_of_another_student_are_refused(model, tmp_path):
    model.save(tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    path.write_text(path.read_text().replace("16\n", "24\n"))
    with pytest.raises(UserError, match=r"weights and config\.json are not of one model"):
        SemanticGAN.load(tmp_path / "student")


def test_the_usual_student_is_quick():
    """75 images a second and core at 64 px in bfloat16, networks only: processor time of the best of a few batches.

    Float32 on a processor without it: 41 beside other tests on two cores, some 60 alone; half of that is demanded.
    """
    config = described(data=DataConfig(resolution=64, channels=3), widths=(32, 64, 128, 192, 256))
    predictor = SemanticGAN(config, None, S=named_networks(config)["S"]).predictor()
    img = torch.zeros(32, 3, 64, 64)
    predictor(img)
    seconds = []
    for _ in range(4):
        start = time.process_time()
        predictor(img)
        seconds.append(time.process_time() - start)
    print(f"{len(img) / min(seconds):.0f} images a second and core")
    assert len(img) / min(seconds) > (75 if has_bf16("cpu") else 20)
