"""Flask under gunicorn: `gunicorn flask_app:app --workers 2`."""

from classifier import Classifier
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
classifier = Classifier()


@app.post("/v1/classify")
def classify() -> Response:
    """Takes raw bytes and returns the best classes."""
    return jsonify(classifier(request.get_data(cache=False)))
