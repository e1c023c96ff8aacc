"""What turns a picture into the input of a checkpoint's network."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from zoo.data.media.decode import covering
from zoo.errors import ZooError
from zoo.fields import ImageSize


class Transform:
    """A PIL image -> (C, H, W) float tensor, read as the pictures of a folder are (upright, on white where transparent,
    16 bits scaled to 8): RGB or grey, resized to cover `size` antialiased, centre crop, normalised. Raises ZooError
    for what is no PIL image.
    """

    def __init__(self, size: ImageSize, channels: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.size, self.channels, self.mean, self.std = size, channels, tuple(mean), tuple(std)

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.v2 import functional as TF

        if not isinstance(image, Image.Image):
            raise ZooError(
                f"the transform takes a PIL image, and this is a {type(image).__name__}; make one of it by "
                "PIL.Image.fromarray or PIL.Image.open"
            )
        image = covering(image, self.size)
        return TF.normalize(
            TF.pil_to_tensor(image if self.channels == 3 else image.convert("L")).float() / 255,
            list(self.mean),
            list(self.std),
        )

    def __repr__(self) -> str:
        mode = "RGB" if self.channels == 3 else "grey"
        return (
            f"Transform(upright {mode}, resize {self.size} antialiased, centre crop {self.size}, mean {self.mean}, "
            f"std {self.std})"
        )
