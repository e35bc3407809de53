"""The language of an item is that of what was posted, or undetermined."""

import pytest

from vigil_data.enrichment.language import Langid
from vigil_data.errors import UserError
from vigil_data.items import Item

pytest.importorskip("py3langid")

SENTENCES = {
    "ar": ("يبدأ الاجتماع في الساعة التاسعة صباحا", "الطقس جميل اليوم", "أين تقع أقرب محطة قطار؟"),
    "cs": ("Vlak odjíždí z nádraží v osm hodin ráno.", "Dnes je hezké počasí.", "Kde je nejbližší zastávka?"),
    "de": ("Der Zug fährt um acht Uhr vom Bahnhof ab.", "Heute ist schönes Wetter.", "Wo ist die nächste Haltestelle?"),
    "el": ("Το τρένο φεύγει από τον σταθμό στις οκτώ το πρωί.", "Σήμερα ο καιρός είναι καλός.", "Πού είναι η πιο κοντινή στάση;"),
    "en": (
        "The train leaves the station at eight in the morning.",
        "The weather is nice today.",
        "Where is the nearest stop?",
    ),
    "es": ("El tren sale de la estación a las ocho de la mañana.", "Hoy hace buen tiempo.", "¿Dónde está la parada más cercana?"),
    "fi": ("Juna lähtee asemalta kahdeksalta aamulla.", "Tänään on kaunis ilma.", "Missä on lähin pysäkki?"),
    "fr": ("Le train quitte la gare à huit heures du matin.", "Il fait beau aujourd'hui.", "Où est l'arrêt le plus proche ?"),
    "he": ("הרכבת יוצאת מהתחנה בשמונה בבוקר", "מזג האוויר נעים היום", "איפה התחנה הקרובה ביותר?"),
    "hi": ("रेलगाड़ी सुबह आठ बजे स्टेशन से निकलती है।", "आज मौसम अच्छा है।", "सबसे नज़दीकी बस स्टॉप कहाँ है?"),
    "it": ("Il treno parte dalla stazione alle otto di mattina.", "Oggi il tempo è bello.", "Dov'è la fermata più vicina?"),
    "ja": ("電車は朝八時に駅を出発します。", "今日は天気がいいです。", "一番近い停留所はどこですか。"),
    "ko": ("기차는 아침 여덟 시에 역에서 출발합니다.", "오늘은 날씨가 좋습니다.", "가장 가까운 정류장이 어디예요?"),
    "nl": ("De trein vertrekt om acht uur van het station.", "Het is vandaag mooi weer.", "Waar is de dichtstbijzijnde halte?"),
    "pl": ("Pociąg odjeżdża ze stacji o ósmej rano.", "Dzisiaj jest ładna pogoda.", "Gdzie jest najbliższy przystanek?"),
    "pt": ("O comboio parte da estação às oito da manhã.", "Hoje o tempo está bom.", "Onde fica a paragem mais próxima?"),
    "ru": ("Поезд отправляется с вокзала в восемь часов утра.", "Сегодня хорошая погода.", "Где ближайшая остановка?"),
    "sv": ("Tåget avgår från stationen klockan åtta på morgonen.", "Vädret är fint i dag.", "Var är närmaste hållplats?"),
    "tr": ("Tren sabah saat sekizde istasyondan kalkıyor.", "Bugün hava çok güzel.", "En yakın durak nerede?"),
    "zh": ("火车早上八点从车站出发。", "今天天气很好。", "最近的公共汽车站在哪里?"),
}
"""Language to neutral sentences: a long one and two short ones."""


@pytest.fixture(scope="module")
def langid() -> Langid:
    return Langid()


def found(engine: Langid) -> list[tuple[str, str | None, float]]:
    """Return language, what was found, and its confidence for each sentence."""
    answers = []
    for language, sentences in SENTENCES.items():
        for sentence in sentences:
            finding = engine(Item("1", (sentence,)))
            assert finding.confidence is not None
            answers.append((language, finding.language, finding.confidence))
    return answers


def test_langid_identifies_twenty_languages(langid: Langid) -> None:
    """Measured: all 60 right, 59 of them with a probability of at least 0.5."""
    answers = found(langid)
    assert sum(language == answer for language, answer, _ in answers) >= 57
    assert all(answer in (language, "und") for language, answer, _ in answers)


@pytest.mark.parametrize("text", ["me!", "ok", "12345", "😀", "https://example.org/der-zug-ist-da", "@anna #weather", "…"])
def test_langid_leaves_what_is_too_short_undetermined(langid: Langid, text: str) -> None:
    assert langid(Item("1", (text,))).language == "und"


def test_langid_reads_what_was_posted_and_then_what_is_heard_or_seen(langid: Langid) -> None:
    german, english, french = SENTENCES["de"][0], SENTENCES["en"][0], SENTENCES["fr"][0]
    roles = {"text": ("context", "title", "transcript")}
    assert langid(Item("1", (english, german, french), roles=roles)).language == "de"
    assert langid(Item("1", (english, "2026", french), roles=roles)).language == "fr"
    assert langid(Item("1", (english,), roles={"text": ("context",)})).language == "und"
    assert langid(Item("1", (f"{german} https://example.org {english[:0]}@the_train",))).language == "de"
    assert langid(Item("1", (german.upper(),))).language == "de"


def test_langid_among_few_languages_determines_more() -> None:
    assert Langid(languages=("en", "fr"))(Item("1", ("bonjour",))).language == "fr"
    with pytest.raises(UserError, match=r"--languages: xx unknown; known are .*af, am, "):
        Langid(languages=("en", "xx"))


def test_langid_identity_names_version_model_and_options() -> None:
    first, same, other = Langid(), Langid(), Langid(0.9, ("de", "en"))
    assert first.identity == same.identity != other.identity
    assert other.identity.endswith(" confidence 0.9 among de,en")
