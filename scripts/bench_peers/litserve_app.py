"""LitServe: `python litserve_app.py PORT`."""

import sys
from typing import Annotated

import litserve
from classifier import Classifier
from fastapi import Body

# What FastAPI takes as the raw body. LitServe reads the annotation itself, not as text.
Image = Annotated[bytes, Body(media_type="image/jpeg")]


class ClassifierApi(litserve.LitAPI):
    """LitServe's steps; two worker processes, a session each."""

    def setup(self, device: str) -> None:
        """Once a worker process."""
        self.classifier = Classifier()

    def decode_request(self, request: Image) -> bytes:
        """The body as it is."""
        return request

    def predict(self, content: bytes) -> dict:
        """The best classes."""
        return self.classifier(content)

    def encode_response(self, output: dict) -> dict:
        """As it is."""
        return output


if __name__ == "__main__":
    api = ClassifierApi(api_path="/v1/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
