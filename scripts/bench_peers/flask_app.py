"""Flask under gunicorn: `gunicorn flask_app:app --workers 2`."""

from classifier import Classifier
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
classifier = Classifier()


@app.post("/v1/classify")
def classify() -> Response:
    """Raw bytes in, the best classes out."""
    return jsonify(classifier(request.get_data(cache=False)))
