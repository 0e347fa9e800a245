"""Classifies an image with Hugging Face's client, as its users do.

    hugging_face.py URL MODEL IMAGE EXPECTED

EXPECTED is a JSON list of the five best classes, each with its label and score.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def main():
    url, model, image, expected = sys.argv[1:]
    expected = json.loads(expected)
    for address in (url, f"{url}/models/{model}", f"{url}/"):
        client = InferenceClient(model=address)
        check(client.image_classification(image), expected)
        check(client.image_classification(Path(image).read_bytes()), expected)
        check(client.image_classification(image, top_k=2), expected[:2])
        check(client.image_classification(image, function_to_apply="softmax", top_k=1), expected[:1])
    client = InferenceClient(model=f"{url}/models/{model}", token="any")
    check(client.image_classification(image), expected)
    refused(client, image, "top_k is 0", top_k=0)
    refused(client, image, "sigmoid", function_to_apply="sigmoid")
    refused(client, b"no image", "does not begin like any accepted image type")
    refused(InferenceClient(model=f"{url}/models/other"), image, "choose one of")


def check(answer, expected):
    assert [element.label for element in answer] == [one["label"] for one in expected], answer
    assert all(abs(element.score - one["score"]) < 1e-6 for element, one in zip(answer, expected, strict=True)), answer


def refused(client, image, reason, **options):
    try:
        answer = client.image_classification(image, **options)
    except HfHubHTTPError as error:
        assert reason in error.response.json()["error"], error.response.text
    else:
        raise AssertionError(f"not refused: {answer}")


main()
