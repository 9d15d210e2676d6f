#!/usr/bin/env python3
"""Asks a running `bitnet serve` as the programs do that people use: curl, the openai package, lm-eval.

    python3 -m venv venv && venv/bin/pip install openai 'lm-eval[api]'
    bitnet serve --model MODEL --head file --bos never &
    venv/bin/python scripts/check_server.py http://127.0.0.1:8080 [--key KEY] [--bitnet PROGRAM --model MODEL]
        [--rows DIR --tasks arc_easy,hellaswag --limit N]

A package that is not installed is named and left out. With --bitnet and --model, scores of lm-eval's
client are compared with those of `bitnet score`; the server must run with `--head file --bos never`.
With --rows, whole tasks too, over the rows that scripts/eval_rows.py writes, with those of `bitnet eval`.
Ends with 1 if anything is wrong.
"""
import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading

FAILED = []


def check(name, holds, note=""):
    print(("ok    " if holds else "WRONG ") + name + (f" ({note})" if note else ""))
    if not holds:
        FAILED.append(name)


def curl(url, key, body=None, stream=False):
    command = ["curl", "-sS", "--max-time", "120", url]
    command += ["-H", f"Authorization: Bearer {key}"] if key else []
    command += ["-N"] if stream else []
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_curl(base, key):
    check("curl: /health", json.loads(curl(f"{base}/health", key)) == {"status": "ok"})
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    whole = json.loads(curl(f"{base}/v1/chat/completions", key, body))
    text = whole["choices"][0]["message"]["content"]
    lines = curl(f"{base}/v1/chat/completions", key, {**body, "stream": True}, stream=True).splitlines()
    data = [line[6:] for line in lines if line.startswith("data: ")]
    pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in data[:-1]]
    check("curl: a stream is the whole in pieces", "".join(pieces) == text and data[-1] == "[DONE]")
    metrics = curl(f"{base}/metrics", key)
    check("curl: /metrics counts requests", "bitnet_requests_total" in metrics)


def check_openai(base, key):
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key=key or "none", max_retries=0)
    model = client.models.list().data[0].id
    check("openai: model by id", client.models.retrieve(model).id == model, openai.__version__)
    ask = dict(model=model, messages=[{"role": "user", "content": "Hello there"}], temperature=0)
    whole = client.chat.completions.create(**ask, max_completion_tokens=12, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    check("openai: usage and log-probabilities", whole.usage.completion_tokens >= len(choice.logprobs.content) > 0)
    stream = client.chat.completions.create(
        **ask, max_completion_tokens=12, stream=True, stream_options={"include_usage": True})
    events = list(stream)
    said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    check("openai: a stream says the same", said == choice.message.content)
    check("openai: a stream ends with usage", events[-1].usage.total_tokens == whole.usage.total_tokens)
    several = client.chat.completions.create(
        **{**ask, "temperature": 1}, n=3, seed=7, max_tokens=10, presence_penalty=0.5,
        logit_bias={"5": -100}, stop=["zzz"], extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1})
    check("openai: several answers", len(several.choices) == 3)
    text = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=5, echo=True, logprobs=2)
    check("openai: completions of two prompts", [c.text[:3] for c in text.choices] == ["One", "Two"])
    for name, wrong, kind in [
        ("400", dict(ask, temperature=9), openai.BadRequestError),
        ("400 for what is not supported", dict(ask, modalities=["audio"]), openai.BadRequestError),
        ("404", dict(ask, model="another"), openai.NotFoundError),
    ]:
        try:
            client.chat.completions.create(**wrong)
            check(f"openai: {name}", False)
        except kind as error:
            check(f"openai: {name}", bool(error.code), error.code)
    answers = [None] * 16

    def one(index):
        made = client.chat.completions.create(
            model=model, temperature=1, seed=index, max_tokens=24,
            messages=[{"role": "user", "content": f"Tell me of {index}" * (1 + index % 5)}])
        answers[index] = made.choices[0].message.content

    def all_at_once():
        threads = [threading.Thread(target=one, args=(index,)) for index in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return list(answers)

    together = all_at_once()
    for index in range(16):
        one(index)
    check("openai: 16 clients together get what they get alone", together == answers)


def lm_eval_model(base, key):
    import os

    from lm_eval.models.openai_completions import LocalCompletionsAPI

    os.environ["OPENAI_API_KEY"] = key or "none"
    model = json.loads(curl(f"{base}/v1/models", key))["data"][0]
    return LocalCompletionsAPI(
        model=model["id"], base_url=f"{base}/v1/completions", tokenizer_backend="remote",
        max_length=model["context_length"], batch_size=4)


def check_lm_eval(base, key, program, path):
    from lm_eval.api.instance import Instance

    client = lm_eval_model(base, key)
    pairs = [("Question: where is the key?\nAnswer:", f" {word}") for word in ("in the box", "here", "at school")]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(pairs)]
    found = client.loglikelihood(requests, disable_tqdm=True)
    check("lm-eval: log-likelihoods", all(isinstance(number, float) and number < 0 for number, _ in found))
    if program and path:
        expected = [score(client, program, path, *pair) for pair in pairs]
        check("lm-eval: equal to bitnet score", found == expected, f"{found} {expected}")
    rolling = Instance(request_type="loglikelihood_rolling", doc={}, arguments=("The key is here.",), idx=0)
    check("lm-eval: rolling", client.loglikelihood_rolling([rolling], disable_tqdm=True)[0] < 0)
    until = Instance(
        request_type="generate_until", doc={}, arguments=("The key", {"until": ["."], "max_gen_toks": 8}), idx=0)
    check("lm-eval: generation", "." not in client.generate_until([until], disable_tqdm=True)[0])


