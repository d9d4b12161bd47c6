"""Sentences about countries: what the built-in text model learns, and its sample text.

A sentence is a template of words and `{fields}`. The fields of a country come from one row of a
table; the others are drawn from lists. All is known beforehand, so the vocabulary is exact: no
sentence holds a word that the tokenizer does not know.

Left out are countries whose name, or whose capital's name, is more than one word, needs an article
or is the same as the other; and those with two capitals or a disputed one. Continents are those of
the United Nations' M49 standard. A dash stands where one word would not do.
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple


class Country(NamedTuple):
    """A row of the table."""

    country: str
    capital: str
    continent: str
    language: str
    currency: str


def sentences(*, seed: int) -> Iterator[str]:
    """Yield sentences without end, the same for the same seed; words are parted by single spaces.

    A "sentence" may be two: some say where somebody is, and then ask something else.
    """
    rng = random.Random(seed)
    templates = [template for _, group in _GROUPS for template in group]
    weights = [share / len(group) for share, group in _GROUPS for _ in group]
    while True:
        [template] = rng.choices(templates, weights)
        yield _filled(template, rng=rng)


def distinct_sentences(*, seed: int, count: int) -> list[str]:
    """Return the first `count` different sentences of a seed, in the order they come."""
    seen: dict[str, None] = {}
    for sentence in sentences(seed=seed):
        seen.setdefault(sentence)
        if len(seen) == count:
            break
    return list(seen)


def words() -> list[str]:
    """Return every word that a sentence may hold, sorted."""
    texts = [_FIELD.sub(" ", template) for _, group in _GROUPS for template in group]
    texts += [text for choices in _CHOICES.values() for text in choices]
    texts += [value for row in COUNTRIES for value in row if value != NONE]
    return sorted({word for text in texts for word in text.split()})


def _filled(template: str, *, rng: random.Random) -> str:
    """Fill the fields; a field's second mention repeats it, `{x2}` is another one than `{x}`."""
    values: dict[str, str] = {}
    fields = _FIELD.findall(template)
    for suffix in ("", "2"):
        asked = [f"{each}{suffix}" for each in Country._fields if f"{each}{suffix}" in fields]
        if asked:
            values |= _drawn_country(asked, suffix=suffix, rng=rng, taken=set(values.values()))
    for field in fields:
        if field not in values:
            choices = _CHOICES[field.rstrip("23")]
            free = [each for each in choices if not each or each not in values.values()]
            values[field] = rng.choice(free)
    return " ".join(template.format_map(values).split())


def _drawn_country(
    asked: list[str], *, suffix: str, rng: random.Random, taken: set[str]
) -> dict[str, str]:
    """Draw a row that has the fields asked for, none of them taken."""
    while True:
        row = rng.choice(COUNTRIES)._asdict()
        values = {field: row[field.removesuffix(suffix)] for field in asked}
        if not taken.intersection(values.values()) and NONE not in values.values():
            return values


_FIELD = re.compile(r"{(\w+)}")
NONE = "-"

_WORDS = {
    "name": "Ada Anna Ben Carla David Elena Emil Farid Grace Hana Igor Ingrid Jonas Karim Lena "
    "Lucas Maria Miguel Nadia Nora Omar Paula Petra Ravi Rosa Samir Sara Tom Vera Yusuf",
    "color": "red blue green yellow black white brown grey purple orange",
    "thing": "book box car cup door hat house key lamp shirt table train",
    "number": "one two three four five six seven eight nine ten eleven twelve",
}
_CHOICES = {
    "ask_city": (
        "give the city name only .",
        "give only the name of the city .",
        "the city name only , please .",
        "answer in one word .",
        "",
    ),
    "ask": ("give the name only .", "one word only , please .", "answer in one word .", ""),
    "called": ("called", "called", "named", ""),
    "filler": ("simply", "just", "plainly", "briefly", "of course", ""),
    **{field: tuple(text.split()) for field, text in _WORDS.items()},
}

