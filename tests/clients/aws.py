"""Classifies an image with boto3, as users of Rekognition and SageMaker do.

    aws.py URL MODEL IMAGE EXPECTED

EXPECTED is a JSON list of the five best classes, each with its label and score.
"""

import base64
import json
import sys
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main():
    url, model, image, expected = sys.argv[1:]
    expected = json.loads(expected)
    image = Path(image).read_bytes()
    settings = {
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": "any",
        "aws_secret_access_key": "any",
        "config": Config(retries={"max_attempts": 1}),
    }
    detect_labels(boto3.client("rekognition", **settings), image, expected)
    invoke_endpoint(boto3.client("sagemaker-runtime", **settings), model, image, expected)


def detect_labels(rekognition, image, expected):
    answer = rekognition.detect_labels(Image={"Bytes": image}, MaxLabels=3, MinConfidence=0)
    assert [label["Name"] for label in answer["Labels"]] == [one["label"] for one in expected[:3]], answer
    for label, one in zip(answer["Labels"], expected, strict=False):
        assert abs(label["Confidence"] - 100 * one["score"]) < 1e-3, answer
        assert label["Parents"] == label["Instances"] == [], answer
    confident = [one["label"] for one in expected if one["score"] >= 0.55]
    answer = rekognition.detect_labels(Image={"Bytes": image})
    assert [label["Name"] for label in answer["Labels"]] == confident, answer
    assert rekognition.detect_labels(Image={"Bytes": image}, MinConfidence=100)["Labels"] == []
    assert len(rekognition.detect_labels(Image={"Bytes": image}, MinConfidence=0)["Labels"]) == 1000
    general = rekognition.detect_labels(Image={"Bytes": image}, Features=["GENERAL_LABELS"])
    assert general["Labels"] == answer["Labels"]

    for code, reason, arguments in (
        ("InvalidS3ObjectException", "S3Object", {"Image": {"S3Object": {"Bucket": "bucket", "Name": "cup.jpg"}}}),
        ("InvalidImageFormatException", "image type", {"Image": {"Bytes": b"no image"}}),
        ("InvalidImageFormatException", "", {"Image": {"Bytes": image[:200]}}),
        ("InvalidParameterException", "MinConfidence", {"Image": {"Bytes": image}, "MinConfidence": 101}),
        (
            "InvalidParameterException",
            "IMAGE_PROPERTIES",
            {"Image": {"Bytes": image}, "Features": ["IMAGE_PROPERTIES"]},
        ),
        (
            "InvalidParameterException",
            "Settings",
            {"Image": {"Bytes": image}, "Settings": {"GeneralLabels": {"LabelInclusionFilters": ["Cup"]}}},
        ),
    ):
        refused(rekognition.detect_labels, code, reason, arguments)
    refused(rekognition.detect_text, "UnknownOperationException", "DetectText", {"Image": {"Bytes": image}})


def invoke_endpoint(runtime, model, image, expected):
    labels = [one["label"] for one in expected]
    encoded = base64.b64encode(image).decode()
    for content_type, body, count in (
        ("application/x-image", image, 5),
        ("image/jpeg", image, 5),
        ("application/json", json.dumps({"inputs": encoded}), 5),
        ("application/json", json.dumps({"inputs": encoded, "parameters": {"top_k": 2}}), 2),
    ):
        answer = runtime.invoke_endpoint(
            EndpointName=model, Body=body, ContentType=content_type, Accept="application/json"
        )
        assert answer["ContentType"] == "application/json", answer
        classes = json.loads(answer["Body"].read())
        assert [one["label"] for one in classes] == labels[:count], classes

    sent = {"EndpointName": model, "Body": image}
    for code, reason, arguments in (
        ("ValidationError", "choose one of", {**sent, "EndpointName": "other"}),
        ("ValidationError", "target-model", {**sent, "TargetModel": "model.tar.gz"}),
        ("ValidationError", "Accept", {**sent, "Accept": "text/csv"}),
        ("ModelError", "image type", {**sent, "Body": b"no image"}),
        ("ModelError", "", {**sent, "Body": image[:200]}),
    ):
        refused(runtime.invoke_endpoint, code, reason, arguments)


def refused(call, code, reason, arguments):
    try:
        answer = call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        assert reason in str(error), error
    else:
        raise AssertionError(f"not refused: {answer}")


main()
