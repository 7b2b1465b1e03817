import pytest

from train.data.pretraining.tokens import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained.", "We stayed in!", "Why?", "Nobody knows…", "Really?!"],
        ["He said “No.”", "(She agreed.)", "Then: nothing."],
        ["Mr. and Mrs. J. R. Smith of St. Ives met Dr. No on Jan. 5, 1990, at 5 p.m. and left."],
        ["It costs 3.50 dollars, e.g. in the U.S. market, i.e. there.", "Elsewhere not."],
        ["See figs. 3 and 4, vol. 2, pp. 5, ed. 1."],
        ["Wait... what?", "“Quotes open here,” he said."],
        ["In 1990.", "2000 was later.", "[Note] No.", "I will not.", "Done."],
        ["天气很好。", "我们去公园！", "好吗？", "“好。”", "他说。"],
        ["क्या हाल है।", "ठीक है।"],
        ["no capital. so no end here"],
        ["One"],
    ],
)
def test_sentences(sentences):
    blank = "" if sentences[0][0] == "天" else "  "
    found = list(split_sentences(blank.join(sentences)))
    assert found == sentences


def test_nothing_is_lost_and_blanks_hold_no_sentence():
    text = "A b. C d! “E f.” G (h. I j.) K... L m. 3 n? 。。 O"
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert list(split_sentences("  ")) == []


def test_a_paragraph_of_marks_takes_no_longer_than_its_length():
    # A pattern that backtracks would take hours.
    assert len(list(split_sentences("." * 200_000))) == 1
    assert len(list(split_sentences('."' * 100_000 + " x"))) == 1
    assert len(list(split_sentences("A. " * 100_000))) == 1
