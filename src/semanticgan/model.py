"""SemanticGAN: a trained model and what it can do. Everything outside the package's core goes through this class."""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from semanticgan.config import ModelConfig, NetworkConfig, read_model_config
from semanticgan.data.dataset import to_u8
from semanticgan.data.stream import generator
from semanticgan.data.transforms import to_u8 as tensor_to_u8
from semanticgan.errors import UserError, first_line
from semanticgan.inversion import Whitening, whitening
from semanticgan.labels import LabelSpec
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.layers import Undrawn, misfit, placed
from semanticgan.nn.perceptual import LPIPS
from semanticgan.nn.unet import PretrainedUNet, UNet, build_unet
from semanticgan.predict import Found, GeneratorPredictor, NetworkPredictor, Predictor, predict


@dataclass(frozen=True)
class Segmentation:
    """What the model says of one image; maps at the image's own size, the reconstruction at G's."""

    label: UInt8[np.ndarray, "h w"]  # class ids
    probs: Float[np.ndarray, "k h w"]
    uncertainty: Float[np.ndarray, "h w"]  # 0..1
    reconstruction: UInt8[np.ndarray, "r r c"] | None  # None from a student, which has no G
    distance: float | None  # LPIPS between the image and its reconstruction, both at G's resolution


def build_generator(nets: NetworkConfig, resolution: int, num_classes: int, channels: int) -> Generator:
    """G with fresh weights; `resolution` in pixels a side, `num_classes` with the background."""
    return Generator(resolution, num_classes, channels, nets.z_dim, nets.w_dim, nets.mapping_layers, nets.widths)


def build_encoder(nets: NetworkConfig, resolution: int, channels: int) -> Encoder:
    """E with fresh weights, for the G of the same settings."""
    num_ws, offset = 2 * int(math.log2(resolution)) - 2, (nets.feature_width(resolution), nets.encoder_features_stride)
    return Encoder(resolution, channels, num_ws, nets.w_dim, nets.encoder_widths, nets.encoder_trunk, *offset)


def build_networks(config: ModelConfig) -> tuple[Generator, Encoder | None]:
    """G and E of the sizes that the config names, with fresh weights."""
    nets, resolution, channels = config.networks, config.data.resolution, config.data.num_channels
    G = build_generator(nets, resolution, config.labels.num_classes, channels)
    return G, build_encoder(nets, resolution, channels) if config.has_encoder else None


def named_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """`SemanticGAN.networks` of a model of this kind, with fresh weights."""
    if config.kind == "student":
        data = config.data
        return {"S": build_unet(config.trunk, data.num_channels, config.labels.num_classes, config.widths, data.resolution)}
    return {name: net for name, net in zip("GE", build_networks(config), strict=True) if net is not None}


