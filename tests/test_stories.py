"""The built-in corpus: reproducible, of exactly known probability, and its answers follow from what was told."""

import hashlib
import itertools
import math
import random
import re
from collections import Counter

import pytest

from neurogen_numba.errors import ConfigError
from neurogen_numba.text import stories as corpus
from neurogen_numba.text.stories import KINDS, Page, main, stories, story

POOLS = {name: pool for name, pool in vars(corpus).items() if name.isupper() and name not in ("SPLITS", "KINDS", "EVENTS", "GREETINGS")}
WORDS = set().union(*POOLS.values())
SAMPLE = tuple(itertools.islice(stories(0), 2000))


# Reading a text back ---------------------------------------------------------------------------------------------------------------


class Mismatch(Exception):
    """The choices made so far do not lead to the text."""


class Fork(Exception):
    """More than one way to go on: `ways` of them."""

    def __init__(self, ways):
        self.ways = ways


class Reading(Page):
    """A page on which only `target` can be written. Where several choices might do, `route` says which, in turn."""

    def __init__(self, target, route):
        super().__init__(random.Random(0))
        self.target, self.route = target, iter(route)

    def pick(self, options):
        self.bits += math.log2(len(options))
        return options[self._choose([i for i, option in enumerate(options) if self._may_come(option)])]

    def happens(self, probability):
        result = self._choose([True, False])
        self.bits -= math.log2(probability if result else 1 - probability)
        return result

    def write(self, text):
        super().write(text)
        if not self.target.startswith(self.text):
            raise Mismatch

    def _may_come(self, option):
        """A word is written in the sentence that it is chosen for; of anything else nothing is known."""
        sentence = self.target[len(self.text) :].partition(".")[0]
        return option not in WORDS or option in sentence

    def _choose(self, ways):
        if not ways:
            raise Mismatch
        if len(ways) == 1:
            return ways[0]
        way = next(self.route, None)
        if way is None:
            raise Fork(ways)
        return way


def readings(text):
    """The bits of every series of choices that makes this text."""
    found, routes = [], [()]
    while routes:
        route = routes.pop()
        page = Reading(text, route)
        try:
            corpus._write_document(page)
        except Mismatch:
            continue
        except Fork as fork:
            routes += [(*route, way) for way in fork.ways]
            continue
        if page.text == text:
            found.append(page.bits)
    return found


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_one_series_of_choices_makes_a_text_and_its_bits_are_those_of_the_story(split):
    for document in itertools.islice(stories(7, split), 30):
        assert readings(document.text) == [pytest.approx(document.bits, rel=1e-12)], document.text


def test_a_text_that_no_choices_make_is_not_read():
    """Guards the test above: a reading must not accept anything else."""
    text = next(document.text for document in SAMPLE if document.text.startswith("One "))
    assert len(readings(text)) == 1
    assert readings(text[:-1]) == readings(text.replace(" home, ", " home ")) == readings(text + text) == []


def test_choices_come_as_often_as_their_bits_say():
    draws = 20_000
    for choose in (
        lambda page: page.pick("abc"),
        lambda page: page.happens(0.15),
        lambda page: page.happens(1 / 3),
        lambda page: (page.draw(left := list("abcd")), page.draw(left)),
    ):
        source, seen, bits = random.Random(0), Counter(), {}
        for _ in range(draws):
            page = Page(source)
            outcome = choose(page)
            seen[outcome] += 1
            assert bits.setdefault(outcome, page.bits) == page.bits
        assert sum(2**-b for b in bits.values()) == pytest.approx(1)
        for outcome, count in seen.items():
            expected = draws * 2 ** -bits[outcome]
            assert abs(count - expected) < 5 * math.sqrt(expected), (outcome, count, expected)


# Streams ---------------------------------------------------------------------------------------------------------------------------


def test_same_texts_on_every_machine_and_version():
    text = "".join(document.text for document in itertools.islice(stories(0), 50)) + story(1, 10**12, "held-out").text
    assert hashlib.sha256(text.encode()).hexdigest() == "dd5b9f14be80d1d1e07791bd3add4074ba12b483b489e1452dafa36dc37946a8"


def test_any_story_directly():
    assert list(itertools.islice(stories(3, "held-out", start=5), 4)) == [story(3, index, "held-out") for index in (5, 6, 7, 8)]


def test_seeds_and_splits_share_no_text():
    groups = [(0, "train"), (0, "held-out"), (1, "train"), (1, "held-out")]
    texts = [document.text for seed, split in groups for document in itertools.islice(stories(seed, split), 1000)]
    assert len(set(texts)) == len(texts)


def test_documents_in_a_row_can_be_told_apart():
    stream = "".join(document.text for document in SAMPLE)
    greetings = "|".join(corpus.GREETINGS)
    starts = rf"^(?=One |You: Tell me a story\.\n|You: (?:{greetings})\.\n)"
    assert re.split(starts, stream, flags=re.MULTILINE)[1:] == [document.text for document in SAMPLE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0, "test"), "the split is 'train' or 'held-out', not 'test'"), ((0, -1), "not from -1")],
)
def test_refuses_what_is_not_in_the_corpus(arguments, message):
    with pytest.raises(ConfigError, match=message):
        story(*arguments)


