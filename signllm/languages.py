"""The written languages: their names and spellings, and their codes in families of translation models.

Datasets name a language in many ways (``German``, ``de_DE``, ``deu``, ``Deutsch``), and mBART-50 (arXiv
2008.00401), M2M100 (arXiv 2010.11125) and NLLB (arXiv 2207.04672) each have codes of their own. The rest of
the package compares names of languages only through :func:`find_language`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, kw_only=True)
class Language:
    """A written language.

    Attributes:
        name: English name.
        native: name of the language in the language itself.
        iso1: two-letter code of ISO 639-1, or None.
        iso3: three-letter code of ISO 639-3.
        nllb: code of FLORES-200, which NLLB uses, or None.
        mbart: code of mBART-50, or None.
        m2m100: code of M2M100, or None.
        has_spaces: whether words are separated by spaces; if not, scores count characters.
        aliases: further spellings, including the sign languages of countries in which this language is
            written.
    """

    name: str
    native: str
    iso1: str | None
    iso3: str
    nllb: str | None
    mbart: str | None
    m2m100: str | None
    has_spaces: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The shortest ISO 639 code of the language, as it is used on web pages and for prompts."""
        return self.iso1 or self.iso3


_ABSENT = "-"
_TABLE = """
# name | native | ISO 639-1 | ISO 639-3 | NLLB | mBART-50 | M2M100 | further spellings
Afrikaans | Afrikaans | af | afr | afr_Latn | af_ZA | af |
Albanian | Shqip | sq | sqi | als_Latn | - | sq | alb, als, Tosk Albanian
Amharic | አማርኛ | am | amh | amh_Ethi | - | am |
Arabic | العربية | ar | ara | arb_Arab | ar_AR | ar | arb, Modern Standard Arabic, Standard Arabic
Armenian | Հայերեն | hy | hye | hye_Armn | - | hy | arm
Assamese | অসমীয়া | as | asm | asm_Beng | - | - |
Azerbaijani | Azərbaycan dili | az | aze | azj_Latn | az_AZ | az | azj, Azeri, North Azerbaijani
Basque | Euskara | eu | eus | eus_Latn | - | - | baq
Belarusian | Беларуская | be | bel | bel_Cyrl | - | be | Byelorussian
Bengali | বাংলা | bn | ben | ben_Beng | bn_IN | bn | Bangla
Bosnian | Bosanski | bs | bos | bos_Latn | - | bs |
Bulgarian | Български | bg | bul | bul_Cyrl | - | bg |
Burmese | မြန်မာဘာသာ | my | mya | mya_Mymr | my_MM | my | bur, Myanmar, မြန်မာ
Cantonese | 粵語 | - | yue | yue_Hant | - | - | zh-yue, yue-HK, 粤语, 廣東話, 广东话
Catalan | Català | ca | cat | cat_Latn | - | ca | Valencian
Chinese | 中文 | zh | zho | zho_Hans | zh_CN | zh | chi, cmn, Mandarin, Mandarin Chinese, Chinese Mandarin, Standard Chinese, Simplified Chinese, Chinese Simplified, Putonghua, 汉语, 普通话, 简体中文, 中文(简体), 中文简体, 华语, 漢語, csl, Chinese Sign Language
Croatian | Hrvatski | hr | hrv | hrv_Latn | hr_HR | hr |
Czech | Čeština | cs | ces | ces_Latn | cs_CZ | cs | cze, česky, Czech Sign Language
Danish | Dansk | da | dan | dan_Latn | - | da | Danish Sign Language
Dutch | Nederlands | nl | nld | nld_Latn | nl_XX | nl | dut, Flemish, Vlaams, NGT, dse, vgt, Dutch Sign Language, Flemish Sign Language
Dzongkha | རྫོང་ཁ | dz | dzo | dzo_Tibt | - | - |
English | English | en | eng | eng_Latn | en_XX | en | American English, British English, ASL, ase, BSL, bfi, Auslan, asf, American Sign Language, British Sign Language
Esperanto | Esperanto | eo | epo | epo_Latn | - | - |
Estonian | Eesti | et | est | est_Latn | et_EE | et | ekk, eesti keel
Finnish | Suomi | fi | fin | fin_Latn | fi_FI | fi | suomen kieli, fse, Finnish Sign Language
French | Français | fr | fra | fra_Latn | fr_XX | fr | fre, Canadian French, LSF, fsl, French Sign Language
Galician | Galego | gl | glg | glg_Latn | gl_ES | gl |
Georgian | ქართული | ka | kat | kat_Geor | ka_GE | ka | geo
German | Deutsch | de | deu | deu_Latn | de_DE | de | ger, Standard German, High German, Swiss German, Austrian German, DGS, gsg, DSGS, sgg, German Sign Language, Swiss German Sign Language
Greek | Ελληνικά | el | ell | ell_Grek | - | el | gre, Modern Greek, gss, Greek Sign Language
Gujarati | ગુજરાતી | gu | guj | guj_Gujr | gu_IN | gu |
Haitian Creole | Kreyòl ayisyen | ht | hat | hat_Latn | - | ht | Haitian
Hausa | Hausa | ha | hau | hau_Latn | - | ha |
Hebrew | עברית | he | heb | heb_Hebr | he_IL | he | iw, Modern Hebrew, isr, Israeli Sign Language
Hindi | हिन्दी | hi | hin | hin_Deva | hi_IN | hi | हिंदी
Hungarian | Magyar | hu | hun | hun_Latn | - | hu |
Icelandic | Íslenska | is | isl | isl_Latn | - | is | ice
Igbo | Igbo | ig | ibo | ibo_Latn | - | ig |
Indonesian | Bahasa Indonesia | id | ind | ind_Latn | id_ID | id | in, Bahasa, BISINDO
Irish | Gaeilge | ga | gle | gle_Latn | - | ga | Irish Gaelic
Italian | Italiano | it | ita | ita_Latn | it_IT | it | LIS, ise, Italian Sign Language
Japanese | 日本語 | ja | jpn | jpn_Jpan | ja_XX | ja | jp, にほんご, jsl, Japanese Sign Language
Javanese | Basa Jawa | jv | jav | jav_Latn | - | jv |
Kannada | ಕನ್ನಡ | kn | kan | kan_Knda | - | kn |
Kazakh | Қазақ тілі | kk | kaz | kaz_Cyrl | kk_KZ | kk | қазақша
Khmer | ភាសាខ្មែរ | km | khm | khm_Khmr | km_KH | km | Cambodian, Central Khmer, ខ្មែរ
Kinyarwanda | Ikinyarwanda | rw | kin | kin_Latn | - | - |
Korean | 한국어 | ko | kor | kor_Hang | ko_KR | ko | kr, 한국말, ksl, kvk, Korean Sign Language
Kurdish | Kurmancî | ku | kmr | kmr_Latn | - | - | kur, Kurmanji, Northern Kurdish
Kyrgyz | Кыргызча | ky | kir | kir_Cyrl | - | - | Kirghiz
Lao | ພາສາລາວ | lo | lao | lao_Laoo | - | lo | Laotian, ລາວ
Latvian | Latviešu | lv | lav | lvs_Latn | lv_LV | lv | lvs, Standard Latvian, latviešu valoda
Lithuanian | Lietuvių | lt | lit | lit_Latn | lt_LT | lt | lietuvių kalba
Luxembourgish | Lëtzebuergesch | lb | ltz | ltz_Latn | - | lb |
Macedonian | Македонски | mk | mkd | mkd_Cyrl | mk_MK | mk | mac
Malagasy | Malagasy | mg | mlg | plt_Latn | - | mg | plt
Malay | Bahasa Melayu | ms | msa | zsm_Latn | - | ms | may, zsm, Standard Malay, Malaysian
Malayalam | മലയാളം | ml | mal | mal_Mlym | ml_IN | ml |
Maltese | Malti | mt | mlt | mlt_Latn | - | - |
Marathi | मराठी | mr | mar | mar_Deva | mr_IN | mr |
Mongolian | Монгол | mn | mon | khk_Cyrl | mn_MN | mn | khk, Halh Mongolian, монгол хэл
Nepali | नेपाली | ne | nep | npi_Deva | ne_NP | ne | npi
Norwegian | Norsk | no | nor | nob_Latn | - | no | nb, nob, Bokmål, Norwegian Bokmål, Norsk bokmål, Norwegian Sign Language
Norwegian Nynorsk | Nynorsk | nn | nno | nno_Latn | - | - | Norsk nynorsk
Occitan | Occitan | oc | oci | oci_Latn | - | oc |
Odia | ଓଡ଼ିଆ | or | ori | ory_Orya | - | or | ory, Oriya
Pashto | پښتو | ps | pus | pbt_Arab | ps_AF | ps | pbt, Southern Pashto
Persian | فارسی | fa | fas | pes_Arab | fa_IR | fa | per, pes, Farsi, Western Persian, Iranian Persian
Polish | Polski | pl | pol | pol_Latn | pl_PL | pl | pso, PJM, Polish Sign Language
Portuguese | Português | pt | por | por_Latn | pt_XX | pt | Brazilian Portuguese, Libras, bzs, Brazilian Sign Language, Portuguese Sign Language
Punjabi | ਪੰਜਾਬੀ | pa | pan | pan_Guru | - | pa | Panjabi, Eastern Panjabi
Romanian | Română | ro | ron | ron_Latn | ro_RO | ro | rum, mo, Moldovan
Russian | Русский | ru | rus | rus_Cyrl | ru_RU | ru | русский язык, rsl, Russian Sign Language
Scottish Gaelic | Gàidhlig | gd | gla | gla_Latn | - | gd | Scots Gaelic
Serbian | Српски | sr | srp | srp_Cyrl | - | sr | srpski
Sindhi | سنڌي | sd | snd | snd_Arab | - | sd |
Sinhala | සිංහල | si | sin | sin_Sinh | si_LK | si | Sinhalese
Slovak | Slovenčina | sk | slk | slk_Latn | - | sk | slo, slovensky
Slovene | Slovenščina | sl | slv | slv_Latn | sl_SI | sl | Slovenian
Somali | Soomaali | so | som | som_Latn | - | so |
Spanish | Español | es | spa | spa_Latn | es_XX | es | Castilian, Castellano, Latin American Spanish, Mexican Spanish, LSE, ssp, LSM, mfs, LSA, aed, Spanish Sign Language, Mexican Sign Language, Argentine Sign Language
Sundanese | Basa Sunda | su | sun | sun_Latn | - | su |
Swahili | Kiswahili | sw | swa | swh_Latn | sw_KE | sw | swh
Swedish | Svenska | sv | swe | swe_Latn | sv_SE | sv | swl, Swedish Sign Language
Tagalog | Tagalog | tl | tgl | tgl_Latn | tl_XX | tl | fil, Filipino, Pilipino
Tajik | Тоҷикӣ | tg | tgk | tgk_Cyrl | - | - |
Tamil | தமிழ் | ta | tam | tam_Taml | ta_IN | ta |
Telugu | తెలుగు | te | tel | tel_Telu | te_IN | - |
Thai | ภาษาไทย | th | tha | tha_Thai | th_TH | th | ไทย, Siamese, tsq, Thai Sign Language
Tibetan | བོད་སྐད | bo | bod | bod_Tibt | - | - | tib, Standard Tibetan, བོད་ཡིག
Traditional Chinese | 繁體中文 | zh | zho | zho_Hant | zh_CN | zh | Chinese Traditional, zh-Hant, zh-TW, zh-HK, zh-MO, zho-Hant, cmn-Hant, cmn-TW, Taiwanese Mandarin, Taiwan, 繁体中文, 中文(繁體), 國語, tss, Taiwan Sign Language, hks, Hong Kong Sign Language
Turkish | Türkçe | tr | tur | tur_Latn | tr_TR | tr | TİD, tsm, Turkish Sign Language
Ukrainian | Українська | uk | ukr | ukr_Cyrl | uk_UA | uk | українська мова
Urdu | اردو | ur | urd | urd_Arab | ur_PK | ur |
Uyghur | ئۇيغۇرچە | ug | uig | uig_Arab | - | - | Uighur
Uzbek | Oʻzbek | uz | uzb | uzn_Latn | - | uz | uzn, Northern Uzbek, o'zbek tili
Vietnamese | Tiếng Việt | vi | vie | vie_Latn | vi_VN | vi | vn
Welsh | Cymraeg | cy | cym | cym_Latn | - | cy | wel
Xhosa | isiXhosa | xh | xho | xho_Latn | xh_ZA | xh |
Yiddish | ייִדיש | yi | yid | ydd_Hebr | - | yi | ji, ydd, Eastern Yiddish
Yoruba | Yorùbá | yo | yor | yor_Latn | - | yo |
Zulu | isiZulu | zu | zul | zul_Latn | - | zu |
"""  # noqa: E501 - a row of the table is one line
_WITHOUT_SPACES = {
    "Burmese", "Cantonese", "Chinese", "Dzongkha", "Japanese", "Khmer", "Lao", "Thai", "Tibetan",
    "Traditional Chinese",
}  # fmt: skip


