"""Reports: what stands on the page, that a stranger's card can do nothing there, and that the page needs nothing but
itself.
"""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from card_example import METRIC, a_card
from PIL import Image
from report_page import ROWS, Page, alter, elsewhere, make, row
from sklearn.neighbors import NearestNeighbors

import zoo
from zoo.card import entry_for, read_card
from zoo.checkpoint.read import load_backbone
from zoo.cli import main
from zoo.errors import ZooError
from zoo.evaluate.knn import neighbours
from zoo.report import space
from zoo.report.charts import Series, lines, thinned
from zoo.report.page import read_log, write_page
from zoo.report.results import tables
from zoo.tasks.base import PretextTask
from zoo.views import to_float

LOG = (
    "step,epoch,loss,val_loss,knn,spread,effective_rank\n9,0,4.5,,,,\n19,1,3.5,,,,\n19,1,,3.75,81.5,0.61,20.5\n29,2,3.0,,,,\n"
    "29,2,,3.25,86.25,0.66,24.0\n"
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A home without data; and nobody asks the network, or another program that might."""
    asked = []

    def refuse(*arguments, **keywords):
        asked.append(arguments)
        raise OSError("there is no network here")

    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Page]:
    """A run's folder with everything, and its page."""
    run = tmp_path_factory.mktemp("whole") / "run"
    make(run / "checkpoint")
    (run / "metrics.csv").write_text(LOG)
    return run, Page(zoo.report(run.parent / "page.html", [run]))


# ---- results -------------------------------------------------------------------------------------


def test_every_number_stands_in_its_row_and_column(whole):
    assert whole[1].cells() == [
        ["", "nearest neighbours", "linear probe", "fine-tuning"],
        ["features", "all labels", "1 % labels", "5 per class"],
        ["backbonesimclr", "91.2 ± 0.5", "88.9 ± 2.0", "62.0 ± 3.5"],
        ["random weights", "71.5 ± 1.2", "70.0 ± 0.0", "–"],
        ["raw pixels", "93.0", "88.9 ± 0.3", "–"],
    ]
    assert "Accuracy on the test split of digits in %, mean ± standard deviation over 3 seeds" in whole[1].text


def test_the_best_of_each_column_is_bold_and_so_is_its_equal(whole):
    assert whole[1].bold() == ["88.9 ± 2.0", "62.0 ± 3.5", "93.0", "88.9 ± 0.3"]


def test_bars_are_as_long_as_the_numbers_and_baselines_look_different(whole):
    styles = [style["style"] for style in whole[1].all("i")]
    assert styles == [f"width:{value:.2f}%" for value in (91.25, 71.5, 93.04, 88.88, 70.0, 88.91, 62.0)]
    assert [kind["class"] for kind in whole[1].all("div", "bar")] == ["bar own", "bar random", "bar pixels"] * 2 + [
        "bar own"
    ]
    assert whole[1].all("b")[0]["style"] == "left:90.75%;width:1.00%"


def test_columns_are_in_order_and_one_label_per_class_is_not_all_of_them():
    found = [
        row(protocol="linear", labels=0.1, value=3.0),
        row(labels=1, value=1.0),
        row(labels=5, value=5.0),
        row(labels=0.01, value=2.0),
        row(labels=1.0, value=4.0),
        row(protocol="finetune", labels=1.0, value=6.0),
    ]
    (table,) = tables([("", a_card(), found)])
    (line,) = table.lines
    assert [line.cells[column]["value"] for column in table.columns] == [4.0, 2.0, 5.0, 1.0, 3.0, 6.0]


def test_data_sets_and_splits_have_tables_of_their_own(tmp_path):
    page = Page(
        write_page(tmp_path / "p.html", elsewhere(tmp_path / "c"), [row(), row(data="emoji"), row(split="validation")])
    )
    assert len(page.tables) == 3 and all(len(table) == 3 for table in page.tables)


def test_rows_that_are_given_take_the_place_of_the_cards(tmp_path):
    page = Page(
        write_page(
            tmp_path / "p.html",
            [elsewhere(tmp_path / "c")],
            [row("code", value=12.34, sd=None, seeds=1, command="zoo given")],
        )
    )
    assert (
        page.cells()[2:] == [["codesimclr", "12.3"]]
        and "zoo given" in page.text
        and "91.2" not in page.text
        and "1 seed." in page.text
    )


def test_a_checkpoint_without_results_says_so(tmp_path):
    page = Page(write_page(tmp_path / "p.html", [elsewhere(tmp_path / "c", metrics=[])]))
    assert not page.tables and "Nothing has been measured yet" in page.text and "90.0 %" in page.text


# ---- what it is ----------------------------------------------------------------------------------


def test_what_it_is(whole):
    card = read_card(whole[0] / "checkpoint")
    text = whole[1].text.replace("\xa0", " ")
    for part in (
        card["name"],
        card["summary"],
        "temperature 0.2",
        "hidden 16",
        "test_resnet",
        "16 × 16 pixels, grey",
        "steps 10",
        "pictures seen 640",
        "training time 30 s",
        "peak memory 512 MB",
        "2 cores, 1 thread, Linux x86_64",
        "2026-01-31",
        "Seed 0",
        "Commit not known",
        "Apache-2.0",
        "CC-BY-4.0",
        "E. Alpaydin and C. Kaynak",
        METRIC["command"],
        "torch 2.14.1",
        "nearest neighbours on 2,000 pictures of digits give 90.0 %",
    ):
        assert part in text, part
    assert f"<dd>{card['parameters'] / 1e3:,.0f} <small>thousand</small></dd>" in whole[1].source


def test_pictures_are_inside_the_page_and_whole(whole):
    run, page = whole
    pictures = page.pictures()
    for data, tag in zip(pictures, page.all("img"), strict=True):
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
        assert image.size == (int(tag["width"]), int(tag["height"])) and tag["alt"]
    assert pictures[0] == (run / "checkpoint" / "views.png").read_bytes() and len(pictures) == 1 + 8 * 9


def test_a_picture_that_is_none_or_enormous_is_left_out(tmp_path):
    folder = elsewhere(tmp_path / "c")
    large, other = io.BytesIO(), io.BytesIO()
    Image.new("1", (5000, 10)).save(large, "PNG")
    Image.new("L", (10, 10)).save(other, "GIF")
    for name, data in {
        "script.png": b"<svg onload='alert(1)'>",
        "large.png": large.getvalue(),
        "other.png": other.getvalue(),
    }.items():
        (folder / name).write_bytes(data)
        alter(folder, lambda card, name=name, data=data: card["files"].append(entry_for(name, data)))
    page = Page(write_page(tmp_path / "p.html", [folder]))
    assert len(page.all("img")) == 1 and all(
        f"{name}.png is left out" in page.text for name in ("script", "large", "other")
    )


# ---- a stranger's card ---------------------------------------------------------------------------

HOSTILE = "</style></title><script>alert('x')</script>\"'><img src=x onerror=alert(1)> &amp; `"
TAGS = """html head meta title style body main footer article section h1 h2 h3 h4 p a code pre dl dt dd div span small strong b i table thead
    tbody tr th td figure figcaption img ul li details summary svg g line polyline circle text"""  # noqa: E501


def check_closed(page: Page) -> None:
    """Nothing is loaded and nothing runs, whatever the browser would allow."""
    for tag, attributes in page.tags:
        assert tag in TAGS.split(), tag
        for key, value in attributes.items():
            assert not key.startswith("on") and key not in (
                "srcset",
                "action",
                "formaction",
                "background",
                "xlink:href",
                "srcdoc",
            ), (tag, key)
            if key in ("src", "href"):
                assert value.startswith("data:image/png;base64," if tag == "img" else ("#", "https://")), value
            assert "url(" not in (value or "") and "javascript:" not in (value or "")
    style = re.search("<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    heads = [attributes for tag, attributes in page.tags if tag == "meta"]
    policy = next(meta["content"] for meta in heads if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script" not in policy and "http" not in policy
    assert page.source.index("Content-Security-Policy") < page.source.index("<style>")


def test_nothing_is_loaded_and_nothing_runs(whole):
    check_closed(whole[1])
    assert "prefers-color-scheme: dark" in whole[1].source and "@media print" in whole[1].source


def test_text_of_a_card_stays_text(tmp_path):
    folder = elsewhere(tmp_path / "c")

    def change(card):
        card["summary"] = card["commit"] = card["parent"] = card["data"]["version"] = card["data"]["license"] = card[
            "data"
        ]["attribution"] = HOSTILE
        card["machine"] = {key: HOSTILE for key in card["machine"]}
        card["packages"] = card["recipe"] = {HOSTILE: HOSTILE}
        card["task"][HOSTILE] = [HOSTILE]
        card["check"]["data"] = HOSTILE
        card["metrics"] = [row(HOSTILE, data=HOSTILE, split=HOSTILE, command=HOSTILE)]

    plain = Page(write_page(tmp_path / "plain.html", [folder], [row()]))
    alter(folder, change)
    for folders in ([folder], [folder, elsewhere(tmp_path / "other", name="other")]):
        page = Page(write_page(tmp_path / "p.html", folders))
        check_closed(page)
        assert page.source.count("<style>") == 1 and "<script" not in page.source and "src=x onerror" in page.text
        if len(folders) == 1:
            assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags} and page.text.count(
                "alert('x')"
            ) >= 14


@pytest.mark.parametrize(
    "address, linked",
    [
        ("https://example.org/a?b=1&c=2", "https://example.org/a?b=1&c=2"),
        ("(see https://example.org/x).", "https://example.org/x"),
        ("https://example.org/\"onclick='x'", "https://example.org/"),
        ("http://example.org/", None),
        ("javascript:alert(1)", None),
        ("https://safe.org@evil.org/", None),
        ("https://safe.org:443@evil.org/", None),
        ("data:text/html,x", None),
    ],
)
def test_only_plain_https_addresses_become_links(address, linked, tmp_path):
    folder = elsewhere(tmp_path / "c")
    alter(folder, lambda card: card["data"].update(attribution=address))
    page = Page(write_page(tmp_path / "p.html", [folder]))
    assert [link["href"] for link in page.all("a")] == ([linked] if linked else []) and address in "".join(page.words)
    check_closed(page)


# ---- several checkpoints -------------------------------------------------------------------------


def test_several_checkpoints_are_compared_first(tmp_path):
    a = elsewhere(tmp_path / "a", name="first")
    b = elsewhere(
        tmp_path / "b", name="second", metrics=[row(value=95.0, sd=None), row("code", value=80.0), *ROWS[1:3]]
    )
    page = Page(write_page(tmp_path / "p.html", [a, str(b), a]))
    assert "2 checkpoints compared" in page.text and len(page.all("article")) == 2 and len(page.tables) == 4
    assert [line[:4] for line in page.cells(0)] == [
        ["checkpoint", "task", "backbone", "trained on"],
        ["first", "simclr", "test_resnet", "cifar10"],
        ["second", "simclr", "test_resnet", "cifar10"],
    ]
    assert [line[0] for line in page.cells(1)[2:]] == [
        "firstbackbone",
        "secondbackbone",
        "secondcode",
        "random weightstest_resnet",
        "random weightstest_resnet",
        "raw pixels32 × 32",
        "raw pixels32 × 32",
    ]
    assert page.bold(1) == ["88.9 ± 2.0", "62.0 ± 3.5", "95.0", "88.9 ± 0.3"]
    assert {link["href"] for link in page.all("a")} == {"#c1", "#c2"} == {f"#{a['id']}" for a in page.all("article")}
    check_closed(page)


def test_baselines_that_are_the_same_are_shown_once_and_equal_names_told_apart(tmp_path):
    folders = [elsewhere(tmp_path / str(seed), name="same", seed=seed) for seed in (0, 1)] + [
        elsewhere(tmp_path / "again", name="same", seed=1)
    ]
    page = Page(write_page(tmp_path / "p.html", folders))
    assert [line[0] for line in page.cells(1)[2:]] == [
        "same, seed 0backbone",
        "same, seed 1 (2)backbone",
        "same, seed 1 (3)backbone",
        "random weightstest_resnet",
        "raw pixels32 × 32",
    ]


# ---- what is alike -------------------------------------------------------------------------------


def test_neighbours_are_those_that_scikit_learn_finds(whole):
    """The share over all test pictures, and the frames of the eight rows."""
    run, page = whole
    data, backbone = zoo.load_data("digits", size=16), load_backbone(run / "checkpoint")
    train, test, y = data.splits["train"], data.splits["test"], data.fields["label"]
    with torch.no_grad():
        features = backbone.pool(to_float(data.fields["image"])).double()
    features = torch.nn.functional.normalize(features, dim=1)
    near = (
        NearestNeighbors(n_neighbors=8, algorithm="brute")
        .fit(features[train])
        .kneighbors(features[test], return_distance=False)
    )
    same = y[train][torch.from_numpy(near)] == y[test][:, None]
    share = float(re.search(r"([\d.]+) % of these neighbours are of the same class", page.text)[1])
    assert (
        share == pytest.approx(100 * float(same.double().mean()), abs=0.1)
        and "among 1,258 training pictures" in page.text
    )
    first = [y[test].tolist().index(label) for label in range(8)]
    frames = [
        [image["class"] for image in page.all("img") if image.get("class")][start : start + 8]
        for start in range(0, 64, 8)
    ]
    assert (
        sum(
            frame == ["agree" if s else "differ" for s in same[i].tolist()]
            for frame, i in zip(frames, first, strict=True)
        )
        >= 7
    )
    assert [f"{label} , {int(same[i].sum())} of 8 the same" in page.text for label, i in enumerate(first)].count(
        True
    ) >= 7
    pictures = page.pictures()[1:]
    assert all(
        torch.equal(
            torch.tensor(list(Image.open(io.BytesIO(pictures[9 * n])).tobytes()), dtype=torch.uint8).view(1, 16, 16),
            data.fields["image"][test[i]],
        )
        for n, i in enumerate(first)
    )


def test_the_map_has_a_point_for_each_test_picture_in_its_class(whole):
    page = whole[1]
    chart = page.source.split('aria-label="Map of test pictures">')[1].split("</svg>")[0]
    labels = zoo.load_data("digits", size=16)
    counts = torch.bincount(labels.fields["label"][labels.splits["test"]], minlength=10).tolist()
    groups = [re.findall('<circle cx="([^"]+)" cy="([^"]+)"', group) for group in chart.split("<g ")[1:]]
    assert [len(group) for group in groups] == counts and len(page.all("span", "swatch")) == 10
    for values in zip(
        *((float(x), float(y)) for group in groups for x, y in group), strict=True
    ):  # in the middle of the map
        assert min(values) > 0 and min(values) + max(values) == pytest.approx(560, abs=0.3)
    names = re.findall('<text class="halo" x="([^"]+)" y="([^"]+)"[^>]*>([^<]+)', chart)
    assert [name for _, _, name in names] == list("0123456789")
    for (x, y, _), group in zip(names, groups, strict=True):  # on one of its own points
        assert any(x == px and float(y) - 4 == pytest.approx(float(py), abs=0.11) for px, py in group)


def test_the_map_keeps_neighbours_together_and_is_always_the_same():
    x = torch.randn(60, 24, generator=torch.Generator().manual_seed(0)) + 8 * torch.eye(3, 24).repeat_interleave(20, 0)
    points = space.flat(x)
    assert points == space.flat(x.clone()) and len(points) == 60
    _, index = neighbours(torch.tensor(points) + 1000, torch.tensor(points) + 1000, 6, "euclidean")
    assert (index // 20 == torch.arange(60)[:, None] // 20).double().mean() > 0.95
    assert space.flat(torch.ones(60, 24)) is None


def test_data_that_are_not_at_hand_leave_the_rest_of_the_page(tmp_path):
    page = Page(write_page(tmp_path / "p.html", [elsewhere(tmp_path / "c")]))
    assert (
        "Nothing can be shown here: " in page.text
        and "cifar10" in page.text
        and len(page.all("img")) == 1
        and not page.all("svg")
    )


def pictures_in(folder: Path, names: list[str], count: int = 72) -> str:
    for number in range(count):
        path = folder / names[number % len(names)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 20 + number).save(path)
    return f"folder:{folder}"


def test_a_folder_is_shown_only_if_it_holds_the_pictures_of_the_training(tmp_path):
    name = pictures_in(tmp_path / "pictures", ["<b>one", "two"])
    data = zoo.load_data(name, size=16)
    for fingerprint, shown in ((data.fingerprint, True), ("cd" * 32, False)):
        page = Page(write_page(tmp_path / "p.html", [make(tmp_path / "c", name, 16, 3, fingerprint, metrics=[])]))
        assert (len(page.all("img")) > 1) is shown is bool(page.all("svg")) and (
            "doesn't hold the pictures" in page.text
        ) is not shown
        assert ("<b>one" in page.text) is shown


def test_pictures_without_labels_have_no_frames(tmp_path):
    name = pictures_in(tmp_path / "pictures", ["."], 24)
    data = zoo.load_data(name, size=16)
    page = Page(write_page(tmp_path / "p.html", [make(tmp_path / "c", name, 16, 3, data.fingerprint, metrics=[])]))
    assert len(data.splits["test"]) == 3 and "at least four test pictures" in page.text
    assert (
        "label" not in data.fields
        and len(page.all("img")) == 1 + 3 * 9
        and not any(image.get("class") for image in page.all("img"))
    )
    assert len(set(page.pictures()[1::9])) == 3 and "same class" not in page.text and not page.all("span", "swatch")


def test_a_collapsed_representation_is_called_that(tmp_path, monkeypatch):
    monkeypatch.setattr(PretextTask, "represent", lambda task, batch: {"backbone": torch.ones(len(batch["image"]), 4)})
    name = pictures_in(tmp_path / "pictures", ["one", "two"])
    folder = make(tmp_path / "c", name, 16, 3, zoo.load_data(name, size=16).fingerprint)
    assert "the representation has collapsed" in Page(write_page(tmp_path / "p.html", [folder])).text


# ---- curves --------------------------------------------------------------------------------------


def test_curves_of_the_run_beside_the_checkpoint(whole, tmp_path):
    text = whole[1].text
    assert "How it was trained" in text and all(
        title in text for title in ("Loss", "training", "validation", "Spread", "Effective rank")
    )
    assert [line["class"] for line in whole[1].all("polyline")] == ["line", "line second", "line", "line", "line"]
    alone = Page(write_page(tmp_path / "p.html", [elsewhere(tmp_path / "c")]))
    assert "How it was trained" not in alone.text and not alone.all("polyline")


def test_columns_that_were_not_logged_are_left_out(tmp_path):
    elsewhere(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "metrics.csv").write_text("step,loss\n9,4.5\n19,3.5\n")
    page = Page(write_page(tmp_path / "p.html", [tmp_path / "run"]))
    assert len(page.all("polyline")) == 1 and "Spread" not in page.text
    assert "validation" not in page.text.split("How it was trained")[1].split("How to")[0]


def test_reading_a_log(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,knn\n19,2.0,\n9,3.0,\n19,1.5,80\n29,nan,inf\n39,,\n,7,7\nx,1,1\n49,0.5")
    assert read_log(path) == {"loss": [(9, 3.0), (19, 1.5), (49, 0.5)], "knn": [(19, 80.0)]}
    path.write_bytes(b"\xff\xfe\x00\n\x00,1,2")
    assert read_log(path) == {} == read_log(tmp_path) == read_log(tmp_path / "none.csv")


def test_a_curve_goes_through_its_points():
    chart = lines("Loss", "", [Series("training", [(0, 4.0), (50, 3.0), (100, 2.0)])])
    points = [tuple(map(float, point.split(","))) for point in re.search('points="([^"]+)"', chart)[1].split()]
    assert (
        points[1] == pytest.approx(((points[0][0] + points[2][0]) / 2, (points[0][1] + points[2][1]) / 2))
        and points[0][1] < points[2][1]
    )
    assert lines("Loss", "", [Series("one", [(0, 0.0)])]).count("<circle") == 1
    many = thinned([(float(step), 2.0 * step) for step in range(10_001)])
    assert (
        len(many) <= 240 and many[0][0] < 50 and many[-1][0] > 9950 and all(y == pytest.approx(2 * x) for x, y in many)
    )


# ---- what goes wrong -----------------------------------------------------------------------------


def test_what_goes_wrong_is_a_sentence(tmp_path):
    folder = elsewhere(tmp_path / "c")
    page = tmp_path / "p.html"
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((page, []), "at least one"),
        ((page, [tmp_path / "Nowhere"]), "neither a folder"),
        ((page, [tmp_path / "empty"]), "no checkpoint"),
        ((tmp_path, [folder]), "can't be written"),
        ((folder / "zoo.json" / "p.html", [folder]), "can't be written"),
        ((page, [folder, elsewhere(tmp_path / "d")], [row()]), "one checkpoint and 2"),
        ((page, [folder], [row(protocol="knm")]), "row 0.*did you mean knn"),
        ((page, [folder], [{"value": 1}]), "row 0 lacks"),
    ):
        with pytest.raises(ZooError, match=words):
            write_page(*arguments)
    (folder / "views.png").write_bytes((folder / "views.png").read_bytes()[:-1] + b"x")
    with pytest.raises(ZooError, match="another sha256"):
        write_page(page, [folder])
    assert not page.exists()


def test_the_verb(tmp_path, capsys):
    folder = elsewhere(tmp_path / "run" / "checkpoint").parent
    assert main(["report", str(folder), "--out", str(tmp_path / "made" / "p.html"), "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "made" / "p.html")}
        and Page(tmp_path / "made" / "p.html").tables
    )
    assert main(["report", str(tmp_path / "nowhere")]) == 2
