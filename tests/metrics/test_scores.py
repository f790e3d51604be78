"""Scores: values computed by hand, an independent implementation of the definitions, and properties."""

from __future__ import annotations

import math
import random
import unicodedata
from collections import Counter
from functools import cache

import pytest

from signllm.errors import UsageError
from signllm.metrics.rouge import longest_common_subsequence, rouge_l
from signllm.metrics.score_files import format_score_table, mean_and_deviation, score_files
from signllm.metrics.scores import (
    CONVENTIONS,
    METRICS,
    ScoreConfig,
    build_metrics,
    choose_score_rules,
    normalize_texts,
    score,
)
from signllm.metrics.significance import compute_paired_differences

PHOENIX, CSL, SACREBLEU = (
    ScoreConfig(convention=name) for name in ("phoenix2014t", "csl-daily", "sacrebleu")
)


def count_ngrams(tokens: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def plain_bleu(hypotheses: list[list[str]], references: list[list[str]], order: int) -> float:
    """Return BLEU as Papineni et al. (2002) define it, without smoothing."""
    logs = 0.0
    for n in range(1, order + 1):
        matches = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            hypothesis_counts, reference_counts = count_ngrams(hypothesis, n), count_ngrams(reference, n)
            matches += sum(min(count, reference_counts[gram]) for gram, count in hypothesis_counts.items())
            total += sum(hypothesis_counts.values())
        if matches == 0:
            return 0.0
        logs += math.log(matches / total) / order
    length, reference_length = sum(map(len, hypotheses)), sum(map(len, references))
    brevity = 1.0 if length > reference_length else math.exp(1 - reference_length / length)
    return 100 * brevity * math.exp(logs)


def plain_rouge(hypothesis: list[str], reference: list[str]) -> float:
    @cache
    def common(i: int, j: int) -> int:
        if i == len(hypothesis) or j == len(reference):
            return 0
        if hypothesis[i] == reference[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    both = common(0, 0)
    if both == 0:
        return 0.0
    precision, recall = both / len(hypothesis), both / len(reference)
    return 2.44 * precision * recall / (recall + 1.44 * precision)


def plain_chrf(hypotheses: list[str], references: list[str]) -> float:
    """ChrF2 of Popovic (2015): character 1- to 6-grams without spaces, mean over orders both sides have."""
    precisions, recalls = [], []
    for n in range(1, 7):
        matches = hypothesis_total = reference_total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            hypothesis_counts = count_ngrams(list("".join(hypothesis.split())), n)
            reference_counts = count_ngrams(list("".join(reference.split())), n)
            matches += sum(min(count, reference_counts[gram]) for gram, count in hypothesis_counts.items())
            hypothesis_total += sum(hypothesis_counts.values())
            reference_total += sum(reference_counts.values())
        if hypothesis_total and reference_total:
            precisions.append(matches / hypothesis_total)
            recalls.append(matches / reference_total)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def corpus(seed: int, sentences: int = 40) -> tuple[list[str], list[str]]:
    """Return random sentences, and hypotheses that copy, drop and replace their words."""
    rng = random.Random(seed)
    vocabulary = "Am Montag regnet es im Norden und Süden bei zwölf Grad ,".split()
    references, hypotheses = [], []
    for _ in range(sentences):
        words = rng.choices(vocabulary, k=rng.randint(5, 12))
        hypothesis = [
            rng.choice(vocabulary) if rng.random() < 0.2 else word for word in words if rng.random() > 0.1
        ]
        references.append(" ".join(words))
        hypotheses.append(" ".join(hypothesis) or "es")
    return hypotheses, references


def test_scores_by_hand() -> None:
    # every word but the last matches: 5 of 6 unigrams, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples; LCS 5
    result = score(["The cat sat on the rug"], ["the cat sat on the mat"], PHOENIX)
    assert result["bleu1"] == pytest.approx(100 * 5 / 6)
    assert result["bleu2"] == pytest.approx(100 * math.sqrt(5 / 6 * 4 / 5))
    assert result["bleu3"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4) ** (1 / 3))
    assert result["bleu4"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4))
    assert result["rouge_l"] == pytest.approx(100 * 5 / 6)


def test_rouge_weighs_recall_over_precision() -> None:
    # LCS 2; P = 2/4, R = 2/2: F = 2.44 * 0.5 / (1 + 1.44 * 0.5) = 1.22 / 1.72
    assert rouge_l("a x b y".split(), "a b".split()) == pytest.approx(1.22 / 1.72)
    # P = 2/2, R = 2/4: F = 1.22 / (0.5 + 1.44)
    assert rouge_l("a b".split(), "a x b y".split()) == pytest.approx(1.22 / 1.94)


