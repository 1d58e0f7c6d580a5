"""Against a real server on this machine that misbehaves in every way it can."""

import gzip
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from whet.errors import InputError, OptionError
from whet.evaluate.endpoint import MAX_BODY, EndpointModel
from whet.evaluate.model import GenerationRequest, LikelihoodRequest

KEY = "sk-very-secret-0123456789"


class Server:
    """Answers the n-th request with `behave(n, payload, handler)`; keeps what was asked."""

    def __init__(self, behave):
        self.asked, self.headers, self.running, self.most = [], [], 0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer.lock:
                    number = len(outer.asked)
                    outer.asked.append(payload)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                try:
                    behave(number, payload, self)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with outer.lock:
                        outer.running -= 1

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    started = []

    def start(behave):
        started.append(Server(behave))
        return started[-1]

    yield start
    for server in started:
        server.close()


def send(handler, body, status=200, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def chat(text, finish="stop", **more):
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], **more}


def echo(number, payload, handler):
    send(handler, chat(payload["messages"][0]["content"].upper()))


def model(server, **settings):
    given = {"api_key": KEY, "retries": 2, "backoff": 0.0, "timeout": 5.0} | settings
    return EndpointModel(server.url, "m", **given)


def ask(endpoint, *prompts, **settings):
    given = {"max_new_tokens": 8} | settings
    requests = [GenerationRequest(prompt=p, request=i, **given) for i, p in enumerate(prompts)]
    return [g for _, g in sorted(endpoint.generate(requests), key=lambda pair: pair[0])]


def test_texts_keep_their_places_and_concurrency_is_bounded(serve):
    def slow_first(number, payload, handler):
        time.sleep(0.2 if payload["messages"][0]["content"] == "p0" else 0.01)
        echo(number, payload, handler)

    server = serve(slow_first)
    endpoint = model(server, concurrency=3)
    requests = [GenerationRequest(prompt=f"p{i}", max_new_tokens=8) for i in range(12)]
    order = []
    for place, found in endpoint.generate(requests):
        assert found.text == f"P{place}"
        order.append(place)
    assert sorted(order) == list(range(12))
    assert order[0] != 0  # as finished, not as asked
    assert server.most <= 3


def test_what_is_asked_is_what_the_request_says(serve):
    server = serve(echo)
    endpoint = model(server, seed=1)
    ask(endpoint, "a", "b", stop=("x", "1", "2", "3", "4"), temperature=0.5, max_new_tokens=9)
    first = next(p for p in server.asked if p["messages"][0]["content"] == "a")
    assert first["max_tokens"] == 9
    assert first["temperature"] == 0.5
    assert first["stop"] == ["x", "1", "2", "3"]
    assert len({p["seed"] for p in server.asked}) == 2
    ask(model(server, token_limit="max_completion_tokens"), "c")
    assert "max_completion_tokens" in server.asked[-1]
    assert "seed" not in server.asked[-1]
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_plain_completions_send_a_prompt(serve):
    def behave(number, payload, handler):
        body = {"choices": [{"text": payload["prompt"] + "!", "finish_reason": "length"}]}
        send(handler, body | {"usage": {"completion_tokens": 3}})

    found = ask(model(serve(behave), chat=False), "a")[0]
    assert (found.text, found.tokens, found.finish) == ("a!", 3, "length")


def test_stop_strings_never_reach_a_text(serve):
    server = serve(lambda n, p, h: send(h, chat("one\n\ntwo END", "length")))
    found = ask(model(server), "a", stop=("END", "\n\n"))[0]
    assert (found.text, found.finish) == ("one", "stop")


def test_tokens_are_the_servers_or_flagged_as_estimated(serve):
    usages = [
        {"completion_tokens": 7},
        {"completion_tokens": -1},
        {"completion_tokens": True},
        None,
        [],
    ]
    server = serve(lambda n, p, h: send(h, chat("12345", usage=usages[n])))
    endpoint = model(server, concurrency=1)
    assert [g.tokens for g in ask(endpoint, *"abcde")] == [7, 2, 2, 2, 2]
    assert endpoint.estimated == 4


