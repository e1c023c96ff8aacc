"""A text backbone is transformers' own network behind a tokenizer, and transformers opens its files without the zoo."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import pytest
import torch

from zoo.backbones import create_backbone
from zoo.backbones.architectures import ARCHITECTURES
from zoo.backbones.create import check_forward, redrawn
from zoo.backbones.tokenizer import learn_tokenizer
from zoo.checkpoint.towers import read_tower, tower_files
from zoo.data.datasets import data_info
from zoo.errors import ZooError
from zoo.machine.bounds import Bounded
from zoo.train.fit import build

transformers = pytest.importorskip("transformers")

NAMES = list(ARCHITECTURES)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocabulary=400)
TEXTS = [
    "grinning face with big eyes",
    "black cat",
    "waving hand, a dark skin tone",
    "flag of Norway",
    "face with tears of joy",
] * 8
BATCH = ["a black cat", "", "grinning face with big eyes and a very long tail of further words", "שלום 日本語 مرحبا"]


def _made(name: str = "bert", length: int = 12, **keywords):
    torch.manual_seed(0)
    backbone = create_backbone(name, length=length, **SMALL | keywords).eval()
    if backbone.tokenizer is None:
        backbone.learn(TEXTS)
    return backbone


def _written(files: dict[str, bytes], folder) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_its_contract(name):
    backbone = _made(name)
    x = backbone.prepare(BATCH)
    assert set(x) == {"input_ids", "attention_mask"}
    assert all(value.shape == (4, 12) and value.dtype == torch.int64 for value in x.values())
    assert x["attention_mask"].sum(1).tolist()[:3] == [5, 2, 12]  # two special tokens around each text
    with torch.no_grad():
        tokens, pooled = backbone.tokens(x), backbone.pool(x)
    assert tokens.shape == (4, 12, 32) and pooled.shape == (4, backbone.num_features) == (4, 32)
    assert backbone.grid == (12,) and len(backbone.blocks) == 2 and backbone.reads == backbone.field == "text"
    assert tokens.isfinite().all()
    again = create_backbone(**backbone.spec())
    assert again.spec() == backbone.spec() == {"name": name, **SMALL, "length": 12}
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in backbone.state_dict().items()
    }
    check_forward(again)  # empty texts need no tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    """The same text read in a shorter and in a longer frame has the same features."""
    backbone, wide = _made(name), _made(name, length=20)
    if name != "deberta-v2":  # whose distances depend on the longest
        own = backbone.model.state_dict()
        wide.model.load_state_dict(
            {
                key: own[key] if value.shape == own[key].shape else torch.cat([own[key], value[len(own[key]) :]])
                for key, value in wide.model.state_dict().items()
            }
        )
        with torch.no_grad():
            torch.testing.assert_close(
                backbone.pool(backbone.prepare(BATCH[:2])), wide.pool(wide.prepare(BATCH[:2])), atol=1e-5, rtol=1e-5
            )
    with torch.no_grad():
        x = backbone.prepare(BATCH[:1])
        other = x | {"input_ids": torch.where(x["attention_mask"] == 1, x["input_ids"], 7)}
        if name != "roberta":  # which finds its places by the padding's number
            torch.testing.assert_close(backbone.pool(x), backbone.pool(other), atol=1e-5, rtol=1e-5)


def test_pooling_is_the_mean_over_what_is_no_padding_or_the_first_token():
    mean, first = _made(), _made(pooling="cls")
    x = mean.prepare(BATCH)
    with torch.no_grad():
        tokens = mean.tokens(x)
        for row in range(4):
            count = int(x["attention_mask"][row].sum())
            torch.testing.assert_close(mean.pool(x)[row], tokens[row, :count].mean(0), atol=1e-6, rtol=1e-5)
        assert torch.equal(first.pool(x), tokens[:, 0])
    assert first.spec()["pooling"] == "cls"


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_token_is_seen_as_the_mask_token(name):
    backbone = _made(name)
    x, token = backbone.prepare(BATCH[:1]), torch.randn(32)
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 1] = True
    changed = x | {"input_ids": torch.where(mask, 9, x["input_ids"])}
    with torch.no_grad():
        hidden = backbone.tokens(x, mask, token)
        assert torch.equal(hidden, backbone.tokens(changed, mask, token))
        assert not torch.equal(hidden, backbone.tokens(x))
        assert torch.equal(backbone.tokens(x, torch.zeros_like(mask), token), backbone.tokens(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name):
    """Processes that train together wait for every gradient."""
    backbone = _made(name).train()
    (backbone.pool(backbone.prepare(BATCH)) ** 2).sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_transformers_opens_its_files_alone_and_finds_the_same_bits(name, kind, tmp_path):
    backbone = _made(name, tokenizer=kind)
    _written(tower_files(backbone, "Apache-2.0"), tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(BATCH, padding="max_length", truncation=True, return_tensors="pt")
    x = backbone.prepare(BATCH)
    assert type(model) is type(backbone.model) and set(batch) == set(x)
    assert all(torch.equal(batch[key], x[key]) for key in x)
    with torch.no_grad():
        assert torch.equal(model(**batch).last_hidden_state, backbone.tokens(x))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_again_to_the_bit(name):
    backbone = _made(name, tokenizer="bpe", pooling="mean" if name == "gpt2" else "cls")
    files = tower_files(backbone, None)
    state = torch.get_rng_state()
    again = read_tower("text", backbone.spec(), files.__getitem__)
    assert torch.equal(torch.get_rng_state(), state) and not again.training
    assert tower_files(again, None) == files and again.spec() == backbone.spec()
    with torch.no_grad():
        assert torch.equal(again.pool(again.prepare(BATCH)), backbone.pool(backbone.prepare(BATCH)))


def test_files_that_would_have_transformers_run_code_are_refused():
    backbone = _made()
    for file in ("config.json", "tokenizer_config.json"):
        files = tower_files(backbone, None)
        files[file] = json.dumps(json.loads(files[file]) | {"auto_map": {"AutoModel": "evil--code.Model"}}).encode()
        with pytest.raises(ZooError, match=f"{file} .*auto_map"):
            read_tower("text", backbone.spec(), files.__getitem__)


def test_files_of_another_network_are_refused():
    backbone, wider = _made(), _made(hidden_size=64)
    for file in ("config.json", "model.safetensors"):
        files = tower_files(backbone, None) | {file: tower_files(wider, None)[file]}
        with pytest.raises(ZooError, match=file):
            read_tower("text", backbone.spec(), files.__getitem__, "folder")
    files = tower_files(backbone, None)
    with pytest.raises(ZooError, match="set backbone.vocabulary to"):
        read_tower("text", backbone.spec() | {"vocabulary": 20}, files.__getitem__)
    with pytest.raises(ZooError, match="tokenizer is bpe and wordpiece"):
        read_tower("text", backbone.spec() | {"tokenizer": "bpe"}, files.__getitem__)
    with pytest.raises(ZooError, match="belong to another"):
        read_tower("text", backbone.spec() | {"hidden_size": 60000, "intermediate_size": 60000}, files.__getitem__)
    with pytest.raises(ZooError, match="tokenizer.json is not a tokenizer"):
        read_tower("text", backbone.spec(), (files | {"tokenizer.json": b"{}"}).__getitem__)


def test_without_a_tokenizer_texts_are_refused_and_nothing_is_kept():
    backbone = create_backbone("bert", length=12, **SMALL)
    with pytest.raises(ZooError, match=r"no tokenizer yet.*learn"):
        backbone.prepare(BATCH)
    with pytest.raises(ZooError, match=r"no tokenizer yet.*learn"):
        tower_files(backbone, None)
    with pytest.raises(ZooError, match="no text at all"):
        backbone.learn(["", " \n"])
    assert backbone.tokenizer is None
    backbone.learn(TEXTS)
    with pytest.raises(ZooError, match="tokenizer already"):
        backbone.learn(TEXTS)


def test_a_tokenizer_may_be_given_as_an_object_or_a_file(tmp_path):
    tokenizer = learn_tokenizer(TEXTS, 100, "words")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.json)
    sizes = {key: value for key, value in SMALL.items() if key != "vocabulary"}
    for given in (tokenizer, tmp_path / "tokenizer.json", str(tmp_path / "tokenizer.json")):
        backbone = create_backbone("bert", length=12, tokenizer=given, **sizes)
        assert backbone.tokenizer == tokenizer
        assert backbone.arguments == {**sizes, "vocabulary": tokenizer.size, "tokenizer": "words"}
    with pytest.raises(ZooError, match=rf"set backbone.vocabulary to {tokenizer.size}"):
        create_backbone("bert", tokenizer=tokenizer, **sizes, vocabulary=tokenizer.size - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_padding_of_a_given_tokenizer_may_have_any_number(name, tmp_path):
    """That of a RoBERTa's is 1, and places are counted from it."""
    learned = json.loads(learn_tokenizer(TEXTS, 100, "words").json)
    swap = {"[PAD]": 1, "[UNK]": 0}
    learned["model"]["vocab"].update(swap)
    for token in learned["added_tokens"]:
        token["id"] = swap.get(token["content"], token["id"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(learned))
    backbone = _made(name, tokenizer=tmp_path / "tokenizer.json")
    x = backbone.prepare(BATCH)
    assert x["input_ids"][1].tolist() == [2, 3] + [1] * 10
    assert backbone.pool(x).isfinite().all()
    again = read_tower("text", backbone.spec(), tower_files(backbone, None).__getitem__)
    assert torch.equal(again.pool(x), backbone.pool(x))


def test_the_feed_forward_width_follows_the_hidden_size():
    assert _made().model.config.intermediate_size == 128
    assert _made(intermediate_size=40).model.config.intermediate_size == 40
    assert _made("gpt2").model.config.n_inner == 128 and _made("distilbert").model.config.hidden_dim == 128


def test_copies_share_the_tokenizer_and_nothing_else():
    backbone = _made()
    copied, pickled = copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))
    assert copied.tokenizer is backbone.tokenizer and pickled.tokenizer == backbone.tokenizer
    x = backbone.prepare(BATCH)
    with torch.no_grad():
        assert torch.equal(pickled.pool(pickled.prepare(BATCH)), backbone.pool(x))
        next(copied.model.parameters()).add_(1)
        assert not torch.equal(copied.pool(x), backbone.pool(x))


