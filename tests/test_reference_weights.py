import argparse
import pathlib
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from semanticgan.errors import UserError
from semanticgan.reference_weights import read_reference

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def theirs():
    state = load_file(GOLDEN / "golden_rgb32_weights.safetensors")
    return {key[2:]: value for key, value in state.items() if key.startswith("g.")}


@pytest.fixture(scope="module")
def values():
    return load_file(GOLDEN / "golden_rgb32_values.safetensors")


def save(tmp_path, content, name="000100.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def refused(path):
    with pytest.raises(UserError) as error:
        read_reference(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_golden_checkpoint_gives_sizes_and_numbers(values):
    sizes, state = read_reference(GOLDEN / "golden_rgb32_weights.safetensors")
    assert (sizes.resolution, sizes.num_classes, sizes.img_channels) == (32, 3, 3)
    assert (sizes.z_dim, sizes.w_dim, sizes.mapping_layers) == (24, 24, 3)
    assert sizes.widths == {4: 16, 8: 16, 16: 12, 32: 8}
    G = sizes.generator()
    G.load_state_dict(state)
    with torch.no_grad():
        img, seg_logits = G(values["z"], noise=[values[f"noise_{k}"] for k in range(7)])
        torch.testing.assert_close(img, values["img"], atol=1e-4, rtol=0)  # the golden values' own tolerance
        torch.testing.assert_close(seg_logits, values["seg"], atol=1e-4, rtol=0)
        w = G.mapping.w(torch.randn(20_000, 24, generator=torch.Generator().manual_seed(5)))
    # two means of 10,000 and 20,000 draws: five standard errors
    assert ((w.mean(0) - G.mapping.w_avg).abs() < 5 * w.std(0) * (1 / 10_000 + 1 / 20_000) ** 0.5).all()


def test_w_avg_repeats(theirs, tmp_path):
    path = save(tmp_path, {"g_ema": theirs})
    assert torch.equal(read_reference(path)[1]["mapping.w_avg"], read_reference(path)[1]["mapping.w_avg"])


def test_authors_pickle_with_its_arguments(theirs, tmp_path):
    young = {key: torch.zeros_like(value) for key, value in theirs.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.002, "betas": (0, 0.99)}]}
    args = argparse.Namespace(size=32, latent=24, image_mode="RGB", start_iter=0, wandb=False, ckpt=None)
    path = save(tmp_path, {"g": young, "g_ema": theirs, "g_optim": optimizer, "args": args})
    _, state = read_reference(path)
    assert torch.equal(state["synthesis.const"], theirs["input.input"][0])


@pytest.mark.parametrize("prefix", ["", "g.", "g_ema."])
def test_safetensors_bare_or_prefixed(theirs, tmp_path, prefix):
    path = tmp_path / "g.safetensors"
    save_file({prefix + key: value for key, value in theirs.items()}, path)
    assert read_reference(path)[0].resolution == 32


def test_averaged_generator_wins_over_the_last_one(theirs, tmp_path):
    path = tmp_path / "g.safetensors"
    save_file({f"g.{k}": v + 1 for k, v in theirs.items()} | {f"g_ema.{k}": v for k, v in theirs.items()}, path)
    assert torch.equal(read_reference(path)[1]["synthesis.const"], theirs["input.input"][0])


def test_one_label_channel_becomes_two(theirs, values, tmp_path):
    one = {key: value.clone() for key, value in theirs.items()}
    for key in one:
        if "to_seg" in key and "modulation" not in key and not key.endswith("kernel"):
            one[key] = one[key][:, :1].contiguous()
    sizes, state = read_reference(save(tmp_path, {"g_ema": one}))
    assert sizes.num_classes == 2
    G = sizes.generator()
    G.load_state_dict(state)
    with torch.no_grad():
        _, seg_logits = G(values["z"], noise=[values[f"noise_{k}"] for k in range(7)])
    torch.testing.assert_close(seg_logits[:, 1:], values["seg"][:, :1], atol=1e-4, rtol=0)  # the golden values' own tolerance
    torch.testing.assert_close(seg_logits[:, 0], -seg_logits[:, 1], atol=1e-5, rtol=0)  # float32, sums in another order
    torch.testing.assert_close(2 * seg_logits.softmax(1)[:, 1] - 1, seg_logits[:, 1].tanh())


