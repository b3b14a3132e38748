"""Learn images together with their label maps; segment new images by finding the latent code that explains them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semanticgan.errors import UserError
    from semanticgan.model import Segmentation, SemanticGAN

__version__ = "0.1.0"
__all__ = ["Segmentation", "SemanticGAN", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the command answers --help without importing torch.
    if name in ("SemanticGAN", "Segmentation"):
        from semanticgan import model

        return getattr(model, name)
    if name == "UserError":
        from semanticgan.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
