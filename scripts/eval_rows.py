"""Rows for scripts/check_eval.py, in the datasets' own schemas and under their names on the hub.

    python scripts/eval_rows.py REQUESTS OUT

Real rows are read back from requests (`context`, `choices`, `gold`) in REQUESTS, a folder with one .jsonl a
set. Where no set is at hand (MMLU, TriviaQA, TruthfulQA, DROP, SQuAD, CoQA, MATH-500, training splits for few-shot
examples), rows are made here, and where fewer than ROWS rows of a set are at hand, the rest: the same at every run,
without meaning. Made texts of a set at hand are as long as its own; those of others have the median and the spread
that is written beside each.
"""

import json
import random
import re
import sys
from pathlib import Path

# Rows of each evaluated split, and those that examples are drawn from.
ROWS = 200
SHOTS = 60
# Words: the median, the spread of the logarithm, the fewest and the most. Questions are short with a long tail, and
# the choices of one question are about as long as each other.
MMLU_WORDS = (25, 0.9, 4, 250)
MMLU_CHOICE = (5, 0.8, 1, 40)
PASSAGE = (110, 0.4, 30, 300)
QUESTION = (11, 0.3, 4, 30)


def read(folder, name):
    with open(folder / f"{name}.jsonl") as lines:
        return [json.loads(line) for line in lines]


def write(out, name, rows):
    path = out / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


def question(row):
    return row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")


def labelled(row):
    texts = [choice[1:] for choice in row["choices"]]
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    return {"choices": {"text": texts, "label": labels}, "answerKey": labels[row["gold"]]}


def arc(row):
    return {"id": row["id"], "question": question(row), **labelled(row)}


def openbook(row):
    return {"id": row["id"], "question_stem": question(row), **labelled(row)}


def boolq(row):
    passage, rest = row["context"].split("\nQuestion: ")
    yes = [choice.strip() for choice in row["choices"]].index("yes")
    return {"passage": passage, "question": rest.removesuffix("?\nAnswer:"), "label": int(row["gold"] == yes)}


def piqa(row):
    goal = row["context"].removeprefix("Goal: ").removesuffix("\nAnswer:")
    first, second = (choice[1:] for choice in row["choices"])
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def hellaswag(row):
    label, _, context = row["context"].partition(": ")
    # The second half begins anew, so that what the harness does to it is seen.
    first, _, second = context.partition(". ")
    first, second = (first + ".", second) if second else (context, "")
    endings = [choice[1:] for choice in row["choices"]]
    return {"activity_label": label, "ctx_a": first, "ctx_b": second, "endings": endings, "label": str(row["gold"])}


def winogrande(row):
    a, b = row["contexts"]
    at = next(i for i, (x, y) in enumerate(zip(a + "\0", b + "\1")) if x != y)
    at = a.rfind(" ", 0, at) + 1
    sentence = f"{a[:at]}_{row['continuation']}"
    return {"sentence": sentence, "option1": a[at:], "option2": b[at:], "answer": str(row["gold"] + 1)}


def words(draw, low, high):
    vocabulary = """energy of the model and which most likely state that city river law when heat is in a cell
        market price war theory because light number set function group people water plant during first from"""
    return " ".join(draw.choices(vocabulary.split(), k=draw.randint(low, high)))


def length(draw, median, spread, low, high):
    return min(max(round(median * draw.lognormvariate(0, spread)), low), high)


def said(draw, *lengths):
    """As many words as a text of such a set has."""
    count = length(draw, *lengths)
    return words(draw, count, count)


def like(draw, texts):
    """A made text as long as one of these."""
    count = len(draw.choice(texts).split())
    return words(draw, count, count)


def filled(rows, one):
    """The rows that are at hand, and made ones up to ROWS."""
    return rows + [one(rows) for _ in range(ROWS - len(rows))]


def mmlu(draw):
    text = said(draw, *MMLU_WORDS).capitalize() + "?"
    typical = length(draw, *MMLU_CHOICE)
    choices = [said(draw, typical, 0.3, *MMLU_CHOICE[2:]) for _ in range(4)]
    return {"question": text, "choices": choices, "answer": draw.randrange(4)}


def trivia(draw):
    names = [words(draw, 1, 3) for _ in range(3)]
    return {"question": words(draw, 6, 20).capitalize(), "answer": {"aliases": names, "value": names[0]}}


def truthful(draw):
    count = draw.randint(4, 9)
    right = draw.randint(1, count - 1)
    choices = [words(draw, 4, 14).capitalize() + "." for _ in range(count)]
    targets = {"choices": choices, "labels": [int(i < right) for i in range(count)]}
    return {"question": words(draw, 6, 16).capitalize() + "?", "mc1_targets": targets, "mc2_targets": targets}


