"""Every setting, the presets, and `section.field=value` overrides."""

import json
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

Width = Annotated[int, Field(ge=1, le=8192)]
Trunk = Literal["none", "efficientnet-lite0"]
Precision = Literal["auto", "bf16", "fp32"]
EncoderWidth = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    resolution: int = Field(64, description="side of G's images in pixels, a power of two from 16 to 1024")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; unset: grey if every image is")
    fit: Literal["squash", "pad"] = Field("squash", description="how an image that is not square becomes one")
    symmetry: Literal["none", "flip", "all"] = Field(
        "all", description="true symmetries of the images: none, left-right flip, or all eight flips and turns"
    )

    @property
    def num_channels(self) -> Literal[1, 3]:
        """What is not known yet counts as colour."""
        return self.channels or 3

    @property
    def in_words(self) -> str:
        return f"{self.resolution} px, {'grey' if self.channels == 1 else 'colour'}, fit {self.fit}, symmetry {self.symmetry}"

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if not 16 <= value <= 1024 or value & (value - 1):
            raise ValueError(f"got {value}, expected a power of two from 16 to 1024")
        return value


class NetworkConfig(Section):
    z_dim: Width = 128
    w_dim: Width = 128
    mapping_layers: int = Field(4, ge=1, le=64)
    widths: dict[int, Width] = Field(
        {4: 128, 8: 128, 16: 128, 32: 64, 64: 32}, description="channels of G and D_img by side in pixels"
    )
    d_img: Literal["stylegan2", "projected"] = Field(
        "stylegan2",
        description="D_img: StyleGAN2's, or heads on fixed features of EfficientNet-lite0, which wants gan.lr_d_img=0.0005",
    )
    mbstd_group: int = Field(4, ge=1, description="StyleGAN2's D_img: images a group of the minibatch standard deviation")
    d_seg_filters: Width = 32
    d_seg_scales: int = Field(2, ge=1, le=8)
    d_seg_layers: int = Field(3, ge=1, le=16)
    encoder_trunk: Literal["efficientnet-lite0", "residual"] = Field(
        "efficientnet-lite0", description="E's first layers: pretrained on ImageNet, or its own (then encoder.kimg=150 is better)"
    )
    encoder_features: bool = Field(True, description="E also gives an offset to G's feature maps")
    encoder_features_stride: Literal[2, 4] = Field(
        4, description="side of the images over that of these maps: less where outlines are fine and alike, as of lungs"
    )
    encoder_widths: tuple[EncoderWidth, ...] = Field(
        (64, 128, 192, 256), min_length=1, description="channels of the residual trunk by stage; every stage halves the side"
    )

    def feature_width(self, resolution: int) -> int:
        """Channels of the feature maps that E adds to; 0 if it adds to none."""
        return self.widths[resolution // self.encoder_features_stride] if self.encoder_features else 0


class GanConfig(Section):
    kimg: float = Field(40, gt=0, description="length of the stage in thousands of images shown to D_img")
    batch: int = Field(16, ge=2)
    lr_g: float = Field(0.002, gt=0)
    lr_d_img: float = Field(0.002, gt=0)
    lr_d_seg: float = Field(0.001, gt=0)
    style_mixing: float = Field(0.9, ge=0, le=1)
    r1_gamma: float = Field(0.5, ge=0, description="of StyleGAN2's D_img; grows with the image's area: 10 at 256 px, .5 at 64 px")
    r1_gamma_seg: float = Field(10, ge=0)
    r1_every: int = Field(16, ge=1, description="lazy regularisation: one penalty in so many updates")
    pl_weight: float = Field(0, ge=0)
    pl_every: int = Field(4, ge=1)
    seg_weight: float = Field(1, ge=0, description="weight of D_seg's verdict in G's loss; 0: images alone, D_seg does not learn")
    feature_matching: float = Field(1, ge=0)
    ema_half_life_kimg: float = Field(5, gt=0)
    ema_rampup: float = Field(0.05, gt=0, description="half-life never above this share of the images seen")
    ada_target: float = Field(0.6, ge=0, le=1, description="wanted mean sign of StyleGAN2's D_img on real images; 0: no ADA")
    ada_kimg: float = Field(100, gt=0, description="thousands of images over which the augmentation may go from 0 to 1")
    seg_augment: float = Field(1, ge=0, description="strength of the changes to D_seg's real and fake pairs")


class EncoderConfig(Section):
    kimg: float = Field(24, gt=0, description="length of the stage in thousands of images, all three kinds counted")
    batch: int = Field(48, ge=6, description="a third each: unlabelled, labelled, G's own samples")
    lr: float = Field(1e-3, gt=0)
    trunk_lr: float = Field(0.3, ge=0, description="learning rate of a pretrained trunk, relative to lr")
    warm_lr: float = Field(0.3, ge=0, description="learning rate where E comes from another run or model, relative to lr")
    lr_end: float = Field(0, ge=0, le=1, description="share of lr at the end of the stage, to which it falls by a cosine")
    weight_decay: float = Field(0.01, ge=0)
    mse: float = Field(2, ge=0)
    lpips: float = Field(2, ge=0)
    labeled: float = Field(1, ge=0, description="weight of cross-entropy + Dice on labelled images")
    samples: float = Field(1, ge=0, description="weight of cross-entropy + Dice on G's samples")
    pseudo: float = Field(1, ge=0, description="weight of cross-entropy + Dice on unlabelled images, as E itself labels them")
    pseudo_threshold: float = Field(0.8, ge=0, le=1, description="pixels that E is less sure of teach nothing")
    latent: float = Field(0.3, ge=0, description="weight of the whitened distance to the samples' known ws")
    features: float = Field(0.1, ge=0, description="weight of the mean square of E's offset to G's features, if it gives one")
    augment: float = Field(1, ge=0, description="strength of the colour and scale changes to E's input")
    zoom_out: float = Field(0.5, ge=0, le=1, description="share of E's images that it sees from farther away")
    zoom_in: float = Field(0.3, ge=0, le=1, description="share of E's images of which it sees an enlarged piece")
    ema_half_life_kimg: float = Field(2, gt=0)
    average: float = Field(
        0,
        ge=0,
        le=1,
        description="last share of the stage over which the exported weights are averaged; 0: by the half-life alone",
    )
    grad_clip: float = Field(5, gt=0)


class StudentConfig(Section):
    kimg: float = Field(30, gt=0, description="length of the training in thousands of images, of all sources together")
    batch: int = Field(48, ge=3, description="shared evenly by the sources whose weight is not 0")
    trunk: Trunk = Field(
        "efficientnet-lite0", description="the U-Net's way down: pretrained on ImageNet, or its own (none; faster, worse)"
    )
    widths: tuple[Width, ...] = Field(
        (24, 32, 64, 96, 128), min_length=1, description="channels of the U-Net by level, full resolution first"
    )
    lr: float = Field(1e-3, gt=0)
    trunk_lr: float = Field(0.3, ge=0, description="of the pretrained trunk, relative to lr")
    weight_decay: float = Field(0.01, ge=0)
    labeled: float = Field(1, ge=0, description="weight of the labelled images")
    samples: float = Field(1, ge=0, description="weight of G's samples with their label maps")
    pseudo: float = Field(1, ge=0, description="weight of unlabelled images, as the teacher labels them")
    pseudo_threshold: float = Field(0.6, ge=0, le=1, description="pixels that the teacher is less sure of teach nothing")
    drop: float = Field(0.2, ge=0, lt=1, description="share of G's samples that the filter throws away")
    augment: float = Field(1, ge=0, description="strength of the changes of place and colour")
    zoom_out: float = Field(0.3, ge=0, le=1, description="share of the images that are seen from farther away")
    texture: float = Field(0.5, ge=0, le=1, description="share of the images that get another texture")
    ema_half_life_kimg: float = Field(2, gt=0)
    grad_clip: float = Field(5, gt=0)

    @model_validator(mode="after")
    def _taught(self) -> "StudentConfig":
        if not self.labeled + self.samples + self.pseudo:
            raise ValueError("got weight 0 for labeled, samples and pseudo, expected one above 0")
        return self


class InversionConfig(Section):
    lr: float = Field(0.05, gt=0)
    lpips: float = Field(1, ge=0)
    mse: float = Field(1, ge=0)
    prior: float = Field(0.01, ge=0, description="keeps ws where the mapping network puts them")
    rows: tuple[int, int] | None = Field(None, description="rows of W+ to optimise, [first, last + 1]; unset: all")
    noise: bool = Field(False, description="optimise the noise maps too")
    patience: int = Field(10, ge=1, description="an image stops when its loss has not fallen for so many steps")


class PredictConfig(Section):
    views: bool = Field(True, description="average over the symmetries that the data allow")
    contrast: float = Field(
        1,
        ge=1,
        le=4,
        description="of several views, relative to the image's; 1.4 finds fainter objects, but is less sturdy elsewhere",
    )
    zoom: bool | None = Field(None, description="second pass on a crop round the first mask; unset: by validation")
    steps: int | None = Field(None, ge=0, description="inversion steps; unset: by validation")
    one_object: bool | None = Field(
        None,
        description="one piece of the object's class at most, the likeliest; unset: if all known masks of two classes are so",
    )
    convex: bool | None = Field(None, description="the one object has no dents; unset: if the known masks have hardly any")


class RunConfig(Section):
    seed: int = Field(0, ge=0, lt=2**63)
    tick_kimg: float = Field(2, gt=0, description="images between two lines of statistics, in thousands")
    checkpoint_minutes: float = Field(4, ge=0)
    gan_fraction: float = Field(0.55, gt=0, lt=1, description="share of --hours that the GAN stage gets")
    keep: Literal["best", "last"] = Field(
        "best", description="weights of the encoder or the student to export: the best on the validation images, or the last"
    )
    precision: Precision = Field("auto", description="bfloat16 or float32; auto: bfloat16 where the device has it")


class Config(Section):
    preset: str = "cpu64"
    data: DataConfig = DataConfig()
    networks: NetworkConfig = NetworkConfig()
    gan: GanConfig = GanConfig()
    encoder: EncoderConfig = EncoderConfig()
    student: StudentConfig = StudentConfig()
    inversion: InversionConfig = InversionConfig()
    predict: PredictConfig = PredictConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Config":
        require_sizes_fit(self.data, self.networks, self.inversion)
        return self


def require_sizes_fit(data: DataConfig, networks: NetworkConfig, inversion: InversionConfig) -> None:
    """Raises ValueError unless there is a width for every side, a pixel in E's last stage, and in W+ the rows to optimise."""
    sides = [4 << k for k in range(data.resolution.bit_length() - 2)]
    missing = [side for side in sides if side not in networks.widths]
    if missing:
        raise ValueError(f"networks.widths: no entry for side {missing[0]}; data.resolution {data.resolution} needs {sides}")
    stages, most = len(networks.encoder_widths), data.resolution.bit_length() - 1
    if stages > most:
        raise ValueError(
            f"networks.encoder_widths: got {stages} stages, expected at most {most} for data.resolution {data.resolution}"
        )
    rows, most = inversion.rows, 2 * len(sides)
    if rows is not None and not 0 <= rows[0] < rows[1] <= most:
        raise ValueError(f"inversion.rows: got {list(rows)}, expected 0 <= first < last <= {most}, the rows of W+")


def levels(data: DataConfig, trunk: str) -> tuple[int, int]:
    """How many a U-Net has at least and at most: its last one a pixel, or a pretrained trunk's last map."""
    last = max(data.resolution, 128) // 32  # side of that map: the trunk halves five times
    return (1, data.resolution.bit_length()) if trunk == "none" else (2, (data.resolution // last).bit_length())


def require_levels_fit(data: DataConfig, widths: tuple[int, ...], trunk: str) -> None:
    """Raises ValueError unless a U-Net can have so many levels."""
    least, most = levels(data, trunk)
    if not least <= len(widths) <= most:
        raise ValueError(f"widths: got {len(widths)} levels, expected {least} to {most} for data.resolution {data.resolution}")


class ModelConfig(Section):
    """`config.json` of an exported model folder: of a generator with or without an encoder, or of a student, a U-Net."""

    kind: Literal["semanticgan", "student"] = "semanticgan"
    labels: LabelSpec
    data: DataConfig
    networks: NetworkConfig = Field(NetworkConfig(), description="of G and E")
    inversion: InversionConfig = InversionConfig()
    has_encoder: bool = True
    trunk: Trunk = Field("none", description="of a student: its U-Net's way down")
    widths: tuple[Width, ...] = Field((), description="of a student: channels of its U-Net by level")
    teacher: str = Field("", description="of a student: the model that it learnt from")
    views: bool = True
    zoom: bool = False
    steps: int = Field(0, ge=0, description="default inversion steps, chosen on validation images")
    temperature: float = Field(1, gt=0, description="softmax temperature, chosen on validation images")
    one_object: bool = Field(False, description="label maps of two classes keep one piece of the second alone")
    convex: bool = Field(False, description="and its dents are filled")
    contrast: float = Field(1, ge=1, le=4, description="of several views")
    distance_quantiles: tuple[float, ...] = Field((), description="LPIPS of validation images at 0, .05, ..., 1")
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _whole(self) -> "ModelConfig":
        for name in STUDENTS_OWN[:2] if self.kind == "student" else GENERATORS_OWN[:2]:
            if name not in self.model_fields_set:
                raise ValueError(f"{name}: missing")
        if self.kind == "student":
            require_levels_fit(self.data, self.widths, self.trunk)
        else:
            require_sizes_fit(self.data, self.networks, self.inversion)
        return self

    def to_json(self) -> str:
        """What read_model_config reads: without the fields that a model of this kind has no use for."""
        return self.model_dump_json(indent=1, exclude=set(GENERATORS_OWN if self.kind == "student" else STUDENTS_OWN)) + "\n"


GENERATORS_OWN = ("networks", "inversion", "has_encoder", "steps", "distance_quantiles")  # fields of ModelConfig
STUDENTS_OWN = ("widths", "teacher", "trunk")


STUDENT = "student"  # the preset that a run of `distill` names; its data and networks are the teacher's
# The presets, each as its difference from the defaults above (which are cpu64's).
PRESETS: dict[str, dict[str, Any]] = {
    "tiny32": {
        "data": {"resolution": 32},
        "networks": {
            "z_dim": 64, "w_dim": 64, "mapping_layers": 2, "widths": {4: 64, 8: 64, 16: 48, 32: 32},
            "d_seg_filters": 16, "encoder_trunk": "residual", "encoder_features": False, "encoder_widths": (32, 64, 96),
        },
        "gan": {
            "kimg": 18, "batch": 8, "lr_g": 0.003, "lr_d_img": 0.003, "style_mixing": 0,
            "r1_gamma": 0.05, "ema_half_life_kimg": 1.5,
        },
        "encoder": {"kimg": 20, "zoom_in": 0},
        "run": {"tick_kimg": 1, "checkpoint_minutes": 1},
    },
    "cpu64": {},
    "cpu128": {
        "data": {"resolution": 128},
        "networks": {"widths": {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 32}, "encoder_widths": (32, 64, 128, 192, 256)},
        "gan": {"r1_gamma": 2},
    },
    "paper256": {
        "data": {"resolution": 256},
        "networks": {
            "z_dim": 512, "w_dim": 512, "mapping_layers": 8,
            "widths": {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128},
            "d_seg_filters": 64, "d_seg_scales": 3,
            "encoder_trunk": "residual", "encoder_features": False, "encoder_widths": (64, 128, 256, 384, 512, 512),
        },
        "gan": {"kimg": 3200, "r1_gamma": 10, "pl_weight": 2, "feature_matching": 2, "ema_half_life_kimg": 10},
        "encoder": {"kimg": 3200, "lr": 1e-3, "mse": 1, "lpips": 10},
        "inversion": {"lr": 0.1, "mse": 0.1, "noise": True},
        "run": {"tick_kimg": 4, "checkpoint_minutes": 10},
    },
}  # fmt: skip


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "widths"
        out[key] = _merged(out[key], value) if nested else value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """`"gan.kimg=12"` -> `{"gan": {"kimg": 12}}`; the value is read as YAML. Raises UserError for another form."""
    name, equals, value = text.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (equals and dot and section and field):
        raise UserError(f"--set {text}: expected section.field=value, such as gan.kimg=20")
    try:
        return {section: {field: yaml.safe_load(value)}}
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: such as the 45th of a month
        raise UserError(f"--set {text}: the value cannot be read; put it in quotes if it has special characters") from None


def choose_preset(side: int, device: str) -> str:
    """The preset that `auto` stands for: by the images' median shorter side in pixels and the device."""
    if device != "cpu" and side >= 192:
        return "paper256"
    return "tiny32" if side < 48 else "cpu64"


def build_config(
    preset: str,
    overrides: list[str] | tuple[str, ...] = (),
    seed: int | None = None,
    base: dict[str, Any] | None = None,  # sections to take instead of the preset's, whole
) -> Config:
    """A preset with `section.field=value` overrides. Raises UserError naming the field, what was got and expected."""
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: no such preset; expected auto, {', '.join(PRESETS)}")
    values: dict[str, Any] = _merged({"preset": preset}, PRESETS[preset]) | (base or {})
    for text in overrides:
        change = parse_override(text)
        for section, fields in change.items():
            known = Config.model_fields.get(section)
            if known is None or section == "preset":
                sections = [s for s in Config.model_fields if s != "preset"]
                raise UserError(f"--set {text}: no section {section!r}; expected one of {', '.join(sections)}")
            names = known.annotation.model_fields  # type: ignore[union-attr]
            for field in fields:
                if field not in names:
                    raise UserError(f"--set {text}: no field {field!r} in {section}; expected one of {', '.join(names)}")
        values = _merged(values, change)
    if seed is not None:
        values = _merged(values, {"run": {"seed": seed}})
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e) for e in error.errors())) from None


def _explain(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # one of ours: says itself what it got
        return f"{field}: {message}" if field else message
    value = repr(error["input"])
    got = "" if isinstance(error["input"], dict) else f"got {value if len(value) <= 100 else value[:97] + '...'}; "
    return f"{field or 'config'}: {got}{message}"


def read_model_config(text: str, name: str) -> ModelConfig:
    """Parse a model folder's config.json. Raises UserError naming the file and the field."""
    try:
        values = json.loads(text)
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(error.errors()[0])}; expected the config.json of an exported model") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}); expected the config.json of an exported model") from None
