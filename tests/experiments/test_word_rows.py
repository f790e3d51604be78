"""The table's rows: the default is what ``compose`` makes, baselines have no transport, a folder is read."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from signllm.cra.candidates import FIRST_CODE_POINT
from signllm.cra.composition import WordsConfig, compose_words
from signllm.cra.repeats import collapse_repeats
from signllm.cra.transport import ChooseBy, TransportConfig
from signllm.data.loading.characters import save_characters
from signllm.demo.language import glosses, lexicon
from signllm.errors import UsageError
from signllm.experiments.word_rows import Corpus, Row, Table, all_rows, learn_unigram

CODES = 24
SIZES = (2, 4)


def demo(folder: Path, videos: int = 60) -> Path:
    """A demo whose characters are the units themselves, in clips of 4 frames each, some of them repeated."""
    rng, signs, records, characters = np.random.default_rng(3), lexicon("easy"), [], {}
    for number in range(videos):
        made = [glosses()[place] for place in rng.integers(0, 12, 5)]
        units = [unit for gloss in made for unit in signs[gloss]]
        lengths = rng.integers(1, 4, len(units))
        starts = 6 + 4 * (np.cumsum(lengths) - lengths)
        name = f"train-{number:04d}"
        record = {"id": name, "split": "train", "signs": made, "units": units, "starts": starts.tolist()}
        records.append(json.dumps(record | {"ends": (starts + 4 * lengths).tolist()}))
        characters[name] = np.repeat(units, lengths)
    (folder / "truth.jsonl").write_text("\n".join(records) + "\n")
    run = folder / "vq-sign"
    run.mkdir()
    save_characters(run / "characters.train.safetensors", characters, "codebook")
    packed = np.concatenate(list(characters.values()))
    counts = np.array([len(sequence) for sequence in characters.values()])
    compose_words(packed, counts, codes=CODES, codebook="codebook").save(run)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return Table(Corpus.read(demo(tmp_path_factory.mktemp("demo"))))


def test_characters_that_are_the_units_tell_all_of_them(table: Table) -> None:
    assert table.characters()["character_unit_nmi"] == pytest.approx(1)


def test_the_default_row_is_what_compose_makes(table: Table) -> None:
    (row,) = [row for row in all_rows(SIZES) if row.is_default]
    assert row.config == WordsConfig()
    corpus = table.corpus
    composed = compose_words(corpus.characters, corpus.counts, codes=CODES, codebook="codebook")
    made = table.words(row)
    assert (made.words, made.frequencies, made.alpha) == (
        composed.words,
        composed.frequencies,
        composed.alpha,
    )


@pytest.mark.parametrize("choose_by", get_args(ChooseBy))
@pytest.mark.parametrize("normalisation", ["length", "none"])
def test_a_size_is_read_from_the_curve_as_compose_chooses_it(
    table: Table,
    choose_by: ChooseBy,
    normalisation: Literal["length", "none"],
) -> None:
    transport = TransportConfig(choose_by=choose_by, normalisation=normalisation)
    config, corpus = WordsConfig(transport=transport), table.corpus
    made = compose_words(corpus.characters, corpus.counts, codes=CODES, codebook="codebook", config=config)
    (chosen,) = [record["size"] for record in made.curve if record["chosen"]]
    assert table.size(Row(label="", config=config)) == chosen


def test_labels_differ_and_all_rows_score(table: Table) -> None:
    rows = all_rows(SIZES, varied=4)
    assert len({row.label for row in rows}) == len(rows)
    scored = {row.label: table.score(row) for row in rows}
    assert scored["characters only"]["coverage"] == 0
    assert all(0 <= scores["boundary_f1_1"] <= 1 for scores in scored.values())
    # The paper's exact columns drop nothing: the words are those of plain BPE.
    assert scored["paper: 4"]["value_over_bpe"] == 0
    assert scored["paper: 4"]["value"] == scored["plain BPE 4"]["value"]


def test_words_of_a_clean_language_find_its_signs_far_above_chance(table: Table) -> None:
    scores = table.score(Row(label="", config=WordsConfig(size=40)))
    assert scores["boundary_f1_0"] > 0.6 > 0.4 > scores["boundary_chance_0"]
    assert scores["word_sign_nmi"] > table.score(Row(label="", config=WordsConfig(size=0)))["word_sign_nmi"]


def test_plain_bpe_keeps_what_transport_drops(table: Table) -> None:
    config = WordsConfig(size=40, transport=TransportConfig(keep_share=0.9, drop="always"))
    dropped = table.words(Row(label="", config=config))
    plain = table.words(Row(label="", config=config, kind="bpe"))
    assert len(dropped.words) < len(plain.words) == 40
    assert set(dropped.words) < set(plain.words)


def test_the_unigram_baseline_has_as_many_words_and_its_own_split(table: Table) -> None:
    config = WordsConfig(size=12, longest_word=4)
    made = table.words(Row(label="", config=config, kind="unigram"))
    assert len(made.words) == 12
    assert max(map(len, made.words)) <= 4
    corpus = table.corpus
    short = collapse_repeats(corpus.characters, corpus.counts, slow_down=CODES, alpha=made.alpha)
    pieces = learn_unigram(short, size=12, longest=4)
    spelt = [
        ("".join(chr(FIRST_CODE_POINT + character) for character in piece), p) for piece, p in pieces.items()
    ]
    model = Tokenizer(Unigram([(piece, math.log(p)) for piece, p in spelt], unk_id=0))
    first = short.characters[: short.counts[0]]
    theirs = model.encode("".join(chr(FIRST_CODE_POINT + character) for character in first)).tokens
    segmentation = made.segment(torch.from_numpy(corpus.characters), torch.from_numpy(corpus.counts))
    ours = [made.spell(word) for word in segmentation.words[: segmentation.counts[0]].tolist()]
    logs = dict(spelt)
    assert sum(math.log(pieces[word]) for word in ours) == pytest.approx(
        sum(math.log(logs[t]) for t in theirs)
    )


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    folder = demo(tmp_path, videos=4)
    with pytest.raises(UsageError, match="no character sequences"):
        Corpus.read(tmp_path / "nowhere")
    (folder / "truth.jsonl").unlink()
    with pytest.raises(UsageError, match="no truth of its videos"):
        Corpus.read(folder)


def test_a_frame_later_in_the_clip_moves_the_truth(tmp_path: Path) -> None:
    folder = demo(tmp_path, videos=4)
    early, late = Corpus.read(folder), Corpus.read(folder, frame=10)
    assert not np.array_equal(early.truth.places, late.truth.places)
    assert replace(early, truth=late.truth).counts is early.counts
