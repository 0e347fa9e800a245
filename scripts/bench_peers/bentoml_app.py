"""BentoML: `bentoml serve bentoml_app:Service`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from classifier import Classifier


@bentoml.service(workers=2, resources={"cpu": "1"}, traffic={"timeout": 600, "max_concurrency": 1024})
class Service:
    """Two worker processes with one session each."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(route="/v1/classify")
    def classify(self, image: Annotated[Path, ContentType("image/*")], /) -> dict:
        """Takes raw bytes, which BentoML writes to a file, and returns the best classes."""
        return self.classifier(image.read_bytes())
