"""A backbone is timm's own model, read four ways."""

from __future__ import annotations

import pytest
import timm
import torch

from zoo.backbones import create_backbone
from zoo.errors import ZooError
from zoo.registry import find_task

VIT = dict(patch_size=8, depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)
VITS = [
    ("vit_tiny_patch16_224", VIT),
    ("vit_tiny_patch16_224", dict(patch_size=8, depth=2, embed_dim=32, num_heads=2)),
    ("eva02_tiny_patch14_224", dict(patch_size=8, depth=2, embed_dim=32, num_heads=2)),
    ("vit_small_patch14_reg4_dinov2", dict(patch_size=8, depth=2, embed_dim=32, num_heads=2)),
]


def _images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name, keywords", [("test_resnet", {"output_stride": 8}), ("vit_tiny_patch16_224", VIT), ("test_convnext", {})]
)
def test_pool_is_what_timm_returns_for_normalised_images(name, keywords):
    torch.manual_seed(0)
    backbone = create_backbone(name, size=32, **keywords).eval()
    plain = timm.create_model(name, num_classes=0, **keywords, **({"img_size": 32} if "vit" in name else {})).eval()
    plain.load_state_dict(backbone.model.state_dict(), strict=True)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = _images()
    with torch.no_grad():
        assert torch.equal(backbone.pool(x), plain((x - mean) / std))
        assert backbone.pool(x).shape == (4, backbone.num_features)
        assert backbone.map(x).shape[:2] == (4, backbone.num_features)


def test_a_grey_image_is_read_as_its_own_repetition():
    backbone = create_backbone("test_resnet", size=32).eval()
    grey = _images(1)
    with torch.no_grad():
        assert torch.equal(backbone.pool(grey), backbone.pool(grey.expand(-1, 3, -1, -1)))


def test_a_colour_image_into_a_grey_backbone_is_refused():
    backbone = create_backbone("test_resnet", size=32, in_chans=1)
    assert backbone.pool(_images(1)).shape == (4, backbone.num_features)
    with pytest.raises(ZooError, match="in_chans"):
        backbone.pool(_images(3))


@pytest.mark.parametrize("task", ["mae", "simmim", "maskfeat", "jigsaw"])
def test_tasks_that_repeat_grey_pictures_refuse_colour_for_a_grey_backbone(task):
    made = find_task(task)(create_backbone("vit_tiny_patch16_224", size=32, in_chans=1, dynamic_img_size=True, **VIT))
    made.views({"image": _images(1)})
    with pytest.raises(ZooError, match=r"made for 1 channel\(s\) \(backbone.in_chans\), but the images have 3"):
        made.views({"image": _images(3)})


@pytest.mark.parametrize("name, keywords", VITS)
def test_only_the_kept_patches_are_encoded(name, keywords):
    """Whatever stands in a hidden patch can't change a visible token; all patches kept is the whole picture."""
    backbone = create_backbone(name, size=32, **keywords).eval()
    x = _images()
    keep = torch.rand(4, 16).argsort(1)[:, :5]
    hidden = torch.ones(4, 16, dtype=torch.bool).scatter(1, keep, False)
    pixels = hidden.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        tokens = backbone.tokens(x, keep)
        assert tokens.shape == (4, backbone.num_prefix_tokens + 5, backbone.num_features)
        assert torch.equal(tokens, backbone.tokens(torch.where(pixels, torch.rand_like(x), x), keep))
        everything = torch.arange(16).expand(4, -1)
        assert torch.equal(backbone.tokens(x, everything), backbone.tokens(x))