def test_brevity_penalty_by_hand() -> None:
    result = score(["a b c d"], ["a b c d e f g h"], PHOENIX)
    assert result["bleu4"] == pytest.approx(100 * math.exp(1 - 8 / 4))


def test_an_order_without_a_match_makes_bleu_zero_only_under_the_papers_conventions() -> None:
    hypothesis, reference = ["a b x c d"], ["a b y c d"]
    assert score(hypothesis, reference, PHOENIX)["bleu3"] == 0.0
    assert score(hypothesis, reference, SACREBLEU)["bleu3"] > 0.0


@pytest.mark.parametrize("seed", range(5))
def test_against_an_independent_implementation(seed: int) -> None:
    hypotheses, references = corpus(seed)
    result = score(hypotheses, references, PHOENIX)
    hypothesis_tokens = [text.lower().split() for text in hypotheses]
    reference_tokens = [text.lower().split() for text in references]
    for order in (1, 2, 3, 4):
        assert result[f"bleu{order}"] == pytest.approx(
            plain_bleu(hypothesis_tokens, reference_tokens, order), abs=1e-9
        )
    rouges = list(map(plain_rouge, hypothesis_tokens, reference_tokens))
    rouge = 100 * sum(rouges) / len(rouges)
    assert result["rouge_l"] == pytest.approx(rouge, abs=1e-9)
    lowered = [text.lower() for text in hypotheses], [text.lower() for text in references]
    assert result["chrf"] == pytest.approx(plain_chrf(*lowered), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_csl_daily_scores_characters(seed: int) -> None:
    rng = random.Random(seed)
    references = ["".join(rng.choices("今天我们去学校吃饭吗明", k=rng.randint(4, 9))) for _ in range(30)]
    hypotheses = ["".join(c for c in text if rng.random() > 0.2) or "我" for text in references]
    result = score([" ".join(text) for text in hypotheses], references, CSL)  # spaces do not count
    for order in (1, 2, 3, 4):
        expected = plain_bleu([list(text) for text in hypotheses], [list(text) for text in references], order)
        assert result[f"bleu{order}"] == pytest.approx(expected, abs=1e-9)
    rouges = [
        plain_rouge(list(hypothesis), list(reference))
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    assert result["rouge_l"] == pytest.approx(100 * sum(rouges) / len(rouges), abs=1e-9)


def test_the_sacrebleu_convention_is_sacrebleus_default() -> None:
    import sacrebleu

    hypotheses, references = corpus(7)
    result = score(hypotheses, references, SACREBLEU)
    assert result["bleu4"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert result["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    chinese = score(["我们去学校"], ["我们去学校吗"], ScoreConfig(convention="sacrebleu", language="zh"))
    assert chinese["bleu4"] == sacrebleu.corpus_bleu(["我们去学校"], [["我们去学校吗"]], tokenize="zh").score
    assert "tok:zh" in str(chinese["signature"])


def perfect_value(name: str) -> float:
    """Return the value of a metric when every hypothesis equals its reference."""
    return 100.0 if METRICS[name].higher_is_better else 0.0


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_laws(convention: str) -> None:
    hypotheses, references = corpus(11)
    rules = ScoreConfig(convention=convention)
    result = score(hypotheses, references, rules)
    assert list(result)[: len(METRICS)] == list(METRICS)
    assert all(0.0 < result[name] < 100.0 for name in METRICS)
    perfect = score(references, references, rules)
    assert all(perfect[name] == pytest.approx(perfect_value(name)) for name in METRICS)
    order = random.Random(0).sample(range(len(references)), len(references))
    shuffled = score(
        [hypotheses[i] for i in order], [references[i] for i in order], ScoreConfig(convention=convention)
    )
    assert all(shuffled[name] == pytest.approx(result[name]) for name in METRICS)
    assert score(["foo"] * 3, ["bar"] * 3, PHOENIX)["bleu1"] == 0.0


def test_case_counts_only_in_sacrebleu() -> None:
    assert score(["MORGEN REGEN"], ["morgen regen"], PHOENIX)["bleu1"] == pytest.approx(100)
    assert score(["MORGEN REGEN"], ["morgen regen"], SACREBLEU)["rouge_l"] == 0.0


def test_a_final_period_raises_the_score_and_is_named_in_the_signature() -> None:
    hypotheses, references = corpus(3)
    kept, added = (score(hypotheses, references, ScoreConfig(final_period=how)) for how in ("keep", "add"))
    assert added["bleu4"] > kept["bleu4"]
    assert added["rouge_l"] > kept["rouge_l"]
    with_period = score([f"{text} ." for text in hypotheses], references, ScoreConfig(final_period="drop"))
    assert with_period["bleu4"] == pytest.approx(kept["bleu4"])
    assert "final_period:add" in str(added["signature"])
    assert added["signature"] != kept["signature"]


def test_the_signature_says_how() -> None:
    signature = str(score(["a"], ["a"], PHOENIX)["signature"])
    for part in ("phoenix2014t", "case:lc", "tok:none", "smooth:floor", "version:", "beta:1.2", "nc:6"):
        assert part in signature


def test_empty_hypotheses_score_zero() -> None:
    result = score(["", ""], ["es regnet", "morgen"], PHOENIX)
    assert [result[name] for name in METRICS] == [100.0 - perfect_value(name) for name in METRICS]


def test_lcs_is_symmetric_and_bounded() -> None:
    rng = random.Random(5)
    for _ in range(50):
        left, right = ([rng.choice("abc") for _ in range(rng.randint(0, 9))] for _ in range(2))
        length = longest_common_subsequence(left, right)
        assert length == longest_common_subsequence(right, left) <= min(len(left), len(right))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((["a"], ["a", "b"]), "1 hypotheses but 2 references"),
        (([], []), "nothing to score"),
    ],
)
def test_unequal_numbers_of_sentences_are_an_error(arguments: tuple, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        score(*arguments)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"convention": "bleu"}, "phoenix2014t, csl-daily, sacrebleu"),
        ({"final_period": "no"}, "keep, add or drop"),
        ({"case": "upper"}, "convention, lower or keep"),
    ],
)
def test_unknown_rules_are_an_error(setting: dict, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        ScoreConfig(**setting)


def test_case_is_an_option_and_in_the_signature() -> None:
    pair = ["MORGEN REGEN"], ["morgen regen"]
    kept = score(*pair, ScoreConfig(case="keep"))
    assert kept["bleu1"] == 0.0
    assert "case:mixed" in kept["signature"]
    assert score(*pair, ScoreConfig(convention="sacrebleu", case="lower"))["bleu1"] == pytest.approx(100)


def test_intervals_equal_those_of_sacrebleu_and_contain_the_score() -> None:
    from sacrebleu.metrics import BLEU

    hypotheses, references = corpus(4)
    result = score(hypotheses, references, SACREBLEU, bootstrap=300)
    expected = BLEU().corpus_score(hypotheses, [references], n_bootstrap=300)
    low, high = result["intervals"]["bleu4"]
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((expected._mean, expected._ci))
    assert all(ends[0] < result[name] < ends[1] for name, ends in result["intervals"].items())
    assert list(result["intervals"]) == list(METRICS)
    more = score(hypotheses * 9, references * 9, SACREBLEU, bootstrap=300)["intervals"]["bleu4"]
    assert more[1] - more[0] == pytest.approx((high - low) / 3, rel=0.3)  # nine times the sentences


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_only_real_differences_are_significant(test: str) -> None:
    hypotheses, references = corpus(5, sentences=60)
    config = ScoreConfig()
    hypotheses, references = normalize_texts(hypotheses, references, config)
    worse = [" ".join(["es", *text.split()[1:-2]]) for text in hypotheses]
    differences = compute_paired_differences(
        hypotheses, worse, references, build_metrics(config), test=test, samples=200
    )  # type: ignore[arg-type]
    for name in METRICS:
        expected = score(hypotheses, references)[name] - score(worse, references)[name]
        assert differences[name]["difference"] == pytest.approx(expected)
    assert differences["rouge_l"]["p"] < 0.05
    equals = [
        [" ".join(word for word in text.split() if rng.random() > 0.2) for text in references]
        for rng in (random.Random(1), random.Random(2))
    ]  # two systems that miss equally many, but different words
    chance = compute_paired_differences(*equals, references, build_metrics(config), test=test, samples=200)  # type: ignore[arg-type]
    assert chance["bleu4"]["p"] > 0.05


def test_mean_and_deviation_over_seeds_by_hand() -> None:
    runs = [dict.fromkeys(METRICS, value) for value in (1.0, 2.0, 6.0)]
    assert mean_and_deviation(runs)["mean"]["bleu4"] == 3.0
    assert mean_and_deviation(runs)["sd"]["bleu4"] == pytest.approx(math.sqrt(7.0))
    assert mean_and_deviation(runs[:1])["sd"]["bleu4"] == 0.0


def test_files_of_seeds_against_a_baseline(tmp_path) -> None:
    files = {}
    for name, lines in {"a": corpus(2)[0], "b": corpus(2)[1][:20] + corpus(2)[0][20:]}.items():
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    references = tmp_path / "references.txt"
    references.write_text("\n".join(corpus(2)[1]), encoding="utf-8")
    alone = score_files([files["a"]], references, bootstrap=50)
    assert alone == score(*corpus(2), bootstrap=50)
    scores = score_files([files["a"], files["b"]], references, baseline=[files["a"]], bootstrap=50)
    a, b = (scores["runs"][str(files[name])]["bleu4"] for name in ("a", "b"))
    assert a == alone["bleu4"] < b
    assert scores["mean"]["bleu4"] == pytest.approx((a + b) / 2)
    assert scores["against"][str(files["a"])]["bleu4"] == {"difference": 0.0, "p": 1.0}
    assert scores["against"][str(files["b"])]["bleu4"]["difference"] == pytest.approx(b - a)
    table = format_score_table(scores)
    assert f"{a:.2f} [" in table
    assert "mean ± sd" in table
    assert scores["baseline"]["signature"] in table
    with pytest.raises(UsageError, match="3 baselines for 2 files"):
        score_files([files["a"], files["b"]], references, baseline=[files["a"]] * 3)


UNSPACED = {
    "Chinese": ("今天我们去学校吃饭。", "今天我去学校吃饭。"),
    "Japanese": ("今日は学校に行きます。", "今日は学校へ行きます。"),
    "Thai": ("วันนี้อากาศดีมาก", "วันนี้อากาศดี"),
    "Khmer": ("ថ្ងៃនេះអាកាសធាតុល្អ", "ថ្ងៃនេះអាកាសធាតុល្អណាស់"),
    "Burmese": ("ဒီနေ့ရာသီဥတုကောင်းတယ်", "ဒီနေ့ရာသီဥတုကောင်းပါတယ်"),
    "Lao": ("ມື້ນີ້ອາກາດດີ", "ມື້ນີ້ອາກາດດີຫຼາຍ"),
    "Tibetan": ("དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག", "དེ་རིང་གནམ་གཤིས་ཡག་པོ་རེད"),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("language", UNSPACED)
def test_a_language_without_spaces_is_scored_by_character(convention: str, language: str) -> None:
    hypothesis, reference = UNSPACED[language]
    for known in (None, language):  # the text itself is enough
        scores = score([hypothesis], [reference], ScoreConfig(convention=convention, language=known))
        assert scores["bleu4"] > 30
        assert "unit:character" in scores["signature"]
    by_hand = plain_bleu([list(hypothesis)], [list(reference)], 4)
    if convention == "csl-daily":
        assert scores["bleu4"] == pytest.approx(by_hand)
    assert score([hypothesis], [reference], ScoreConfig(unit="word"))["bleu4"] == 0


@pytest.mark.parametrize(
    "spelling",
    ["zh_CN", "zh", "Mandarin", "Chinese (Simplified)", "csl", "cmn", "zho_Hans", "zh-Hant-TW", "yue",
     "Cantonese", "Japanese", "ja_JP", "jpn_Jpan", "th", "Thai", "lo", "km_KH", "my", "bo", "中文", "日本語"],
)  # fmt: skip
def test_rules_for_every_spelling_of_such_a_language(spelling: str) -> None:
    rules = choose_score_rules({spelling}, ["a b"])
    assert (rules.convention, rules.unit) == ("csl-daily", "character")


@pytest.mark.parametrize("language", ["German", "de_DE", "Korean", "vi", "", "English"])
def test_rules_for_languages_with_spaces(language: str) -> None:
    rules = choose_score_rules({language}, ["오늘은 날씨가 좋다", "a b"])
    assert (rules.convention, rules.unit) == ("phoenix2014t", "word")


def test_of_several_languages_only_those_without_spaces_are_split_into_characters() -> None:
    hypotheses, references = ["我们去学校", "am tag regen"], ["我们去学校吗", "am tag regen im norden"]
    rules = choose_score_rules({"zh_CN", "German"}, references)
    assert rules.unit == "mixed"
    assert choose_score_rules({""}, references).unit == "mixed"
    scores = score(hypotheses, references, rules)
    tokens = [
        [list("我们去学校"), "am tag regen".split()],
        [list("我们去学校吗"), "am tag regen im norden".split()],
    ]
    assert scores["bleu1"] == pytest.approx(plain_bleu(*tokens, 1))
    assert "unit:mixed" in scores["signature"]


def test_unicode_forms_are_equal() -> None:
    composed = ["über schöne Grüße für die Küste"]
    decomposed = [unicodedata.normalize("NFD", text) for text in composed]
    for convention in CONVENTIONS:
        for pair in ((composed, decomposed), (decomposed, composed)):
            scores = score(*pair, ScoreConfig(convention=convention))
            assert all(scores[name] == pytest.approx(perfect_value(name)) for name in METRICS)
            assert "|NFC" in scores["signature"]
