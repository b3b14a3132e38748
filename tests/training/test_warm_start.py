import pytest
import torch

from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.synthetic import LABELS
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training.checkpoint import save_checkpoint, save_stage
from semanticgan.training.encoder import new_encoder_state
from semanticgan.training.gan import new_gan_state
from semanticgan.training.warm_start import EXPORTED, images_seen, warm_start


def states(config, num_classes=4):
    gan = new_gan_state(config, num_classes, 3, "cpu")
    return gan, new_encoder_state(config, gan.G, 3, "cpu")


@pytest.fixture
def other(small_config):
    """States of another seed, w_avg and averages included, as if they had been trained."""
    gan, encoder = states(small_config("run.seed=1"))
    for name in ("G_ema", "D_img"):
        for parameter in gan.members[name].parameters():
            parameter.data += 0.1
    gan.G_ema.mapping.w_avg += 3
    return gan, encoder


@pytest.fixture
def run_folder(tmp_path, other):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    other[0].nimg = 100
    save_stage(folder, "gan", 100, other[0].state_dict())
    save_checkpoint(
        folder / "checkpoints" / "encoder-best.pt", {"E": other[1].E_ema.state_dict(), "nimg": 1000, "seen_before": 500}
    )
    return folder


def model(config, gan, encoder, folder):
    described = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=InversionConfig(),
                            has_encoder=encoder is not None)  # fmt: skip
    SemanticGAN(described, gan.G_ema, encoder and encoder.E_ema).save(folder, "a card")
    return folder


def test_from_a_run_every_network_is_taken_and_optimisers_start_fresh(run_folder, other, small_config, assert_same):
    gan, encoder = states(small_config())
    fresh = gan.opt_G.state_dict()
    notes = warm_start(str(run_folder), gan, encoder)
    assert notes == [f"from {run_folder}: G, G_ema, D_img, D_seg, E"]
    for name in ("G", "G_ema", "D_img", "D_seg"):
        assert_same(dict(gan.members[name].state_dict()), dict(other[0].members[name].state_dict()))
    for name in ("E", "E_ema"):
        assert_same(dict(encoder.members[name].state_dict()), dict(other[1].E_ema.state_dict()))
    assert_same(gan.opt_G.state_dict(), fresh)
    assert gan.nimg == encoder.nimg == 0
    assert (gan.seen_before, encoder.seen_before) == (100, 1500)


def test_a_run_that_was_stopped_in_its_first_stage_has_no_encoder(run_folder, small_config):
    (run_folder / "checkpoints" / "encoder-best.pt").unlink()
    gan, encoder = states(small_config())
    before = encoder.E.rows.weight.clone()
    notes = warm_start(str(run_folder), gan, encoder)
    assert notes[1] == f"from {run_folder}: has no E; they start fresh" and torch.equal(encoder.E.rows.weight, before)
    assert (gan.seen_before, encoder.seen_before) == (100, 0)


@pytest.mark.parametrize("with_encoder", [True, False])
def test_from_a_model_folder_the_discriminators_start_fresh(tmp_path, other, small_config, with_encoder, assert_same):
    folder = model(small_config(), other[0], other[1] if with_encoder else None, tmp_path / "model")
    gan, encoder = states(small_config())
    before = {name: value.clone() for name, value in gan.D_img.state_dict().items()}
    notes = warm_start(str(folder), gan, encoder)
    assert notes[0] == f"from {folder}: G" + (", E" if with_encoder else "") and "D_img, D_seg" in notes[1]
    exported = {name: value.half().float() for name, value in other[0].G_ema.state_dict().items()}
    assert_same(dict(gan.G.state_dict()), exported)
    assert_same(dict(gan.G_ema.state_dict()), exported)
    assert_same(dict(gan.D_img.state_dict()), before)
    assert (gan.seen_before, encoder.seen_before) == (EXPORTED, EXPORTED if with_encoder else 0)
    assert all(parameter.requires_grad for parameter in gan.G.parameters())