def lettered(draw, count):
    texts = [words(draw, 1, 6) for _ in range(count)]
    labels = [chr(ord("A") + i) for i in range(count)]
    return {"choices": {"text": texts, "label": labels}, "answerKey": draw.choice(labels)}


def squad(draw, name):
    """A question about a passage; a third has no answer."""
    passage = said(draw, *PASSAGE)
    answer = [] if draw.random() < 1 / 3 else [" ".join(passage.split()[3:5])]
    return {"id": name, "title": words(draw, 1, 3).title(), "context": passage,
            "question": said(draw, *QUESTION).capitalize() + "?",
            "answers": {"text": answer, "answer_start": [0] * len(answer)}}


def completion(draw, _=None):
    """A text that ends before a word of it."""
    text = said(draw, *PASSAGE)
    return {"doc_id": "0", "title": "", "text": f" {text} ", "value": f" {text.split()[3]} "}


def coqa(draw, name):
    """A story, questions and the answers of four people to each."""
    count = draw.randint(1, 6)
    def answers():
        return {"input_text": [words(draw, 1, 4) for _ in range(count)]}
    questions = {"input_text": [said(draw, *QUESTION).capitalize() + "?" for _ in range(count)]}
    more = {str(who): answers() for who in range(3)}
    return {"id": name, "story": said(draw, *PASSAGE), "questions": questions, "answers": answers(),
            "additional_answers": more}


def drop(draw, name):
    answer = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    answer["number" if draw.random() < 0.6 else "spans"] = str(draw.randint(1, 90))
    if answer["spans"]:
        answer["spans"] = [words(draw, 1, 3)]
    validated = {"number": [], "date": [], "spans": []}
    return {"query_id": name, "passage": said(draw, *PASSAGE), "question": said(draw, *QUESTION).capitalize() + "?",
            "answer": answer, "validated_answers": validated}


def math(draw, name):
    value = draw.choice([str(draw.randint(2, 99)), f"\\frac{{{draw.randint(1, 9)}}}{{7}}", "2\\sqrt{3}"])
    return {"unique_id": name, "problem": said(draw, *MMLU_WORDS).capitalize() + ".", "answer": value,
            "solution": f"{said(draw, *MMLU_WORDS)} $\\boxed{{{value}}}$."}


def named(draw, one, count):
    return [one(draw, str(at)) for at in range(count)]


def made_rows(draw, count):
    """Rows of every set and split that the tasks read."""
    def rows(one, *splits):
        return {split: [one() for _ in range(count)] for split in splits}
    def asked():
        return words(draw, 5, 12).capitalize() + "?"
    def blank():
        a, b = words(draw, 1, 1), words(draw, 1, 2)
        text = f"{words(draw, 3, 6)} _ {words(draw, 2, 5)}. "
        return {"sentence": text, "option1": a, "option2": b, "answer": draw.choice("12")}
    def scene():
        endings = [words(draw, 3, 9) + " [title]  x [step] y" for _ in range(4)]
        return {"activity_label": "Trimming", "ctx_a": asked(), "ctx_b": "he WALKS  on", "endings": endings,
                "label": draw.choice("0123")}
    made = {
        "allenai/ai2_arc": rows(lambda: {"question": asked(), **lettered(draw, 4)}, "train", "validation", "test"),
        "allenai/openbookqa": rows(lambda: {"question_stem": asked(), **lettered(draw, 4)}, "train", "validation", "test"),
        "aps/super_glue": rows(lambda: {"passage": words(draw, 9, 30), "question": words(draw, 4, 9),
                                        "label": draw.randrange(2)}, "train", "validation"),
        "Rowan/hellaswag": rows(scene, "train", "validation"),
        "baber/piqa": rows(lambda: {"goal": asked(), "sol1": words(draw, 3, 9), "sol2": words(draw, 3, 9),
                                    "label": draw.randrange(2)}, "train", "validation"),
        "allenai/winogrande": rows(blank, "train", "validation"),
        "tau/commonsense_qa": rows(lambda: {"question": asked(), **lettered(draw, 5)}, "train", "validation"),
        "truthfulqa/truthful_qa": rows(lambda: truthful(draw), "validation"),
        "mandarjoshi/trivia_qa": rows(lambda: trivia(draw), "train", "validation"),
        "cais/mmlu": rows(lambda: mmlu(draw), "dev", "test"),
        "openai/gsm8k": rows(lambda: {"question": asked(), "answer": words(draw, 5, 20) + "\n#### 12"}, "train", "test"),
        "EleutherAI/lambada_openai": rows(lambda: {"text": words(draw, 8, 30)}, "test"),
        "EleutherAI/wikitext_document_level": rows(
            lambda: {"page": f" = Title = \n {words(draw, 9, 30)} @-@ x , ( y ) \n"}, "train", "validation", "test"),
    }
    for name, one, splits in [
        ("lighteval/squad_v2", squad, ["train", "validation"]), ("hazyresearch/based-squad", completion, ["validation"]),
        ("EleutherAI/coqa", coqa, ["train", "validation"]), ("EleutherAI/drop", drop, ["train", "validation"]),
        ("HuggingFaceH4/MATH-500", math, ["test"]),
    ]:
        made[name] = {split: named(draw, one, count) for split in splits}
    return made