class Hostile:
    """A pickle that runs what it likes when it is read by a plain unpickler."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "plain", "beside g_ema", "in args"])
def test_hostile_pickle_is_refused_and_runs_nothing(theirs, tmp_path, form):
    target = tmp_path / "executed"
    path = tmp_path / "hostile.pt"
    if form == "plain":
        path.write_bytes(pickle.dumps(Hostile(target)))
    else:
        hostile = Hostile(target)
        content = {
            "zip": hostile,
            "beside g_ema": {"g_ema": theirs, "d_img": hostile},
            "in args": {"g_ema": theirs, "args": argparse.Namespace(ckpt=hostile)},
        }[form]
        torch.save(content, path)
    message = refused(path)
    assert not target.exists()
    assert "refused" in message or "cannot be read" in message
    if form == "plain":  # the trap is armed: a careless reader falls into it
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("expression", ["os.system", "builtins.eval", "builtins.getattr", "torch.hub.load"])
def test_known_attack_names_are_refused(tmp_path, expression):
    module, _, name = expression.rpartition(".")
    (tmp_path / "a.pt").write_bytes(f"c{module}\n{name}\n(S'1'\ntR.".encode())
    refused(tmp_path / "a.pt")


def test_what_is_no_checkpoint(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.pt")
    assert "no such file" in refused(tmp_path)
    for name in ("a.pt", "a.safetensors"):
        for content in (b"", b"not a checkpoint", bytes(200)):
            (tmp_path / name).write_bytes(content)
            refused(tmp_path / name)


def test_truncated_files(theirs, tmp_path):
    for path in (save(tmp_path, {"g_ema": theirs}), tmp_path / "g.safetensors"):
        if path.suffix == ".safetensors":
            save_file(theirs, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"weight": torch.zeros(2)}}, {"g_ema": 3}, {"g_ema": {}}, {1: 2}])
def test_other_content(tmp_path, content):
    assert "expected" in refused(save(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv1.conv.weight", None),
        ("convs.5.conv.weight", None),
        ("convs.3.activate.bias", None),
        ("style.2.weight", None),
        ("to_seg1.conv.weight", None),
        ("conv1.conv.weight", torch.zeros(1, 16, 9, 3, 3)),
        ("input.input", torch.zeros(16)),
        ("style.1.weight", torch.zeros(())),
        ("conv1.noise.weight", torch.zeros(3)),
        ("to_rgb1.conv.weight", torch.zeros(3)),
        ("conv1.activate.bias", torch.full((16,), float("nan"))),
        ("conv1.activate.bias", "text"),
        ("conv1.activate.bias", torch.zeros(16, dtype=torch.int64)),
        ("conv1.conv.weight", torch.zeros(1).expand(1, 60_000, 60_000, 3, 3)),
        ("convs.5.conv.weight", torch.zeros(1, 20_000, 1, 1, 1)),
        ("convs.99.conv.weight", torch.zeros(1, 8, 8, 3, 3)),
        ("convs.x.conv.weight", torch.zeros(1, 8, 8, 3, 3)),
        ("surprise.weight", torch.zeros(1)),
        ("style.1.weight", torch.zeros(24, 0)),
        ("to_rgb1.conv.weight", torch.zeros(1, 2, 16, 1, 1)),
        ("to_seg1.conv.weight", torch.zeros(1, 300, 16, 1, 1)),
        (7, torch.zeros(1)),
    ],
)
def test_generator_that_is_not_whole(theirs, tmp_path, key, value):
    broken = dict(theirs)
    if value is None:
        del broken[key]
    else:
        broken[key] = value
    refused(save(tmp_path, {"g_ema": broken}))
