"""Cover a block of a picture and let the network guess the words that another network would describe it with.

    image --> patches, a block masked --> backbone --> head --> words (B, N, K) --+
                                                                                  |
    image ..> tokenizer, trained before and frozen ..> words (B, N) .............>+
                                                                                  |
                                         cross-entropy of hidden patches <---------+

Bao, Dong, Piao, Wei 2022, "BEiT: BERT Pre-Training of Image Transformers", https://arxiv.org/abs/2106.08254

Differs: the tokenizer is a vqvae of the zoo, by default the small one in its hub, in the place of DALL-E's with 8,192
words.
Differs: the tokenizer sees the very picture that the backbone sees; the authors' sees it at half the size.
Differs: a mask is one block; the paper's is a union of several.
Differs: there is no colour jitter, which the authors' code has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones import Backbone
from zoo.errors import ZooError
from zoo.grid import rows_of
from zoo.losses import wide
from zoo.masks import block_mask, hidden_count, mask_pixels
from zoo.paths import shipped
from zoo.ranges import Part, Share
from zoo.registry import register_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.views import random_resized_crop


@register_task("beit")
class BEiT(PretextTask):
    """Prediction of a frozen tokenizer's codes at hidden patches; the backbone sees those as a mask token.

    Args:
        tokenizer: a checkpoint of the task vqvae: its folder, or its name in the hub that came with the zoo or in that
            of ZOO_HUB. It has to give one code to each patch.
        mask_ratio: share of patches that are hidden, as one block, above 0 and below 1; at least one patch stays
            visible.
        smallest_crop: least share of the picture's area that is shown, 0 to 1; 1 is no cropping of square pictures.
        flip: chance of a mirrored picture.
    """

    training_only = ("tokenizer",)

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: str = "vqvae-test-resnet-fashion-mnist",
        mask_ratio: Part = 0.4,
        smallest_crop: Share = 0.5,
        flip: Share = 0.5,
    ):
        backbone.require_patches("beit")
        backbone.require_plain_pooling("beit")
        super().__init__(backbone)
        self.patch, self.side = backbone.patch_size, backbone.size // backbone.patch_size
        self.hidden = hidden_count(mask_ratio, self.side**2)
        self.smallest_crop, self.flip = smallest_crop, flip
        self.tokenizer = Tokenizer(tokenizer, backbone.size, self.side)
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, self.tokenizer.words)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def views(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The picture (B, C, H, W), the mask (B, N), True where a patch is hidden, and the tokenizer's codes (B, N)
        int64 of the whole picture.
        """
        image = random_resized_crop(batch["image"], self.backbone.size, scale=(self.smallest_crop, 1.0), flip=self.flip)
        return image, block_mask(len(image), self.side, self.hidden, image.device), self.tokenizer(image)

    def forward(self, views: tuple[Tensor, Tensor, Tensor]) -> TaskOutput:
        image, mask, codes = views
        guessed = self.guess(image, mask)
        with torch.autocast(image.device.type, enabled=False):
            guessed, hidden = wide(guessed)[mask], codes[mask]  # (B hidden, K), (B hidden,)
            loss = F.cross_entropy(guessed, hidden)
        return TaskOutput(loss, {"accuracy": (guessed.argmax(1) == hidden).to(loss.dtype).mean().detach()})

    def guess(self, image: Tensor, mask: Tensor) -> Tensor:
        """Scores of the words (B, N, K), guessed where `mask` hides a patch."""
        tokens = self.backbone.tokens(image, mask=mask, mask_token=self.mask_token)
        return self.head(tokens[:, self.backbone.num_prefix_tokens :])

    @torch.no_grad()
    def figure(self, batch: dict) -> dict[str, Tensor]:
        """Pictures, what the backbone sees of them, and what the tokenizer paints from its words: the guessed ones,
        then the true ones.
        """
        image, mask, codes = self.views({"image": batch["image"][:8]})
        guessed = torch.where(mask, self.guess(image, mask).argmax(-1), codes)
        seen = image.masked_fill(mask_pixels(mask, self.patch), 0.5)
        return {
            "words": rows_of(image, seen, *(self.tokenizer.paint(words, image.shape[1]) for words in (guessed, codes)))
        }


class Tokenizer(nn.Module):
    """A trained vqvae, frozen and always in eval mode: pictures (B, C, H, W) in [0, 1] -> codes (B, N) int64, 0 to
    `words` - 1.

    Raises ZooError when there is no such checkpoint, when it is of another task, and when its codes don't lie on a grid
    of `side` x `side` for pictures of `size` pixels.
    """

    def __init__(self, name: str, size: int, side: int):
        super().__init__()
        self.side = side
        self.model = _load(name, size, side).requires_grad_(False)
        self.words: int = len(self.model.codebook.vectors)
        self.train(False)

    def train(self, mode: bool = True) -> Tokenizer:
        """Stays in eval mode, whatever its task does: its BatchNorms are done with learning."""
        for module in self.modules():
            module.training = False
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self.model.codes(image).flatten(1)

    @torch.no_grad()
    def paint(self, codes: Tensor, channels: int) -> Tensor:
        """(B, N) -> (B, channels, H, W) of the tokenizer's own size, clamped to [0, 1]."""
        vectors = self.model.codebook(codes.unflatten(1, (self.side, self.side)))
        return self.model.decode(vectors, channels).clamp(0, 1)


def _load(name: str, size: int, side: int) -> PretextTask:
    """The vqvae of a folder, of the hub that came with the zoo or of ZOO_HUB, the first of these that has it, if it
    fits.
    """
    from zoo.card import read_card
    from zoo.hub.hub import find, list_checkpoints
    from zoo.tasks.load import load_task

    ours = shipped("hub")
    known = {entry["name"] for entry in list_checkpoints(ours)} if ours is not None else set()
    try:
        folder = find(name, ours if name in known else None)
    except ZooError as error:
        raise ZooError(
            f"task.tokenizer can't be loaded: {error}; `zoo pretrain vqvae-test-resnet-fashion-mnist` trains one, and "
            "the folder of its run "
            "can be given"
        ) from error
    if (task := read_card(folder)["task"]["name"]) != "vqvae":
        raise ZooError(
            f"task.tokenizer {name} was trained by the task {task} and has no words for patches; give a checkpoint of "
            "the task vqvae"
        )
    model = load_task(folder)
    model.backbone.require_size(size, f"the picture that task.tokenizer {name} has to read")
    with torch.no_grad():
        grid = tuple(model.codes(torch.zeros(1, 1, size, size)).shape[1:])
    if grid != (side, side):
        remedy = f"set backbone.patch_size to {size // grid[0]}, or " if size % grid[0] == 0 else ""
        raise ZooError(
            f"task.tokenizer {name} gives {grid[0]} x {grid[1]} codes for a picture of {size} pixels, and the "
            f"backbone has {side} x {side} "
            f"patches; {remedy}give a tokenizer of another stride"
        )
    return model
