"""Plays the tiers of the legacy system on SQS and S3, for tests of our tiers.

    legacy.py worker COUNT     serves COUNT messages and prints their file names
    legacy.py ask FILE         sends an image as the legacy web tier does, and prints the label in the reply
    legacy.py send BODY        sends any message
    legacy.py make BYTES       creates the two queues with this maximum message size

The legacy variables name the queues and buckets.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path

import boto3

TIMEOUT_SECONDS = 60


def main():
    match sys.argv[1:]:
        case ["worker", count]:
            requests, results = queue("REQUEST_QUEUE_NAME"), queue("RESPONSE_QUEUE_NAME")
            for _ in range(int(count)):
                print(serve_one(requests, results), flush=True)
        case ["ask", path]:
            print(ask(queue("REQUEST_QUEUE_NAME"), queue("RESPONSE_QUEUE_NAME"), path))
        case ["send", body]:
            queue("REQUEST_QUEUE_NAME").send_message(MessageBody=body)
        case ["make", limit]:
            for variable in ("REQUEST_QUEUE_NAME", "RESPONSE_QUEUE_NAME"):
                attributes = {"MaximumMessageSize": limit}
                boto3.resource("sqs").create_queue(QueueName=os.environ[variable], Attributes=attributes)
        case _:
            sys.exit(__doc__)


def queue(variable):
    return boto3.resource("sqs").get_queue_by_name(QueueName=os.environ[variable])


def serve_one(requests, results):
    message = receive(requests)
    body = json.loads(message.body)
    name, image = body["filename"], base64.b64decode(body["image_data"])
    # The legacy script prints this, and its worker splits it at the comma.
    printed = f"({name}, bathtub {len(image)})\n"
    s3 = boto3.resource("s3")
    s3.Object(os.environ["INPUT_BUCKET_NAME"], name).put(Body=image)
    s3.Object(os.environ["OUTPUT_BUCKET_NAME"], name.split(".")[0]).put(Body=f"({printed.strip()})")
    results.send_message(MessageBody=json.dumps({name: printed.split(",")[1]}))
    message.delete()
    return name


def ask(requests, results, path):
    image_data = base64.b64encode(Path(path).read_bytes()).decode()
    name = Path(path).name
    requests.send_message(MessageBody=json.dumps({"image_data": image_data, "filename": name}))
    while True:
        message = receive(results)
        answers = json.loads(message.body)
        message.delete()
        if name in answers:
            return answers[name]


def receive(queue):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for message in queue.receive_messages(MaxNumberOfMessages=1, WaitTimeSeconds=5):
            return message
    sys.exit(f"no message arrived on {queue.url}")


main()