@pytest.mark.parametrize(
    ("numbers", "seen"),
    [({"nimg": 0}, 0), ({"nimg": 7, "seen_before": 5, "seconds": 1.0}, 12), ({}, EXPORTED), (None, EXPORTED), ([7], EXPORTED),
     ({"nimg": -1}, EXPORTED), ({"nimg": "7"}, EXPORTED), ({"nimg": 7, "seen_before": float("nan")}, EXPORTED)],
)  # fmt: skip
def test_how_many_images_networks_have_seen(numbers, seen):
    assert images_seen(numbers) == seen


def test_an_average_goes_on_as_one_of_all_that_its_network_has_seen(small_config, small_data, tmp_path, monkeypatch):
    """One step of 8 images: its half-life is a share of all images seen, and E's rate that of a run from another."""
    from semanticgan.training import encoder as encoder_stage
    from semanticgan.training import gan as gan_stage
    from semanticgan.training.run import Run

    asked = []
    monkeypatch.setattr("semanticgan.ema.ema_decay", lambda batch, half_life: asked.append(half_life) or 0.5)
    gan, _ = states(config := small_config("gan.kimg=0.008", "gan.ema_half_life_kimg=5", "gan.ema_rampup=0.05"))
    gan.seen_before = 40_000
    gan_stage.train_gan(config, LABELS, small_data[0], gan, Run(tmp_path / "a", lambda text: None), None, "cpu")
    assert asked == [pytest.approx(0.05 * 40.008)]

    rates = {}
    for seen_before in (0, 40_000):
        config = small_config("encoder.kimg=0.012", "encoder.batch=12", "encoder.lr=0.001", "encoder.warm_lr=0.3")
        gan, encoder = states(config)
        encoder.seen_before = seen_before
        run = Run(tmp_path / f"b{seen_before}", lambda text: None)
        encoder_stage.train_encoder(config, LABELS, *small_data, gan.G_ema, LPIPS(), encoder, run, None, "cpu")
        rates[seen_before] = encoder.opt.param_groups[0]["lr"]
    assert rates[40_000] == pytest.approx(0.3 * rates[0])


def test_an_average_that_was_warm_started_can_be_trained_on(run_folder, small_config, small_data, tmp_path):
    from semanticgan.training.gan import train_gan
    from semanticgan.training.run import Run

    gan, encoder = states(config := small_config("gan.kimg=0.008"))
    warm_start(str(run_folder), gan, encoder)
    train_gan(config, LABELS, small_data[0], gan, Run(tmp_path / "new", lambda text: None), None, "cpu")
    assert gan.nimg == 8


@pytest.mark.parametrize(
    ("change", "num_classes", "tensor"),
    [("networks.w_dim=24", 4, "G."), ("networks.mapping_layers=3", 4, "G.mapping"), ("data.fit=pad", 3, "to_seg"),
     ("networks.encoder_widths=[8, 16]", 4, "E.")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["run", "model"])
def test_other_sizes_are_refused(run_folder, other, small_config, tmp_path, change, num_classes, tensor, kind):
    source = run_folder if kind == "run" else model(small_config(), *other, tmp_path / "model")
    with pytest.raises(UserError) as caught:
        warm_start(str(source), *states(small_config(change), num_classes))
    text = str(caught.value)
    assert text.startswith(f"--from {source}: ") and tensor in text and ": got " in text and ", expected " in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("content", [{}, {"members": {}}, {"members": {"G": 5}}, [1, 2]])
def test_a_foreign_checkpoint_is_refused(tmp_path, small_config, content):
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "gan-000000001.pt")
    with pytest.raises(UserError, match=r"gan-000000001\.pt: (has no (members|G)|cannot be read)"):
        warm_start(str(tmp_path), *states(small_config()))


def test_a_source_that_is_not_there(tmp_path, small_config):
    with pytest.raises(UserError, match="no such model"):
        warm_start(str(tmp_path / "nothing"), *states(small_config()))
