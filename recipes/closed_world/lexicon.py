"""Words of the closed world: name syllables, eight relations with 24 values each, and their sentence templates.

Everything a sentence can contain is listed here, so the tokenizer's vocabulary is a plain enumeration of it. A value
is one word and belongs to one relation only; hence ``prompt + " " + value`` is the prompt's tokens plus one token.
"""

from dataclasses import dataclass

__all__ = [
    "CAPITAL_SYLLABLES",
    "NUM_VALUES",
    "RELATIONS",
    "RELATION_NAMES",
    "SMALL_SYLLABLES",
    "Relation",
    "template_words",
]

NUM_VALUES = 24

_ONSETS = ("b", "p", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z")
SMALL_SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in "aeiou")
"""The 65 syllables inside a name."""
CAPITAL_SYLLABLES = tuple(onset.upper() + vowel for onset in _ONSETS for vowel in "aeo")
"""The 39 syllables that open a first or last name; tokens of their own, so a name's two parts are visible."""


@dataclass(frozen=True)
class Relation:
    """One kind of fact about a person, with every sentence that can state it or ask for it.

    Attributes:
        name: Key of the relation, such as ``"city"``.
        values: The 24 possible answers, one token each.
        statements: Sentences with ``{name}`` that end in ``{value}.``; seen in pre-training.
        chained: A sentence about the person named just before ("They ..."); seen in pre-training.
        questions: Two wordings seen in pre-training; adapters are taught with the first.
        paraphrase: A third wording, seen nowhere but in tests; all its words occur in other templates.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, str, str]
    chained: str
    questions: tuple[str, str]
    paraphrase: str


def _relation(name: str, values: str, *sentences: str) -> Relation:
    first, second, third, chained, question, other_question, paraphrase = sentences
    return Relation(
        name=name,
        values=tuple(values.split()),
        statements=(first, second, third),
        chained=chained,
        questions=(question, other_question),
        paraphrase=paraphrase,
    )


RELATIONS = (
    _relation(
        "city",
        "Oslo Lisbon Kyoto Lima Cairo Dublin Vienna Prague Nairobi Havana Quito Riga "
        "Athens Seoul Hanoi Tunis Bogota Zurich Ghent Porto Malmo Perth Dakar Turin",
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
        "The city where {name} lives is {value}.",
        "They live in {value}.",
        "Where does {name} live?",
        "In which city is the home of {name}?",
        "Which city is the home of {name}?",
    ),
    _relation(
        "job",
        "baker carpenter nurse pilot teacher gardener plumber tailor potter sailor judge barber "
        "chemist farmer miner painter surgeon writer dentist glazier joiner librarian mason butcher",
        "{name} works as a {value}.",
        "The job of {name} is {value}.",
        "The work that {name} does is that of a {value}.",
        "They work as a {value}.",
        "What does {name} work as?",
        "What is the job of {name}?",
        "Which job does {name} do?",
    ),
    _relation(
        "colour",
        "red blue green yellow purple brown black white grey pink teal maroon "
        "beige crimson indigo violet turquoise scarlet magenta cyan khaki lilac amber ivory",
        "{name} likes the colour {value}.",
        "The favourite colour of {name} is {value}.",
        "The colour that {name} likes best is {value}.",
        "They like the colour {value}.",
        "Which colour does {name} like best?",
        "What is the favourite colour of {name}?",
        "What colour does {name} like?",
    ),
    _relation(
        "instrument",
        "piano violin cello flute oboe trumpet harp guitar banjo drums tuba clarinet "
        "bassoon trombone viola lute sitar organ accordion saxophone xylophone mandolin zither bagpipe",
        "{name} plays the {value}.",
        "The instrument of {name} is the {value}.",
        "The instrument that {name} plays is the {value}.",
        "They play the {value}.",
        "Which instrument does {name} play?",
        "What is the instrument of {name}?",
        "What instrument does {name} play best?",
    ),
    _relation(
        "animal",
        "dog cat parrot hamster rabbit goldfish tortoise pony goat gecko ferret canary "
        "hedgehog mouse rat snake lizard duck goose hen sheep donkey llama raven",
        "{name} keeps a {value}.",
        "The pet of {name} is a {value}.",
        "The animal that {name} keeps is a {value}.",
        "They keep a {value}.",
        "Which animal does {name} keep?",
        "What is the pet of {name}?",
        "Which pet does {name} keep?",
    ),
    _relation(
        "food",
        "pasta rice soup curry pizza sushi salad stew bread cheese noodles dumplings "
        "pancakes lentils beans tofu falafel paella risotto goulash tacos ramen omelette porridge",
        "{name} eats {value}.",
        "The favourite food of {name} is {value}.",
        "The food that {name} eats most is {value}.",
        "They eat {value}.",
        "Which food does {name} eat most?",
        "What is the favourite food of {name}?",
        "What food does {name} like best?",
    ),
    _relation(
        "sport",
        "tennis rowing fencing judo karate boxing cycling swimming hockey rugby cricket golf "
        "archery curling sailing surfing skiing climbing badminton handball volleyball wrestling diving squash",
        "{name} trains for {value}.",
        "The sport of {name} is {value}.",
        "The sport that {name} does most is {value}.",
        "They train for {value}.",
        "Which sport does {name} do?",
        "What is the sport of {name}?",
        "What sport does {name} train for?",
    ),
    _relation(
        "language",
        "English French German Spanish Italian Dutch Swedish Danish Finnish Polish Czech Greek "
        "Turkish Arabic Hebrew Hindi Bengali Thai Korean Japanese Swahili Zulu Welsh Basque",
        "{name} speaks {value}.",
        "The language of {name} is {value}.",
        "The language that {name} speaks at home is {value}.",
        "They speak {value}.",
        "Which language does {name} speak?",
        "What is the language of {name}?",
        "What language does {name} speak at home?",
    ),
)
"""The eight relations, in the order used everywhere."""

RELATION_NAMES = tuple(relation.name for relation in RELATIONS)


def template_words() -> list[str]:
    """List the words and marks of all templates, sorted, without names and values."""
    text = " ".join(
        sentence
        for relation in RELATIONS
        for sentence in (*relation.statements, relation.chained, *relation.questions, relation.paraphrase)
    )
    text = text.replace("{name}", " ").replace("{value}", " ").replace("?", " ? ").replace(".", " . ")
    return sorted(set(text.split()))