def test_the_same_network_with_other_weights_reads_the_same_tokens():
    backbone = _made()
    other = redrawn(backbone).eval()
    assert other.spec() == backbone.spec() and other.tokenizer is backbone.tokenizer
    assert not torch.equal(other.pool(other.prepare(BATCH)), backbone.pool(backbone.prepare(BATCH)))


def test_the_seed_alone_decides_its_weights():
    first, second = _made("modernbert"), _made("modernbert")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "name, keywords, said",
    [
        ("bert", {"hidden_sise": 32}, "backbone.hidden_sise is not a keyword of bert; did you mean hidden_size"),
        ("bert", {"vocab_size": 32}, "backbone.vocab_size .*vocabulary"),
        ("distilbert", {"n_layers": 3}, "backbone.n_layers .*num_hidden_layers"),
        ("bert", {"trust_remote_code": True}, "backbone.trust_remote_code is not a keyword"),
        ("bert", {"auto_map": "evil.Model"}, "backbone.auto_map is not a keyword"),
        ("bert", {"hidden_size": 100}, r"backbone.hidden_size 100 .*num_attention_heads 12.* 10, 20"),
        ("bert", {"hidden_size": True}, "backbone.hidden_size is 'True'; it has to be a whole number, such as 768"),
        ("bert", {"hidden_size": "64"}, "backbone.hidden_size is '64'; it has to be a whole number"),
        ("bert", {"hidden_size": [64]}, "backbone.hidden_size is .*whole number"),
        ("bert", {"hidden_act": 3}, "backbone.hidden_act is '3'; it has to be a word, such as 'gelu'"),
        ("bert", {"hidden_act": "gelo"}, "can't build bert .*'hidden_act': 'gelo'"),
        ("bert", {"hidden_dropout_prob": float("nan")}, "backbone.hidden_dropout_prob is nan"),
        ("bert", {"num_hidden_layers": 10**9}, "backbone.num_hidden_layers is 1000000000; .*65,536"),
        ("bert", {"num_hidden_layers": 0}, "backbone.num_hidden_layers is 0; .*from 1"),
        ("bert", {"vocabulary": 10**9}, "backbone.vocabulary is 1000000000"),
        ("bert", {"vocabulary": 5}, "backbone.vocabulary is 5; .*at least 6"),
        ("bert", {"vocabulary": 100, "tokenizer": "bpe"}, "backbone.vocabulary is 100; .*at least 261"),
        ("bert", {"length": 3}, "backbone.length is 3"),
        ("bert", {"size": 32}, "length"),
        ("bert", {"pooling": "max"}, "backbone.pooling is 'max'.*mean"),
        ("gpt2", {"pooling": "cls"}, "gpt2.*use mean"),
        ("bert", {"tokenizer": "wordpeace"}, "backbone.tokenizer is 'wordpeace'.*did you mean wordpiece"),
        ("bert", {"tokenizer": "/nowhere/tokenizer.json"}, "/nowhere/tokenizer.json"),
        ("brt", {}, "'brt' is not a backbone; did you mean bert"),
    ],
)
def test_mistakes_are_told_in_a_sentence(name, keywords, said):
    with pytest.raises(ZooError, match=said), Bounded("the network", 1 << 30):
        create_backbone(name, **keywords)


