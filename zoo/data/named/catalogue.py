"""What is known of each named data set without having it. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.data.info import DataInfo


@dataclass(frozen=True)
class Entry:
    """A named set: its info, its raw files' name in sources.py (None: a library brings them), its reader."""

    info: DataInfo
    source: str | None
    reader: str  # "module:function", imported when the set is read


STL10 = dict(
    channels=3,
    size=96,
    version="1",
    license="unstated by its makers; pictures from ImageNet, for research",
    attribution="STL-10, Adam Coates, Honglak Lee, Andrew Ng (AISTATS 2011)",
    homepage="https://cs.stanford.edu/~acoates/stl10/",
)

CIFAR = dict(
    channels=3,
    size=32,
    version="1",
    license="unstated by its makers; widely used for research",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    fields=("image", "label"),
    splits={"train": 45_000, "validation": 5_000, "test": 10_000},
)

CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
    seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
    tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
    worm
    """.split()
)

ENTRIES = {
    entry.info.name: entry
    for entry in (
        Entry(
            DataInfo(
                name="fashion-mnist",
                fields=("image", "label"),
                channels=1,
                size=28,
                classes=(
                    "T-shirt/top",
                    "trouser",
                    "pullover",
                    "dress",
                    "coat",
                    "sandal",
                    "shirt",
                    "sneaker",
                    "bag",
                    "ankle boot",
                ),
                version="1",
                license="MIT",
                attribution="Fashion-MNIST, Han Xiao, Kashif Rasul, Roland Vollgraf, (c) 2017 Zalando SE",
                homepage="https://github.com/zalandoresearch/fashion-mnist",
                splits={"train": 50_000, "validation": 10_000, "test": 10_000},
                summary="70,000 grey pictures of clothes, 10 kinds",
            ),
            "fashion-mnist",
            "zoo.data.named.readers:read_fashion_mnist",
        ),
        Entry(
            DataInfo(
                name="digits",
                fields=("image", "label"),
                channels=1,
                size=8,
                classes=tuple("0123456789"),
                version="1",
                license="CC-BY-4.0",
                attribution="Optical Recognition of Handwritten Digits, E. Alpaydin, C. Kaynak (UCI, 1998)",
                homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
                splits={"train": 1_258, "validation": 270, "test": 269},
                summary="1,797 grey handwritten digits of 8x8 pixels; comes with scikit-learn",
            ),
            None,
            "zoo.data.named.readers:read_digits",
        ),
        Entry(
            DataInfo(
                name="emoji",
                fields=("image", "label", "subcategory", "artist", "emoji", "text"),
                channels=3,
                size=64,
                classes=(
                    "Activities",
                    "Animals & Nature",
                    "Component",
                    "Flags",
                    "Food & Drink",
                    "Objects",
                    "People & Body",
                    "Smileys & Emotion",
                    "Symbols",
                    "Travel & Places",
                ),
                version="16.0.0-1",
                license="Apache-2.0 AND CC-BY-4.0 AND MIT",
                attribution="Noto Emoji (Google, Apache-2.0); Twemoji (Twitter and contributors, CC-BY 4.0); "
                "emoji-data (Cal Henderson, MIT)",
                homepage="https://github.com/iamcal/emoji-data",
                splits={"train": 5_162, "validation": 1_070, "test": 1_340},
                summary="7,572 coloured emoji, 3,786 by each of two artists, with category and English names",
                names={"artist": ("google", "twitter")},
            ),
            "emoji",
            "zoo.data.named.emoji:read_emoji",
        ),
        Entry(
            DataInfo(
                name="cifar10",
                attribution="CIFAR-10, Alex Krizhevsky, Vinod Nair, Geoffrey Hinton (2009)",
                classes=(
                    "airplane",
                    "automobile",
                    "bird",
                    "cat",
                    "deer",
                    "dog",
                    "frog",
                    "horse",
                    "ship",
                    "truck",
                ),
                summary="60,000 colour photos of 32x32 pixels, 10 kinds of things",
                **CIFAR,
            ),
            "cifar10",
            "zoo.data.named.readers:read_cifar10",
        ),
        Entry(
            DataInfo(
                name="cifar100",
                attribution="CIFAR-100, Alex Krizhevsky, Vinod Nair, Geoffrey Hinton (2009)",
                classes=CIFAR100_CLASSES,
                summary="60,000 colour photos of 32x32 pixels, 100 kinds of things",
                **CIFAR,
            ),
            "cifar100",
            "zoo.data.named.readers:read_cifar100",
        ),
        Entry(
            DataInfo(
                name="stl10",
                fields=("image", "label"),
                classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
                splits={"train": 4_500, "validation": 500, "test": 8_000},
                summary="13,000 labelled colour photos of 96x96 pixels; pretrain on stl10-unlabeled",
                **STL10,
            ),
            "stl10",
            "zoo.data.named.readers:read_stl10",
        ),
        Entry(
            DataInfo(
                name="stl10-unlabeled",
                fields=("image",),
                classes=(),
                splits={"train": 104_500, "validation": 500, "test": 8_000},
                summary="STL-10's pictures without labels, 100,000 more for training; evaluate on stl10",
                **STL10,
            ),
            "stl10",
            "zoo.data.named.readers:read_stl10_unlabeled",
        ),
        Entry(
            DataInfo(
                name="imagenette",
                fields=("image", "label"),
                channels=3,
                size=160,
                classes=(
                    "tench",
                    "English springer",
                    "cassette player",
                    "chain saw",
                    "church",
                    "French horn",
                    "garbage truck",
                    "gas pump",
                    "golf ball",
                    "parachute",
                ),
                version="1",
                license="Apache-2.0 for the collection; its photos are ImageNet's, for research only",
                attribution="Imagenette, Jeremy Howard (fast.ai); photos from ImageNet (Deng et al. 2009)",
                homepage="https://github.com/fastai/imagenette",
                splits={"train": 8_469, "validation": 1_000, "test": 3_925},
                summary="13,394 colour photos of 10 easily told ImageNet classes, short side 160",
            ),
            "imagenette",
            "zoo.data.named.readers:read_imagenette",
        ),
    )
}