@pytest.mark.parametrize("name, keywords", [*VITS, ("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True})])
def test_hidden_patches_are_seen_as_the_mask_token_in_their_place(name, keywords):
    """Their pixels can't be seen; their places are; no mask is the whole picture; a mask is forgotten after use."""
    torch.manual_seed(0)
    backbone = create_backbone(name, size=32, **keywords).eval()
    x, mask, token = _images(), torch.rand(4, 16) < 0.5, torch.randn(32)
    pixels = mask.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        tokens = backbone.tokens(x, mask=mask, mask_token=token)
        assert tokens.shape == (4, backbone.num_prefix_tokens + 16, backbone.num_features)
        assert torch.equal(
            tokens, backbone.tokens(torch.where(pixels, torch.rand_like(x), x), mask=mask, mask_token=token)
        )
        assert not torch.equal(tokens, backbone.tokens(x, mask=mask, mask_token=token + 1))
        everything = backbone.tokens(x, mask=torch.ones_like(mask), mask_token=token)
        places = everything[0, backbone.num_prefix_tokens :]
        assert len({tuple(row) for row in places.tolist()}) == 16
        assert torch.equal(backbone.tokens(x, mask=torch.zeros_like(mask), mask_token=token), backbone.tokens(x))


@pytest.mark.parametrize("name, keywords", VITS)
def test_pooling_tokens_is_pooling_the_picture(name, keywords):
    backbone = create_backbone(name, size=32, **keywords).eval()
    with torch.no_grad():
        assert torch.equal(backbone.pooled(backbone.tokens(_images())), backbone.pool(_images()))


@pytest.mark.parametrize("name, keywords", VITS)
def test_the_map_of_a_vit_is_its_patch_tokens_after_the_last_norm(name, keywords):
    """So that what is learned through the map reaches the norm too; only a norm behind the pooling stays without
    gradient.
    """
    backbone = create_backbone(name, size=32, **keywords).eval()
    tokens = backbone.tokens(_images())[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(backbone.map(_images()).flatten(2).mT, tokens)
    backbone.map(_images()).square().mul(torch.rand(4, 32, 4, 4)).sum().backward()
    assert {key for key, p in backbone.model.named_parameters() if p.grad is None} <= {"fc_norm.weight", "fc_norm.bias"}


@pytest.mark.parametrize(
    "name, keywords",
    [
        ("test_convnext", {}),
        ("test_convnext2", {}),
        ("test_convnext3", {}),
        ("convnext_atto", {"head_norm_first": True}),
        ("caformer_s18", {}),
    ],
)
def test_the_map_has_gone_through_the_norm_that_the_head_has(name, keywords):
    """At each place as the model itself does it with the pooled one, so no parameter of the backbone stays without
    gradient.
    """
    torch.manual_seed(0)
    backbone = create_backbone(name, size=64, **keywords).eval()
    for p in backbone.model.head.parameters():
        p.data = torch.rand_like(p)
    x = _images(size=64)
    found = backbone.map(x)
    assert found.shape == (4, backbone.map_features, 2, 2)
    plain = backbone.model.forward_intermediates(backbone.normalize(x), norm=True, intermediates_only=True)[-1]
    places = [backbone.model.forward_head(plain[:, :, k // 2 : k // 2 + 1, k % 2 : k % 2 + 1]) for k in range(4)]
    torch.testing.assert_close(found.flatten(2).unbind(2), tuple(places))
    found.square().mul(torch.rand(4, 1, 2, 2)).sum().backward()
    assert [key for key, p in backbone.model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name, dims", [("hiera_tiny_224", 1), ("sam2_hiera_tiny", 2)])
def test_the_map_of_a_hiera_has_gone_through_its_norm(name, dims):
    """timm itself refuses the norm there. Its head wants the channels last, of places in a row or, `dims` 2, a grid."""
    torch.manual_seed(0)
    backbone = create_backbone(name, size=64, stages=(1, 1, 1, 1)).eval()
    for p in backbone.model.head.parameters():
        p.data = torch.rand_like(p)
    x = _images(size=64)
    found = backbone.map(x)
    assert found.shape == (4, backbone.map_features, 2, 2)
    plain = backbone.model.forward_intermediates(backbone.normalize(x), intermediates_only=True)[-1]
    alone = [plain.flatten(2)[:, :, k].view(4, *(1,) * dims, -1) for k in range(4)]
    torch.testing.assert_close(found.flatten(2).unbind(2), tuple(backbone.model.head(place) for place in alone))
    found.square().mul(torch.rand(4, 1, 2, 2)).sum().backward()
    assert [key for key, p in backbone.model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "name, keywords",
    [("test_resnet", {"output_stride": 8}), *VITS[:2], ("test_efficientnet", {}), ("inception_next_atto", {})],
)
def test_the_map_of_others_is_timms_to_the_last_bit(name, keywords):
    backbone = create_backbone(name, size=64, **keywords).eval()
    x = _images(size=64)
    with torch.no_grad():
        plain = backbone.model.forward_intermediates(
            backbone.normalize(x), norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
        assert torch.equal(backbone.map(x), plain)


def test_other_sizes_of_picture():
    create_backbone("test_resnet", size=32).require_size(17, "task.small_size")
    fixed, free = (
        create_backbone("vit_tiny_patch16_224", size=32, dynamic_img_size=dynamic, **VIT) for dynamic in (False, True)
    )
    fixed.require_size(32, "task.small_size")
    free.require_size(16, "task.small_size")
    with pytest.raises(ZooError, match="dynamic_img_size: true"):
        fixed.require_size(16, "task.small_size")
    with pytest.raises(ZooError, match="task.small_size is 18.*set it to 16"):
        free.require_size(18, "task.small_size")
    assert free.pool(_images(size=16)).shape == (4, 32)


def test_reading_tokens_leaves_the_state_dict_as_timm_has_it():
    backbone = create_backbone("vit_tiny_patch16_224", size=32, **VIT)
    assert list(backbone.model.state_dict()) == list(
        timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **VIT).state_dict()
    )


@pytest.mark.parametrize(
    "name, keywords, words",
    [
        ("test_resnett", {}, "test_resnet"),
        ("resnet18", {"depht": 3}, "depht"),
        ("vit_tiny_patch16_224", {"patch_size": 5}, "don't divide"),
        ("resnet18", {"pretrained": True}, "backbone.pretrained"),
        ("resnet18", {"checkpoint_path": "x.pth"}, "backbone.checkpoint_path"),
        ("resnet18", {"output_stride": 5}, "can't build"),
        ("vit_tiny_patch16_224", {"embed_dim": 32}, "can't build"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(name, keywords, words):
    with pytest.raises(ZooError, match=words) as caught:
        create_backbone(name, size=32, **keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, keywords",
    [("test_resnet", {}), ("swin_tiny_patch4_window7_224", {"window_size": 4}), ("vit_tiny_r_s16_p8_224", {})],
)
def test_models_that_would_leak_hidden_patches_are_refused(name, keywords):
    backbone = create_backbone(name, size=64, **keywords)
    with pytest.raises(ZooError, match="plain ViT"):
        backbone.tokens(_images(size=64))


@pytest.mark.parametrize("name, norm", [("test_vit3", "fc_norm"), ("vit_pe_core_tiny_patch16_384", "use_fc_norm")])
def test_tasks_that_learn_by_tokens_or_maps_refuse_a_pooling_with_weights(name, norm):
    """And take the backbone when it is set as the sentence says: then all of it learns."""
    small = {"patch_size": 8, **({"embed_dim": 64, "depth": 1, "num_heads": 2} if name != "test_vit3" else {})}
    attentive = create_backbone(name, size=32, **small)
    sentence = f"{name} pools them by attention, .* set backbone.global_pool to avg and backbone.{norm} to false"
    for task in ("mae", "simmim", "ijepa", "data2vec", "beit", "maskfeat", "vqvae", "colorize", "split-brain"):
        with pytest.raises(ZooError, match=f"^{task} learns by .* alone, and {sentence}"):
            find_task(task)(attentive)
    find_task("ibot")(attentive)
    plain = create_backbone(name, size=32, **small, global_pool="avg", **{norm: False})
    mae = find_task("mae")(plain, decoder_dim=16)
    mae(mae.views({"image": torch.rand(2, 3, 32, 32)})).loss.backward()
    assert [key for key, p in plain.named_parameters() if p.grad is None] == []
