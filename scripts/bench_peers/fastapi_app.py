"""FastAPI under uvicorn: `uvicorn fastapi_app:app --workers 2`."""

from classifier import Classifier
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
classifier = Classifier()


@app.post("/v1/classify")
async def classify(request: Request) -> JSONResponse:
    """Takes raw bytes and returns the best classes.

    It blocks the event loop on purpose: a process classifies one image at a time, and a thread would only add overhead.
    """
    return JSONResponse(classifier(await request.body()))
