"""The built-in corpus: short stories, and questions about them that only a memory can answer.

A document is a story told in one line and two to four questions about it, or a talk in which the user tells facts and asks for them.
A fact is a sentence with a fixed wording, "Tom lives in Rome."; other facts and freely worded events follow it, so that some 10 to 80 words
later "You: Where does Tom live?" is answered, "Neo: Tom lives in Rome.", only by who has kept it. One event in four uses a fact as well,
"Then Tom came from Rome to the old pier.": the more a reader remembers, the fewer bits the text costs.

How few bits? A text is made by a series of choices, each of one among n equally likely words (or of an event with probability p), and no
two series of choices give the same text. So its probability is the product of all 1/n and p, and its information content

    bits = -log2 P(text) = sum of log2 n and -log2 p                  (Shannon 1948, "A Mathematical Theory of Communication", section 6)

is known exactly. No model can spend fewer bits per document on average, and one that spends as few knows all that there is to know.
The end of a document is one of the choices: another question could have followed. The next document shows it by its first words, with
which no other line begins, so documents in a row have the sum of their bits, with an end-of-text token between them or without.

`python -m neurogen_numba.text.stories --count 3 --seed 0` prints some.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, NeuroGenError

SPLITS = ("train", "held-out")

# A word belongs to one list only, which is then the choice that it shows. What may follow "a" begins with a consonant.
NAMES = tuple("Tom Anna Ben Lucy Sam Mia Max Emma Leo Nora Finn Rosa Jack Lily Hugo Ivy".split())
HOMES = tuple("Rome Paris Oslo Cairo Delhi Lima Kyoto Dublin Vienna Madrid Berlin London Tokyo Prague Boston Quebec".split())
OBJECTS = tuple("kites boats hats balls drums bells cups lamps bags coats books carts flutes scarves rings sleds".split())
FOODS = tuple("plums pears figs beans peas cakes buns pies eggs grapes dates chips leeks beets nuts rolls".split())
ANIMALS = tuple("foxes cats dogs hens frogs ducks crows hares moles goats bears ponies".split())

SEASONS = tuple("spring summer autumn winter".split())
TIMES = tuple("morning noon evening night".split())
SPOTS = tuple("lake hill pond well road wall tree rock gate park shop lawn bank bush path pier".split())
PREPOSITIONS = tuple("by near past over under behind above below".split())
LOOKS = tuple("old new flat neat nice odd bare dark dusty plain rough dirty pretty magic broken grand".split())
LINKS = tuple("Then Soon Later Next Once Now Again Today Twice Often Still First Last Here There So".split())
MOODS = tuple("shy sad glad proud brave kind lazy merry gentle clever silly wise busy cross mad calm bold keen noisy quiet".split())
SHAPES = tuple("big small thin fat tall round long wet furry bald young hairy tiny quick slow lame short slim light grey".split())
CREATURES = tuple("bee wasp moth bat crab snail worm fish swan wolf deer toad rat robin lark gull seal lion snake mouse".split())
MEETINGS = tuple("saw met fed drew led woke heard held beat paid sent kept freed caught hugged helped".split())
MOVES = tuple("ran sat hid lay ate dug fell sang swam flew wept slept stood crept hopped danced".split())
EVENTS = ("meeting", "passing", "joining", "using")  # the last one uses a fact
GREETINGS = ("Hello", "Hi", "Good morning", "Good evening")


@dataclass(frozen=True)
class Question:
    """A question that the text before it answers.

    prompt: the document from its start to "Neo:", for a model to continue
    answer: what must follow, " Tom lives in Rome."
    chance: probability of a right guess by who knows the kind of question only
    """

    prompt: str
    answer: str
    chance: float


@dataclass(frozen=True)
class Story:
    """A document: its text, which ends in a newline, -log2 of its probability in bits, and the questions in it."""

    text: str
    bits: float
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of fact: the sentences that tell it, ask for it and (begin to) use it, and the list that its deciding word comes from."""

    telling: str
    asking: str
    using: str
    pool: tuple[str, ...]


KINDS = (
    Kind("{} lives in {}.", "Where does {} live?", "{} came from {}", HOMES),
    Kind("{} has {}.", "What does {} have?", "{} took {}", OBJECTS),
    Kind("{} likes {}.", "What does {} like?", "{} brought {}", FOODS),
    Kind("{} keeps {}.", "What does {} keep?", "{} raced {}", ANIMALS),
)


@dataclass(frozen=True)
class Fact:
    """What is true of someone in one document."""

    kind: Kind
    name: str
    value: str

    @property
    def sentence(self) -> str:
        return self.kind.telling.format(self.name, self.value)


def story(seed: int, index: int, split: str = "train") -> Story:
    """Document number `index` of the corpus `seed`, the same on every machine and Python version.

    It is written directly, so (seed, index, split) is all there is to a position in the corpus. The splits "train" and "held-out" are
    drawn independently of each other. Raises ConfigError for another split or a negative index.
    """
    if split not in SPLITS:
        raise ConfigError(f"stories: the split is 'train' or 'held-out', not {split!r}")
    if index < 0:
        raise ConfigError(f"stories: documents are numbered from 0; there is no number {index}")
    page = Page(random.Random(f"{split} {seed} {index}"))  # seeded by a hash of this string: neighbours have nothing in common
    _write_document(page)
    return Story(page.text, page.bits, tuple(page.questions))


