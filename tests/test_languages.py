"""Every spelling of a language leads to the codes that translation models have for it."""

from __future__ import annotations

import pytest

from signllm.languages import (
    LANGUAGES,
    find_language,
    is_written_without_spaces,
    language_code,
    nearest_names,
)

SPELLINGS = {
    "German": ("german", "GERMAN", "Deutsch", "de", "deu", "ger", "de_DE", "de-AT", "de_DE.UTF-8", "__de__",
               "deu_Latn", "German (Austria)", "German language", "DGS", "German Sign Language"),
    "English": ("English", "en-US", "en_XX", "eng_Latn", "English (UK)", "ASL", "bfi"),
    "Chinese": ("zh", "zh_CN", "zh-Hans", "zh_Hans_CN", "Mandarin", "Chinese (Simplified)",
                "Chinese_Simplified", "cmn", "zho_Hans", "中文", "中文（简体）", "普通话", "csl",
                "Chinese Sign Language"),
    "Traditional Chinese": ("zh-TW", "zh_Hant", "zho_Hant", "zh-hant-hk", "Chinese (Traditional)",
                            "繁體中文"),
    "Cantonese": ("yue", "yue_Hant", "zh-yue", "粵語"),
    "Japanese": ("ja", "jpn", "JAPANESE", "日本語", "ja_XX", "jpn_Jpan", "jsl"),
    "Portuguese": ("pt-BR", "Portuguese, Brazil", "Brazilian Portuguese", "português", "PORTUGUÊS"),
    "Turkish": ("TÜRKÇE", "turkce", "tr_TR"),
    "Norwegian": ("no", "nb", "nob_Latn", "Norwegian Bokmål"),
    "Persian": ("Farsi", "fa_IR", "pes_Arab"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_every_spelling_leads_to_the_language(name: str) -> None:
    languages = {spelling: find_language(spelling) for spelling in SPELLINGS[name]}
    assert {
        spelling: language and language.name for spelling, language in languages.items()
    } == dict.fromkeys(SPELLINGS[name], name)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_language_is_known_by_its_names_and_codes(language: object) -> None:
    own = [language.name, language.native, language.name.upper(), language.nllb]
    assert all(find_language(spelling) is language for spelling in own if spelling)
    for shared in (language.iso1, language.iso3, language.mbart, f"__{language.m2m100}__"):
        meant = find_language(shared) if shared and "None" not in shared else None
        assert meant is None or meant.name in language.name  # zh is Chinese, also of Traditional Chinese


def test_the_table_holds_every_language_of_mbart_50_and_most_of_m2m100() -> None:
    assert len({language.mbart for language in LANGUAGES} - {None}) == 52
    assert len({language.m2m100 for language in LANGUAGES} - {None}) >= 80
    assert len({language.name for language in LANGUAGES}) == len(LANGUAGES) >= 100
    german, chinese = find_language("German"), find_language("Chinese")
    assert (german.nllb, german.mbart, german.m2m100, german.iso1) == ("deu_Latn", "de_DE", "de", "de")
    assert (chinese.nllb, chinese.mbart, chinese.m2m100) == ("zho_Hans", "zh_CN", "zh")


def test_languages_with_and_without_spaces_are_distinguished() -> None:
    without = [
        "zh_CN",
        "Mandarin",
        "csl",
        "Japanese",
        "th",
        "Lao",
        "khm_Khmr",
        "Burmese",
        "bo",
        "yue",
        "zh-TW",
    ]
    assert all(map(is_written_without_spaces, without))
    assert not any(map(is_written_without_spaces, ["German", "Korean", "vi", "Klingon", "", "en_US"]))


@pytest.mark.parametrize("spelling", ["", " ", "Klingon", "nan", "x", "__", "en glish", "xx_YY"])
def test_what_is_no_language_is_none(spelling: str) -> None:
    assert find_language(spelling) is None


def test_a_misspelt_name_has_its_nearest() -> None:
    assert nearest_names("Germn")[0] == "German"
    assert nearest_names("chinees")[0] == "Chinese"
    assert language_code("Klingon") == "klingon"
    assert [language_code(name) for name in ("German", "zh_TW", "yue", "tlh-Latn")] == [
        "de",
        "zh",
        "yue",
        "tlh",
    ]