class SemanticGAN:
    """G, its encoder, and the settings with which they segment; or a student, a U-Net that learnt from them, in their place.

    `G` is the averaged generator in float32; answers are computed in bfloat16 where that is faster.
    """

    def __init__(
        self,
        config: ModelConfig,
        G: Generator | None,
        E: Encoder | None = None,  # without one, segmentation needs steps of inversion
        device: str = "cpu",
        card: str = "",  # README.md of the model folder
        S: UNet | PretrainedUNet | None = None,  # a student has this alone
    ) -> None:
        self.config, self.device, self.card = config, torch.device(device), card
        self._G, self.E, self.S = G, E, S
        for net in self.networks.values():
            placed(net, self.device).eval().requires_grad_(False)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those that there are, under the names that they have in the model's file."""
        return {name: net for name, net in (("G", self._G), ("E", self.E), ("S", self.S)) if net is not None}

    @property
    def G(self) -> Generator:
        """Raises UserError for a student, which has none."""
        if self._G is None:
            raise UserError(
                "this model is a student: it segments, but has no generator for samples, reconstructions and inversion; "
                f"use its teacher, {self.config.teacher}"
            )
        return self._G

    @property
    def labels(self) -> LabelSpec:
        return self.config.labels

    @cached_property
    def lpips(self) -> LPIPS:
        return placed(LPIPS(), self.device)

    @cached_property
    def prior(self) -> Whitening | None:
        """Of inversion; None where it has no weight."""
        return whitening(self.G) if self.config.inversion.prior > 0 else None

    def configured(self, **settings: Any) -> "SemanticGAN":
        """The same networks with other settings of ModelConfig, such as `views` and `zoom`; None leaves one as it is.

        Views are off where the data have no symmetry, and zoom where there are more than two classes.
        """
        changes = {name: value for name, value in settings.items() if value is not None}
        config = self.config.model_copy(update=changes)
        possible = {
            "views": config.views and config.data.symmetry != "none",
            "zoom": config.zoom and config.labels.num_classes == 2,
        }
        config = config.model_copy(update=possible)
        return SemanticGAN(config, self._G, self.E, str(self.device), self.card, self.S)

    # ------------------------------------------------------------ what it does

    def segment(
        self,
        images: Sequence[Image.Image | np.ndarray],
        steps: int | None = None,
        batch: int = 32,
        *,
        views: bool | None = None,
        zoom: bool | None = None,
    ) -> list[Segmentation]:
        """Segment PIL images or uint8 arrays (H, W or H, W, C) of any size, grey or colour.

        `steps` of inversion, 0 for the encoder alone; `steps`, `views` and `zoom` default to what validation chose.
        No image's result depends on the others. Raises UserError for something that is no image.
        """
        return [self.segmentation(found) for found in self.find(images, steps, batch, views=views, zoom=zoom)]

    def find(
        self,
        images: Iterable[Image.Image | np.ndarray],
        steps: int | None = None,
        batch: int = 32,
        *,
        views: bool | None = None,
        zoom: bool | None = None,
    ) -> Iterator[Found]:
        """As `segment`, for a stream of any length: answers at G's resolution, whose maps are made when asked for."""
        config = self.config
        return predict(
            self.predictor(steps),
            (to_u8(img, config.data.num_channels) for img in images),
            resolution=config.data.resolution,
            fit=config.data.fit,
            symmetry=config.data.symmetry if (config.views if views is None else views) else "none",
            zoom=config.zoom if zoom is None else zoom,
            one_object=config.one_object,
            convex=config.convex,
            contrast=config.contrast,
            temperature=config.temperature,
            batch=batch,
            device=self.device,
        )

    @staticmethod
    def segmentation(found: Found) -> Segmentation:
        """The full-size maps of one answer of `find`."""
        label, probs, uncertainty = found.maps()
        return Segmentation(label, probs, uncertainty, found.reconstruction, found.distance)

    def predictor(self, steps: int | None = None) -> Predictor:
        """Raises UserError for a negative number of steps, for 0 without an encoder, and for a student's beyond 0."""
        steps = self.config.steps if steps is None else steps
        if steps < 0:
            raise UserError(f"steps: got {steps}, expected 0 (the encoder alone) or more")
        if self.S is not None and steps == 0:
            return NetworkPredictor(self.S)
        prior = self.prior if steps > 0 else None
        return GeneratorPredictor(self.G, self.E, self.lpips, self.config.inversion, steps, prior)

    @torch.no_grad()
    def sample(
        self, num: int, seed: int = 0, truncation_psi: float = 1.0
    ) -> Iterator[tuple[UInt8[np.ndarray, "r r c"], UInt8[np.ndarray, "r r"]]]:
        """`num` images with their label maps; image i depends on (seed, i) alone."""
        if num < 0:
            raise UserError(f"num: got {num}, expected 0 or more")
        for i in range(num):
            random = generator(seed, "sample", i)
            ws = self.G.mapping(torch.randn(1, self.G.z_dim, generator=random).to(self.device), truncation_psi)
            img, seg_logits = self.G.synthesis(ws, noise=self.G.noise_maps(1, random))
            yield tensor_to_u8(img)[0].cpu().numpy(), seg_logits[0].argmax(0).byte().cpu().numpy()

    # ------------------------------------------------------------ files

    def save(self, folder: Path | str, card: str | None = None) -> None:
        """Write config.json, model.safetensors (float16) and README.md; a new folder appears whole or not at all.

        `card` is the README's text; by default that of the folder which the model was loaded from.
        Raises UserError when the place cannot be written or holds something else than a model.
        """
        folder = Path(os.path.abspath(folder))
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; name a new folder")
        if folder.exists() and any(folder.iterdir()) and not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder}: holds something that is no model; name a new folder")
        tensors = {
            f"{name}.{key}": value.detach().cpu().half().contiguous()
            for name, net in self.networks.items()
            for key, value in net.state_dict().items()
        }  # fmt: skip
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            temporary.mkdir(parents=True)
            save_file(tensors, temporary / "model.safetensors")
            (temporary / "model.safetensors").chmod(0o644)  # the library keeps it to its owner
            (temporary / "config.json").write_text(self.config.to_json(), encoding="utf-8")
            card_text = self.card if card is None else card
            (temporary / "README.md").write_text(card_text, encoding="utf-8", errors="replace")  # it may name any path
            if not folder.exists():
                temporary.rename(folder)
            else:  # file by file, as it may be the working directory
                for file in temporary.iterdir():
                    file.replace(folder / file.name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder}: the model cannot be written ({error}); name another folder or make room") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, source: Path | str, device: str = "cpu") -> "SemanticGAN":
        """From a model folder, a run folder (its `model/`), or a Hugging Face id.

        Nothing of it is executed. Raises UserError when config or weights are missing, foreign or do not fit together.
        """
        folder = find_model(source)
        settings, weights = folder / "config.json", folder / "model.safetensors"
        try:
            text = settings.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{settings}: cannot be read ({error}); export or download the model again") from None
        config = read_model_config(text, str(settings))
        try:
            require_fit(config, weights)
            tensors = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{weights}: cannot be read as safetensors ({error}); export or download the model again") from None
        networks: dict[str, Any] = named_networks(config)
        for name, net in networks.items():
            net.load_state_dict({k[2:]: v.float() for k, v in tensors.items() if k.startswith(f"{name}.")})
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        return cls(config, networks.get("G"), networks.get("E"), device, text, networks.get("S"))

    def push(self, repo_id: str, token: str | None = None, private: bool = False) -> str:
        """Upload the model with its card to the Hugging Face repository `repo_id` (owner/name) and return its address.

        The repository is made if there is none, `private` or not; without `token` the one of `hf auth login` is used.
        Raises UserError without a card, network or permission.
        """
        if repo_id.count("/") != 1:
            raise UserError(f"{repo_id}: no name of a repository; expected owner/name")
        if not self.card.strip():
            raise UserError("the model has no card; write README.md beside its weights: what it was trained on, on what terms")
        from huggingface_hub import HfApi

        card = self.card.replace('SemanticGAN.load("this folder")', f'SemanticGAN.load("{repo_id}")')
        with TemporaryDirectory() as place:
            self.save(Path(place) / "model", card)
            try:
                api = HfApi(token=token)
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model", commit_message="Upload the model")
            except Exception as error:  # the hub's many errors
                raise UserError(
                    f"{repo_id}: cannot be pushed ({first_line(error)}); check network and name, and that you are logged in "
                    "with the right to write there: hf auth login"
                ) from None
        return str(address)


