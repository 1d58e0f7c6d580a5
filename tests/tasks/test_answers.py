"""Reading answers: the last marker, exact digits, no text that stalls or breaks it."""

import time
from fractions import Fraction

import pytest

from whet.tasks import answers

SCANS = (
    answers.answer_part,
    answers.last_boxed,
    answers.last_block,
    answers.last_said,
    answers.undress,
    answers.integer,
    answers.last_integer,
    answers.only_integer,
    answers.number,
    answers.last_number,
    answers.only_number,
    answers.rounded,
    answers.only_rounded,
    answers.sentences,
    answers.last_rounded,
    answers.integers,
    answers.last_integers,
    answers.rows,
    answers.mapping,
    answers.last_mapping,
)
SIZE = 1 << 16
# Pieces that make careless scans quadratic, or deeper than Python recurses, when repeated.
PIECES = (
    *("1", " ", "{", "{}", "[", "[]", "-", "_", "\\", ",111", "1,111,", "1/", "1.", "1e-", "a b "),
    *("\\boxed{", "\\text{", "\\frac{", "\\frac{1}{2}", "\n", "answer ", "answer:\n", "answer: 5 "),
    *(
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "[1,",
        "a: 1, ",
        "=",
        " 1",
        "'\"",
        "²",
        "٣",
        "\ud800",
    ),
    *("**", "**1", "$", "\\frac1", "\\frac12", "?", "5? ", ". ", "x_{", "x_{1}", "[1],", "[[", "]"),
    *("_ ", "(", "5\\", "1/2 ", "\n\n", '."', "5!"),
    "a" + " " * 200 + "b" + " " * 100 + ",",
    "[" + "a" * 20_000,
)


def hostile():
    for piece in PIECES:
        text = (piece * (SIZE // len(piece) + 1))[:SIZE]
        yield text
        yield text + "x"
    yield "{" * (SIZE // 2) + "}" * (SIZE // 2)
    yield "\\boxed{" * (SIZE // 8) + "}" * (SIZE // 8)


@pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.__name__)
def test_no_text_stalls_or_breaks_a_scan(scan):
    for text in hostile():
        begin = time.monotonic()
        scan(text)
        # Quadratic scans of so much text take a minute.
        assert time.monotonic() - begin < 10, text[:30]


@pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.__name__)
@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00", "{", "}", "}{", "[", "]", "-", ".", ",", "/", "1/0", "0/0", "e5", "1e", "—"],
)
def test_odd_scraps_break_nothing(scan, text):
    scan(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{1}, no: \boxed{2}.", "2"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{1\frac{1}{2}}", "1 1/2"),
        (r"\boxed{\frac12}", "1/2"),
        (r"\boxed{-\dfrac 1 2}", "-1/2"),
        (r"\boxed{3\frac1{20}}", "3 1/20"),
        (r"\boxed{\frac{10}5}", "10/5"),
        (r"\boxed{\frac123}", r"\frac123"),
        (r"\boxed{\text{equal to}}", "equal to"),
        (r"\boxed{ \{1, 2\} }", "{1, 2}"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{a{b}{c{d}}}", "a{b}{c{d}}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"$\boxed{-5}$", "-5"),
        (r"\boxed{−5}", "-5"),
        (r"\boxed{1{,}234}", "1,234"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed 5", None),
    ],
)
def test_the_last_box_whose_braces_balance_is_read(text, found):
    box = answers.last_boxed(text)
    assert (box and box.text) == found
    assert box is None or text[: box.end].endswith("}")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer>1</answer> <ANSWER> 2 </ANSWER>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer> stray </answer>", "1"),
        ("</answer>", None),
    ],
)
def test_the_last_closed_block_is_read(text, found):
    block = answers.last_block(text)
    assert (block and block.text) == found
    assert block is None or text[: block.end].lower().endswith("</answer>")