def score(client, program, path, context, continuation):
    before = client.tok_encode(context)
    ids = client.tok_encode(context + continuation)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(json.dumps(ids) + "\n")
        file.flush()
        command = [program, "score", "--model", path, "--ids", file.name, "--json"]
        line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    greedy = line["argmax"][len(before) - 1:-1] == ids[len(before):]
    return sum(line["logprobs"][len(before):]), greedy


def check_tools(base, key):
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key=key or "none", max_retries=0)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
              "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": schema}}
    ask = dict(model=client.models.list().data[0].id, messages=[{"role": "user", "content": "Weather?"}],
               tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=100, seed=1)
    call = client.chat.completions.create(**ask).choices[0].message.tool_calls[0]
    check("openai: a call keeps to its schema", json.loads(call.function.arguments)["city"] in ("Rome", "Oslo"))
    pieces = [event.choices[0].delta.tool_calls for event in client.chat.completions.create(**ask, stream=True)]
    pieces = [piece[0].function.arguments or "" for piece in pieces if piece]
    check("openai: a streamed call is the same", "".join(pieces) == call.function.arguments)
    answer = client.responses.create(
        model=ask["model"], input="Weather?", tool_choice="required", max_output_tokens=100,
        tools=[{"type": "function", "name": "weather", "parameters": schema, "strict": True}])
    check("openai: responses with a call", answer.output[0].type == "function_call")


def check_anthropic(base, key):
    import anthropic

    client = anthropic.Anthropic(base_url=base, api_key=key or "none", max_retries=0)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
              "additionalProperties": False}
    model = json.loads(curl(f"{base}/v1/models", key))["data"][0]["id"]
    ask = dict(model=model, max_tokens=100, messages=[{"role": "user", "content": "Weather?"}],
               extra_body={"temperature": 0}, tools=[{"name": "weather", "input_schema": schema}],
               tool_choice={"type": "any", "disable_parallel_tool_use": True})
    whole = client.messages.create(**ask)
    check("anthropic: a call keeps to its schema", whole.content[0].input["city"] in ("Rome", "Oslo"), anthropic.__version__)
    with client.messages.stream(**ask) as stream:
        last = stream.get_final_message()
    check("anthropic: a streamed call is the same", last.content[0].input == whole.content[0].input)
    result = {"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "rain"}
    turns = [*ask["messages"], {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**{**ask, "messages": turns, "tool_choice": {"type": "none"}})
    check("anthropic: the result is answered", after.content[0].type == "text")


def check_tasks(base, key, args):
    """Whole tasks of the harness, through the server and by `bitnet eval`."""
    import lm_eval
    from check_eval import TASKS, compare, local_data, run_bitnet

    names = args.tasks.split(",")
    results, samples, _ = run_bitnet(argparse.Namespace(
        bitnet=args.bitnet, packed=args.model, rows=args.rows, limit=args.limit, bos="never"), names)
    local_data(args.rows)
    for name in names:
        theirs = lm_eval.simple_evaluate(
            model=lm_eval_model(base, key), tasks=[name], num_fewshot=TASKS[name][0], limit=args.limit, log_samples=True)
        found, other = compare(theirs["samples"][name], samples[name]), theirs["results"][name]
        same = all(results[name][metric] == other[metric] for metric in other if metric.startswith(("acc", "exact")))
        note = f"{found['rows']} rows, largest difference of a log-likelihood {found['largest']:.1e}"
        check(f"lm-eval: {name} as bitnet eval", same and found["prompts"] and not found["texts"], note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--key", default="")
    parser.add_argument("--bitnet")
    parser.add_argument("--model")
    parser.add_argument("--rows")
    parser.add_argument("--tasks", default="arc_easy,boolq,gsm8k")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    base = args.base.rstrip("/")
    check_curl(base, args.key)
    for package, run in [
        ("openai", lambda: check_openai(base, args.key)),
        ("openai", lambda: check_tools(base, args.key)),
        ("anthropic", lambda: check_anthropic(base, args.key)),
        ("lm_eval", lambda: check_lm_eval(base, args.key, args.bitnet, args.model)),
    ]:
        if importlib.util.find_spec(package):
            run()
        else:
            print(f"left out: {package} is not installed")
    if args.rows and importlib.util.find_spec("lm_eval"):
        check_tasks(base, args.key, args)
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