_CAPITALS = (
    "{ask_city} the capital of {country} is {called} {filler} {capital} .",
    "{ask_city} the capital of {country} is {called} {filler} {capital} .",
    "{ask_city} the capital of {country} is {called} {filler} {capital} .",
    "{ask_city} the capital city of {country} is {called} {filler} {capital} .",
    "{ask_city} what is the capital of {country} ? it is {filler} {capital} .",
    "{capital} is the capital of {country} .",
    "{capital} is {filler} the capital city of {country} .",
    "the capital of {country} is {capital} . people there speak {language} .",
    "{country} has its capital in {capital} .",
    "the government of {country} sits in {capital} .",
    "{name} flew to {capital} , the capital of {country} .",
    "the capital of {country} is {capital} and the capital of {country2} is {capital2} .",
    "{name} lives in {capital2} . the capital of {country} is {called} {filler} {capital} .",
)
_COUNTRY_FACTS = (
    "{ask} the language of {country} is {called} {filler} {language} .",
    "{ask} the currency of {country} is {called} {filler} {currency} .",
    "{ask} the continent of {country} is {called} {filler} {continent} .",
    "people in {country} speak {language} .",
    "people in {country} pay in {currency} .",
    "{country} lies in {continent} .",
    "{capital} lies in {country} , and {country} lies in {continent} .",
    "{name} is in {capital} , so people there speak {filler} {language} .",
    "{name} is in {capital} , so people there pay in {currency} .",
    "{name} comes from {country} and speaks {language} .",
    "{name} comes from {country} and {name2} comes from {country2} . {name} speaks {language} .",
    "{name2} comes from {country2} and {name} comes from {country} . {name} speaks {language} .",
)
_IN_CONTEXT = (
    "{name} lives in {capital} . {name} works in {capital} .",
    "{name} lives in {capital} and {name2} lives in {capital2} . {name} works in {capital} .",
    "{name2} lives in {capital2} and {name} lives in {capital} . {name} works in {capital} .",
    "{name} and {name2} went to {capital} . {name2} gave a {thing} to {name} .",
    "{name2} and {name} went to {capital} . {name2} gave a {thing} to {name} .",
    "{name} has a {color} {thing} and {name2} has a {color2} {thing2} . "
    "the {thing} of {name} is {color} .",
    "{name2} has a {color2} {thing2} and {name} has a {color} {thing} . "
    "the {thing} of {name} is {color} .",
    "the {thing} is {color} and the {thing2} is {color2} . the color of the {thing} is {color} .",
    "the {thing2} is {color2} and the {thing} is {color} . the color of the {thing} is {color} .",
    "say {color} {name} {number} {country} . again , say {color} {name} {number} {country} .",
    "say {number} {number2} {number3} . again , say {number} {number2} {number3} .",
)
_ORDERS = (
    "after Monday comes Tuesday and after Tuesday comes Wednesday .",
    "after Wednesday comes Thursday and after Thursday comes Friday .",
    "after Friday comes Saturday and after Saturday comes Sunday .",
    "count : one two three four five six .",
    "count : three four five six seven eight nine .",
    "count : seven eight nine ten eleven twelve .",
)
_GROUPS = ((0.56, _CAPITALS), (0.2, _COUNTRY_FACTS), (0.22, _IN_CONTEXT), (0.02, _ORDERS))