NONSENSE = {
    "not JSON": b"{",
    "not UTF-8": b'{"choices": "\xff\xfe"}',
    "empty": b"",
    "a list": b"[]",
    "nested to death": b"[" * 100_000,
    "no choices": {"id": 1},
    "choices null": {"choices": None},
    "empty choices": {"choices": []},
    "a choice of text": {"choices": ["x"]},
    "no message": {"choices": [{}]},
    "null content": chat(None),
    "content a number": chat(3),
    "filtered": chat(None, "content_filter"),
    "wrapped error": {"error": {"message": "overloaded"}},
    "huge number": b'{"choices": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_makes_no_sense_is_retried_then_failed(serve, name):
    server = serve(lambda n, p, h: send(h, NONSENSE[name]))
    found = ask(model(server), "a")[0]
    assert found.finish == "failed"
    assert found.error
    assert "\n" not in found.error
    assert (found.text, found.tokens) == ("", 0)
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", NONSENSE)
def test_one_bad_answer_does_no_harm(serve, name):
    server = serve(lambda n, p, h: send(h, NONSENSE[name] if n == 0 else chat("fine")))
    assert ask(model(server), "a")[0].text == "fine"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, 529])
def test_a_busy_server_is_asked_again_with_growing_pauses(serve, status):
    def behave(number, payload, handler):
        if number < 2:
            send(handler, {"error": {"message": "busy"}}, status)
        else:
            send(handler, chat("fine"))

    pauses = []
    server = serve(behave)
    assert ask(model(server, backoff=0.5, sleep=pauses.append), "a")[0].text == "fine"
    assert pauses == [0.5, 1.0]


def test_a_pause_the_server_asks_for_is_kept_within_a_minute(serve):
    def behave(number, payload, handler):
        send(handler, {}, 429, retry_after=("7", "3600", "soon")[number])

    pauses = []
    server = serve(behave)
    found = ask(model(server, retries=2, backoff=1.0, sleep=pauses.append), "a")[0]
    assert found.finish == "failed"
    assert "429" in found.error
    assert pauses == [7.0, 60.0]


@pytest.mark.parametrize("status", [400, 413, 422, 301])
def test_a_refused_request_is_not_repeated(serve, status):
    server = serve(
        lambda n, p, h: send(h, {"error": {"message": "too\nlong"}}, status, location="http://x/")
    )
    found = ask(model(server), "a")[0]
    assert found.finish == "failed"
    assert str(status) in found.error
    assert ("too long" in found.error) == (status >= 400)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_at_once(serve, status):
    server = serve(lambda n, p, h: send(h, {"error": {"message": "no"}}, status))
    with pytest.raises(InputError, match=str(status)):
        ask(model(server, concurrency=2), *map(str, range(100)))
    assert len(server.asked) <= 4


def test_a_refusal_after_answers_is_one_row_until_it_repeats(serve):
    def behave(number, payload, handler):
        if number == 0 or number == 3:
            send(handler, chat("fine"))
        else:
            send(handler, {}, 401)

    server = serve(behave)
    endpoint = model(server, concurrency=1)
    rows = ask(endpoint, "a", "b", "c", "d")
    assert [g.finish for g in rows] == ["stop", "failed", "failed", "stop"]
    with pytest.raises(InputError, match="401"):
        ask(endpoint, *map(str, range(100)))
    assert len(server.asked) == 4 + 5


def test_a_dead_server_gives_failed_rows_without_endless_retries(serve):
    server = serve(echo)
    server.close()
    pauses = []
    endpoint = model(server, sleep=pauses.append, backoff=1.0, concurrency=1)
    rows = ask(endpoint, *map(str, range(20)))
    assert {g.finish for g in rows} == {"failed"}
    assert len(pauses) == 5 * 2  # the first five are retried, the others not


