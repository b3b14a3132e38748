import json

import pytest
import torch
from pydantic import ValidationError

from semanticgan.config import (
    PRESETS,
    Config,
    DataConfig,
    InversionConfig,
    ModelConfig,
    NetworkConfig,
    build_config,
    choose_preset,
    parse_override,
    read_model_config,
)
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_its_networks(preset):
    from semanticgan.training.encoder import new_encoder_state
    from semanticgan.training.gan import new_gan_state

    config = build_config(preset)
    with torch.device("meta"):  # shapes alone
        gan = new_gan_state(config, 3, 3, "meta")
        encoder = new_encoder_state(config, gan.G, 3, "meta")
    assert gan.G.resolution == gan.G.synthesis.noise_sides[-1] == encoder.E.resolution == config.data.resolution
    assert (encoder.E.num_ws, encoder.E.w_dim) == (gan.G.num_ws, config.networks.w_dim)
    assert len(gan.D_seg.scales) == config.networks.d_seg_scales


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_comes_back_from_json(preset):
    config = build_config(preset, ["networks.mapping_layers=3"], seed=7)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.run.seed == 7 and config.preset == preset


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        build_config("cpu64").gan.kimg = 3


def test_overrides_change_their_field_alone():
    plain, changed = build_config("cpu64"), build_config("cpu64", ["gan.kimg=12", "gan.lr_g=1e-3", "data.symmetry=none"])
    assert (changed.gan.kimg, changed.gan.lr_g, changed.data.symmetry) == (12, 0.001, "none")
    back = changed.model_copy(update={"data": plain.data, "gan": plain.gan})
    assert back == plain
    assert changed.gan.model_copy(update={"kimg": plain.gan.kimg, "lr_g": plain.gan.lr_g}) == plain.gan


def test_the_last_of_two_overrides_holds_and_widths_are_replaced_whole():
    config = build_config("cpu64", ["gan.kimg=1", "gan.kimg=2", "data.resolution=16", "networks.widths={4: 8, 8: 8, 16: 8}"])
    assert config.gan.kimg == 2
    assert config.networks.widths == {4: 8, 8: 8, 16: 8}


def test_values_are_read_as_yaml():
    assert parse_override("gan.kimg=12") == {"gan": {"kimg": 12}}
    assert parse_override("inversion.rows=[1, 5]") == {"inversion": {"rows": [1, 5]}}
    assert parse_override("a.b=x=y") == {"a": {"b": "x=y"}}


@pytest.mark.parametrize(
    ("override", "field", "got", "expected"),
    [
        ("gan.kimg=abc", "gan.kimg", "'abc'", "number"),
        ("gan.kimg=", "gan.kimg", "None", "number"),
        ("gan.kimg=.nan", "gan.kimg", "nan", "finite"),
        ("gan.kimg=-1", "gan.kimg", "-1", "greater than 0"),
        ("gan.batch=1", "gan.batch", "1", "greater than or equal to 2"),
        ("data.resolution=64.5", "data.resolution", "64.5", "integer"),
        ("data.resolution=48", "data.resolution", "48", "power of two from 16 to 1024"),
        ("data.resolution=2048", "data.resolution", "2048", "power of two from 16 to 1024"),
        ("data.resolution=128", "networks.widths", "no entry for side 128", "needs [4, 8, 16, 32, 64, 128]"),
        ("inversion.rows=[5, 99]", "inversion.rows", "got [5, 99]", "expected 0 <= first < last <= 10"),
        ("inversion.rows=[8, 2]", "inversion.rows", "got [8, 2]", "expected 0 <= first < last <= 10"),
        ("data.symmetry=some", "data.symmetry", "'some'", "'none', 'flip' or 'all'"),
        ("networks.widths={4: -1}", "networks.widths.4", "-1", "greater than or equal to 1"),
        ("networks.widths=5", "networks.widths", "5", "dictionary"),
        ("networks.encoder_widths=[10]", "networks.encoder_widths.0", "10", "multiple of 8"),
        ("networks.encoder_widths=[8,8,8,8,8,8,8,8]", "networks.encoder_widths", "8 stages", "at most 6"),
        ("networks.mapping_layers=1000000", "networks.mapping_layers", "1000000", "less than or equal to 64"),
        ("run.seed=-1", "run.seed", "-1", "greater than or equal to 0"),
        ("run.seed=99999999999999999999", "run.seed", "99999999999999999999", "less than"),
        ("gan.nothing=1", "no field 'nothing' in gan", "", "kimg, batch"),
        ("nothing.kimg=1", "no section 'nothing'", "", "data, networks"),
        ("preset.kimg=1", "no section 'preset'", "", "data, networks"),
        ("gan.kimg", "--set gan.kimg", "", "section.field=value"),
        ("kimg=1", "--set kimg=1", "", "section.field=value"),
        ("gan.kimg=[", "--set gan.kimg=[", "", "cannot be read"),
        ("gan.kimg=2020-13-45", "--set gan.kimg=2020-13-45", "", "cannot be read"),
    ],
)
def test_a_bad_override_names_field_got_and_expected(override, field, got, expected):
    with pytest.raises(UserError) as caught:
        build_config("cpu64", [override])
    first = str(caught.value).splitlines()[0]
    assert field in first and got in first and expected in first