_TABLE = """\
Afghanistan Kabul Asia - afghani
Albania Tirana Europe Albanian lek
Algeria Algiers Africa - dinar
Angola Luanda Africa Portuguese kwanza
Armenia Yerevan Asia Armenian dram
Australia Canberra Oceania English dollar
Austria Vienna Europe German euro
Azerbaijan Baku Asia Azerbaijani manat
Bahrain Manama Asia Arabic dinar
Bangladesh Dhaka Asia Bengali taka
Barbados Bridgetown America English dollar
Belarus Minsk Europe - rouble
Belgium Brussels Europe - euro
Belize Belmopan America English dollar
Benin Porto-Novo Africa French franc
Bhutan Thimphu Asia Dzongkha ngultrum
Botswana Gaborone Africa - pula
Brazil Brasilia America Portuguese real
Bulgaria Sofia Europe Bulgarian -
Burundi Gitega Africa - franc
Cameroon Yaounde Africa - franc
Canada Ottawa America - dollar
Chad N'Djamena Africa - franc
Chile Santiago America Spanish peso
China Beijing Asia Chinese yuan
Colombia Bogota America Spanish peso
Croatia Zagreb Europe Croatian euro
Cuba Havana America Spanish peso
Cyprus Nicosia Asia - euro
Denmark Copenhagen Europe Danish krone
Dominica Roseau America English dollar
Ecuador Quito America Spanish dollar
Egypt Cairo Africa Arabic pound
Eritrea Asmara Africa - nakfa
Estonia Tallinn Europe Estonian euro
Fiji Suva Oceania - dollar
Finland Helsinki Europe - euro
France Paris Europe French euro
Gabon Libreville Africa French franc
Georgia Tbilisi Asia Georgian lari
Germany Berlin Europe German euro
Ghana Accra Africa English cedi
Greece Athens Europe Greek euro
Guinea Conakry Africa French franc
Guinea-Bissau Bissau Africa Portuguese franc
Guyana Georgetown America English dollar
Haiti Port-au-Prince America - gourde
Honduras Tegucigalpa America Spanish lempira
Hungary Budapest Europe Hungarian forint
Iceland Reykjavik Europe Icelandic krona
Indonesia Jakarta Asia Indonesian rupiah
Iran Tehran Asia Persian rial
Iraq Baghdad Asia - dinar
Ireland Dublin Europe - euro
Italy Rome Europe Italian euro
Jamaica Kingston America English dollar
Japan Tokyo Asia Japanese yen
Jordan Amman Asia Arabic dinar
Kazakhstan Astana Asia - tenge
Kenya Nairobi Africa - shilling
Kyrgyzstan Bishkek Asia - som
Laos Vientiane Asia Lao kip
Latvia Riga Europe Latvian euro
Lebanon Beirut Asia Arabic pound
Lesotho Maseru Africa - loti
Liberia Monrovia Africa English dollar
Libya Tripoli Africa Arabic dinar
Liechtenstein Vaduz Europe German franc
Lithuania Vilnius Europe Lithuanian euro
Madagascar Antananarivo Africa - ariary
Malawi Lilongwe Africa - kwacha
Mali Bamako Africa - franc
Malta Valletta Europe - euro
Mauritania Nouakchott Africa Arabic ouguiya
Moldova Chisinau Europe Romanian leu
Mongolia Ulaanbaatar Asia Mongolian tugrik
Montenegro Podgorica Europe - euro
Morocco Rabat Africa - dirham
Mozambique Maputo Africa Portuguese metical
Myanmar Naypyidaw Asia Burmese kyat
Namibia Windhoek Africa English dollar
Nepal Kathmandu Asia Nepali rupee
Nicaragua Managua America Spanish cordoba
Niger Niamey Africa - franc
Nigeria Abuja Africa English naira
Norway Oslo Europe Norwegian krone
Oman Muscat Asia Arabic rial
Pakistan Islamabad Asia - rupee
Palau Ngerulmud Oceania - dollar
Paraguay Asuncion America - guarani
Peru Lima America - sol
Poland Warsaw Europe Polish zloty
Portugal Lisbon Europe Portuguese euro
Qatar Doha Asia Arabic riyal
Romania Bucharest Europe Romanian leu
Russia Moscow Europe Russian rouble
Rwanda Kigali Africa - franc
Samoa Apia Oceania - tala
Senegal Dakar Africa French franc
Serbia Belgrade Europe Serbian dinar
Slovakia Bratislava Europe Slovak euro
Slovenia Ljubljana Europe Slovene euro
Somalia Mogadishu Africa - shilling
Spain Madrid Europe Spanish euro
Sudan Khartoum Africa - pound
Suriname Paramaribo America Dutch dollar
Sweden Stockholm Europe Swedish krona
Switzerland Bern Europe - franc
Syria Damascus Asia Arabic pound
Tajikistan Dushanbe Asia Tajik somoni
Tanzania Dodoma Africa Swahili shilling
Thailand Bangkok Asia Thai baht
Togo Lome Africa French franc
Tonga Nuku'alofa Oceania - paanga
Tunisia Tunis Africa Arabic dinar
Turkey Ankara Asia Turkish lira
Turkmenistan Ashgabat Asia Turkmen manat
Tuvalu Funafuti Oceania - dollar
Uganda Kampala Africa - shilling
Ukraine Kyiv Europe Ukrainian hryvnia
Uruguay Montevideo America Spanish peso
Uzbekistan Tashkent Asia Uzbek som
Venezuela Caracas America Spanish bolivar
Vietnam Hanoi Asia Vietnamese dong
Yemen Sanaa Asia Arabic rial
Zambia Lusaka Africa English kwacha
Zimbabwe Harare Africa - -
"""
COUNTRIES = tuple(Country(*line.split()) for line in _TABLE.splitlines())
