"""FastAPI under uvicorn: `uvicorn fastapi_app:app --workers 2`."""

from classifier import Classifier
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
classifier = Classifier()


@app.post("/v1/classify")
async def classify(request: Request) -> JSONResponse:
    """Raw bytes in, the best classes out.

    In the event loop on purpose: a process can do one image at a time, and a hop to a thread only adds to it.
    """
    return JSONResponse(classifier(await request.body()))
