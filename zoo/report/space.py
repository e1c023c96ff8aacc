"""What a representation sees as alike: nearest neighbours of a few pictures, and a map of many."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from zoo.data.dataset import Dataset, some_of
from zoo.data.info import FOLDER, SHARDS
from zoo.errors import ZooError
from zoo.evaluate.knn import neighbours
from zoo.evaluate.study import Study
from zoo.fields import height_width
from zoo.report.charts import legend, scatter
from zoo.report.markup import picture, text

BANK, MAPPED, QUERIES, NEAREST = 10_000, 1_000, 8, 8
PIXELS = 16_000_000  # of the bank: fewer images where they are larger, so that it takes as long
SHOWN = 96  # largest side of a picture in the page


@dataclass
class Sight:
    """Pictures of a data set and what a checkpoint makes of them: `bank` and `mapped` are rows of the set, features are
    (n, D).
    """

    data: Dataset
    bank: Tensor
    mapped: Tensor
    bank_features: Tensor
    mapped_features: Tensor
    told: bool  # whether the task was trained with the labels

    @property
    def labels(self) -> Tensor | None:
        return self.data.fields.get("label")


def space_html(study: Study) -> str:
    """Neighbours and map of a checkpoint on its data; a sentence where they can't be had without the network."""
    try:
        sight = _look(study)
        return _neighbours(sight) + "\n" + _map(sight)
    except ZooError as error:
        return f'<p class="note">Nothing can be shown here: {text(error)}.</p>'


def _look(study: Study) -> Sight:
    data, trained_on = study.data.dataset, study.card["data"]
    if "image" not in data.fields:
        raise ZooError(f"{study.name} has no images")
    if study.name.startswith((FOLDER, SHARDS)) and data.fingerprint != trained_on["fingerprint"]:
        raise ZooError(f"{study.name} on this machine doesn't hold the pictures that the checkpoint was trained on")
    height, width = height_width(trained_on["size"])
    most = {"train": max(MAPPED, min(BANK, PIXELS // (height * width))), "test": MAPPED}
    bank, mapped = (some_of(data.splits[split], count) for split, count in most.items())
    if not len(bank) or not len(mapped):
        raise ZooError(f"{study.name} has no {'test' if len(bank) else 'training'} pictures")
    found = next(iter(study.some_banks(most).values()))
    return Sight(data, bank, mapped, found.x["train"], found.x["test"], study.task.uses_labels)


# ---- neighbours ----------------------------------------------------------------------------------


def _neighbours(sight: Sight) -> str:
    """A row for each query: itself, then its nearest training pictures, framed by whether they are of its class."""
    k = min(NEAREST, len(sight.bank))
    _, index = neighbours(sight.bank_features, sight.mapped_features, k)
    near = sight.bank[index]  # (n, k) rows of the set
    chosen = _queries(sight)
    figures = [_row(sight, int(sight.mapped[number]), near[number].tolist()) for number in chosen]
    about = (
        f"Each row: a test picture, then its {k} nearest by cosine similarity among {len(sight.bank):,} training "
        "pictures."
    )
    if sight.labels is not None:
        same = 100 * float((sight.labels[near] == sight.labels[sight.mapped][:, None]).double().mean())
        about += (
            ' A frame says whether the class is <span class="key agree"></span> the same or <span class="key '
            'differ"></span> another. '
            f"Over {len(sight.mapped):,} test pictures, {same:.1f} % of these neighbours are of the same class."
        )
    return "\n".join([f"<p>{about}</p>", '<div class="rows">', *figures, "</div>"])


def _queries(sight: Sight) -> list[int]:
    """Which of the mapped pictures to show: the first one of each class, or evenly spaced ones."""
    count = min(QUERIES, len(sight.mapped))
    if sight.labels is None:
        return [number * len(sight.mapped) // count for number in range(count)]
    labels = sight.labels[sight.mapped].tolist()
    return [labels.index(label) for label in sorted(set(labels))[:QUERIES]]


def _row(sight: Sight, query: int, near: list[int]) -> str:
    images = sight.data.fields["image"]
    if sight.labels is None:
        drawn = [_drawn(images[query], "the query"), *(_drawn(images[row], "a neighbour") for row in near)]
        return f'<figure class="row"><div class="strip">{"".join(drawn)}</div></figure>'
    wanted, *names = (sight.data.info.classes[label] for label in sight.labels[[query, *near]].tolist())
    kinds = ["agree" if name == wanted else "differ" for name in names]
    drawn = [_drawn(images[query], f"query: {wanted}")]
    drawn += [_drawn(images[row], name, kind) for row, name, kind in zip(near, names, kinds, strict=True)]
    caption = f"<b>{text(wanted)}</b>, {kinds.count('agree')} of {len(near)} the same"
    return f'<figure class="row"><figcaption>{caption}</figcaption><div class="strip">{"".join(drawn)}</div></figure>'


def _drawn(image: Tensor, alt: str, css: str = "") -> str:
    """One picture uint8 (C, H, W) as <img>."""
    array = image.permute(1, 2, 0).numpy()
    drawn = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    drawn.thumbnail((SHOWN, SHOWN))
    out = io.BytesIO()
    drawn.save(out, "PNG", optimize=True)
    return picture(out.getvalue(), alt, css) or ""


# ---- the map -------------------------------------------------------------------------------------


def _map(sight: Sight) -> str:
    if len(sight.mapped) < 4:
        return '<p class="note">There is no map: it takes at least four test pictures.</p>'
    points = flat(sight.mapped_features)
    if points is None:
        return (
            '<p class="note">There is no map: the features of all test pictures are the same, so the '
            "representation has collapsed.</p>"
        )
    about = (
        f"{len(points):,} test pictures by their features: near each other here means alike to the network. "
        "Directions, and distances "
        "between clusters, have no meaning (PCA to 50 dimensions, then t-SNE)."
    )
    if sight.labels is None:
        return f'<p>{about}</p>\n<div class="map">{scatter(points, None, ())}</div>'
    classes = sight.data.info.classes
    chart = scatter(points, sight.labels[sight.mapped].tolist(), classes)
    told = "classes" if sight.told else "classes, which the network was never told"
    return f'<p>{about} Colours are {told}.</p>\n<div class="map">{chart}{legend(classes)}</div>'


def flat(features: Tensor) -> list[tuple[float, float]] | None:
    """Points of the plane for features (n, D), n at least 4, by cosine similarity; None where all directions are the
    same. Deterministic.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = torch.nn.functional.normalize(features.double(), dim=1)
    x = x - x.mean(0)
    if float(x.abs().max()) < 1e-6:
        return None
    with threadpool_limits(1):  # t-SNE's threads wait for each other: on a busy machine, 4 to 16 times longer
        reduced = PCA(min(50, *x.shape), random_state=0).fit_transform(x.numpy())
        perplexity = min(30.0, (len(x) - 1) / 3)
        start = "pca" if reduced.shape[1] >= 2 else "random"
        points = TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(reduced)
    return [(float(x), float(y)) for x, y in points]
