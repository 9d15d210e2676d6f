"""Compares `bitnet eval` with lm-evaluation-harness over transformers: same model, same rows.

    python scripts/check_eval.py --bitnet PROGRAM --packed FOLDER --hf FOLDER --rows DIR [--tasks a,b] [--limit N]

With --server URL the harness asks a running `bitnet serve --head file` instead (needs lm_eval[api]), with the
tokenizer of --hf in transformers, or without --hf with the server's. --chat asks in the chat template, --turns with
examples as turns of their own; over the server that needs --hf.
FOLDER is one model as `bitnet-train export` writes it, --packed as hf-packed and --hf as hf-bf16 (or both the
same); DIR is what scripts/eval_rows.py writes. The harness reads its own task files; only its data lie here
and not on the hub. transformers computes in f32. Needs lm_eval==0.4.13, torch and transformers 5.

Prints a table: task, rows, whether every prompt is the same text, the largest difference of a log-likelihood,
values beyond 1e-3, rows with another choice whose two best lie further apart than that, both scores and the
largest difference of a score or its error. With --prove N a second table follows: of the values beyond 1e-3 the N
largest of each task, and whether each is a level flip (scripts/level_flips.py says how that is shown); --proofs
names a file for all of them. Ends with 1 if a prompt, a choice, a value or a generated text differs without such
a reason.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# Task: examples, and which rows there are ("real", or "made" in the set's schema).
TASKS = {
    "arc_easy": (0, "real"),
    "arc_challenge": (0, "real"),
    "openbookqa": (0, "real"),
    "boolq": (0, "real"),
    "hellaswag": (0, "real"),
    "piqa": (0, "real"),
    "winogrande": (0, "real"),
    "commonsense_qa": (10, "real"),
    "lambada_openai": (0, "real"),
    "wikitext": (0, "real text"),
    "gsm8k": (2, "real"),
    "triviaqa": (5, "made"),
    "truthfulqa_mc2": (0, "made"),
    "mmlu_anatomy": (5, "made"),
    "mmlu_astronomy": (5, "made"),
    "mmlu_formal_logic": (5, "made"),
    "mmlu_marketing": (5, "made"),
    "mmlu_sociology": (5, "made"),
    "squadv2": (0, "made"),
    "squad_completion": (0, "made"),
    "coqa": (0, "made"),
    "drop": (0, "made"),
}
NEAR = 1e-3
FLIP = 2e-2
# A value within this many standard errors of the mean is chance; rounding alone does no more than this.
SPREADS = 4
ROUNDING = 1e-4
TOSSES = 12


def local_data(rows):
    """Datasets from files; the harness asks `datasets` for them by name."""
    import datasets

    load = datasets.load_dataset

    def local(path, name=None, **_):
        folder = Path(rows) / path / (name or "")
        folder = folder if folder.is_dir() else Path(rows) / path
        files = {file.stem: str(file) for file in sorted(folder.glob("*.jsonl"))}
        # The harness opens the training split even where it takes no example from it.
        files.setdefault("train", next(iter(files.values())))
        return load("json", data_files=files)

    datasets.load_dataset = local


def clocks():
    """Seconds, and seconds of CPU of this process and of those that it waited for."""
    spent = os.times()
    return time.time(), spent.user + spent.system + spent.children_user + spent.children_system


def since(start):
    return tuple(now - then for now, then in zip(clocks(), start))


def load_model(path, dtype):
    """The model in f32, or as it is used for timing in bf16."""
    if dtype == "bf16":
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    from transformers_floats import in_floats

    return in_floats(path)


def over_transformers(args):
    # The quantisers of transformers would be compiled for every new shape.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    return HFLM(pretrained=load_model(args.hf, args.dtype), tokenizer=tokenizer, batch_size=args.batch)


def over_server(args):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    os.environ.setdefault("OPENAI_API_KEY", "none")
    with urllib.request.urlopen(f"{args.server}/v1/models") as answer:
        served = json.load(answer)["data"][0]
    own = {"tokenizer_backend": "remote"}
    if args.hf:
        from transformers import AutoTokenizer

        # As over transformers: the token that begins a document, once.
        bos = "bos_token" not in AutoTokenizer.from_pretrained(args.hf).chat_template if args.chat else True
        own = {"tokenizer_backend": "huggingface", "tokenizer": args.hf, "add_bos_token": bos}
    return LocalCompletionsAPI(model=served["id"], base_url=f"{args.server}/v1/completions", batch_size=args.batch,
                               max_length=served["context_length"], **own)


def run_harness(args, names):
    """Results and samples of all tasks, and the seconds they took."""
    local_data(args.rows)
    from lm_eval import simple_evaluate

    model = over_server(args) if args.server else over_transformers(args)
    found, start = {"results": {}, "samples": {}}, clocks()
    for shots in sorted({TASKS[name][0] for name in names}):
        own = [name for name in names if TASKS[name][0] == shots]
        part = simple_evaluate(model=model, tasks=own, num_fewshot=shots, limit=args.limit, log_samples=True,
                               apply_chat_template=args.chat, fewshot_as_multiturn=args.turns)
        for key in found:
            found[key].update(part[key])
    return found, since(start)


def kept_harness(args, names):
    if args.keep and Path(args.keep).exists():
        with open(args.keep, "rb") as file:
            return pickle.load(file)
    found = run_harness(args, names)
    if args.keep:
        with open(args.keep, "wb") as file:
            pickle.dump(found, file)
    return found


def run_bitnet(args, names):
    results, samples, start = {}, {}, clocks()
    for name in names:
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as log:
            command = [args.bitnet, "eval", args.packed, "--tasks", name, "--data", args.rows, "--json",
                       "--num-fewshot", str(TASKS[name][0]), "--log-samples", log.name]
            command += ["--limit", str(args.limit)] if args.limit else []
            command += ["--bos", args.bos]
            command += ["--apply-chat-template"] if args.chat else []
            command += ["--fewshot-as-multiturn"] if args.turns else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr}")
            results[name] = json.loads(done.stdout)["results"][name]
            samples[name] = [json.loads(line) for line in open(log.name)]
    return results, samples, since(start)


def logs_of(theirs):
    """Log-likelihoods of a sample of the harness: pairs, or one number for a whole text."""
    first = [resps[0] for resps in theirs["resps"]]
    return [float(it[0]) if isinstance(it, (tuple, list)) else float(it) for it in first]


def texts_of(arguments):
    """The texts that were asked with, without the settings of generation."""
    return [[text for text in one if isinstance(text, str)] for one in arguments]


def without_bos(arguments):
    """Without the token that begins a document, which a template may leave to the tokenizer."""
    return [[re.sub(r"\A(<\|begin_of_text\|>|<s>)", "", one[0]), *one[1:]] for one in texts_of(arguments)]


def best_two(values):
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return order[0], values[order[0]] - values[order[1]] if len(values) > 1 else float("inf")


def compare(theirs, ours):
    """Differences over the rows of one task."""
    found = {"rows": 0, "prompts": True, "largest": 0.0, "far": [], "values": 0, "choices": [], "texts": []}
    own = {(sample["doc_id"], sample["filter"]): sample for sample in ours}
    for sample in theirs:
        mine = own[sample["doc_id"], sample["filter"]]
        found["rows"] += 1
        arguments = [list(one) if isinstance(one, (list, tuple)) else [one] for one in sample["arguments"]]
        found["prompts"] &= texts_of(arguments) in (texts_of(mine["arguments"]), without_bos(mine["arguments"]))
        if isinstance(sample["resps"][0][0], str):
            if sample["resps"][0][0] != mine["resps"][0]:
                found["texts"].append((sample["doc_id"], arguments[0][0], sample["resps"][0][0], mine["resps"][0]))
            continue
        a, b = logs_of(sample), [it[0] if isinstance(it, list) else it for it in mine["resps"]]
        gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
        found["largest"] = max(found["largest"], *gaps)
        found["values"] += len(gaps)
        far = [at for at, gap in enumerate(gaps) if gap > NEAR]
        found["far"] += [(sample["doc_id"], at, texts_of(arguments)[at], a[at], b[at]) for at in far]
        (best, lead), (mine_best, _) = best_two(a), best_two(b)
        if best != mine_best and lead > (FLIP if max(gaps) > NEAR else NEAR):
            found["choices"].append(sample["doc_id"])
    return found


def token_requests(lm, texts):
    """Pairs of token ids as the harness makes them of a context with a continuation, or of a whole text."""
    if len(texts) == 1:
        from lm_eval import utils

        ids, most = lm.tok_encode(texts[0]), lm.max_length
        windows = utils.get_rolling_token_windows(ids, lm.prefix_token_id, max_seq_len=most, context_len=1)
        return [utils.make_disjoint_window(window) for window in windows]
    if not texts[0]:
        return [([lm.prefix_token_id], lm.tok_encode(texts[1], add_special_tokens=False))]
    return [lm._encode_pair(*texts)]


class Proofs:
    """Which differences are level flips."""

    def __init__(self, args):
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        import torch
        from level_flips import LevelFlips
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        torch.set_num_threads(args.threads)
        self.flips, self.most = LevelFlips(args.hf, TOSSES), args.prove
        self.lm = HFLM(pretrained=self.flips.floats, tokenizer=AutoTokenizer.from_pretrained(args.hf))
        self.file = open(args.proofs, "w") if args.proofs else None
        print("\n| task | shown, of | f32 with the levels of f64 | near ties | (ours - mean) / spread, squares | theirs |")
        print("|---|---|---|---|---|---|", flush=True)

    def show(self, name, far):
        """One line about the largest differences of a task; how many are no level flip."""
        far = sorted(far, key=lambda it: -abs(it[3] - it[4]))[: self.most]
        all = []
        for doc, at, texts, theirs, ours in far:
            found = self.flips.of(token_requests(self.lm, texts))
            away = [(value - found["mean"]) / max(found["spread"], 1e-9) for value in (ours, theirs)]
            within = abs(away[0]) <= SPREADS and abs(found["replayed"] - found["exact"]) <= ROUNDING
            shown = within and abs(theirs - ours) <= FLIP
            all.append({"task": name, "row": doc, "choice": at, "ours": ours, "theirs": theirs, **found,
                        "away": away, "shown": shown})
            if self.file:
                print(json.dumps(all[-1]), file=self.file, flush=True)
        if all:
            moved = max(abs(it["replayed"] - it["exact"]) for it in all)
            squares = [sum(it["away"][i] ** 2 for it in all) / len(all) for i in range(2)]
            ties = sorted(it["ties"] for it in all)
            shown = sum(it["shown"] for it in all)
            print(f"| {name} | {shown} of {len(all)} | within {moved:.1e} | {ties[0]} to {ties[-1]} | "
                  f"{squares[0]:.2f} | {squares[1]:.2f} |", flush=True)
        return sum(not it["shown"] for it in all)

    def text(self, name, doc, prompt, theirs, ours):
        """Whether two texts part after tokens of which two were almost equally likely."""
        prompt, tokenizer = self.lm.tok_encode(prompt), self.lm.tokenizer
        least = self.flips.least_lead(prompt, ours, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        print(f"{name}, row {doc}: two tokens lie {least:.1e} apart before the texts part", flush=True)
        return least <= FLIP


def prove(args, compared):
    """The second table; whether all that it asks about is a level flip."""
    proofs, good = Proofs(args), True
    for name, found in compared.items():
        good &= proofs.show(name, found["far"]) == 0
    for name, found in compared.items():
        for text in {doc: (doc, *rest) for doc, *rest in found["texts"]}.values():
            good &= proofs.text(name, *text)
    return good


def main():
    parser = argparse.ArgumentParser()
    for flag in ["--bitnet", "--packed", "--rows"]:
        parser.add_argument(flag, required=True)
    parser.add_argument("--hf", help="folder that transformers opens")
    parser.add_argument("--server", metavar="URL", help="instead: a running `bitnet serve --head file` of --packed")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--bos", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--chat", action="store_true", help="ask in the chat template")
    parser.add_argument("--turns", action="store_true", help="with --chat: examples as turns of their own")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 for timing only")
    parser.add_argument("--keep", help="file of the harness's results: written, or read if it is there")
    parser.add_argument("--prove", type=int, default=0, metavar="N", help="show level flips for N values of each task")
    parser.add_argument("--proofs", help="file for what was found about each of them")
    args = parser.parse_args()
    names = args.tasks.split(",")
    if not args.server and not args.hf or args.server and args.prove:
        parser.error("expected --hf, or --server without --prove")
    if args.bitnet == "none":
        kept_harness(args, names)
        return
    results, samples, ours_seconds = run_bitnet(args, names)
    theirs, seconds = kept_harness(args, names)
    print("| task | rows | prompts | largest Δ log-likelihood | beyond 1e-3 | other choice | score here, there |")
    print("|---|---|---|---|---|---|---|")
    wrong, compared = False, {}
    for name in names:
        found = compared[name] = compare(theirs["samples"][name], samples[name])
        other = theirs["results"][name]
        keys = [key for key in other if "," in key and isinstance(other[key], float)]
        apart = max(abs(other[key] - results[name][key]) for key in keys)
        shown = ", ".join(f"{key.split(',')[0]} {results[name][key]:.4f} {other[key]:.4f}"
                          for key in keys if "_stderr" not in key)
        kind = f"{found['rows']} {TASKS[name][1]}"
        if found["values"]:
            logs = f"{found['largest']:.1e} | {len(found['far'])} of {found['values']} | {len(found['choices'])}"
        else:
            logs = f"texts: {len(found['texts'])} differ | – | –"
        same = "same" if found["prompts"] else "DIFFER"
        print(f"| {name} | {kind} | {same} | {logs} | {shown} (scores and errors within {apart:.1e}) |", flush=True)
        if found["choices"] or found["texts"]:
            rows = found["choices"] + [doc for doc, *_ in found["texts"]]
            print(f"{name}: rows {rows}", file=sys.stderr)
        wrong |= not found["prompts"] or bool(found["choices"])
    over = "the server" if args.server else "transformers"
    print(f"\nharness over {over} {seconds[0]:.1f} s, {seconds[1]:.1f} s of CPU; "
          f"bitnet eval {ours_seconds[0]:.1f} s, {ours_seconds[1]:.1f} s of CPU (starting included)")
    if args.prove:
        wrong |= not prove(args, compared)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