# Facts and questions ---------------------------------------------------------------------------------------------------------------

NAME = f"({'|'.join(corpus.NAMES)})"
VALUE = r"(\w+(?: \w+)?)"
TELLINGS = [re.compile(r"\b" + re.escape(kind.telling).replace(r"\{\}", "{}").format(NAME, VALUE)) for kind in KINDS]
USINGS = [re.compile(kind.using.format(NAME, VALUE) + " to the ") for kind in KINDS]
ASKINGS = [re.compile(re.escape(kind.asking).replace(r"\{\}", NAME) + "$") for kind in KINDS]


def facts(text):
    """Everything told in a text: {(number of the kind, name): values}."""
    document = {}
    for number, telling in enumerate(TELLINGS):
        for name, value in telling.findall(text.replace(", I see", "")):
            document.setdefault((number, name), set()).add(value)
    return document


def test_an_answer_follows_from_what_was_told_before():
    for document in SAMPLE:
        for question in document.questions:
            line = question.prompt.removesuffix("\nNeo:").rpartition("\n")[2]
            [(number, name)] = [(number, match[1]) for number, asking in enumerate(ASKINGS) if (match := asking.search(line))]
            values = facts(question.prompt)[number, name]
            assert len(values) == 1, question.prompt
            kind = KINDS[number]
            assert question.answer == " " + kind.telling.format(name, *values)
            assert question.chance == 1 / len(kind.pool)


def test_events_are_true_to_the_facts():
    used = 0
    for document in SAMPLE:
        for number, using in enumerate(USINGS):
            for event in using.finditer(document.text):
                assert facts(document.text[: event.start()])[number, event[1]] == {event[2]}
                used += 1
    assert used > 500


def test_every_question_of_the_text_is_listed_and_none_is_asked_twice():
    for document in SAMPLE:
        assert document.text.count("?") == len(document.questions) >= 1
        assert len({question.answer for question in document.questions}) == len(document.questions)
        for question in document.questions:
            assert question.prompt.endswith("?\nNeo:")
            assert document.text.startswith(question.prompt + question.answer + "\n")


def test_a_story_has_three_or_four_questions_about_two_or_three_facts_of_each_character():
    kinds = Counter()
    for document in SAMPLE:
        if " At last " in document.text:
            kinds[len(document.questions)] += 1
            assert set(Counter(name for _, name in facts(document.text)).values()) <= {2, 3}
    assert set(kinds) == {3, 4}


def test_questions_reach_back_near_and_far():
    distances = sorted(
        len(question.prompt[question.prompt.rfind(question.answer.strip(" .")) :].split())
        for document in SAMPLE
        for question in document.questions
    )
    assert distances[len(distances) // 10] < 25
    assert 40 < distances[len(distances) // 2] < 60
    assert 70 < distances[len(distances) * 9 // 10] < 100


# Language --------------------------------------------------------------------------------------------------------------------------


def test_a_word_belongs_to_one_list():
    counts = Counter(word for pool in POOLS.values() for word in pool)
    assert [word for word, count in counts.items() if count > 1] == []
    for name, pool in POOLS.items():
        pattern = "[A-Z][a-z]+" if name in ("NAMES", "LINKS", "HOMES") else "[a-z]+"
        assert all(re.fullmatch(pattern, word) for word in pool), name
    assert len(set(corpus.GREETINGS)) == len(corpus.GREETINGS)


def test_texts_are_plain_lines_of_sentences():
    for document in SAMPLE:
        assert document.text.isascii() and document.text.endswith("\n")
        for line in document.text[:-1].split("\n"):
            assert re.fullmatch(r"(\w+: )?[A-Z][\w, ]*[.?]( [A-Z][\w, ]*\.)*", line), line
        assert "  " not in document.text
        assert not re.search(r"\ba [aeiou]", document.text)
        if "Tell me a story" in document.text:
            assert document.text.startswith("You: Tell me a story.\nNeo: One ")


def test_rich_but_learnable():
    bits_per_byte = sum(document.bits for document in SAMPLE) / sum(len(document.text.encode()) for document in SAMPLE)
    assert 0.3 < bits_per_byte < 0.7
    assert 60 < sum(len(document.text.split()) for document in SAMPLE) / len(SAMPLE) < 130
    assert 200 < len({word for document in SAMPLE for word in re.findall(r"\w+", document.text)}) < 300


# Command ---------------------------------------------------------------------------------------------------------------------------


def test_command_prints_stories_and_their_bits(capsys):
    assert main(["--count", "2", "--seed", "4", "--start", "6"]) == 0
    printed = capsys.readouterr().out
    for document in (story(4, 6), story(4, 7)):
        assert f"{document.text}[{document.bits:.1f} bits, {document.bits / len(document.text):.3f} bits per byte]" in printed
    assert printed.count("bits per byte") == 2


@pytest.mark.parametrize("flags", [["--count", "0"], ["--start", "-1"]])
def test_command_refuses_in_one_line(flags, capsys):
    assert main(flags) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and flags[1] in output.err