def stories(seed: int, split: str = "train", start: int = 0) -> Iterator[Story]:
    """The documents `start`, `start + 1`, ... of a corpus, without end. Raises ConfigError as `story` does, at the first one."""
    return (story(seed, index, split) for index in itertools.count(start))


class Page:
    """A document being written: its text so far, the bits of the choices made for it, its questions."""

    def __init__(self, source: random.Random):
        self.text = ""
        self.bits = 0.0
        self.questions: list[Question] = []
        self._random = source.random  # the one method that Python promises never to change

    def pick(self, options: Sequence):
        """One of the options, all different and all equally likely."""
        self.bits += math.log2(len(options))
        return options[int(self._random() * len(options))]

    def draw(self, left: list):
        """One of what is left, all different and all equally likely, which is then taken from it."""
        drawn = self.pick(left)
        left.remove(drawn)
        return drawn

    def happens(self, probability: float) -> bool:
        """True with this probability."""
        result = self._random() < probability
        self.bits -= math.log2(probability if result else 1 - probability)
        return result

    def write(self, text: str):
        self.text += text


# Whatever is chosen below is written too, and in a way that shows what was chosen: otherwise the bits would be too many.


def _write_document(page: Page):
    if page.happens(0.15):
        _write_talk(page)
        return
    if page.happens(1 / 3):
        page.write("You: Tell me a story.\nNeo: ")
    facts = _write_story(page)
    _write_questions(page, facts, 4 if page.happens(0.5) else 3)


def _write_story(page: Page) -> list[Fact]:
    """Beginning, events, what there is to know of each character with more events in between, end. In one line, as a reply is."""
    names = list(NAMES)
    cast = [page.draw(names) for _ in range(3 if page.happens(0.125) else 2)]
    who = f"{', '.join(cast[:-1])} and {cast[-1]}"
    page.write(f"One {page.pick(MOODS)} {page.pick(SEASONS)} {page.pick(TIMES)} {who} {page.pick(MOVES)} {_place(page)}.")
    facts: list[Fact] = []
    _write_event(page, cast, facts)
    for name in cast:
        kinds = list(KINDS)
        for _ in range(page.pick((2, 3))):
            facts.append(_pick_fact(page, name, page.draw(kinds)))
            page.write(f" {facts[-1].sentence}")
            if page.happens(0.4):
                _write_event(page, cast, facts)
    moods = list(MOODS)
    page.write(f" At last they went home, {page.draw(moods)} but {page.draw(moods)}.\n")
    return facts


def _write_event(page: Page, cast: list[str], facts: list[Fact]):
    event = page.pick(EVENTS if facts else EVENTS[:-1])
    page.write(f" {page.pick(LINKS)} ")
    if event == "meeting":
        page.write(f"{page.pick(cast)} {page.pick(MEETINGS)} {_creature(page)} {_place(page)}.")
    elif event == "passing":
        page.write(f"{_creature(page)} {page.pick(MOVES)} {_place(page)}.")
    elif event == "joining":
        page.write(f"{page.pick(cast)} and {_creature(page)} {page.pick(MOVES)} {_place(page)}.")
    else:
        fact = page.pick(facts)
        page.write(f"{fact.kind.using.format(fact.name, fact.value)} to the {page.pick(LOOKS)} {page.pick(SPOTS)}.")


def _write_talk(page: Page):
    """The user tells facts, about anyone, and asks for them."""
    greeting = page.pick(GREETINGS)
    page.write(f"You: {greeting}.\nNeo: {greeting}.\n")
    facts: list[Fact] = []
    waiting: list[Fact] = []
    count = page.pick((2, 3, 4))
    for left in reversed(range(count)):
        name = page.pick(NAMES)
        told = [fact.kind for fact in facts if fact.name == name]
        fact = _pick_fact(page, name, page.pick([kind for kind in KINDS if kind not in told]))
        page.write(f"You: {fact.sentence}\nNeo: {fact.sentence[:-1]}, I see.\n")
        facts.append(fact)
        waiting.append(fact)
        if left and page.happens(0.5):
            _write_questions(page, waiting, 1)
    _write_questions(page, waiting, page.pick(range(1, len(waiting) + 1)))


def _write_questions(page: Page, facts: list[Fact], count: int):
    """Ask for `count` of the facts, which are taken from the list."""
    for _ in range(count):
        fact = page.draw(facts)
        page.write(f"You: {fact.kind.asking.format(fact.name)}\nNeo:")
        chance = 1 / len(fact.kind.pool)
        page.questions.append(Question(page.text, f" {fact.sentence}", chance))
        page.write(f" {fact.sentence}\n")


def _pick_fact(page: Page, name: str, kind: Kind) -> Fact:
    return Fact(kind, name, page.pick(kind.pool))


def _place(page: Page) -> str:
    return f"{page.pick(PREPOSITIONS)} the {page.pick(LOOKS)} {page.pick(SPOTS)}"


def _creature(page: Page) -> str:
    return f"a {page.pick(MOODS)} {page.pick(SHAPES)} {page.pick(CREATURES)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m neurogen_numba.text.stories", description="Print stories of the built-in corpus.")
    parser.add_argument("--count", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which corpus (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="(default: %(default)s)")
    flags = parser.parse_args(argv)
    try:
        if flags.count < 1:
            raise ConfigError(f"--count {flags.count}: at least 1")
        for each in itertools.islice(stories(flags.seed, flags.split, flags.start), flags.count):
            print(f"{each.text}[{each.bits:.1f} bits, {each.bits / len(each.text.encode()):.3f} bits per byte]\n")
    except NeuroGenError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