def require_fit(config: ModelConfig, weights: Path) -> None:
    """Compare names and shapes in the file with the config's networks before any memory is taken for either.

    Raises UserError naming the first tensor that does not fit.
    """
    with torch.device("meta"), Undrawn():
        networks = named_networks(config)
    wanted = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    with safe_open(weights, framework="pt") as file:
        found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    if wrong := misfit(found, wanted):
        raise UserError(f"{weights}: {wrong}; weights and config.json are not of one model")


def find_model(source: Path | str) -> Path:
    """The folder that holds config.json and model.safetensors. Raises UserError saying what is missing."""
    folder = Path(source)
    if folder.is_dir():
        inner = folder / "model"
        if (folder / "stats.jsonl").exists() or (folder / "checkpoints").is_dir():
            if not inner.is_dir():
                raise UserError(
                    f"{folder}: this run has exported no model yet; `semanticgan info {folder}` says how to go on with it"
                )
            folder = inner
        return _complete(folder)
    name = str(source)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such model; expected a model folder, a run folder, or a Hugging Face id such as owner/name")
    return _complete(_download(name))


def _complete(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}; expected a model folder or a run folder")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors", "README.md"]))
    except Exception as error:  # the hub's many errors: no such id, no network, no permission
        raise UserError(f"{name}: no such folder, and not to be had from the Hugging Face hub ({first_line(error)})") from None


def settings_in_words(config: ModelConfig) -> str:
    """How a model segments by default."""
    start = "the encoder" if config.has_encoder else "w_avg (there is no encoder)"
    parts = ["the U-Net" if config.kind == "student" else f"{start}, {config.steps} steps of inversion"]
    views = {"none": 1, "flip": 2, "all": 8}[config.data.symmetry if config.views else "none"]
    contrast = f" of {config.contrast:g} times the contrast" if config.contrast != 1 else ""
    parts.append("one view" if views == 1 else f"{views} views{contrast}")
    if config.zoom:
        parts.append("second pass on a crop")
    if config.one_object:
        parts.append("one convex object" if config.convex else "one object")
    return ", ".join([*parts, f"softmax temperature {config.temperature:.4g}"])


def distance_rank(distance: float | None, quantiles: Sequence[float]) -> float | None:
    """The share of validation images with a smaller distance; None without a distance or quantiles."""
    if distance is None or len(quantiles) < 2:
        return None
    return round(float(np.interp(distance, quantiles, np.linspace(0, 1, len(quantiles)))), 4)