def wiki(rows):
    """Pages as the set has them: apart from punctuation, with marks for the joined one."""
    def apart(text):
        text = re.sub(r"([.,;:?!()\"])", r" \1 ", text)
        return re.sub(r"(\w)-(\w)", r"\1 @-@ \2", text)
    passages = list(dict.fromkeys(boolq(row)["passage"] for row in rows))
    return [{"page": f" = {apart(text.split(' -- ')[0])} = \n \n {apart(text)} \n"} for text in passages]


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    draw = random.Random(5)
    for name, folder in [("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")]:
        write(out, f"allenai/ai2_arc/{folder}/test", [arc(row) for row in read(source, name)])
    write(out, "allenai/openbookqa/main/test", [openbook(row) for row in read(source, "openbookqa")])
    passages = [boolq(row) for row in read(source, "boolq")]
    def asked(rows):
        texts = {key: like(draw, [row[key] for row in rows]) for key in ["passage", "question"]}
        return {**texts, "label": draw.randrange(2)}
    write(out, "aps/super_glue/boolq/validation", filled(passages, asked))
    write(out, "baber/piqa/validation", [piqa(row) for row in read(source, "piqa")])
    write(out, "Rowan/hellaswag/validation", [hellaswag(row) for row in read(source, "hellaswag")])
    rows = [winogrande(row) for row in read(source, "winogrande")]
    write(out, "allenai/winogrande/winogrande_xl/validation", rows)
    rows = [{"question": question(row), **labelled(row)} for row in read(source, "commonsenseqa")]
    write(out, "tau/commonsense_qa/validation", rows)
    asked = [row["question"] for row in rows]
    rows = [{"question": like(draw, asked), **lettered(draw, 5)} for _ in range(SHOTS)]
    write(out, "tau/commonsense_qa/train", rows)
    rows = [{"text": row["context"] + row["target"]} for row in read(source, "lambada")]
    write(out, "EleutherAI/lambada_openai/default/test", rows)
    rows = [{"question": row["question"], "answer": row["answer"]} for row in read(source, "gsm8k")]
    def sum_of(rows):
        steps = like(draw, [row["answer"] for row in rows])
        return {"question": like(draw, [row["question"] for row in rows]), "answer": f"{steps}\n#### {draw.randint(1, 999)}"}
    write(out, "openai/gsm8k/main/test", filled(rows, sum_of))
    write(out, "openai/gsm8k/main/train", [sum_of(rows) for _ in range(SHOTS)])
    pages = wiki(read(source, "boolq"))
    def page(rows):
        return {"page": f" = Title = \n \n {like(draw, [row['page'] for row in rows])} . \n"}
    write(out, "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test", filled(pages, page))
    for subject in ["anatomy", "astronomy", "formal_logic", "marketing", "sociology"]:
        write(out, f"cais/mmlu/{subject}/test", [mmlu(draw) for _ in range(ROWS)])
        write(out, f"cais/mmlu/{subject}/dev", [mmlu(draw) for _ in range(5)])
    write(out, "mandarjoshi/trivia_qa/rc.nocontext/validation", [trivia(draw) for _ in range(ROWS)])
    write(out, "mandarjoshi/trivia_qa/rc.nocontext/train", [trivia(draw) for _ in range(SHOTS)])
    write(out, "truthfulqa/truthful_qa/multiple_choice/validation", [truthful(draw) for _ in range(ROWS)])
    for name, one, split, train in [
        ("lighteval/squad_v2", squad, "validation", True), ("hazyresearch/based-squad/default", completion, "validation", False),
        ("EleutherAI/coqa", coqa, "validation", True), ("EleutherAI/drop", drop, "validation", True),
        ("HuggingFaceH4/MATH-500/default", math, "test", False),
    ]:
        write(out, f"{name}/{split}", named(draw, one, ROWS))
        if train:
            write(out, f"{name}/train", named(draw, one, SHOTS))


if __name__ == "__main__":
    main()