@pytest.mark.parametrize("filler", ["", "x" * answers.MAX_TEXT, "\n" * (answers.MAX_TEXT + 5)])
def test_places_count_from_the_start_of_the_whole_text(filler):
    for text, scan in (
        (r"\boxed{5}", answers.last_boxed),
        ("<answer>5</answer>", answers.last_block),
        ("\nanswer: 5\n", answers.last_said),
    ):
        found = scan(f"{filler}{text} rest\n")
        assert f"{filler}{text} rest\n"[found.end :].strip() in ("rest", "")
        assert found.text.startswith("5")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>5</think> 6", " 6"),
        ("<think>5", None),
        ("<think>a</think><think>b</think>c", "c"),
        ("plain", "plain"),
    ],
)
def test_thinking_is_cut_off_and_unended_thinking_has_no_answer(text, found):
    assert answers.answer_part(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", 12),
        ("+7", 7),
        ("- 5", -5),
        ("1,234,567", 1234567),
        ("12.", 12),
        ("3.00", 3),
        ("9007199254740993", 2**53 + 1),
        ("1" * 400, int("1" * 400)),
        ("3.5", None),
        ("12,34", None),
        ("1e3", None),
        ("five", None),
        ("5 or 6", None),
        ("٣", None),
        ("5²", None),
        ("1" * 5000, None),
    ],
)
def test_integers_are_read_from_their_digits(text, found):
    assert answers.integer(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so 3 + 4 = 7.", 7),
        ("10-5", 5),
        ("it is -5!", -5),
        ("**1,234**", 1234),
        ("x1 is 4 but y2 is unknown", 4),
        ("3,4,5", 5),
        ("2.5", None),
        ("1,111,111x", 111),
        ("none", None),
        ("it is 1/2", None),
        ("it is 10^3, or 2^{10}", None),
        ("7, for 14/2 is that", 7),
        ("the sum of [3, 4]", None),
        ("[3, 4] has 2", 2),
        ("it is [7]", 7),
        ("Is it 5? Perhaps.", None),
        ("the sequence 1, 2, 3, ?", None),
        ("What is 2 + 2? It is 4.", 4),
    ],
)
def test_the_last_integer_of_running_text(text, found):
    assert answers.last_integer(text) == found


WITHIN = {
    "x = 5": 5,
    "5 apples": 5,
    "the answer is 5": 5,
    "x_1 = 5.": 5,
    "it is **5**": 5,
    "1,234 apples": 1234,
    "it is -5": -5,
    "1/2": Fraction(1, 2),
    "-1/2": Fraction(-1, 2),
    "10/5 of it": 2,
    "2,3": None,
    "2, 3": None,
    "5, x": None,
    "a, 5": None,
    "10^3": None,
    "2^n": None,
    r"3 \times 5": None,
    r"n \cdot 5": None,
    "3*n": None,
    "-(5)": None,
    "5!": None,
    "5%": None,
    r"5\%": None,
    r"\sqrt{5}": None,
    r"\sqrt 5": None,
    "n + 5": None,
    "n/5": None,
    "5n": None,
    "f(5)": None,
    "3 + 4 = 7": None,
    "5 or 6": None,
    "x**2": None,
    "2**3**4": None,
    "none": None,
}


@pytest.mark.parametrize("text", WITHIN)
def test_a_number_among_other_words_is_alone_and_no_part_of_an_expression(text):
    value = WITHIN[text]
    whole = value if isinstance(value, int) and "/" not in text else None
    assert answers.only_number(text) == value
    assert answers.only_integer(text) == whole
    for mark in (r"\boxed{%s}", "The answer is: %s", r"5 or 5: \boxed{%s}"):
        if not (text.endswith("!") and "answer" in mark):  # said with emphasis
            assert answers.boxed_integer(mark % text, "lenient") == whole
            assert answers.boxed_number(mark % text, "lenient") == value
    assert answers.boxed_integer(rf"\boxed{{{text}}} no, \boxed{{8}}", "lenient") == 8


