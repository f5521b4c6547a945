"""Drives a running server through the `openai` package and prints what it saw, as one JSON object.

usage: openai_client.py BASE_URL AUDIO_DIR CASE
"""

import json
import sys
from pathlib import Path

import openai

BASE_URL, AUDIO, CASE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
CLIENT = openai.OpenAI(base_url=BASE_URL + "/v1", api_key="unused", max_retries=0, timeout=300)


def audio(name):
    return (AUDIO / name).open("rb")


def transcribe(name="en-1.wav", **options):
    options = {"model": "whisper-1", "language": "en", **options}
    return CLIENT.audio.transcriptions.create(file=audio(name), **options)


def formats():
    verbose = transcribe(response_format="verbose_json")
    return {
        "json": transcribe().text,
        "text": transcribe(response_format="text"),
        "srt": transcribe(response_format="srt"),
        "vtt": transcribe(response_format="vtt"),
        "verbose": {
            "type": type(verbose).__name__,
            "text": verbose.text,
            "language": verbose.language,
            "duration": verbose.duration,
            "segments": [segment.model_dump() for segment in verbose.segments],
        },
        "pcm": transcribe_raw().text,
        "logprobs": [item.model_dump() for item in transcribe(include=["logprobs"]).logprobs],
    }


def transcribe_raw():
    wav = audio("en-1.wav").read()
    samples = wav[wav.index(b"data") + 8 :]
    file = ("speech", samples, "audio/pcm")
    return CLIENT.audio.transcriptions.create(file=file, model="whisper-1", language="en")


def stream():
    events = transcribe("long-en.flac", stream=True, include=["logprobs"])
    return {"events": [event.model_dump() for event in events], "whole": transcribe("long-en.flac").text}


def translations():
    plain = CLIENT.audio.translations.create(file=audio("de-1.wav"), model="whisper-1")
    verbose = CLIENT.audio.translations.create(
        file=audio("de-1.wav"), model="whisper-1", response_format="verbose_json"
    )
    return {"text": plain.text, "verbose": verbose.text, "language": verbose.language}


def models():
    listed = [model.model_dump() for model in CLIENT.models.list()]
    return {"listed": listed, "retrieved": [CLIENT.models.retrieve(model["id"]).id for model in listed]}


def failure(call):
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "request_id": error.request_id,
            "retry_after": error.response.headers.get("retry-after"),
        }
    return None


def errors():
    create = CLIENT.audio.transcriptions.create
    return {
        "model": failure(lambda: transcribe(model="nobody")),
        "retrieve": failure(lambda: CLIENT.models.retrieve("nobody")),
        "format": failure(lambda: transcribe(response_format="tsv")),
        "file": failure(lambda: create(file=("a.mp3", b"no audio"), model="whisper-1")),
        "words": failure(lambda: transcribe(timestamp_granularities=["word"])),
        "route": failure(lambda: CLIENT.chat.completions.create(model="whisper-1", messages=[])),
    }


def retried():
    """Of a model that cannot be loaded at first: the client waits as it is told and asks again."""
    patient = CLIENT.with_options(max_retries=2)
    create = patient.audio.transcriptions.create
    return {"text": create(file=audio("en-1.wav"), model="whisper-1", language="en").text}


print(json.dumps(globals()[CASE]()))
