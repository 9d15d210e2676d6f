"""Writes export/eval/tests/golden.json: what the scoring functions of lm-evaluation-harness 0.4.13 return.

    python scripts/eval_golden.py OUT SQUAD

The functions are the harness's own (hendrycks_math, minerva_math, drop, ifeval, squad_completion, coqa) on texts made here. NLTK's
models are not asked for: what needs them, and language detection, is no case. SQUAD is the file
metrics/squad_v2/compute_score.py of huggingface/evaluate, which the harness loads from the hub. Needs
lm_eval[math]==0.4.13, transformers, nltk, langdetect and immutabledict.
"""

import importlib.util
import json
import random
import sys

import nltk

nltk.data.find = lambda *_: True
from lm_eval.tasks.coqa import utils as coqa
from lm_eval.tasks.drop import utils as drop
from lm_eval.tasks.hendrycks_math import utils as math
from lm_eval.tasks.ifeval import utils as ifeval
from lm_eval.tasks.minerva_math import utils as minerva
from lm_eval.tasks.squad_completion import task as completion

EQUAL = [
    ("3", "3"), ("3", "4"), ("\\frac12", "\\frac{1}{2}"), ("1/2", "\\dfrac{1}{2}"), ("0.5", "\\frac12"),
    (".5", "0.5"), ("x = 5", "5"), ("xyz=5", "5"), ("\\sqrt3", "\\sqrt{3}"), ("\\sqrt{3}", "\\sqrt 3"),
    ("90^\\circ", "90"), ("90^{\\circ}", "90"), ("5\\text{ cm}", "5"), ("5\\text{ a}\\text{ b}", "5"),
    ("10\\%", "10"), ("\\$5", "5"), ("\\left(1, 2\\right)", "(1,2)"), ("\\frac1{72}", "\\frac{1}{72}"),
    ("\\frac1", "\\frac1"), ("\\frac", "\\frac"), ("a/b", "\\frac{a}{b}"), ("a/b", "a/b"), ("01/2", "1/2"),
    ("-1/2", "\\frac{-1}{2}"), ("+1/2", "1/2"), ("1/2/3", "1/2/3"), ("", ""), ("", "1"), ("\\!1", "1"),
    ("1\n", "1"), ("\\sqrt", "\\sqrt"), ("{.5}", "{0.5}"), ("x=y=z", "y=z"), ("\\tfrac{3}{4}", "3/4"),
    ("1 000", "1000"), ("-0/1", "-0/1"), ("é/2", "é/2"), ("\\\\pi", "\\pi"), ("1_0/2", "10/2"),
]
BOXED = [
    "So \\boxed{3}.", "\\boxed{\\frac{1}{2}} or \\boxed{x^{2}}", "\\boxed 7$ is it", "\\boxed{3} and \\boxed 7$",
    "nothing",
]
ASKED = ["it is $3$.", "$a$ and $b$", "none", "one $ only", "$$", "é $x$ é"]
DROP = [
    ("5", [["5"]]), ("the 5 dogs", [["5"]]), ("5.0", [["5"]]), ("six", [["6"]]), ("Paris", [["paris"]]),
    ("The city of Paris", [["Paris"], ["City Paris"]]), ("a", [["the"]]), ("", [["x"]]), ("x", [[""], ["y"]]),
    ("John and Mary", [["John", "Mary"]]), ("John", [["John", "Mary", "Ann"]]), ("12-14", [["12 14"]]),
    ("well-known man", [["well known"]]), ("1,000", [["1000"]]), ("12%", [["12"]]), ("3 May 1990", [["3 May 1990"]]),
    ("one two three", [["one two"]]), ("nan", [["nan"]]), ("it's", [["its"]]), ("1e3", [["1000.0"]]),
]
TABLE = [
    {"answer": {"number": "5", "date": {"day": "", "month": "", "year": ""}, "spans": []},
     "validated_answers": {"number": ["", "5"], "date": [{"day": "1", "month": "May", "year": ""}] * 2,
                           "spans": [["a", "b"], []]}},
    {"answer": {"number": "", "date": {"day": "", "month": "May", "year": "1990"}, "spans": []},
     "validated_answers": {"number": [], "date": [], "spans": []}},
]
NORMAL = [
    "$5$", "x = 5", "5 cm", "2\\pi cm", "\\left(1,2\\right)", "10\\text{ cm}^2", "1,000", "0,1", "\\frac12", "\\frac1{72}",
    "\\sqrt3", "\\sqrt[3]8", "\\sqrt[3]{8}", "\\text{an apple}", "\\boxed{7}", "12 square feet", "90^\\circ", "\\$5.00",
    "5\\text{ and }6", "a value", "\\dots,1", "\\overline{AB}", "3\\%", "12{,}000", "the 4 ways", "\\text{(A)}", "-1,234,567",
    "about $3$ or $4$.", "\\mathrm{th}", "\\ldots", "30 degrees", "\\textbf{B}", "1\\!2", "",
]
SAID = [
    "So 4.\nFinal Answer: The final answer is $4$. I hope it is correct.", "The final answer is 4.",
    "Final Answer: The final answer is 7", "Final Answer: The final answer is $1$\n. I hope", "Final Answer: The final answer is x. ",
]
EXACT = [
    ("\\frac{1}{2}", "0.5"), ("2\\sqrt{3}", "\\sqrt{12}"), ("x^2+2x+1", "(x+1)^2"), ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
    ("3", "4"), ("x+1", "1+x"), ("2x", "x\\cdot2"), ("\\frac{6}{4}", "\\frac{3}{2}"), ("1/2", "0.5"), ("2^{10}", "1024"),
    ("\\pi", "3.14"), ("4\\pi", "\\pi\\cdot4"), ("\\sqrt[3]{8}", "2"), ("-\\frac{1}{3}", "\\frac{-1}{3}"), ("(1,2)", "(1,2)"), ("(1,2)", "(2,1)"),
    ("\\frac{x}{2}", "0.5x"), ("3\\sqrt{2}-\\sqrt{2}", "2\\sqrt{2}"), ("5!", "120"), ("\\frac{x^2-1}{x-1}", "x+1"), ("\\sqrt{x^2}", "x"),
    ("\\binom{5}{2}", "10"), ("[invalidanswer]", "5"), ("", ""), ("\\frac{1}{3}", "0.333"), ("1000", "10^3"), ("x^{-1}", "\\frac{1}{x}"),
    ("(a+b)(a-b)", "a^2-b^2"), ("\\sqrt{50}", "5\\sqrt{2}"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"), ("2\\cdot3", "6"), ("y", "x"),
]
VERIFY = [
    ("$\\boxed{\\frac{1}{2}}$", "It is $0.5$."), ("$\\boxed{2\\sqrt{3}}$", "$\\boxed{\\sqrt{12}}$"), ("$\\boxed{5}$", "x is 5"),
    ("$\\boxed{(1,2)}$", "$(1, 2)$"), ("$\\boxed{(1,2)}$", "$(2, 1)$"), ("$\\boxed{[2,5)}$", "The final answer is $[2,5)$."), ("$\\boxed{[2,5)}$", "$(2,5)$"),
    ("$\\boxed{\\{1,2\\}}$", "$\\{2,1\\}$"), ("$\\boxed{1,2}$", "$2,1$"), ("$\\boxed{10\\%}$", "$0.1$"), ("$\\boxed{10\\%}$", "$10$"),
    ("$\\boxed{x^2+2x+1}$", "$(x+1)^2$"), ("$\\boxed{\\text{Evelyn}}$", "$\\text{Evelyn}$"), ("$\\boxed{\\text{Evelyn}}$", "$\\text{Alice}$"),
    ("$\\boxed{90^\\circ}$", "$90$"), ("$\\boxed{5\\text{ cm}}$", "$5$"), ("$\\boxed{1,000}$", "$1000$"), ("$\\boxed{2\\frac{1}{2}}$", "$2.5$"),
    ("$\\boxed{\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}}$", "$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$"),
    ("$\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}$", "$\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}$"),
    ("$\\boxed{\\frac{1}{3}}$", "$0.333333$"), ("$\\boxed{\\frac{1}{3}}$", "$0.33$"), ("$\\boxed{x=5}$", "$5$"), ("$\\boxed{\\pi}$", "$3.141593$"),
    ("$\\boxed{3}$", "First $2$, then $3$."), ("$\\boxed{3}$", "First $3$, then $2$."), ("$\\boxed{7}$", "no idea"), ("$\\boxed{7}$", ""),
    ("$\\boxed{(-\\infty,2)\\cup(3,\\infty)}$", "$(3,\\infty)\\cup(-\\infty,2)$"), ("$\\boxed{1\\pm\\sqrt{2}}$", "$1+\\sqrt{2}, 1-\\sqrt{2}$"),
    ("$\\boxed{\\$5}$", "$5$"), ("$\\boxed{y=2x+1}$", "$y=2x+1$"), ("$\\boxed{3+4i}$", "$4i+3$"), ("$\\boxed{\\frac{9}{7}}$", "$9/7$"), ("$\\boxed{-5}$", "-5"),
    ("$\\boxed{12}$", "The answer is 12 apples."), ("$\\boxed{0.25}$", "$\\frac14$"), ("$\\boxed{2}$", "\\[ \\boxed{2} \\]"), ("$\\boxed{2^{10}}$", "1024"),
    ("$\\boxed{10\\%}$", "$10\\%$"), ("$\\boxed{\\text{(A)}}$", "$\\text{A}$"), ("$\\boxed{12_8}$", "$12_8$"), ("$\\boxed{x<5}$", "$x<5$"),
    ("$\\boxed{\\sin x}$", "$\\sin{x}$"), ("$\\boxed{f(x)=2x}$", "$2x$"), ("$\\boxed{1,2,3}$", "$\\{1,2,3\\}$"), ("$\\boxed{(1,2)}$", "1,2"),
    ("$\\boxed{5}$", "$x=5$"), ("$\\boxed{\\frac{1}{2}}$", "1/2"), ("$\\boxed{\\sqrt{x}+1}$", "$1+x^{1/2}$"), ("$\\boxed{\\log 2}$", "$\\log{2}$"),
    ("$\\boxed{(3,\\frac{\\pi}{2})}$", "$\\left( 3, \\frac{\\pi}{2} \\right)$"), ("$\\boxed{2\\text{ and }3}$", "$3, 2$"),
    ("$\\boxed{\\frac{3}{4}\\text{ hours}}$", "$0.75$"), ("$\\boxed{x^3+3x^2+3x+1}$", "$(x+1)^3$"), ("$\\boxed{6-2i}$", "$-2i+6$"),
    ("$\\boxed{\\frac{14}{3}}$", "$4\\frac{2}{3}$"), ("$\\boxed{11\\sqrt2}$", "$\\sqrt{242}$"), ("$\\boxed{\\dfrac{9}{256}}$", "$\\frac{9}{256}$"),
]
SPANS = [
    ("the Nile", ["Nile"]), (" The  nile. ", ["nile", "a river"]), ("Nile river", ["the river Nile", "Nile"]), ("", []),
    ("unanswerable", []), ("no", ["the"]), ("", ["the"]), ("a b a", ["b a c"]), ("a-b c", ["ab c"]), ("12%", ["12"]),
    ("É", ["é"]), ("x\u00a0y", ["x y"]), ("an the", ["x"]), ("go go go", ["go go stop"]), ("theatre", ["the atre"]),
    ("\u201cx\u201d", ["x"]),
]
CONTAINS = [
    ("It is in PARIS, France", "Paris"), ("nothing", "Paris"), ("a+b", " a+b "), ("aab", "a+b"), ("ÉTÉ", "été"),
    ("", "x"), ("x (y)", "(Y)"), ("straße", "STRASSE"),
]
STORY = {"story": "A cat sat.", "questions": {"input_text": ["Who?", "Where?"]}}
COQA = [
    ({**STORY, "answers": {"input_text": ["A cat", "On a mat"]}}, ["the mat", " on a mat\nQ: x", ""]),
    ({**STORY, "answers": {"input_text": ["A cat", "On a mat"]}, "additional_answers": {
        "0": {"input_text": ["x", "on A MAT"]}, "1": {"input_text": ["x", "mat"]}, "2": {"input_text": ["x", "a rug"]}}},
     ["mat", "a rug on the mat", "A  Rug.", "dog"]),
    ({"story": "S", "questions": {"input_text": ["Q"]}, "answers": {"input_text": ["yes"]}, "additional_answers": None},
     ["Yes", "no"]),
]
FOLLOWED = [
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, ["a cat, a DOG", "a cat", "concatenated dogs"]),
    ("keywords:frequency", {"keyword": " cat ", "frequency": 2, "relation": "at least"}, ["cat Cat", "cat"]),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, ["cat Cat", "cat", "x"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["a Cat.", "cats", "dog", "the *cat*"]),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, ["eE", "e", "é"]),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, ["eE", "e"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\n***\nb", "a *** b *** c", "***\na\n***\nb", "a\n***\n***\nb", "a", "a***b***"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b-c", "a b", "it's"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b-c", "a b"]),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
     ["a\n\nthen, b", "a\n\n'Then b", "then\n\nb", "a", "a\n\n\n\nthen", "a\n\n \n\nthen x", "a\n\n\"then"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]", "[a]", "[a\nb] [c]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Hi\np.s. x", "Hi ps", "P. S. a", "x P.S"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Hi\nP.P.S x", "P. P. S", "p.s."]),
    ("detectable_content:postscript", {"postscript_marker": "PS: "}, ["ps: x", "p.s."]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["* a\n* b", "- a\n  - b", "* a\n** b", "* a", "x\n- a\n* b\n", "intro\n* a\n* b\n* c"]),
    ("detectable_format:constrained_response", {}, [" My answer is no. ", "My answer is No.", "x"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     ["*a* *b*", "**a**", "*a* * *", "**a** *b*", "*a*\n*b"]),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     ["Section 1\na\nSection 2\nb", "Section 1", "section 1 section 2", "Section X Section 1"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n[1]\n```', "{a: 1}", "``` 3 ```", '"x" y']),
    ("detectable_format:title", {}, ["<<a>>", "<< >>", "<a>", "x <<a\nb>>", "x <<< b >>>"]),
    ("combination:two_responses", {}, ["a******b", "a******a", "******a******b", "a******b******c", "a", "a******"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say It "}, [" say it now", "now say it", "* say it"]),
    ("startend:end_checker", {"end_phrase": "The End. "}, ["so the end.", '"The End."', "the end", "The end.\nP.S."]),
    ("startend:quotation", {}, ['"a"', ' "a" ', '"', "'a'", '"a" b', 'Here:\n"a"']),
    ("punctuation:no_comma", {}, ["a b", "a, b", "a，b"]),
]


def followed(name, kwargs, text):
    row = {"key": 1, "instruction_id_list": [name], "prompt": "", "kwargs": [kwargs]}
    found = ifeval.process_results(row, [text])
    return {"id": name, "kwargs": kwargs, "text": text,
            "followed": [found["inst_level_strict_acc"][0], found["inst_level_loose_acc"][0]]}


def lists(answers):
    return [list(one) for one in answers]


def span(squad, said, right):
    """Exact match and F1 of one question by SQuAD's script."""
    rows = [{"paragraphs": [{"qas": [{"id": "0", "answers": {"text": right}}]}]}]
    exact, f1 = squad.get_raw_scores(rows, {"0": said})
    return float(exact["0"]), float(f1["0"])


def thresholds(squad, seed):
    """Made rows (score, has an answer, is answered, probability of none) with the script's mean and best score."""
    draw = random.Random(seed)
    rows = []
    for _ in range(1 + 9 * seed):
        has, said = draw.random() < 0.6, draw.random() < 0.8
        score = draw.choice([0, 1, 0.4, 2 / 3]) if has else int(not said)
        rows.append([score, has, said, draw.choice([0.0, 1e-30, 0.25, 0.5, draw.random(), draw.random()])])
    scores = {str(at): row[0] for at, row in enumerate(rows)}
    has = {str(at): row[1] for at, row in enumerate(rows)}
    said = {str(at): "x" if row[2] else "" for at, row in enumerate(rows)}
    none = {str(at): row[3] for at, row in enumerate(rows)}
    percent = squad.make_eval_dict(scores, scores)["exact"]
    return {"rows": rows, "percent": percent, "best": squad.find_best_thresh(said, scores, none, has)[0]}


def told(row, said):
    found = coqa.process_results(row, [said])
    return {"row": row, "said": said.strip().split("\n")[0], "text": coqa.doc_to_text(row),
            "answers": coqa.doc_to_target(row), **{key: float(value) for key, value in found.items()}}


def main():
    spec = importlib.util.spec_from_file_location("squad", sys.argv[2])
    squad = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(squad)
    boxed = [(text, math.last_boxed_only_string(text)) for text in BOXED]
    rows = {
        "math_equal": [[a, b, math.is_equiv(a, b)] for a, b in EQUAL],
        "math_boxed": [[text, found and math.remove_boxed(found)] for text, found in boxed],
        "math_asked": [[text, asked(text)] for text in ASKED],
        "minerva_normal": [[text, minerva.normalize_final_answer(text)] for text in NORMAL],
        "minerva_said": [[text, minerva.get_unnormalized_answer(text)] for text in SAID],
        "minerva_exact": [[a, b, minerva.is_equiv(a, b) is True] for a, b in EXACT],
        "minerva_verify": [[a, b, verified(a, b)] for a, b in VERIFY],
        "drop_scores": [[text, golds, *scores(text, golds)] for text, golds in DROP],
        "drop_answers": [[row, lists(drop.get_answers(row))] for row in TABLE],
        "squad_scores": [[said, right, *span(squad, said, right)] for said, right in SPANS],
        "squad_contains": [[said, right, completion.contains_score(said, [right.strip()])] for said, right in CONTAINS],
        "squad_rows": [thresholds(squad, seed) for seed in range(6)],
        "coqa": [told(row, said) for row, all in COQA for said in all],
        "instructions": [followed(name, kwargs, text) for name, kwargs, texts in FOLLOWED for text in texts],
    }
    with open(sys.argv[1], "w") as file:
        file.write("{\n")
        parts = []
        for key, cases in rows.items():
            lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
        file.write(",\n".join(parts) + "\n}\n")


def asked(text):
    """The part of a text that `process_results` compares."""
    seen, equal = [], math.is_equiv
    math.is_equiv = lambda a, b: seen.append(a)
    math.process_results({"solution": "\\boxed{1}"}, [text])
    math.is_equiv = equal
    return seen[0]


def verified(solution, text):
    row = minerva.process_results({"solution": solution, "answer": ""}, [text])
    return bool(row["math_verify"])


def scores(text, golds):
    found = drop.process_results({"answers": golds}, [text])
    return float(found["em"]), float(found["f1"])


main()
