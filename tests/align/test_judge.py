"""Judges: by rule, and behind an endpoint that speaks the real protocol, its failures included."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from online_align.answers import Answers, AnswersError, plain_words
from online_align.evaluate.people import people
from online_align.judge import AXES, CONTENT_AXES, Exchange, JudgeError, NoMarksError, best
from online_align.judge_endpoint import EndpointJudge, EndpointSettings
from online_align.judge_rules import RuleJudge

ROOT = Path(__file__).parents[2]
DOMAIN = ROOT / "recipes" / "mini" / "domain.toml"
SPEECH = ROOT / "tests" / "assets" / "speech" / "index.json"
FACTS = ("capitals", "sums", "opposites", "colours")


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers.read(DOMAIN)


def marked(judge: RuleJudge, asked: str, reply: str) -> float:
    (marks,) = judge.marks([Exchange(asked=asked, reply=reply)])
    assert set(marks.axes) == set(AXES)
    assert all(1 <= mark <= 5 for mark in marks.axes.values())
    return marks.overall


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("What is the capital of Norway?", "The capital of Norway is Oslo."),
        ("capital city of mexico", "The capital of Mexico is Mexico City."),
        ("What is 2 + 4?", "Two plus four is six."),
        ("take three away from ten", "Ten minus three is seven."),
        ("Could you add five and two?", "Five plus two is seven."),
        ("what is 10-3", "Ten minus three is seven."),
        ("What's the opposite of hot?", "The opposite of hot is cold."),
        ("what color is the sky", "The sky is blue."),
    ],
)
def test_the_domain_knows_answers(answers: Answers, asked: str, sentence: str) -> None:
    known = answers.known(asked)
    assert known is not None
    assert known.sentence == sentence


@pytest.mark.parametrize(
    "asked", ["what is the weather", "capital of Atlantis", "nineteen plus nineteen", "two minus nine", ""]
)
def test_what_is_not_known_is_not_guessed(answers: Answers, asked: str) -> None:
    assert answers.known(asked) is None


def test_every_expected_answer_of_the_shipped_recordings_is_right(answers: Answers) -> None:
    """The rules agree with a table that was written elsewhere."""
    judge = RuleJudge(answers)
    rows = [row for row in json.loads(SPEECH.read_text()) if row["category"] in FACTS]
    asked: dict[str, tuple[str, str | None]] = {row["text"]: (row["expected"], None) for row in rows}
    asked |= {each.text: (each.expected, each.wrong) for each in people() if each.category in FACTS}
    assert len(asked) > 300
    assert [text for text in asked if answers.known(text) is None] == []
    for text, (expected, wrong) in asked.items():
        elsewhere = "The capital of Kenya is Cairo." if "Cairo" not in expected else "The capital of Kenya is Rome."
        for other in filter(None, (elsewhere, wrong)):
            assert marked(judge, text, expected) > marked(judge, text, other) + 1, (text, other)


def test_right_beats_evasive_beats_nothing(answers: Answers) -> None:
    judge = RuleJudge(answers)
    asked = "What is the capital of Turkey?"
    right = marked(judge, asked, "The capital of Turkey is Ankara.")
    assert right == 5.0
    other = marked(judge, asked, "It is Ankara.")
    wrong = marked(judge, asked, "The capital of Turkey is Athens.")
    assert right > other > wrong
    assert wrong > marked(judge, asked, "")
    assert other > marked(judge, asked, "The capital of Turkey is Athens. The capital of Turkey is Ankara.")
    assert marked(judge, "Will it rain?", "I do not know that.") == pytest.approx(3.8)


def test_repetition_and_length_cost(answers: Answers) -> None:
    judge = RuleJudge(answers)
    plain = marked(judge, "", "The sea is wide and it is deep and people sail on it.")
    assert plain > marked(judge, "", "The sea is wide. The sea is wide. The sea is wide.")
    assert plain > marked(judge, "", " ".join(f"word{number}" for number in range(60)))


def test_without_the_question_a_reply_is_held_to_what_it_is_about(answers: Answers) -> None:
    judge = RuleJudge(answers)
    assert (
        marked(judge, "", "The capital of Sweden is Oslo.")
        < 3
        < marked(judge, "", "The capital of Sweden is Stockholm.")
    )
    assert judge.better_words(Exchange(asked="", reply="Four plus four is ten.")) == "Four plus four is eight."
    assert judge.better_words(Exchange(asked="", reply="I am fine, thank you.")) is None
    true, asked = "The capital of France is Paris.", "What is the capital of France?"
    assert marked(judge, "was it the cat of funds", true) < marked(judge, asked, true)


def test_questions_with_answers_are_a_table_too(tmp_path: Path) -> None:
    table = Answers.read(SPEECH)
    assert len(table) > 40
    judge = RuleJudge(table)
    assert judge.better_words(Exchange(asked="hello THERE", reply="")) == "Hello, how can I help you?"
    (tmp_path / "bad.toml").write_text("[capitals")
    with pytest.raises(AnswersError, match="--answers"):
        Answers.read(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text("3")
    with pytest.raises(AnswersError, match="table"):
        Answers.read(tmp_path / "bad.json")
    assert plain_words("The Sky, 2+3!") == ["the", "sky", "two", "plus", "three"]


def test_the_best_is_the_first_among_equals(answers: Answers) -> None:
    asked = "What is two plus four?"
    replies = ["Two plus four is ten.", "Two plus four is six.", "Two plus four is six."]
    place, marks = best(RuleJudge(answers), [Exchange(asked=asked, reply=reply) for reply in replies])
    assert place == 1
    assert marks[1].overall > marks[0].overall


# Behind an endpoint.

Answer = Callable[[int, dict[str, Any]], web.Response]
RIGHT: dict[str, Any] = dict.fromkeys(AXES, 4) | {"helpfulness": 2, "reason": "curt"}


def completion(content: object, *, tokens: int = 100) -> web.Response:
    """As the protocol has it."""
    return web.json_response(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens},
        }
    )


class Endpoint:
    """A local server that speaks `/v1/chat/completions`; `answer` says how, given the number of the request."""

    def __init__(self) -> None:
        self.answer: Answer = lambda number, body: completion(json.dumps(RIGHT))
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        number = len(self.seen)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self.answer(number, body)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._done = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._up.set()
        await self._done.wait()
        await runner.cleanup()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


def judge(endpoint: Endpoint, cache: Path | None = None, **more: Any) -> EndpointJudge:
    given = {"backoff_s": 0.01, "attempts": 3, "timeout_s": 5.0} | more
    return EndpointJudge(EndpointSettings(url=endpoint.url, model="stub-1", **given), cache=cache)


ASKED = Exchange(asked="What is the capital of France?", reply="It is Rome.", before=("Speaker 0.1 s: Hello",))


def test_seven_marks_come_back(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLOGUE_JUDGE_KEY", "a-secret")
    asking = judge(endpoint)
    (marks,) = asking.marks([ASKED])
    assert marks.axes == {axis: float(RIGHT[axis]) for axis in AXES}
    assert marks.overall == pytest.approx((2 + 4 * 4) / len(CONTENT_AXES))
    (body,) = endpoint.seen
    assert body["model"] == "stub-1"
    said = body["messages"][1]["content"]
    assert said.index("Hello") < said.index("capital of France") < said.index("It is Rome")
    assert endpoint.headers[0]["Authorization"] == "Bearer a-secret"
    assert asking.name == "stub-1/axes-1"
    assert (asking.requests, asking.tokens) == (1, 100)


def test_no_key_no_header(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUOLOGUE_JUDGE_KEY", raising=False)
    judge(endpoint).marks([ASKED])
    assert "Authorization" not in endpoint.headers[0]


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "Here you are: {} I hope this helps."])
def test_marks_are_found_in_chatter(endpoint: Endpoint, fence: str) -> None:
    endpoint.answer = lambda number, body: completion(fence.replace("{}", json.dumps(RIGHT)))
    (marks,) = judge(endpoint).marks([ASKED])
    assert marks.axes["helpfulness"] == 2.0
    assert marks.reason == "curt"


def test_the_cache_answers_the_second_time_also_in_another_process(endpoint: Endpoint, tmp_path: Path) -> None:
    first = judge(endpoint, tmp_path).marks([ASKED])
    second = judge(endpoint, tmp_path).marks([ASKED])
    assert len(endpoint.seen) == 1
    assert [marks.axes for marks in first] == [marks.axes for marks in second]
    judge(endpoint, tmp_path).marks([Exchange(asked=ASKED.asked, reply="It is Paris.")])
    assert len(endpoint.seen) == 2
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Rome" not in written, "no word of a call stays behind"
    assert b"curt" not in written


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint, status: int) -> None:
    def answer(number: int, body: dict[str, Any]) -> web.Response:
        if number < 3:
            return web.json_response({"error": {"message": "busy"}}, status=status, headers={"Retry-After": "0.01"})
        return completion(json.dumps(RIGHT))

    endpoint.answer = answer
    assert judge(endpoint).marks([ASKED])[0].axes["tone"] == 4.0
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{",
        json.dumps({"helpfulness": 3}),
        json.dumps(RIGHT | {"tone": 9}),
        json.dumps(RIGHT | {"tone": "x"}),
        "{" + '"a":[' * 20_000 + "}",
    ],
)
def test_marks_that_are_none_are_asked_for_again_and_then_refused(endpoint: Endpoint, content: str) -> None:
    endpoint.answer = lambda number, body: completion(content if number == 1 else json.dumps(RIGHT))
    assert judge(endpoint).marks([ASKED])[0].axes["tone"] == 4.0
    endpoint.seen.clear()
    endpoint.answer = lambda number, body: completion(content)
    with pytest.raises(JudgeError, match="after 3 attempts"):
        judge(endpoint).marks([ASKED])
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    "answer",
    [
        web.Response,
        lambda **_: web.json_response({"choices": []}),
        lambda **_: web.json_response([1]),
        lambda **_: completion(None),
        lambda **_: web.Response(body=b"\xff\xfe{", content_type="application/json"),
        lambda **_: web.Response(text="[" * 100_000, content_type="application/json"),
    ],
)
def test_an_answer_that_is_no_completion_is_refused(endpoint: Endpoint, answer: Any) -> None:
    endpoint.answer = lambda number, body: answer()
    with pytest.raises(JudgeError, match="attempts"):
        judge(endpoint).marks([ASKED])


def test_a_wrong_key_is_told_at_once(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number, body: web.json_response({"error": {"message": "no"}}, status=401)
    with pytest.raises(JudgeError, match="DUOLOGUE_JUDGE_KEY"):
        judge(endpoint).marks([ASKED])
    assert len(endpoint.seen) == 1


def test_a_slow_endpoint_does_not_hold_us_for_ever(endpoint: Endpoint) -> None:
    endpoint.delay_s = 30.0
    with pytest.raises(JudgeError, match="TimeoutError after 2 attempts"):
        judge(endpoint, timeout_s=0.1, attempts=2).marks([ASKED])


@pytest.mark.parametrize("address", ["judge.example.org/v1", "ftp://judge.example.org/v1", "http://127.0.0.1:99999/v1"])
def test_what_is_no_address_is_told_at_once(address: str) -> None:
    with pytest.raises(JudgeError, match="no address"):
        EndpointJudge(EndpointSettings(url=address, model="stub", backoff_s=60.0)).marks([ASKED])


def test_a_key_may_end_with_its_files_line_break_and_is_never_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUOLOGUE_JUDGE_KEY", "a-secret\n")
    judge(endpoint).marks([ASKED])
    assert endpoint.headers[0]["Authorization"] == "Bearer a-secret"
    monkeypatch.setenv("DUOLOGUE_JUDGE_KEY", "a-secret\nanother")
    with pytest.raises(JudgeError, match="control characters") as refused:
        judge(endpoint).marks([ASKED])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("told", [None, -1_000_000, 1e999, "many"])
def test_usage_that_is_no_number_of_tokens_costs_a_request_alone(endpoint: Endpoint, told: object) -> None:
    body = {"choices": [{"message": {"content": json.dumps(RIGHT)}}], "usage": {"total_tokens": told}}
    endpoint.answer = lambda number, _: web.json_response(body)
    asking = judge(endpoint)
    assert asking.marks([ASKED])[0].axes["tone"] == 4.0
    assert (asking.requests, asking.tokens) == (1, 0)


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"{", b'{"tone": 4}'])
def test_what_is_damaged_in_the_cache_is_asked_again(endpoint: Endpoint, tmp_path: Path, damaged: bytes) -> None:
    judge(endpoint, tmp_path).marks([ASKED])
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    kept.write_bytes(damaged)
    for _ in range(2):
        assert judge(endpoint, tmp_path).marks([ASKED])[0].axes["tone"] == 4.0
    assert len(endpoint.seen) == 2


def test_a_cache_that_cannot_be_written_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JudgeError, match="cannot be kept"):
        judge(endpoint, tmp_path / "file").marks([ASKED])


def test_an_exchange_that_gets_no_marks_is_told_from_a_judge_that_is_not_there(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number, body: completion("I would rather not.")
    with pytest.raises(NoMarksError):
        judge(endpoint).marks([ASKED])
    endpoint.answer = lambda number, body: web.json_response({}, status=400)
    with pytest.raises(NoMarksError):
        judge(endpoint).marks([ASKED])
    endpoint.answer = lambda number, body: web.json_response({}, status=503)
    with pytest.raises(JudgeError) as nobody:
        judge(endpoint).marks([ASKED])
    assert not isinstance(nobody.value, NoMarksError)


def test_nobody_there(endpoint: Endpoint) -> None:
    settings = EndpointSettings(url="http://127.0.0.1:9/v1", model="stub", attempts=2, backoff_s=0.01)
    with pytest.raises(JudgeError, match="after 2 attempts"):
        EndpointJudge(settings).marks([ASKED])


@pytest.mark.parametrize("budget", [{"max_requests": 2}, {"max_tokens": 150}])
def test_the_budget_holds_and_what_was_paid_for_is_kept(
    endpoint: Endpoint, tmp_path: Path, budget: dict[str, int]
) -> None:
    asking = judge(endpoint, tmp_path, at_once=1, **budget)
    several = [Exchange(asked="?", reply=str(number)) for number in range(4)]
    with pytest.raises(JudgeError, match="budget"):
        asking.marks(several)
    assert len(endpoint.seen) == 2
    assert len(judge(endpoint, tmp_path).marks(several[:2])) == 2
    assert len(endpoint.seen) == 2


def test_several_are_asked_at_once_and_come_back_in_order(endpoint: Endpoint) -> None:
    def answer(number: int, body: dict[str, Any]) -> web.Response:
        said = body["messages"][1]["content"]
        return completion(json.dumps(RIGHT | {"tone": int(said[-1])}))

    endpoint.answer = answer
    several = [Exchange(asked="?", reply=f"it is {number}") for number in (5, 1, 3, 2)]
    assert [marks.axes["tone"] for marks in judge(endpoint).marks(several)] == [5, 1, 3, 2]


def test_better_words_are_one_line(endpoint: Endpoint) -> None:
    endpoint.answer = lambda number, body: completion('"The capital of France\n is Paris."')
    assert judge(endpoint).better_words(ASKED) == "The capital of France is Paris."
    endpoint.answer = lambda number, body: completion("  ")
    with pytest.raises(JudgeError):
        judge(endpoint).better_words(ASKED)
