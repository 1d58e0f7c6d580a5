"""A model behind an OpenAI-compatible HTTP endpoint, as a model under test.

Whatever the server does, a request ends as a text or as a "failed" one with its reason: timeouts,
refused connections, 408, 429, 5xx and answers that make no sense are tried again, other refusals
are not. Where the very first answers say that the key, the address or the model is wrong, the run
stops instead of writing a thousand failed rows. The key is never logged or repeated.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from whet.errors import InputError, OptionError
from whet.evaluate.encoding import first_stop
from whet.evaluate.model import Generation, GenerationRequest, Likelihood, LikelihoodRequest
from whet.rng import key_bits

T = TypeVar("T")
TokenLimit = Literal["max_tokens", "max_completion_tokens"]

MAX_BODY = 8 << 20
"""Bytes of an answer that are read; a longer one is a failure."""
_MAX_ERROR = 1 << 16  # bytes read of the explanation of a refusal
_MAX_SENTENCE = 200  # characters of it that are repeated
_LONGEST_WAIT = 60.0  # seconds
_LOST = 5  # failures in a row after which a server counts as gone, or a key as revoked
_SERVER_STOPS = 4  # stop strings that servers accept; all are applied here in any case
_SETUP = {401: "refuses the key", 403: "refuses the key", 404: "knows no such address or model"}

_CONNECT_S = 10.0  # to learn that nothing listens


class EndpointError(InputError):
    """The endpoint refuses the key or knows no such model: no request can succeed."""


class _Failure(Exception):  # noqa: N818 - becomes a row, not an error of the caller
    """Why an exchange gave nothing. final: trying again cannot help. pause: seconds asked for."""

    def __init__(self, reason: str, *, status: int = 0, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.pause = pause

    @property
    def final(self) -> bool:
        return 0 < self.status < 500 and self.status not in (408, 425, 429)


class EndpointModel:
    """A remote model. base_url: as "http://localhost:8000/v1". chat: chat completions (the server
    applies its template to one user message), else plain completions.

    api_key: by default the environment's OPENAI_API_KEY; local servers need none. timeout: seconds
    without a byte, and for the whole body. retries: further attempts, after `backoff`, 2 `backoff`,
    4 `backoff`, ... seconds or what the server asks for, at most a minute each. concurrency:
    requests under way at once. seed: sent with sampled requests, one per request; None sends none.
    tokenizer: name or folder of one that counts tokens; without it a token is taken to be four
    bytes. sleep: in place of the pauses. `estimated` counts the texts whose length had to be
    counted here because the server did not say.
    Errors: OptionError for a missing extra or settings out of range.
    """

    fixed_canvas = False

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        chat: bool = True,
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        backoff: float = 1.0,
        context_length: int = 32_768,
        token_limit: TokenLimit = "max_tokens",
        seed: int | None = None,
        tokenizer: str | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise OptionError(f"base_url={base_url!r} must begin with http:// or https://")
        if not model:
            raise OptionError("model is empty: give the name the endpoint knows it by")
        _check("timeout", timeout, timeout > 0, "above 0")
        _check("retries", retries, retries >= 0, "0 or more")
        _check("concurrency", concurrency, concurrency >= 1, "1 or more")
        _check("backoff", backoff, backoff >= 0, "0 or more")
        self.name, self.context_length = model, context_length
        self.chat, self.timeout = chat, timeout
        self.retries, self.concurrency = retries, concurrency
        self.estimated = 0
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._url = re.sub(r"//[^/@]*@", "//", base_url)  # as shown: without a password
        self._backoff, self._sleep, self._seed = backoff, sleep, seed
        self._token_limit = token_limit if chat else "max_tokens"
        self._tokenizer = _load_tokenizer(tokenizer)
        self._client = _client(base_url, self._key, timeout)
        self._lock = threading.Lock()
        self._answered = False
        self._lost = 0  # failures since the last answer

    def __repr__(self) -> str:
        return f"EndpointModel({self._url!r}, {self.name!r})"

    def count_tokens(self, text: str) -> int:
        """Tokens of a text; a quarter of its bytes where no tokenizer was given."""
        if self._tokenizer is None:
            return -(-len(text.encode("utf-8", "replace")) // 4)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generation]]:
        """See `EvalModel.generate`. Errors: EndpointError, where no request can succeed."""
        closed = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency)
        waiting = enumerate(requests)
        running: dict[Future[Generation], int] = {}
        try:
            while True:
                free = self.concurrency - len(running)
                for place, request in itertools.islice(waiting, free):
                    running[pool.submit(self._write, request, closed)] = place
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=running.__getitem__):
                    yield running.pop(future), future.result()
        finally:
            closed.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[Likelihood]:
        """Sums of log-probabilities of the continuation's tokens, from an echoed prompt.

        A token that covers the border counts as the continuation's. The first token of an empty
        context has no probability and is left out.
        Errors: OptionError for chat endpoints and servers that echo no log-probabilities;
        InputError where the endpoint fails.
        """
        if self.chat:
            raise OptionError(f"endpoint {self.name!r}: chat completions give no log-likelihoods")
        closed = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                return list(pool.map(lambda r: self._score(r, closed), requests))
            finally:
                closed.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Of whole texts, their first token left out. Errors: OptionError as `loglikelihood`, and
        for a text that does not fit the context: windows need the server's own tokens."""
        for text in texts:
            if self.count_tokens(text) >= self.context_length:
                raise OptionError(
                    f"endpoint {self.name!r}: a text of {self.count_tokens(text)} tokens does not "
                    f"fit context_length={self.context_length}"
                )
        return self.loglikelihood([LikelihoodRequest(context="", continuation=t) for t in texts])

    def _write(self, request: GenerationRequest, closed: threading.Event) -> Generation:
        payload: dict[str, Any] = {
            "model": self.name,
            self._token_limit: request.max_new_tokens,
            "temperature": request.temperature,
        }
        if self.chat:
            payload["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            payload["prompt"] = request.prompt
        if request.stop:
            payload["stop"] = list(request.stop[:_SERVER_STOPS])
        if self._seed is not None and request.temperature > 0:
            payload["seed"] = key_bits(self._seed, "endpoint", request.request, bits=32) >> 1
        try:
            request.prompt.encode("utf-8")
            return self._ask(payload, lambda body: self._generation(body, request.stop), closed)
        except UnicodeEncodeError:
            return _failed("the prompt is not valid text: it holds half a character")
        except _Failure as failure:
            return _failed(str(failure))

    def _generation(self, body: dict[str, Any], stop: tuple[str, ...]) -> Generation:
        text, reason = _text_of(body, chat=self.chat)
        kept = text[: first_stop(text, stop)]
        tokens = _usage(body)
        if tokens is None:
            tokens = self.count_tokens(text)
            with self._lock:
                self.estimated += 1
        ran_out = reason == "length" and kept == text
        return Generation(text=kept, tokens=tokens, finish="length" if ran_out else "stop")

    def _score(self, request: LikelihoodRequest, closed: threading.Event) -> Likelihood:
        prompt = request.context + request.continuation
        payload = {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": 1,  # several servers refuse 0; the token beyond the prompt is dropped
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        try:
            prompt.encode("utf-8")
            choice = self._ask(payload, _first_choice, closed)
        except UnicodeEncodeError:
            raise InputError("a text to score is not valid: it holds half a character") from None
        except _Failure as failure:
            if failure.status in (400, 422):
                reason = f"gives no log-likelihoods: {failure}"
                raise OptionError(f"endpoint {self.name!r} {reason}") from None
            raise InputError(f"endpoint {self.name!r}: {failure}") from None
        found = _likelihood(choice, len(request.context.rstrip(" ")), prompt)
        if found is None:
            raise OptionError(
                f"endpoint {self.name!r} does not echo the log-probabilities of a prompt: "
                "use tasks that generate"
            )
        return found

    def _ask(
        self, payload: dict[str, Any], read: Callable[[dict[str, Any]], T], closed: threading.Event
    ) -> T:
        """What `read` makes of an answer. Errors: _Failure once no attempt is left."""
        # A server that has gone is asked once per request, without waiting.
        left = self.retries if self._lost < _LOST else 0
        for attempt in itertools.count():
            try:
                answer = read(self._exchange(payload))
            except _Failure as failure:
                if failure.final or attempt >= left or closed.is_set():
                    self._note_failure(failure)
                    raise
                pause = max(failure.pause, self._backoff * 2.0**attempt)
                # By default a pause ends when nobody waits for the text any more.
                (self._sleep or closed.wait)(min(pause, _LONGEST_WAIT))
            else:
                with self._lock:
                    self._answered, self._lost = True, 0
                return answer
        raise AssertionError("unreachable")

    def _note_failure(self, failure: _Failure) -> None:
        with self._lock:
            self._lost += 1
            hopeless = not self._answered or self._lost >= _LOST
        if failure.status in _SETUP and hopeless:
            raise EndpointError(
                f"endpoint {self._url} {_SETUP[failure.status]} (model {self.name!r}): {failure}"
            )

    def _exchange(self, payload: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer. Errors: _Failure."""
        api: Any = self._client.chat.completions if self.chat else self._client.completions
        ends = time.monotonic() + self.timeout
        try:
            with api.with_streaming_response.create(**payload) as reply:
                data = _read(reply.iter_bytes(), MAX_BODY, ends)
        except _Failure as failure:
            raise self._safe(failure) from None
        # The client's versions bring different HTTP libraries, each with errors of its own.
        except Exception as error:  # noqa: BLE001
            if isinstance(error.__cause__, _Failure):
                raise self._safe(error.__cause__) from None
            raise _Failure(f"no answer ({type(error).__name__})") from None
        try:
            body = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or JSON made to hurt
            raise _Failure("the answer is not JSON") from None
        if not isinstance(body, dict):
            raise _Failure("the answer is not a JSON object")
        if body.get("error"):  # some gateways wrap failures into status 200
            raise self._safe(_Failure(f"error in the answer: {_explanation(body)}"))
        return body

    def _safe(self, failure: _Failure) -> _Failure:
        """The same without the key, which a server may repeat."""
        text = str(failure)
        if self._key != "none":
            text = text.replace(self._key, "***")
        return _Failure(text, status=failure.status, pause=failure.pause)


def _check(name: str, value: float, good: bool, allowed: str) -> None:
    if not good:
        raise OptionError(f"{name}={value} must be {allowed}")


def _failed(reason: str) -> Generation:
    return Generation(text="", tokens=0, finish="failed", error=reason)


def _client(base_url: str, key: str, timeout: float) -> Any:
    try:
        import openai
    except ImportError:
        raise OptionError("a remote model needs the extra whet[endpoint]") from None
    http = openai.DefaultHttpxClient(event_hooks={"response": [_refuse]}, timeout=timeout)
    return openai.OpenAI(
        base_url=base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http
    )


def _load_tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise OptionError(f"tokenizer={name!r} cannot be loaded: {reason}") from None


def _read(chunks: Iterable[bytes], limit: int, ends: float) -> bytes:
    """A body of at most `limit` bytes, read before `ends` (seconds of the monotonic clock)."""
    found, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _Failure(f"the answer is longer than {limit} bytes")
        if time.monotonic() > ends:
            raise _Failure("the answer did not end in time")
        found.append(chunk)
    return b"".join(found)


def _refuse(response: Any) -> None:
    """Raise for every status but success, having read no more than a short explanation."""
    status = int(response.status_code)
    if 200 <= status < 300:
        return
    if 300 <= status < 400:  # following turns a POST into a GET, and may lead the key elsewhere
        target = _sentence(response.headers.get("location", "nowhere"))
        raise _Failure(f"status {status}: redirected to {target}", status=status)
    reason = _sentence(response.reason_phrase)
    try:
        data = _read(response.iter_bytes(), _MAX_ERROR, time.monotonic() + 10)
        reason = _explanation(json.loads(data.decode("utf-8"))) or reason
    except Exception:  # noqa: BLE001 - the status alone says enough
        pass
    pause = response.headers.get("retry-after", "")
    raise _Failure(
        f"status {status}: {reason}",
        status=status,
        pause=float(pause) if pause.isdecimal() else 0.0,
    )


def _explanation(body: Any) -> str:
    """A server's own words, from {"error": {"message": ...}} or {"error": ...}."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    return _sentence(said if isinstance(said, str) else "")


def _sentence(text: str) -> str:
    """Foreign text on one line, printable and short."""
    clean = "".join(c if c.isprintable() else " " for c in text[:2000])
    return " ".join(clean.split())[:_MAX_SENTENCE]


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Failure("the answer has no choices")
    return choices[0]


def _text_of(body: dict[str, Any], *, chat: bool) -> tuple[str, Any]:
    """(text, reason it ended) of the first choice. Errors: _Failure where there is no text."""
    choice = _first_choice(body)
    reason = choice.get("finish_reason")
    holder = choice.get("message") if chat else choice
    if not isinstance(holder, dict):
        raise _Failure("the answer has no message")
    text = holder.get("content" if chat else "text")
    if text is None and isinstance(holder.get("refusal"), str):
        text = holder["refusal"]
    if text is None and reason == "length":  # all tokens went into thoughts that are not shown
        text = ""
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise _Failure(f"the answer's text is {kind}, finish_reason is {_sentence(str(reason))}")
    # JSON can hold half a character (a lone surrogate), which no file can.
    return text.encode("utf-8", "replace").decode("utf-8"), reason


def _usage(body: dict[str, Any]) -> int | None:
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(tokens, int) or isinstance(tokens, bool):
        return None
    return tokens if 0 <= tokens < 1 << 31 else None


def _likelihood(choice: dict[str, Any], border: int, prompt: str) -> Likelihood | None:
    """Of the part of the echoed `prompt` from character `border` on; None where it is not there."""
    text, scores = choice.get("text"), choice.get("logprobs")
    if not isinstance(text, str) or not text.startswith(prompt) or not isinstance(scores, dict):
        return None
    tokens, values = scores.get("tokens"), scores.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    best = scores.get("top_logprobs")
    if not isinstance(best, list) or len(best) != len(values):
        best = [None] * len(values)
    total, count, greedy, place = 0.0, 0, True, 0
    known = True
    for token, value, top in zip(tokens, values, best, strict=True):
        start, place = place, place + len(str(token))
        if place <= border or start >= len(prompt) or value is None:
            continue
        if not isinstance(value, int | float) or math.isnan(value):
            return None
        total, count = total + value, count + 1
        if isinstance(top, dict) and top:
            rivals = [v for v in top.values() if isinstance(v, int | float)]
            greedy = greedy and value >= max(rivals, default=value)
        else:
            known = False
    if place < len(prompt):  # tokens that do not spell the prompt cannot be placed
        return None
    return Likelihood(value=total, greedy=greedy if known else None, tokens=count)


def check_reachable(url: str) -> None:
    """Errors: InputError where nothing listens at the address; behind a proxy that is not known."""
    try:
        parts = urlsplit(url)
        place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError as error:
        raise OptionError(f"endpoint={url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(f"endpoint={url!r} is no address: write it as http://HOST:PORT/v1")
    if {parts.scheme, "all"} & set(getproxies()) and not proxy_bypass(place[0]):
        return
    try:
        socket.create_connection(place, timeout=_CONNECT_S).close()
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"nothing answers at {place[0]}:{place[1]}: {why}") from None
