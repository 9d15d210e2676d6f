#!/usr/bin/env python3
"""Mixed load on a running `bitnet serve`, and what becomes of its memory. Standard library only.

    bitnet serve --model MODEL --max-memory 400000000 & \\
        scripts/load_server.py http://127.0.0.1:8080 --pid $! --minutes 60 [--clients 8] [--pause 0.05]

Each client goes on asking, one kind after the other at random: chats whole and streamed, several answers, JSON
of a schema, scored prompts, Anthropic's form, wrong bodies, and hang-ups in the middle of a stream. Every
minute it prints the resident memory and what was answered. Ends with 1 after an answer of 500 or more, an
answer that is not what was asked for, or if memory at the end is over that of the first fifth by 5 %.
"""
import argparse
import collections
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
          "required": ["a", "b"], "additionalProperties": False}
WORDS = "the box is red and where was a small cat who took it to her friend".split()


def says(randomly, count):
    return " ".join(randomly.choice(WORDS) for _ in range(count))


class Client(threading.Thread):
    def __init__(self, number, args, counts):
        super().__init__(daemon=True)
        self.random, self.args, self.counts = random.Random(number), args, counts
        self.address = urllib.parse.urlparse(args.base)

    def ask(self, path, body, expected=200):
        """The answer, or nothing where there was none of this status."""
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=300)
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", path, text, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        self.counts[reply.status] += 1
        if reply.status == 429:
            time.sleep(0.5)
            return None
        if reply.status != expected:
            self.counts["not expected"] += 1
            print(path, text[:200], reply.status, data[:300], file=sys.stderr)
            return None
        return data

    def chat(self, **more):
        message = {"role": "user", "content": says(self.random, self.random.randint(1, 60))}
        return {"messages": [message], "max_tokens": self.random.randint(1, 40), **more}

    def whole(self):
        self.ask("/v1/chat/completions", self.chat(temperature=0.8, seed=self.random.randint(0, 99)))

    def streamed(self):
        data = self.ask("/v1/chat/completions", self.chat(stream=True))
        if data is not None and not data.rstrip().endswith(b"data: [DONE]"):
            self.counts["broken stream"] += 1

    def several(self):
        data = self.ask("/v1/chat/completions", self.chat(n=3))
        if data is not None and len(json.loads(data)["choices"]) != 3:
            self.counts["wrong count"] += 1

    def schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        data = self.ask("/v1/chat/completions", self.chat(response_format=form))
        choice = json.loads(data)["choices"][0] if data is not None else {"finish_reason": "length"}
        if choice["finish_reason"] == "stop" and set(json.loads(choice["message"]["content"])) != {"a", "b"}:
            self.counts["wrong object"] += 1

    def scored(self):
        self.ask("/v1/completions", {"prompt": [says(self.random, 30), says(self.random, 5)], "max_tokens": 0,
                                     "echo": True, "logprobs": 2})

    def anthropic(self):
        self.ask("/v1/messages", self.chat())

    def wrong(self):
        bodies = ["{", "[]", json.dumps(self.chat(temperature=-1)), json.dumps({"messages": []}), "\x00"]
        self.ask("/v1/chat/completions", self.random.choice(bodies), expected=400)

    def hang_up(self):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=300)
        body = json.dumps(self.chat(stream=True))
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        self.counts["hung up"] += 1
        if reply.status == 200:
            reply.read(10)
        connection.close()

    def run(self):
        kinds = [self.whole, self.streamed, self.several, self.schema, self.scored, self.anthropic, self.wrong,
                 self.hang_up]
        while True:
            self.random.choice(kinds)()
            time.sleep(self.random.uniform(0, 2 * self.args.pause))


def resident(pid):
    try:
        lines = open(f"/proc/{pid}/status").read().splitlines()
    except FileNotFoundError:
        sys.exit(f"--pid {pid}: no such process; expected that of bitnet serve")
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.05, help="mean seconds between questions of a client")
    args = parser.parse_args()
    resident(args.pid)
    counts, memory, end = collections.Counter(), [], time.time() + 60 * args.minutes
    for number in range(args.clients):
        Client(number, args, counts).start()
    while time.time() < end:
        time.sleep(min(60, max(0.0, end - time.time())))
        memory.append(resident(args.pid))
        print(f"{len(memory):4} min  {memory[-1]:8.1f} MB  {dict(counts)}", flush=True)
    first = max(memory[: max(1, len(memory) // 5)])
    bad = sum(count for kind, count in counts.items() if not (kind in (200, 400, 429) or kind == "hung up"))
    grown = memory[-1] / first - 1
    print(f"memory at the end: {100 * grown:+.1f} % of the largest of the first fifth; {bad} wrong answers")
    sys.exit(1 if bad or grown > 0.05 else 0)


if __name__ == "__main__":
    main()