def test_a_network_is_built_within_bounds():
    with pytest.raises(ZooError, match="the network of x takes more than"), Bounded("the network of x", 1 << 20):
        create_backbone("bert", hidden_size=4096, num_attention_heads=4)


@pytest.mark.parametrize("library", ["transformers", "tokenizers"])
def test_without_the_extra_a_sentence_says_how_to_get_it(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ZooError, match=rf"{library}: pip install 'pretext-zoo\[text\]'"):
        create_backbone("bert", length=12, **SMALL).learn(TEXTS)


@pytest.mark.parametrize(
    "keywords, said",
    [
        ({"name": "bert"}, "backbone is bert, which reads text, and the task reads image; .*resnet18"),
        ({"name": "audio"}, "backbone is audio, which reads audio, and the task reads image"),
        ({"name": "test_resnet", "size": 16}, "backbone.size .*data.size"),
    ],
)
def test_a_recipe_whose_network_reads_another_field_is_refused(keywords, said):
    resolved = {"seed": 0, "task": {"name": "simclr"}, "optim": {}, "backbone": keywords}
    with pytest.raises(ZooError, match=said):
        build(resolved, data_info("emoji"))


def test_values_that_are_no_texts_are_refused():
    with pytest.raises(ZooError, match="text 1 of the batch is a NoneType"):
        _made().prepare(["a", None])


def test_a_text_of_100_megabytes_costs_no_more_than_its_beginning():
    import resource
    import time

    backbone, text = _made(), "black cat " * 10_000_000
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    x = backbone.prepare([text] * 8)
    assert time.perf_counter() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert torch.equal(x["input_ids"][0], backbone.prepare([text[:200]])["input_ids"][0])