@pytest.mark.parametrize("text", [r"\frac{1}{2}", r"-\frac{1}{2}", r"\frac12", r"\tfrac{10}{5}"])
def test_a_fraction_is_no_whole_number(text):
    assert answers.boxed_integer(rf"\boxed{{{text}}}", "lenient") is None
    assert answers.boxed_number(rf"\boxed{{{text}}}", "lenient") is not None


@pytest.mark.parametrize("form", ["result", "phrase", "term", "[...]", "...", "", "?"])
def test_a_marker_to_be_filled_in_voids_all_before_it(form):
    assert answers.boxed_integer(rf"Add 3 to 4. As \boxed{{{form}}}.", "lenient") is None
    assert answers.boxed_integer(rf"Answer: 3. As \boxed{{{form}}}. It is 7.", "lenient") == 7
    assert answers.boxed_integer(f"As \\boxed{{{form}}}.\nAnswer: 7 of 7", "lenient") is None
    assert answers.boxed_number(rf"Of 3 and 4, \boxed{{{form}}}. 7", "lenient") == 7
    assert answers.boxed_integer(rf"\boxed{{5}} \boxed{{{form}}}", "lenient") is None


def test_what_an_announcement_says_is_read_to_its_end_then_to_its_first_sentence():
    assert answers.boxed_integer("The answer is: 5. I counted 3 twice.", "lenient") == 5
    assert answers.boxed_integer("Answer: 3.5. Not 3.", "lenient") is None
    assert answers.boxed_integer("7\nAnswer: 3 or 4", "lenient") is None
    assert answers.boxed_integer("Answer: 3 or 4\nHence 4", "lenient") == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.25", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("3 / -4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("1e-3", Fraction(1, 1000)),
        ("1,234.5", Fraction(2469, 2)),
        ("5.", Fraction(5)),
        ("1/0", None),
        ("1/2/3", None),
        ("1e9999", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("1_000", None),
    ],
)
def test_numbers_are_read_exactly(text, found):
    assert answers.number(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the mean is 3.14.", Fraction(157, 50)),
        ("it is 3/8", Fraction(3, 8)),
        ("so x = 6 / 8 .", Fraction(3, 4)),
        ("about 1e-3 of it", Fraction(1, 1000)),
        ("-0.5", Fraction(-1, 2)),
        ("none", None),
    ],
)
def test_the_last_number_of_running_text(text, found):
    assert answers.last_number(text) == found


@pytest.mark.parametrize(
    ("text", "decimals"),
    [("3.140", 3), ("3", 0), ("3.", 0), ("1/3", None), ("1e-3", None), ("1,234.50", 2)],
)
def test_written_decimals_are_counted(text, decimals):
    assert answers.rounded(text).decimals == decimals
    assert answers.last_rounded(f"it is {text}").decimals == decimals


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1, -2, 3]", [1, -2, 3]),
        ("(1, 2)", [1, 2]),
        ("{4}", [4]),
        ("5", [5]),
        ("1 2 3", [1, 2, 3]),
        ("1,234", [1, 234]),
        ("[]", []),
        ("[1, x]", None),
        ("", None),
        ("[[1], [2]]", None),
    ],
)
def test_lists_of_integers(text, found):
    assert answers.integers(text) == found