def test_a_silent_server_times_out(serve):
    server = serve(lambda n, p, h: time.sleep(0.6))
    start = time.monotonic()
    found = ask(model(server, timeout=0.2, retries=1), "a")[0]
    assert found.finish == "failed"
    assert time.monotonic() - start < 5


def test_a_dripping_body_times_out(serve):
    def drip(number, payload, handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    start = time.monotonic()
    found = ask(model(serve(drip), timeout=0.3, retries=0), "a")[0]
    assert found.finish == "failed"
    assert "in time" in found.error
    assert time.monotonic() - start < 3


def test_a_body_cut_short_or_a_closed_connection_fails(serve):
    def behave(number, payload, handler):
        if payload["messages"][0]["content"] == "cut":
            handler.send_response(200)
            handler.send_header("content-length", "1000")
            handler.end_headers()
            handler.wfile.write(b"{")
        elif payload["messages"][0]["content"] == "junk":
            handler.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")
        handler.connection.close()

    rows = ask(model(serve(behave)), "cut", "junk", "closed")
    assert [g.finish for g in rows] == ["failed"] * 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("status", [200, 500])
def test_a_huge_body_is_not_read_to_its_end(serve, packed, status):
    sent = []

    def behave(number, payload, handler):
        handler.send_response(status)
        if packed:
            handler.send_header("content-encoding", "gzip")
        handler.end_headers()
        block = gzip.compress(b"x" * (MAX_BODY * 4)) if packed else b"x" * (1 << 20)
        for _ in range(1 if packed else 64):
            handler.wfile.write(block)
            sent.append(len(block))

    found = ask(model(serve(behave), retries=0), "a")[0]
    assert found.finish == "failed"
    assert ("longer than" if status == 200 else "500") in found.error
    assert len(sent) < 32


def test_a_length_without_text_is_a_text_that_ran_out(serve):
    server = serve(lambda n, p, h: send(h, chat(None, "length")))
    found = ask(model(server), "a")[0]
    assert (found.finish, found.text) == ("length", "")
    assert len(server.asked) == 1


def test_half_characters_never_leave_or_enter(serve):
    server = serve(lambda n, p, h: send(h, b'{"choices":[{"message":{"content":"a\\ud800b"}}]}'))
    rows = ask(model(server), "fine", "\ud800")
    assert rows[0].text == "a?b"
    assert rows[1].finish == "failed"
    assert len(server.asked) == 1


def test_the_key_appears_nowhere(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(lambda n, p, h: send(h, {"error": {"message": f"bad key {KEY}"}}, 400 + n))
    endpoint = model(server, concurrency=1)
    first = ask(endpoint, "a")[0]
    with pytest.raises(InputError) as caught:
        ask(endpoint, "b")
    shown = f"{first} {caught.value} {endpoint!r} {endpoint.name} {caplog.text}"
    assert "bad key ***" in first.error
    assert KEY not in shown


def test_closing_early_leaves_nothing_running(serve):
    def slow(number, payload, handler):
        time.sleep(0.05)
        echo(number, payload, handler)

    server = serve(slow)
    found = model(server, concurrency=2).generate(
        [GenerationRequest(prompt="p", max_new_tokens=1)] * 50
    )
    next(found)
    found.close()
    time.sleep(0.3)
    assert len(server.asked) <= 6


def test_closing_early_ends_pauses(serve):
    server = serve(lambda n, p, h: send(h, {}, 503) if n else send(h, chat("fine")))
    found = model(server, concurrency=2, backoff=30.0).generate(
        [GenerationRequest(prompt="p", max_new_tokens=1)] * 9
    )
    next(found)
    before = threading.active_count()
    found.close()
    ends = time.monotonic() + 5
    while threading.active_count() > before - 1 and time.monotonic() < ends:
        time.sleep(0.02)
    assert threading.active_count() < before


@pytest.mark.parametrize(
    "bad",
    [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}, {"backoff": -1}, {"tokenizer": "/no/x"}],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        EndpointModel("http://localhost:1/v1", "m", **bad)


def test_a_password_in_the_address_is_not_shown():
    assert "secret" not in repr(EndpointModel("http://me:secret@localhost:8000/v1", "m"))


def test_addresses_and_names_are_checked():
    with pytest.raises(OptionError, match="http"):
        EndpointModel("localhost:8000", "m")
    with pytest.raises(OptionError, match="model"):
        EndpointModel("http://localhost:8000", "")


PIECES = ["The", " sky", " is", " blue", " now", " ", "x"]
SCORES = [None, -1.0, -2.0, -0.5, -4.0, -0.25, -0.125]


def scores(number, payload, handler):
    assert payload["echo"]
    text = payload["prompt"]
    pieces = []
    rest = text
    for piece in PIECES:
        if rest.startswith(piece):
            pieces.append(piece)
            rest = rest[len(piece) :]
    values = SCORES[: len(pieces)]
    top = [None] + [{p: v, "other": -1.5} for p, v in zip(pieces[1:], values[1:], strict=True)]
    logprobs = {
        "tokens": [*pieces, "!"],
        "token_logprobs": [*values, -9.0],
        "top_logprobs": [*top, None],
    }
    send(handler, {"choices": [{"text": text + "!", "logprobs": logprobs}]})


def test_likelihoods_are_sums_over_the_continuation(serve):
    endpoint = model(serve(scores), chat=False)
    found = endpoint.loglikelihood(
        [
            LikelihoodRequest(context="The sky", continuation=" is blue"),
            LikelihoodRequest(context="The sky is", continuation=" blue"),
            LikelihoodRequest(context="The ", continuation="sky"),  # the space moves over
            LikelihoodRequest(context="", continuation="The sky"),
            LikelihoodRequest(context="The sky is blue now ", continuation="x"),
        ]
    )
    assert [(f.value, f.greedy, f.tokens) for f in found] == [
        (-2.5, False, 2),
        (-0.5, True, 1),
        (-1.0, True, 1),
        (-1.0, True, 1),
        (-0.375, True, 2),
    ]
    assert endpoint.rolling(["The sky is"])[0].value == -3.0


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "!", "logprobs": None},
        {"text": "a b!", "logprobs": None},
        {"text": "a b!", "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}},
        {"text": "a b!", "logprobs": {"tokens": ["a", " b"], "token_logprobs": [-1.0]}},
        {"text": "a b!", "logprobs": {"tokens": ["a", " b"], "token_logprobs": [None, "x"]}},
    ],
)
def test_a_server_that_does_not_echo_has_no_likelihoods(serve, choice):
    endpoint = model(serve(lambda n, p, h: send(h, {"choices": [choice]})), chat=False)
    with pytest.raises(OptionError, match="echo"):
        endpoint.loglikelihood([LikelihoodRequest(context="a", continuation=" b")])


def test_likelihoods_of_chat_endpoints_and_long_texts_are_refused(serve):
    server = serve(lambda n, p, h: send(h, {"error": {"message": "no echo here"}}, 400))
    request = LikelihoodRequest(context="a", continuation=" b")
    with pytest.raises(OptionError, match="chat"):
        model(server).loglikelihood([request])
    with pytest.raises(OptionError, match="no echo here"):
        model(server, chat=False).loglikelihood([request])
    with pytest.raises(OptionError, match="context_length"):
        model(server, chat=False, context_length=4).rolling(["x" * 100])


def test_a_failing_endpoint_has_no_likelihoods(serve):
    endpoint = model(serve(lambda n, p, h: send(h, {}, 500)), chat=False)
    with pytest.raises(InputError, match="500"):
        endpoint.loglikelihood([LikelihoodRequest(context="a", continuation=" b")])
