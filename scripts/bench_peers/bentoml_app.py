"""BentoML: `bentoml serve bentoml_app:Service`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from classifier import Classifier


@bentoml.service(workers=2, resources={"cpu": "1"}, traffic={"timeout": 600, "max_concurrency": 1024})
class Service:
    """Two worker processes, a session each."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(route="/v1/classify")
    def classify(self, image: Annotated[Path, ContentType("image/*")], /) -> dict:
        """Raw bytes in (BentoML lays them into a file), the best classes out."""
        return self.classifier(image.read_bytes())