def test_the_last_list_of_running_text():
    assert answers.last_integers("[1, 2] then [3, 4], done") == [3, 4]
    assert answers.last_integers("[1, 2] then [x]") == [1, 2]
    assert answers.last_integers("sorted:\n1, 2, 3\n") == [1, 2, 3]
    assert answers.last_integers("Sorted: 1, 2, 3.") == [1, 2, 3]
    assert answers.last_integers("only 5") is None
    assert answers.last_integers("[[1], [3], [0], [2]]") is None
    assert answers.last_integers("[3, 4] and [[1, 2], [3, 4]]") == [3, 4]
    assert answers.last_integers("[1, 2 and [3, 4]") == [3, 4]
    assert answers.last_integers("[3, 4] ] [") == [3, 4]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"A": 1, "B": 2}', {"A": "1", "B": "2"}),
        ("{x1: True, x2: False}", {"x1": "True", "x2": "False"}),
        ("A=1, B -> 2; C => 3", {"A": "1", "B": "2", "C": "3"}),
        ("- A: 1\n- B: 2\n", {"A": "1", "B": "2"}),
        ("{x_{1}: 1, x_2: 2}", {"x_1": "1", "x_2": "2"}),
        ("$x_{10}$ = 1", {"x_10": "1"}),
        ("x₁: 1", {"x1": "1"}),
        ("A: 1, A: 1", {"A": "1"}),
        ("A: 1, A: 2", None),
        ("A: 1, B", None),
        (": 1", None),
        ("A:", None),
        ("{}", None),
        ("A: " + "1" * 500, None),
    ],
)
def test_mappings(text, found):
    assert answers.mapping(text) == found


def test_the_last_mapping_of_running_text():
    assert answers.last_mapping("{A: 1} or rather {A: 2}.") == {"A": "2"}
    assert answers.last_mapping(r"so \{ 'A': 1 \} {no}") == {"A": "1"}
    assert answers.last_mapping(r"so $\{x_{1}: T, x\_2: F\}$") == {"x_1": "T", "x_2": "F"}
    assert answers.last_mapping("{no}") is None


def test_strict_reads_the_marker_only_and_lenient_goes_on_in_order():
    assert answers.boxed_integer(r"\boxed{5} and 6", "strict") == 5
    assert answers.boxed_integer(r"\boxed{5} and 6", "lenient") == 5
    assert answers.boxed_integer("answer: 5, not 6 but\n7", "strict") is None
    assert answers.boxed_integer("The answer is: 5\n7 steps", "lenient") == 5
    assert answers.boxed_integer("first 5, then 7", "lenient") == 7
    assert answers.boxed_integer(r"\boxed{it is 5}", "strict") is None
    assert answers.boxed_integer(r"\boxed{it is 5} 8", "lenient") == 5
    assert answers.boxed_number(r"\boxed{\frac{-1}{4}}", "strict") == Fraction(-1, 4)
    # The last marker counts even where an earlier one would do.
    assert answers.boxed_integer(r"\boxed{5} \boxed{?}", "strict") is None


def test_other_signs_for_minus_and_very_long_texts_are_read_in_every_marker():
    def block(text, mode):
        return answers.read(
            text,
            mode,
            marked=answers.last_block,
            exact=answers.integer,
            last=answers.last_integer,
        )

    assert block("<answer>−5</answer>", "strict") == -5
    assert block("<answer>5</answer>" + " " * answers.MAX_TEXT, "strict") is None
    assert block(" " * answers.MAX_TEXT + "<answer>5</answer>", "strict") == 5
    assert block("7" + " " * answers.MAX_TEXT, "lenient") is None


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (5, "5"),
        (-5, "-5"),
        (Fraction(1, 2), "0.5"),
        (Fraction(-1, 1000), "-0.001"),
        (Fraction(7, 40), "0.175"),
        (Fraction(1, 3), "1/3"),
        (Fraction(-5, 6), "-5/6"),
        (Fraction(1, 2**40), "0.0000000000009094947017729282379150390625"),
    ],
)
def test_numbers_are_written_exactly_and_read_back(x, text):
    assert answers.write_number(x) == text
    assert answers.number(text) == x


def test_only_whole_numbers_and_fractions_are_numbers():
    assert answers.as_fraction(3) == 3
    assert answers.as_fraction(Fraction(1, 3)) == Fraction(1, 3)
    for other in (True, 1.0, "1", None, [1], 1j):
        assert answers.as_fraction(other) is None