def _read_table() -> tuple[Language, ...]:
    """Parse the table above."""
    languages = []
    for line in _TABLE.strip().splitlines():
        if line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        name, native, iso1, iso3, nllb, mbart, m2m100 = (None if c == _ABSENT else c for c in cells[:7])
        aliases = tuple(alias.strip() for alias in cells[7].split(",") if alias.strip())
        assert name is not None
        assert native is not None
        assert iso3 is not None
        languages.append(
            Language(
                name=name,
                native=native,
                iso1=iso1,
                iso3=iso3,
                nllb=nllb,
                mbart=mbart,
                m2m100=m2m100,
                has_spaces=name not in _WITHOUT_SPACES,
                aliases=aliases,
            )
        )
    return tuple(languages)


LANGUAGES = _read_table()
"""All languages of this module, in the alphabetical order of their English names."""


def find_language(spelling: str) -> Language | None:
    """Return the language that a name or a code denotes; None if this module does not know it.

    The spelling may be an English or native name, a code of ISO 639-1 or 639-3, a code of NLLB, mBART or
    M2M100 (``__de__``), a tag with a region or a script (``pt-BR``, ``zh_Hans_CN``, ``de_DE.UTF-8``), a name
    with a qualifier (``Chinese (Simplified)``, ``Portuguese, Brazil``), or the name of a country's sign
    language. Upper and lower case are equivalent.
    """
    text = spelling.strip().strip("<>[]").strip("_").partition(".")[0].partition("@")[0]
    key = _key(text)
    if not key:
        return None
    index = _index()
    if key in index:
        return index[key]
    if re.fullmatch(
        r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})+", text
    ):  # a tag: drop the region, then the script
        subtags = key.split()
        for length in range(len(subtags) - 1, 0, -1):
            if " ".join(subtags[:length]) in index:
                return index[" ".join(subtags[:length])]
        return None
    name = re.split(r"[(（,;/\[]", text, maxsplit=1)[0]  # as in Portuguese (Brazil) and Greek, Modern
    name = re.sub(r"\s+(sign\s+)?language\s*$", "", name, flags=re.IGNORECASE)
    return index.get(_key(name))


