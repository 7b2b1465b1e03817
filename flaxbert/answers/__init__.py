"""Answers that are part of a text: from a question and its context to a model's inputs, and from its scores to answers.

`windows` cuts a context that is too long into several inputs; `decoding` finds the best answers in what a
`BertForQuestionAnswering` says about all of them. The rules are those of Google's run_squad; places in the text are
counted in characters, so that scripts without blanks between words work as well.
"""

from flaxbert.answers.decoding import Answers, Candidate, decode
from flaxbert.answers.windows import Window, Windowing, make_windows

__all__ = ["Answers", "Candidate", "Window", "Windowing", "decode", "make_windows"]