def test_any_rows_of_w_plus_can_be_optimised():
    config = build_config("tiny32", ["inversion.rows=[7, 8]"])  # two for each side from 4 to 32 px
    assert config.inversion.rows == (7, 8)


def test_all_bad_fields_are_listed_one_a_line():
    with pytest.raises(UserError) as caught:
        build_config("cpu64", ["gan.kimg=x", "encoder.lr=-1"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["gan.kimg", "encoder.lr"]


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"cpu32: no such preset; expected auto, tiny32, cpu64"):
        build_config("cpu32")


@pytest.mark.parametrize(
    ("side", "device", "preset"),
    [(20, "cpu", "tiny32"), (47, "cpu", "tiny32"), (48, "cpu", "cpu64"), (2000, "cpu", "cpu64"), (2000, "cuda", "paper256"),
     (192, "cuda:1", "paper256"), (100, "cuda", "cpu64")],
)  # fmt: skip
def test_auto_chooses_by_size_and_device(side, device, preset):
    assert choose_preset(side, device) == preset


def model_config(**changes):
    values = {"labels": LabelSpec.unnamed(2), "data": DataConfig(), "networks": NetworkConfig(), "inversion": InversionConfig()}
    return ModelConfig(**(values | changes))


def test_a_model_config_comes_back_from_its_file():
    config = model_config(distance_quantiles=(0.1, 0.2), steps=5, temperature=1.5, zoom=True, versions={"torch": "2"})
    assert read_model_config(config.model_dump_json(), "x") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": {"w_dim": 10**12}}, "networks.w_dim: got 1000000000000"),
        ({"networks": {"mapping_layers": 10**9}}, "networks.mapping_layers"),
        ({"networks": {"widths": {4: 8}}}, "no entry for side 8"),
        ({"inversion": {"rows": [0, 11]}}, "inversion.rows: got [0, 11]"),
        ({"networks": {"widths": {4: 10**9}}}, "networks.widths.4"),
        ({"kind": "unet"}, "kind: got 'unet'"),
        ({"temperature": 0}, "temperature: got 0"),
        ({"labels": {"names": ["a"], "palette": [[0, 0, 0]]}}, "labels: got 1 classes"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_foreign_model_config_names_file_and_field(change, message):
    text = json.dumps(json.loads(model_config().model_dump_json()) | change)
    with pytest.raises(UserError) as caught:
        read_model_config(text, "m/config.json")
    assert str(caught.value).startswith("m/config.json: ") and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "1" * 5000, "\x00"])
def test_what_is_no_model_config_is_refused(text):
    with pytest.raises(UserError, match=r"m/config\.json: .*expected the config.json of an exported model"):
        read_model_config(text, "m/config.json")
