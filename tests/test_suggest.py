"""Which images to label next: the formula on made-up looks, and the whole way on drawn scenes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from semanticgan.config import DataConfig, ModelConfig, NetworkConfig
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.data.transforms import view
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.suggest import Look, candidates, look, propose, suggest


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        labels=LABELS,
        data=DataConfig(resolution=16, channels=3),
        networks=NetworkConfig(
            z_dim=8, w_dim=8, mapping_layers=1, widths={4: 8, 8: 8, 16: 8}, encoder_trunk="residual", encoder_widths=(8, 8)
        ),
        inversion={},
    )
    torch.manual_seed(0)
    return SemanticGAN(config, *build_networks(config))


def at(uncertainty, distance, *ws):
    return Look(uncertainty, distance, np.array(ws, np.float32))


def test_gain_is_rank_times_novelty():
    looks = {"a": at(0.1, 0.4, 0.0, 0.0), "b": at(0.2, 0.3, 1.0, 0.0), "c": at(0.3, 0.9, 0.0, 3.0), "d": at(0.3, 0.1, 9.0, 0.0)}
    first, *rest = propose(looks, 4)
    assert (first.image, first.gain, first.novelty) == ("c", 1.0, 1.0)  # ranks 4/4 and 4/4, nothing to be like
    spread = np.sqrt(2 * np.stack([v.ws for v in looks.values()]).var(0).sum())
    assert (rest[0].image, rest[0].gain) == ("d", (4 / 4 + 1 / 4) / 2)
    assert rest[1].image == "b" and rest[1].novelty == pytest.approx(np.hypot(1, 3) / spread)
    assert rest[1].gain == pytest.approx((2 / 4 + 2 / 4) / 2 * rest[1].novelty)
    assert [p.image for p in propose(looks, 2)] == ["c", "d"] and len(propose(looks, 99)) == 4 and propose({}, 3) == []


def test_ten_proposals_are_not_one_image_ten_times():
    random = np.random.default_rng(0)
    looks = {f"same{k}": Look(0.9, 0.9, np.ones(4, np.float32) + 1e-3 * k) for k in range(30)}
    looks |= {f"other{k}": Look(0.3, 0.3, random.normal(size=4).astype(np.float32)) for k in range(30)}
    chosen = [p.image for p in propose(looks, 10)]
    assert sum(name.startswith("same") for name in chosen) == 1 and chosen[0].startswith("same")


def test_what_is_like_a_labelled_image_is_not_new():
    looks = {"near": at(0.9, 0.9, 1.0, 1.0), "far": at(0.1, 0.1, -1.0, 2.0)}
    near, far = sorted(propose(looks, 2, [at(0.0, 0.0, 1.0, 1.0)]), key=lambda p: p.novelty)
    assert (near.image, near.gain, far.image) == ("near", 0.0, "far") and far.novelty > 0


def test_equal_images_are_proposed_all_the_same():
    assert len(propose({name: at(0.5, 0.5, 1.0) for name in "abc"}, 3)) == 3


def test_looks_are_the_models_answers(model):
    images = [draw_scene(k, "a", 20)[0] for k in range(9)]
    looks = list(look(model, images))
    found = list(model.find(images, steps=0, views=True, zoom=False))
    for one, answer in zip(looks, found, strict=True):
        entropy = -(answer.log_probs.exp() * answer.log_probs).sum(0).mean() / np.log(4)
        # bfloat16 in both, with the views' sum in another order
        assert one.uncertainty == pytest.approx(float(entropy), abs=2e-3)
        assert one.distance == pytest.approx(answer.distance, abs=1e-6)
        assert one.ws.shape == (model.G.num_ws * 8,)
    alone = next(look(model, images[4:5]))
    assert alone.uncertainty == looks[4].uncertainty and (alone.ws == looks[4].ws).all()


def test_flips_and_turns_do_not_change_the_uncertainty(model):
    img = draw_scene(3, "a", 16)[0]
    turned = view(torch.from_numpy(img).permute(2, 0, 1), 5).permute(1, 2, 0).contiguous().numpy()
    one, other = look(model, [img, turned])
    assert one.uncertainty == pytest.approx(other.uncertainty, abs=2e-3)  # bfloat16


def test_without_encoder(model):
    bare = SemanticGAN(model.config.model_copy(update={"has_encoder": False}), model.G)
    with pytest.raises(UserError, match="no encoder"):
        next(look(bare, [np.zeros((16, 16, 3), np.uint8)]))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for k in range(8):
        img, label = draw_scene(k, "a", 20)
        Image.fromarray(img).save(root / "images" / f"{k}.png")
        if k < 3:
            Image.fromarray(label).save(root / "masks" / f"{k}.png")
    return root


def test_candidates(data):
    names = [f"images/{k}.png" for k in range(8)]
    assert candidates(data) == (names[3:], names[:3])
    lists = {name: data / f"{name}.txt" for name in ("some", "one")}
    lists["some"].write_text("\n".join(names[:5]))
    lists["one"].write_text(names[0])
    # A list is taken as it stands, whether its images have masks or not: those of --labeled alone are known.
    assert candidates(data, [str(lists["some"])], [str(lists["one"])]) == (names[1:5], names[:1])
    with pytest.raises(UserError, match=r"^--unlabeled .*one\.txt: every image of it has a mask or is for validation"):
        candidates(data, [str(lists["one"])])
    assert candidates(data, held_out=names[4:6]) == ([names[3], *names[6:]], names[:3])
    for k in range(3, 8):
        Image.new("L", (20, 20)).save(data / "masks" / f"{k}.png")
    with pytest.raises(UserError, match="every image is labelled, expected some without a mask"):
        candidates(data)


def test_files_that_cannot_be_read_are_named(model, data):
    (data / "images" / "7.png").write_text("no image")
    told = []
    proposals, problems = suggest(model, data, 99, progress=lambda done, total: told.append((done, total)))
    assert {p.image for p in proposals} == {f"images/{k}.png" for k in range(3, 7)}
    assert len(problems) == 1 and "7.png" in problems[0]
    assert told[-1] == (8, 8)


def test_images_that_show_nothing_are_not_proposed(model, data):
    Image.new("RGB", (20, 20), (3, 3, 3)).save(data / "images" / "7.png")
    proposals, problems = suggest(model, data, 99)
    assert {p.image for p in proposals} == {f"images/{k}.png" for k in range(3, 7)}
    assert problems == ["images/7.png: near-constant image, nothing to label"]


def test_validation_images_of_a_run_are_not_proposed(model, data, tmp_path, capsys):
    from semanticgan.cli.main import run

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    model.save(tmp_path / "run" / "model", "card")
    (tmp_path / "run" / "val.txt").write_text("images/3.png\nimages/4.png\n")
    assert run(["suggest", str(tmp_path / "run"), "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "images/5.png" in printed and "images/3.png" not in printed and "images/4.png" not in printed


def test_command(model, data, tmp_path, capsys):
    from semanticgan.cli.main import run

    model.save(tmp_path / "model", "card")
    out = tmp_path / "next.json"
    assert run(["suggest", str(tmp_path / "model"), "--data", str(data), "--num", "2", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert len(content["images"]) == 2 and all(row["image"] in printed for row in content["images"])
    assert run(["suggest", str(tmp_path / "model"), "--data", str(data), "--unlabeled", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_held_out_images_of_a_list_are_not_chosen_from_either(data):
    names = [f"images/{k}.png" for k in range(8)]
    (data / "some.txt").write_text("\n".join(names[3:]))
    assert candidates(data, [str(data / "some.txt")], held_out=names[4:6]) == ([names[3], *names[6:]], names[:3])
