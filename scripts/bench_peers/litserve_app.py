"""LitServe: `python litserve_app.py PORT`."""

import sys
from typing import Annotated

import litserve
from classifier import Classifier
from fastapi import Body

# The raw body, as FastAPI declares it. LitServe evaluates the annotation, so it must not be a string.
Image = Annotated[bytes, Body(media_type="image/jpeg")]


class ClassifierApi(litserve.LitAPI):
    """The steps of LitServe. Two worker processes run them with one session each."""

    def setup(self, device: str) -> None:
        """Runs once in each worker process."""
        self.classifier = Classifier()

    def decode_request(self, request: Image) -> bytes:
        """Returns the body unchanged."""
        return request

    def predict(self, content: bytes) -> dict:
        """Returns the best classes."""
        return self.classifier(content)

    def encode_response(self, output: dict) -> dict:
        """Returns the output unchanged."""
        return output


if __name__ == "__main__":
    api = ClassifierApi(api_path="/v1/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