def is_written_without_spaces(spelling: str) -> bool:
    """Return whether the words of a language are not separated by spaces, so that scores count characters."""
    language = find_language(spelling)
    return language is not None and not language.has_spaces


def language_code(spelling: str) -> str:
    """Return the shortest ISO 639 code of a language, or the first part of an unknown spelling."""
    language = find_language(spelling)
    if language is None:
        return re.split(r"[-_]", spelling.strip().strip("_").lower(), maxsplit=1)[0]
    return language.code


def nearest_names(spelling: str, count: int = 3) -> list[str]:
    """Return the English names of the languages with the most similar spellings, the most similar first."""
    index = _index()
    close = difflib.get_close_matches(_key(spelling), index, n=4 * count, cutoff=0.6)
    return list(dict.fromkeys(index[key].name for key in close))[:count]


def _key(spelling: str) -> str:
    """Return a spelling in lower case without accents and punctuation, with single spaces between parts."""
    decomposed = unicodedata.normalize("NFKD", spelling.casefold())
    # Only Latin accents are removed, because the vowel signs of Indic scripts are combining characters too.
    plain = re.sub("[\u0300-\u036f]", "", decomposed).replace("ı", "i")
    words = re.sub(r"[\s\-_()（）,;/.'ʻʼ’\[\]]+", " ", plain)
    return unicodedata.normalize("NFC", words).strip()


@cache
def _index() -> dict[str, Language]:
    """Return the language of every spelling; codes and names take precedence over aliases."""
    index: dict[str, Language] = {}
    for language in LANGUAGES:
        codes = (language.iso1, language.iso3, language.nllb)
        for spelling in (language.name, language.native, *codes):
            if spelling is not None:
                index.setdefault(_key(spelling), language)  # zh denotes Chinese, not Traditional Chinese
    for language in LANGUAGES:
        for spelling in language.aliases:
            index.setdefault(_key(spelling), language)
    return index
