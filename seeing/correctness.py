"""Is the answer right? The four scores that benchmarks of questions to pictures report, each in [0, 1].

Exact match and token F1 follow SQuAD, ANLS the text in pictures (DocVQA, InfoVQA), VQA accuracy the ten
people who answered (VQA, TextVQA). Each takes one answer and what it is held against: one text, or several.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

Answers = str | Sequence[str]


def normalize_answer(text: str) -> str:
    """SQuAD's normalization (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no ASCII punctuation, no
    articles (a, an, the), single spaces.

    It is made for English phrases: "3.5" becomes "35", and the choice "A" becomes "".
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: Answers) -> float:
    """1.0 when the normalized prediction equals one of the normalized answers, else 0.0."""
    prediction = normalize_answer(prediction)
    return float(any(prediction == normalize_answer(answer) for answer in _several(answers)))


def token_f1(prediction: str, answers: Answers) -> float:
    """SQuAD's F1 over the words of the normalized texts, the best over the answers.

    Words count as often as they occur. Two texts without words are equal (1.0); one without words scores 0.0.
    """
    return max(
        _f1(normalize_answer(prediction).split(), normalize_answer(answer).split())
        for answer in _several(answers)
    )


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))


def anls(prediction: str, answers: Answers, threshold: float = 0.5) -> float:
    """Average normalized Levenshtein similarity of one question (Biten et al. 2019, arXiv 1907.00490, eq. 1).

    1 − d, where d is the edit distance to the nearest answer over the longer one's length; 0 where
    d ≥ threshold. Letters in lower case, without spaces at the ends, and one space between words.
    """
    prediction = _plain(prediction)
    return max(_similarity(prediction, _plain(answer), threshold) for answer in _several(answers))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str, threshold: float) -> float:
    longer = max(len(one), len(other))
    # texts of very unequal length are far apart: no need to count how far
    if abs(len(one) - len(other)) >= threshold * longer > 0:
        return 0.0
    distance = _levenshtein(one, other) / longer if longer else 0.0
    return 1 - distance if distance < threshold else 0.0


def _levenshtein(one: str, other: str) -> int:
    """The fewest letters put in, taken out or changed that make one text of the other."""
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        after = [row]
        for column, against in enumerate(other):
            after.append(min(before[column + 1] + 1, after[column] + 1, before[column] + (letter != against)))
        before = after
    return before[-1]


# From so many people on, three of the others can agree with one: what the formula needs to reach 1.
PANEL = 4


def vqa_accuracy(prediction: str, answers: Answers) -> float:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468): min(people who said so / 3, 1).

    `answers` holds one answer a person, repeated as often as it was given. As in the official evaluation, the
    accuracy is the mean over all groups that leave one person out, and texts are compared as
    `normalize_vqa` writes them. (The official code leaves the people's texts as they are where all agree;
    here they are always normalized.) Fewer than four texts are no panel but a list of right answers: the
    score is 1.0 when the prediction is one of them, else 0.0.
    """
    prediction = normalize_vqa(prediction)
    said = [normalize_vqa(answer) == prediction for answer in _several(answers)]
    if len(said) < PANEL:
        return float(any(said))
    return sum(min((sum(said) - own) / 3, 1.0) for own in said) / len(said)


def normalize_vqa(text: str) -> str:
    """The official VQA evaluation's text: punctuation, number words, articles and apostrophes made alike."""
    text = re.sub(r"[\n\t]", " ", text).strip()
    written = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        # a mark within a word parts it; one at its end, or in a text with a number like 1,000, is dropped
        ends = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        written = written.replace(mark, "" if ends else " ")
    written = re.sub(r"\.(?!\d)", "", written)
    words = (NUMBERS.get(word, word) for word in written.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS.split())}

_APOSTROPHES = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# What the official table mends is one of these words with one apostrophe forgotten: "dont", "couldn'tve".
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word
    for word in _APOSTROPHES.split()
    for mark in re.finditer("'", word)
}


def _several(answers: Answers) -> Sequence[str]:
    answers = [answers] if isinstance(answers, str) else answers
    if not len(answers):
        raise ValueError("found no answers: a sample without answers has no score, leave it out")
    return answers
