"""Whoever breaks a promise of the contract is told which; one odd task for each promise."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo import registry
from zoo.registry import find_task
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.testing import check_task
from zoo.views import to_float

URL = "https://example.org/an-idea"


def init(self, backbone, weight: float = 1.0):
    PretextTask.__init__(self, backbone)
    self.weight = weight
    self.head = nn.Linear(backbone.num_features, 3)


def views(self, batch):
    clean = to_float(batch["image"])
    return clean + 0.1 * torch.randn_like(clean), clean.expand(-1, 3, -1, -1).mean((2, 3))


def forward(self, views):
    seen, colour = views
    guess = self.head(self.backbone.pool(seen))
    with torch.autocast("cpu", enabled=False):
        return TaskOutput(self.weight * (guess.float() - colour).square().mean(), {"guess": guess.detach().mean()})


def picture(self, batch):
    return {"seen": self.views(batch)[0][0].expand(3, -1, -1).clamp(0, 1)}


@pytest.fixture
def make(monkeypatch) -> Callable[..., type]:
    """A task under a name of its own, which the registry knows until the test ends: the one above but for what is
    given.
    """

    def task(doc: str = f"Guess the mean colour. {URL}", bases: tuple = (PretextTask,), **members) -> type:
        good = {"__init__": init, "views": views, "forward": forward, "picture": picture, "__module__": __name__}
        out = type("Odd", bases, good | {"__doc__": doc, "name": "odd"} | members)
        monkeypatch.setitem(registry._here, "odd", out)
        return out

    return task


def test_one_that_keeps_every_promise(make):
    """Nor does the check leave traces."""
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    check_task(make(), weight=0.5)
    assert (random.getstate(), str(np.random.get_state())) == before[:2] and torch.equal(
        torch.get_rng_state(), before[2]
    )


def test_one_that_needs_labels_and_says_so(make):
    def with_labels(self, batch):
        clean, _ = views(self, batch)
        return clean, nn.functional.one_hot(batch["label"], 3).float()

    check_task(make(needs=("image", "label"), views=with_labels))


# ---- and those that break one --------------------------------------------------------------------


def broken(kind: str) -> dict:
    """Members that break the promise `kind`."""

    def drawing_forward(self, given):
        return forward(self, (given[0] + torch.randn_like(given[0]), given[1]))

    def pythons(self, batch):
        return views(self, {"image": batch["image"] // (1 + random.randrange(9))})

    def numpys(self, batch):
        return views(self, {"image": batch["image"] // (1 + int(np.random.randint(9)))})

    def in_turn(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return views(self, {"image": batch["image"].flip(3) if self.calls % 2 else batch["image"]})

    def annealed(self, given):
        self.steps = getattr(self, "steps", 0) + 1
        out = forward(self, given)
        return TaskOutput(out.loss * (1 + 1 / self.steps), out.logs)

    def logging(self, given):
        self.log("guess", 1.0)
        return forward(self, given)

    def unused_python(self, batch):
        random.random()
        return views(self, batch)

    def label(self, batch):
        return views(self, batch)[0] + batch["label"].view(-1, 1, 1, 1), views(self, batch)[1]

    def label_if_there(self, batch):
        seen, colour = views(self, batch)
        return seen, colour + batch.get("label", torch.zeros(len(seen))).view(-1, 1)

    def label_in_picture(self, batch):
        return {"seen": picture(self, batch)["seen"] * (batch["label"][0] > -1)}

    def into_the_batch(self, batch):
        batch["image"] //= 2
        return views(self, batch)

    def a_list(self, batch):
        return list(views(self, batch))

    def idle(self, backbone):
        init(self, backbone)
        self.unused = nn.Linear(2, 2)

    def frozen(self, backbone):
        init(self, backbone)
        next(backbone.parameters()).requires_grad_(False)

    def many(self, backbone, **keywords):
        init(self, backbone)

    def untyped(self, backbone, weight=1.0):
        init(self, backbone, weight)

    def hyper(self, backbone, weight: float = 1.0):
        init(self, backbone, weight)
        self.save_hyperparameters({"weight": weight})

    def renamed(self, backbone, weight: float = 1.0):
        init(self, backbone, weight)
        self.arguments = {}

    def for_32_pixels(self, backbone):
        init(self, backbone)
        self.pixels = nn.Linear(32 * 32, 3)

    def at_32_pixels(self, given):
        guess = self.head(self.backbone.pool(given[0])) + self.pixels(given[0].mean(1).flatten(1))
        return TaskOutput((guess.float() - given[1]).square().mean())

    def loss_of(change: Callable[[Tensor], object]) -> Callable:
        def changed(self, given):
            return TaskOutput(change(forward(self, given).loss))

        return changed

    def narrow(self, given):
        return TaskOutput(
            self.head(self.backbone.pool(given[0]))
            .square()
            .mean()
            .to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        )

    def detached(self, given):
        guess = self.head(self.backbone.pool(given[0]).detach())
        return TaskOutput(
            (guess.float() - given[1]).square().mean() + 0 * sum(p.sum() for p in self.backbone.parameters())
        )

    def vector_log(self, given):
        return TaskOutput(forward(self, given).loss, {"guesses": given[1]})

    def teacher(self, backbone):
        init(self, backbone)
        self.teacher = nn.Linear(3, 3)

    def taught(self, given):
        return TaskOutput((self.teacher(self.head(self.backbone.pool(given[0])).float()) - given[1]).square().mean())

    def hiding(self, backbone):
        init(self, backbone)
        self.register_buffer("turn", torch.randn(backbone.num_features, 8), persistent=False)

    def hidden(self, image):
        return {"backbone": self.backbone.pool(image), "turned": self.backbone.pool(image) @ self.turn}

    def remembering(self, backbone):
        init(self, backbone)
        self.seen = 0.0

    def remember(self, given):
        if self.training:
            self.seen = self.seen + float(given[1].mean())
        return forward(self, given)

    def remembered(self, image):
        return {"backbone": self.backbone.pool(image) + self.seen}

    def switching(self, image):
        self.eval()
        return {"backbone": self.backbone.pool(image)}

    def double(self, batch):
        torch.set_default_dtype(torch.float64)
        return {}

    a_map = {"features": lambda self, image: {"backbone": self.backbone.map(image)}}
    sentences = {
        "draws in forward": (
            {"forward": drawing_forward},
            "forward draws random numbers; everything random belongs into views",
        ),
        "Python's randomness": (
            {"views": pythons},
            "views differ though the counters are the same; draw only from torch's",
        ),
        "NumPy's randomness": (
            {"views": numpys},
            "views differ though the counters are the same; draw only from torch's",
        ),
        "views in turn": (
            {"views": in_turn},
            "views gives something else when it is called again with the same counters; a resumed run would differ",
        ),
        "a count in a plain attribute": (
            {"forward": annealed},
            "after three steps the loss is .* for a task that was given its state: a resumed run would differ",
        ),
        "logs by itself": (
            {"forward": logging},
            "forward logs; what is worth a curve belongs into the logs of its TaskOutput",
        ),
        "Python's randomness, unused": (
            {"views": unused_python},
            "views changes Python's random numbers of the whole process",
        ),
        "reads a label": ({"views": label}, r"Odd reads 'label' of a batch, which its needs \('image',\) don't name"),
        "reads a label where there is one": (
            {"views": label_if_there},
            r"views reads the label where there is one, which its needs \('image',\)",
        ),
        "reads a label for its picture": ({"picture": label_in_picture}, "Odd reads 'label' of a batch"),
        "writes into the batch": ({"views": into_the_batch}, "views writes into the batch that it was given"),
        "views as a list": ({"views": a_list}, "views gave a list; it is a tuple"),
        "views with a gradient": (
            {
                "views": lambda self, batch: (
                    self.backbone.shift.new_zeros(16, 3, 32, 32).requires_grad_(),
                    views(self, batch)[1],
                )
            },
            "views gave a tensor that carries a gradient",
        ),
        "parameter without gradient": (
            {"__init__": idle},
            "unused.weight gets no gradient; what never learns hangs distributed training",
        ),
        "frozen backbone": ({"__init__": frozen}, r"backbone\.model\.\S+ can't learn: it doesn't require a gradient"),
        "backbone learns nothing": (
            {"forward": detached},
            "the gradient of the whole backbone is zero, so it learns nothing",
        ),
        "teacher with a gradient": (
            {"__init__": teacher, "forward": taught, "training_only": ("teacher",)},
            "teacher.weight gets a gradient, though teacher is a teacher",
        ),
        "training_only of nothing": (
            {"training_only": ("queue",)},
            r"Odd.training_only names \['queue'\], of which there is no state",
        ),
        "NaN": ({"forward": loss_of(lambda loss: (-1 - loss).sqrt())}, "the loss of the first batch is nan"),
        "a vector": (
            {"forward": loss_of(lambda loss: loss.expand(2))},
            r"the loss is not a scalar tensor: torch.Size\(\[2\]\)",
        ),
        "a plain number": ({"forward": loss_of(Tensor.tolist)}, "the loss is not a scalar tensor"),
        "a tensor": (
            {"forward": lambda self, given: forward(self, given).loss},
            r"forward gave a Tensor; it is a TaskOutput\(loss, logs\)",
        ),
        "no gradient": ({"forward": loss_of(Tensor.detach)}, "the loss carries no gradient"),
        "logs a vector": ({"forward": vector_log}, r"logs\['guesses'\] is not a scalar"),
        "loss in bf16": (
            {"forward": narrow},
            "under autocast to bfloat16 the loss is torch.bfloat16 .*; switch autocast off",
        ),
        "loss without its views": (
            {"forward": lambda self, given: TaskOutput(sum(p.square().sum() for p in self.parameters()))},
            "the loss doesn't change when the views do",
        ),
        "doesn't learn": (
            {"forward": loss_of(lambda loss: 1 + 1e-3 * loss)},
            "the loss of one fixed batch goes from 1 to no less than 1 in 40 steps",
        ),
        "one size only": (
            {"__init__": for_32_pixels, "forward": at_32_pixels},
            r"Odd doesn't work on 16 pictures of 24 pixels and 3 channel\(s\)",
        ),
        "features are maps": (a_map, r"features\['backbone'\] is \(16, \d+, \d+, \d+\); it is finite \(B, D\)"),
        "features without the backbone's": (
            {"features": lambda self, image: {"code": self.head(self.backbone.pool(image))}},
            "features gives no representation called backbone",
        ),
        "state that isn't kept": (
            {"__init__": hiding, "features": hidden},
            r"features\['turned'\] differ after export and loading",
        ),
        "state that is learned and isn't kept": (
            {"__init__": remembering, "forward": remember, "features": remembered},
            r"features\['backbone'\] differ after export and loading: some state is not in the checkpoint",
        ),
        "switches the mode": ({"features": switching}, "features leaves .* in another mode"),
        "changes the whole process": (
            {"picture": double},
            "picture changes the default type of numbers of the whole process",
        ),
        "a picture as it comes": (
            {"picture": lambda self, batch: {"seen": self.views(batch)[0][0] * 3 - 1}},
            "the picture 'seen' has values outside 0 to 1",
        ),
        "a picture that is a batch": (
            {"picture": lambda self, batch: {"seen": to_float(batch["image"])}},
            r"the picture 'seen' is a tensor \(16, 3",
        ),
        "a picture without a name": (
            {"picture": lambda self, batch: picture(self, batch)["seen"]},
            "picture gave a Tensor; it is a dict of pictures by name",
        ),
        "any keywords": ({"__init__": many}, r"takes \*\*keywords; its arguments have to be written out"),
        "untyped arguments": ({"__init__": untyped}, "doesn't say what type its argument weight has"),
        "saves hyperparameters": ({"__init__": hyper}, "Odd saves hyperparameters; its arguments are kept for it"),
        "other arguments": (
            {"__init__": renamed},
            r"Odd.arguments is \{\}, not its constructor's; leave that attribute alone",
        ),
        "a training step": (
            {"training_step": lambda self, batch, index: None},
            "Odd defines training_step; how a task is trained belongs to PretextTask",
        ),
        "no source": (
            {"doc": "Guess the mean colour."},
            "neither the docstring of Odd nor its module's has a link to where the idea is from",
        ),
        "needs a word": ({"needs": "image"}, "Odd.needs is 'image'; it is a tuple of fields, image among them"),
        "without a name": ({"name": ""}, r"Odd has no name; decorate it with @register_task\(\"its-name\"\)"),
    }
    return sentences if kind == "all" else sentences[kind]


@pytest.mark.parametrize("kind", broken("all"))
def test_a_broken_promise_is_named(kind, make):
    members, sentence = broken(kind)
    task, before = make(**members), torch.get_default_dtype()
    try:
        with pytest.raises(AssertionError, match=sentence) as caught:
            check_task(task)
    finally:
        torch.set_default_dtype(before)
    assert "\n" not in str(caught.value).strip()


def test_a_task_that_inherits_from_another(make, monkeypatch):
    with pytest.raises(AssertionError, match="Odd inherits from SimCLR; a task inherits from PretextTask alone"):
        check_task(make(bases=(find_task("simclr"),)))


def test_two_of_a_name(make):
    first = make()
    make()
    with pytest.raises(AssertionError, match="zoo knows another class under the name odd"):
        check_task(first)


@pytest.mark.parametrize("other", [nn.Linear, 3, inspect], ids=str)
def test_what_is_no_task(other):
    with pytest.raises(AssertionError, match="is not a class that inherits from zoo.PretextTask"):
        check_task(other)


def test_a_name_that_is_nearly_a_task():
    with pytest.raises(AssertionError) as caught:
        check_task("simclr2")
    assert all(word in str(caught.value) for word in ("'simclr2'", "simclr?"))


def test_a_task_that_takes_no_backbone(make):
    from zoo.errors import ZooError

    def picky(self, backbone):
        raise ZooError(f"not {backbone.name}")

    with pytest.raises(
        AssertionError,
        match="neither a convolutional backbone nor a ViT: test_resnet: not test_resnet; vit_tiny_patch16_224: not "
        "vit_tiny",
    ):
        check_task(make(__init__=picky))
