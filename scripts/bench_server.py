#!/usr/bin/env python3
"""Measures a running `bitnet serve`: decoding of 1, 4 and 8 clients, the first token of a cached prompt, the
time between tokens while a long prompt is read, and requests without work. Standard library only.

    bitnet serve --model MODEL --threads 2 & scripts/bench_server.py http://127.0.0.1:8080 --vocab V [--tokens 64]
    … --engine "bitnet bench --model MODEL --threads 2" --repeat 12

The second form takes turns with the engine alone and prints the share of its rate that clients get; it
needs many turns where the memory's rate comes and goes. Prompts are lists of fixed ids.
"""
import argparse
import http.client
import json
import shlex
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse


class Client:
    def __init__(self, base):
        self.address = urllib.parse.urlparse(base)

    def post(self, body):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse()

    def stream(self, prompt, tokens):
        """The times at which tokens came, after the time of the request. An answer asks for log-probabilities
        so that a token without text is an event too."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 0}
        start, times = time.perf_counter(), []
        reply = self.post(body)
        assert reply.status == 200, reply.read()
        for line in reply:
            if line.startswith(b"data: {") and b'"token_logprobs"' in line:
                times.append(time.perf_counter())
        return start, times


# Each run asks what no run before it has asked, so that nothing is cached.
RUN = int(time.time()) % 100_003


def ids(first, count, vocab):
    return [(RUN * 17 + first * 31 + i * 7919) % (vocab - 300) for i in range(count)]


def together(client, clients, tokens, vocab, round):
    """Tokens a second of all clients while all of them decode."""
    found = [None] * clients

    def one(index):
        found[index] = client.stream(ids(1000 * round + index, 8, vocab), tokens)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(clients)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    first = max(times[0] for _, times in found)
    last = min(times[-1] for _, times in found)
    between = sum(sum(first < at <= last for at in times) for _, times in found)
    return between / (last - first)


def engine_alone(command, clients, tokens):
    """Tokens a second of as many sequences in the engine, twice."""
    settings = f"--prompt-tokens 0 --context-tokens 8 --generate-tokens {tokens} --sequences {clients} --repeat 2"
    run = subprocess.run(shlex.split(command) + settings.split(), capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("decode_tokens_per_second_all")]
    if run.returncode or not lines:
        sys.exit(f"--engine {command}: ended with {run.returncode} and no rate\n{run.stderr}")
    return [float(word) for word in lines[0].split()[1:]]


def gaps(times):
    return [later - before for before, later in zip(times, times[1:])]


def cached_first_token(client, vocab, repeats):
    """Seconds to the first token, and how many times those of a token after it in the same answer."""
    found = []
    for repeat in range(repeats):
        prompt = ids(77 + repeat, 512, vocab)
        client.stream(prompt, 2)
        start, times = client.stream(prompt, 9)
        found.append((times[0] - start, (times[0] - start) / statistics.median(gaps(times))))
    return [statistics.median(column) for column in zip(*found)]


def beside_a_long_prompt(client, vocab, long):
    background = {}

    def decode():
        background["times"] = client.stream(ids(5, 8, vocab), 150)[1]

    thread = threading.Thread(target=decode)
    thread.start()
    time.sleep(1.5)
    start, times = client.stream(ids(999, long, vocab), 1)
    thread.join()
    all_gaps = [(at, gap) for at, gap in zip(background["times"][1:], gaps(background["times"]))]
    during = sorted(gap for at, gap in all_gaps if start < at < times[0])
    before = [gap for at, gap in all_gaps if not start < at < times[0]]
    middle, most = (during[len(during) // 2], during[int(len(during) * 0.99)]) if during else (float("nan"),) * 2
    noise = sorted(before)[int(len(before) * 0.99)]
    return statistics.median(before), noise, middle, most, times[0] - start


def health(client, seconds=3.0, connections=4):
    counts = [0] * connections

    def one(index):
        connection = http.client.HTTPConnection(client.address.hostname, client.address.port)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.request("GET", "/health")
            connection.getresponse().read()
            counts[index] += 1

    threads = [threading.Thread(target=one, args=(index,)) for index in range(connections)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return sum(counts) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8], help="how many decode at a time")
    parser.add_argument("--engine", help="the command that measures the engine alone")
    args = parser.parse_args()
    client = Client(args.base)
    client.stream(ids(3, 8, args.vocab), 4)
    result = {}
    for clients in args.clients:
        speeds, alone = [], []
        for repeat in range(args.repeat):
            if args.engine:
                alone += engine_alone(args.engine, clients, args.tokens)
            speeds.append(together(client, clients, args.tokens, args.vocab, 10 * clients + repeat))
        result[f"decode_tokens_per_second_{clients}"] = statistics.median(speeds)
        if alone:
            result[f"share_of_the_engine_{clients}"] = statistics.median(speeds) / statistics.median(alone)
    first, times = cached_first_token(client, args.vocab, args.repeat)
    result["cached_first_token_seconds"], result["cached_first_token_times"] = first, times
    undisturbed, noise, middle, most, read = beside_a_long_prompt(client, args.vocab, args.long)
    result["between_tokens_seconds"] = undisturbed
    result["between_tokens_p99_seconds"] = noise
    result["between_tokens_beside_prefill_median_seconds"] = middle
    result["between_tokens_beside_prefill_p99_seconds"] = most
    result["long_prompt_seconds"] = read
    result["health_per_second_by_this_client"] = health(client)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
