"""Asks a gateway as the users of the official client do. Usage: openai_client.py BASE_URL

Every function named check_* is one check. The engines behind the gateway obey the header x-mock-fault.
"""

import asyncio
import sys

import httpx2
import openai

BASE_URL = sys.argv[1]
HELLO = [{"role": "user", "content": "hello"}]
PARALLEL_STREAMS = 200

client = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)


def fault(name):
    return {"x-mock-fault": name}


def raised(kind, **request):
    """The error of this kind that a chat request ends with."""
    arguments = {"model": "tiny", "messages": HELLO, **request}
    try:
        client.chat.completions.create(**arguments)
    except kind as error:
        return error
    raise AssertionError(f"{arguments} did not raise {kind.__name__}")


def check_models():
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def check_chat():
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def check_chat_stream_with_usage():
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    words = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content is not None]
    assert len(words) == 1 + 7, "the role, then seven tokens"
    assert words[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 7


def check_completions():
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=4)
    assert answer.usage.completion_tokens == 4
    stream = client.completions.create(model="tiny", prompt="hello", max_tokens=4, stream=True)
    assert len(list(stream)) == 4


def check_embeddings():
    answer = client.embeddings.create(model="tiny", input="hello", encoding_format="float")
    assert answer.data[0].embedding == [0.5, -0.5, 0.5, -0.5]


def check_a_429_is_retried_by_the_client():
    """One of the two engines refuses once; each gets one of two requests."""
    patient = client.with_options(max_retries=2)
    answers = [patient.responses.with_raw_response.create(model="tiny", input="hello") for _ in range(2)]
    assert sum(answer.retries_taken for answer in answers) == 1
    assert all(answer.parse().status == "completed" for answer in answers)


def check_errors_have_their_types():
    assert raised(openai.BadRequestError, max_tokens=10**9).type == "BadRequestError"
    assert raised(openai.BadRequestError, extra_headers=fault("status=400")).status_code == 400
    assert raised(openai.NotFoundError, model="no-such-model").type == "NotFoundError"
    assert raised(openai.InternalServerError, extra_headers=fault("status=500")).status_code == 500


def check_errors_of_the_gateway_look_the_same():
    error = raised(openai.InternalServerError, model="absent")
    assert error.status_code == 503, error
    assert (error.type, error.code) == ("server_error", "no_backend")
    assert error.response.headers["retry-after"], "it tells when to come back"
    assert error.request_id
    assert error.response.headers["connection"] == "close", "the gateway closes it, so the client must not use it again"
    error = raised(openai.InternalServerError, extra_headers=fault("garbage"))
    assert (error.status_code, error.code) == (502, "backend_failed")


def check_a_stream_that_is_cut_raises():
    for name in ("cut-stream-after=3", "reset-stream-after=3"):
        stream = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=8, stream=True, extra_headers=fault(name)
        )
        chunks = []
        try:
            for chunk in stream:
                chunks.append(chunk)
        except (openai.APIError, httpx2.TransportError):
            assert chunks, "what came before it was cut has arrived"
        else:
            raise AssertionError(f"{name}: taken for complete after {len(chunks)} chunks")


def check_extra_headers_and_request_ids():
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, extra_headers={"x-tenant": "blue", "x-request-id": "asked-for"}
    )
    assert answer._request_id == "asked-for"
    assert client.chat.completions.create(model="tiny", messages=HELLO)._request_id


def check_a_client_that_gives_up():
    """That the engine learns of it is checked by who runs this."""
    raised(openai.APITimeoutError, timeout=0.5, extra_headers=fault("stall-before-response"))


def check_a_long_prompt():
    messages = [{"role": "user", "content": "x" * 1024 * 1024}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert answer.usage.completion_tokens == 2


def check_parallel_streams():
    async def one(client, tokens):
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=tokens, stream=True, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream][-1].usage.completion_tokens == tokens

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, 5 + index % 20) for index in range(PARALLEL_STREAMS)))

    outcomes = asyncio.run(all_of_them())
    assert outcomes == [True] * PARALLEL_STREAMS


def main():
    checks = [(name, check) for name, check in globals().items() if name.startswith("check_")]
    for name, check in checks:
        print(name, flush=True)
        check()
    print(f"openai {openai.__version__}: {len(checks)} checks passed")


main()
