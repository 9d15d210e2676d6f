"""Writes export/eval/tests/prompts.json: what lm-evaluation-harness 0.4.13 asks about a few made rows.

    python scripts/eval_prompts.py OUT

For each task its splits, the number of examples and the arguments of the harness's requests, from the harness's
own task files: as texts, and in a small chat template with examples in one turn and in turns of their own. Needs
lm_eval==0.4.13 and no model.
"""

import json
import sys

import datasets

import eval_rows

FEW = 12
ASKED = 3


def rows():
    """A few rows for every split of every task, made here."""
    import random

    draw = random.Random(11)
    made = eval_rows.made_rows(draw, FEW)
    # One example that equals a row, and one row with spaces at its ends.
    made["baber/piqa"]["train"][0] = made["baber/piqa"]["validation"][1]
    made["tau/commonsense_qa"]["validation"][0]["question"] = "  spaces around  "
    return made


def template(messages, add_generation_prompt=True):
    """The chat template that the test has as Jinja."""
    assert add_generation_prompt
    turns = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
    return f"<|begin_of_text|>{turns}<assistant> "


def asked(task, **how):
    """The texts of all requests, row by row."""
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=ASKED, **how)
    found = {}
    for instance in task.instances:
        texts = [text for text in instance.args if isinstance(text, str)]
        found.setdefault(instance.doc_id, []).append(texts)
    return list(found.values())


def main():
    made, load = rows(), datasets.load_dataset
    splits = {}

    def local(path, name=None, **_):
        splits.update({split: datasets.Dataset.from_list(own) for split, own in made[path].items()})
        return dict(splits)

    datasets.load_dataset = local
    from lm_eval.tasks import TaskManager

    manager, cases = TaskManager(), []
    for name, shots in [
        ("arc_easy", 2), ("openbookqa", 1), ("boolq", 1), ("hellaswag", 2), ("piqa", 6), ("winogrande", 2),
        ("commonsense_qa", 10), ("truthfulqa_mc2", 0), ("triviaqa", 5), ("mmlu_formal_logic", 5), ("gsm8k", 3),
        ("lambada_openai", 0), ("wikitext", 0), ("coqa", 2), ("squadv2", 0), ("squad_completion", 0), ("drop", 2), ("minerva_math500", 4),
    ]:
        splits.clear()
        task = manager.load([name])["tasks"][name]
        task.set_config("num_fewshot", shots)
        data = made[task.config.dataset_path or task.DATASET_PATH]
        case = {"task": name, "shots": shots, "splits": data, "asked": asked(task)}
        for key, turns in [("chats", False), ("turns", True)]:
            chat = {"apply_chat_template": True, "chat_template": template, "fewshot_as_multiturn": turns}
            case[key] = asked(task, **chat)[:1]
        cases.append(case)
        print(f"{name}: {len(case['asked'])} rows")
    with open(sys.argv[1], "w") as file:
        json.dump(cases, file, ensure_ascii=False, separators=(",", ":"))


main()
