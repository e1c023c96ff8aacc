"""Backbones: a timm model, its own normalisation, and four ways to read it.

Letters: B batch, N tokens (patches), P prefix tokens (class, registers), D features, C H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.errors import ZooError
from zoo.fields import ImageSize, height_width
from zoo.views import to_float


class KeepPatches(nn.Module):
    """Sits in timm's `patch_drop` slot and keeps the patches it is told to, or all. No parameters: the state dict is
    unchanged.
    """

    def __init__(self, prefix: int, returns_index: bool):
        super().__init__()
        self.prefix, self.returns_index = prefix, returns_index
        self.index: Tensor | None = None

    def forward(self, x: Tensor):
        if self.index is not None:
            index = self.index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, : self.prefix], x[:, self.prefix :].gather(1, index)], dim=1)
        return (x, self.index) if self.returns_index else x


class ImageBackbone(Backbone):
    """A timm model that takes images in [0, 1] and normalises them itself.

    `model` is timm's own module with `num_classes=0`; its weights are what a checkpoint holds. A grey image
    (B, 1, H, W) is repeated for an RGB model; a colour image into a one-channel model is refused.
    """

    reads = "image"

    def __init__(self, model: nn.Module, name: str, size: ImageSize, arguments: dict):
        super().__init__()
        self.model = model
        self.name, self.arguments = name, dict(arguments)
        self.timm_name, self.timm_arguments = name, self.arguments
        self.size, self.channels = size, int(arguments.get("in_chans", 3))
        self.image_size = height_width(size)
        self.num_features: int = (
            getattr(model, "head_hidden_size", None) or model.num_features
        )  # D of pool: some widen after pooling
        self.map_features: int = (
            model.feature_info[-1]["num_chs"] if getattr(model, "feature_info", None) else model.num_features
        )
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        if self.channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("shift", torch.tensor(self.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(self.std).view(1, -1, 1, 1), persistent=False)
        self.num_prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        self.sees_patches = _takes_kept_patches(model)
        if self.sees_patches:
            model.patch_drop = KeepPatches(self.num_prefix_tokens, returns_index=_is_eva(model))
            self.patch_size: int = model.patch_embed.patch_size[0]
            self.num_patches: int = model.patch_embed.num_patches
            self.grid = tuple(model.patch_embed.grid_size)

    def repeated(self, x: Tensor) -> Tensor:
        """(B, 1 or C, H, W) -> (B, C, H, W): a grey image once for each channel of the model. Raises ZooError for any
        other number of channels.
        """
        if x.shape[1] not in (1, self.channels):
            raise ZooError(
                f"{self.name} was made for {self.channels} channel(s) (backbone.in_chans), "
                f"but the images have {x.shape[1]}; leave in_chans out"
            )
        return x.expand(-1, self.channels, -1, -1)

    def normalize(self, x: Tensor) -> Tensor:
        """(B, 1 or C, H, W) in [0, 1] -> (B, C, H, W) as the model wants it."""
        x = (self.repeated(x) - self.shift) / self.scale
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last() else x

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of a ViT or Eva; none of other models, whose parts are called otherwise."""
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        return list(self.model.blocks) if isinstance(self.model, (VisionTransformer, Eva)) else []

    def prepare(self, values: Tensor) -> Tensor:
        """uint8 or float images (B, 1 or C, H, W) -> float in [0, 1] on the backbone's device."""
        return to_float(values.to(self.shift.device))

    def example(self, count: int) -> Tensor:
        """Black images (B, C, H, W)."""
        return torch.zeros(count, self.channels, *self.image_size, dtype=torch.uint8)

    def spec(self) -> dict:
        return {"name": self.name, **self.arguments, "size": self.size}

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): exactly what `timm.create_model(..., num_classes=0)(x)` returns."""
        return self.model(self.normalize(x))

    def map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, `map_features`, h, w): the last feature map, before pooling; of a ViT, after its last
        norm; of a ConvNeXt and others that have their last norm behind the pooling, with that norm at each place, so
        that what is learned through the map reaches it too.
        """
        from timm.layers import ClNormMlpClassifierHead

        head = getattr(self.model, "head", None)
        last = isinstance(
            head, ClNormMlpClassifierHead
        )  # Hiera's: pooling and norm are in the head, with the channels last
        found = self.model.forward_intermediates(
            self.normalize(x), norm=not last, output_fmt="NCHW", intermediates_only=True
        )[-1]
        if last:
            return head.norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        parts = [name for name, _ in head.named_children()] if isinstance(head, nn.Module) else []
        if parts[:2] == ["global_pool", "norm"] and not isinstance(
            head.norm, nn.GroupNorm
        ):  # which is of no single place
            return head.norm(found)
        return found

    def feedforwards(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> (B, N, D) of every block: what its feed-forward part adds to the patches; prefix tokens are
        left out.
        """
        added: list[Tensor] = []
        hooks = [
            block.drop_path2.register_forward_hook(lambda module, given, out: added.append(out))
            for block in self.model.blocks
        ]
        try:
            self.model.forward_features(self.normalize(x))
        finally:
            for hook in hooks:
                hook.remove()
        return [out[:, self.num_prefix_tokens :] for out in added]

    def tokens(
        self, x: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) -> (B, P + N, D), prefix tokens first, after the last norm.

        With `keep` (B, n) only those patches are encoded, in that order. With `mask` (B, N) bool all are, but where it
        is true the patch's embedding is replaced by `mask_token` (D,), before positions are added.

        Raises ZooError when the model isn't a plain ViT or Eva.
        """
        self.require_patches("reading tokens")
        slot = self.model.patch_drop
        hook = (
            None
            if mask is None
            else self.model.patch_embed.register_forward_hook(
                lambda module, given, out: torch.where(mask.view(*out.shape[:-1], 1), mask_token.to(out.dtype), out)
            )
        )
        slot.index = keep
        try:
            return self.model.forward_features(self.normalize(x))
        finally:
            slot.index = None
            if hook is not None:
                hook.remove()

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, P + N, D) of `tokens` -> (B, D): `pooled(tokens(x))` is `pool(x)`."""
        return self.model.forward_head(tokens)

    def require_size(self, size: int, who: str) -> None:
        """Raises ZooError, naming `who` needs it, unless the model takes pictures of `size` pixels beside its own."""
        embed = getattr(self.model, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if size == self.size or not isinstance(patch, tuple):
            return
        if not getattr(embed, "dynamic_img_pad", False) and size % patch[0]:
            raise ZooError(
                f"{who} is {size}, which patches of {patch[0]} pixels (backbone.patch_size) don't divide; set it to "
                f"{max(1, round(size / patch[0])) * patch[0]}"
            )
        if getattr(embed, "strict_img_size", True) and not getattr(self.model, "dynamic_img_size", False):
            raise ZooError(
                f"{who} is {size}, and {self.name} takes pictures of {self.size} pixels alone; add dynamic_img_size: "
                "true to the "
                f"backbone, or set {who} to {self.size}"
            )

    def require_patches(self, who: str) -> None:
        """Raises ZooError, naming `who` needs it, unless the model can encode a subset of its patches."""
        if not self.sees_patches:
            raise ZooError(
                f"{who} needs a backbone that can encode a part of its patches, and {self.name} "
                f"({type(self.model).__name__}) "
                "can't: use a plain ViT or Eva of timm, such as vit_tiny_patch16_224"
            )

    def require_feedforwards(self, who: str) -> None:
        """Raises ZooError, naming `who` needs it, unless each block adds first attention and then a feed-forward
        part.
        """
        self.require_patches(who)
        if not all(hasattr(block, "drop_path2") for block in self.model.blocks):
            raise ZooError(
                f"{who} needs a backbone whose blocks have one feed-forward part after their attention, and those of "
                f"{self.name} "
                f"({type(self.model.blocks[0]).__name__}) don't: use another ViT or Eva of timm, such as "
                "vit_tiny_patch16_224"
            )

    def require_plain_pooling(self, who: str) -> None:
        """Raises ZooError, naming `who` learns by tokens or the map alone, where a pooling with weights of its own
        comes behind them.
        """
        if getattr(self.model, "attn_pool", None) is not None:
            norm = "use_fc_norm" if _is_eva(self.model) else "fc_norm"
            raise ZooError(
                f"{who} learns by the backbone's tokens or map alone, and {self.name} pools them by attention, whose "
                "weights would stay random; "
                f"set backbone.global_pool to avg and backbone.{norm} to false"
            )

    def _channels_last(self) -> bool:
        weight = next((p for p in self.model.parameters() if p.ndim == 4), None)
        return weight is not None and weight.shape[2] > 1 and weight.is_contiguous(memory_format=torch.channels_last)


def _is_eva(model: nn.Module) -> bool:
    from timm.models.eva import Eva

    return isinstance(model, Eva)


def _takes_kept_patches(model: nn.Module) -> bool:
    """Plain ViTs and Evas only: others ignore the slot silently, and hybrid stems leak what is masked into what is
    kept.
    """
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    return type(model) in (VisionTransformer, Eva) and type(model.patch_embed) is PatchEmbed
