"""BEiT: codes of a real tokenizer, the authors' loss, hidden pixels that never reach the network, and tokenizers that
don't fit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from zoo.backbones import create_backbone
from zoo.draws import counted
from zoo.errors import ZooError
from zoo.masks import mask_pixels
from zoo.tasks.image.beit import BEiT
from zoo.tasks.load import load_task

HUB = Path(__file__).parent.parent.parent / "hub"
NAME = "vqvae-test-resnet-fashion-mnist"
VIT = dict(depth=2, embed_dim=32, num_heads=2, class_token=False, global_pool="avg", fc_norm=False)


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    """A cache of its own, and a ZOO_HUB that has nothing: the default tokenizer travels with the zoo."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path_factory.getbasetemp() / "beit-home"))
    monkeypatch.setenv("ZOO_HUB", str(tmp_path_factory.getbasetemp() / "no-hub"))


def _task(size: int = 32, patch: int = 8, **arguments) -> BEiT:
    torch.manual_seed(0)
    return BEiT(create_backbone("vit_tiny_patch16_224", size=size, patch_size=patch, **VIT), **arguments)


def _views(task: BEiT, channels: int = 3) -> tuple:
    image = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with counted(torch.device("cpu"), 0):
        return task.views({"image": image, "index": torch.arange(4)})


def test_codes_are_those_of_the_checkpoint_for_the_uncut_picture():
    task, plain = _task(), load_task(HUB / NAME)
    image, mask, codes = _views(task.train())
    assert torch.equal(codes, plain.codes(image).flatten(1)) and len(codes.unique()) > 4
    assert (mask.sum(1) == 6).all() and task.tokenizer.words == len(plain.codebook.vectors) == task.head.out_features


def test_the_loss_is_the_authors():
    """Theirs: the hook's work by hand, then cross entropy of the logits at hidden places alone."""
    task = _task()
    image, mask, codes = _views(task)
    model = task.backbone.model
    x = model.patch_embed(task.backbone.normalize(image))
    w = mask.unsqueeze(-1).type_as(x)
    x = x * (1 - w) + task.mask_token.expand_as(x) * w
    x = model.norm(model.blocks(x + model.pos_embed))
    theirs = F.cross_entropy(task.head(x[mask]), codes[mask])
    ours = task((image, mask, codes)).loss
    torch.testing.assert_close(ours, theirs)
    parameters = [p for p in task.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), rtol=1e-4, atol=1e-6
    )


def test_hidden_pixels_change_the_codes_but_never_the_guess():
    task = _task().eval()
    image, mask, codes = _views(task)
    other = torch.where(mask_pixels(mask, 8), torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(task.guess(image, mask), task.guess(other, mask))
        assert not torch.equal(codes, task.tokenizer(other))


def test_the_tokenizer_is_frozen_stays_in_eval_mode_and_out_of_the_checkpoint():
    task = _task().train()
    before = {name: value.clone() for name, value in task.tokenizer.state_dict().items()}
    task(_views(task)).loss.backward()
    assert task.training and not any(module.training for module in task.tokenizer.modules())
    assert all(not p.requires_grad and p.grad is None for p in task.tokenizer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.tokenizer.state_dict().items())
    assert not any(name.startswith("tokenizer") for name in task.heads())


def test_a_certain_and_right_guess_costs_nothing():
    task = _task()
    image, mask, codes = _views(task)
    task.guess = lambda image, mask: 1e3 * F.one_hot(codes, task.tokenizer.words).float()
    output = task((image, mask, codes))
    assert output.loss == 0 and output.logs["accuracy"] == 1


def test_a_folder_may_be_given():
    task = _task(tokenizer=str(HUB / NAME))
    assert torch.equal(_views(task)[2], _views(_task())[2])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"tokenizer": "vqvae-of-nobody"}, "task.tokenizer can't be loaded: .*zoo pretrain vqvae"),
        ({"tokenizer": "/no/such/folder"}, "task.tokenizer can't be loaded: .*neither a folder nor the name"),
        ({"tokenizer": "mae-vit-fashion-mnist"}, "trained by the task mae .*give a checkpoint of the task vqvae"),
        (
            {"patch": 4},
            "4 x 4 codes for a picture of 32 pixels, and the backbone has 8 x 8 patches; set backbone.patch_size to 8",
        ),
        ({"mask_ratio": 0.0}, "mask_ratio"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ZooError, match=sentence):
        _task(**arguments)


def test_a_convolutional_backbone_is_refused():
    with pytest.raises(ZooError, match="beit needs .* plain ViT"):
        BEiT(create_backbone("test_resnet", size=32))
