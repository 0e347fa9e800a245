"""Classifies an image with Replicate's client, as its users do.

    replicate_client.py URL MODEL IMAGE EXPECTED

EXPECTED is a JSON list of the five best classes, each with its label and score.
"""

import json
import sys
from pathlib import Path

import replicate
from replicate.exceptions import ReplicateError


def main():
    url, model, image, expected = sys.argv[1:]
    expected = json.loads(expected)
    client = replicate.Client(api_token="any", base_url=url)
    options = {"file_encoding_strategy": "base64"}
    with Path(image).open("rb") as file:
        prediction = client.predictions.create(version=model, input={"image": file}, wait=True, **options)
    check(prediction, expected)
    with Path(image).open("rb") as file:
        prediction = client.predictions.create(
            version=f"anyone/{model}", input={"image": file, "top_k": 2}, wait=False, **options
        )
    prediction.wait()
    check(prediction, expected[:2])
    check(client.predictions.get(prediction.id), expected[:2])
    try:
        client.predictions.create(version=model, input={"image": "https://example.com/cat.jpg"})
    except ReplicateError as error:
        assert error.status == 400, error
        assert "address" in error.detail, error
    else:
        raise AssertionError("an image by its address is not refused")


def check(prediction, expected):
    assert prediction.status == "succeeded", prediction
    assert [one["label"] for one in prediction.output] == [one["label"] for one in expected], prediction


main()
