"""Classifies images with Triton's client, as its users do.

    triton.py ADDRESS MODEL IMAGE EXPECTED PIXELS

EXPECTED is a JSON list of the five best classes, each with label, score and index. PIXELS is a PNG of the same image
without loss, whose rows of pixels are sent as a tensor.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException


def main():
    address, model, image, expected, pixels = sys.argv[1:]
    expected = json.loads(expected)
    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert not client.is_model_ready("other")
    assert "classification" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(model)
    [version] = metadata["versions"]
    assert client.is_model_ready(model, version)

    file = np.array([Path(image).read_bytes()], dtype=np.object_)
    first = metadata["inputs"][0]
    assert (first["datatype"], first["shape"]) == ("BYTES", [-1])
    one = tensor(first["name"], file, "BYTES")
    result = client.infer(model, [one], request_id="one")
    assert result.get_response()["id"] == "one"
    check(result, [expected])
    check(client.infer(model, [one], model_version=version), [expected])
    check(client.infer(model, [one], request_compression_algorithm="gzip"), [expected])

    # Outputs in JSON, fewer classes, and the classification extension.
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in ("labels", "scores", "indices")]
    check(client.infer(model, [one], outputs=outputs, parameters={"top_k": 2}), [expected[:2]])
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=3)]
        classes = client.infer(model, [one], outputs=outputs).as_numpy("scores")
        assert classes.shape == (1, 3), classes
        for found, wanted in zip(classes[0], expected, strict=False):
            score, index, label = (found.decode() if isinstance(found, bytes) else found).split(":", 2)
            assert (int(index), label) == (wanted["class_index"], wanted["label"]), found
            assert abs(float(score) - wanted["score"]) < 1e-6, found

    # Several images at once, and an asynchronous request.
    many = tensor("image", np.repeat(file, 5), "BYTES")
    check(client.infer(model, [many]), [expected] * 5)
    check(client.async_infer(model, [one]).get_result(), [expected])

    # Pixels give exactly the answer of the file without loss.
    rows = np.asarray(Image.open(pixels).convert("RGB"))
    of_file = client.infer(model, [tensor("image", np.array([Path(pixels).read_bytes()], dtype=np.object_), "BYTES")])
    for sent in (rows, rows[np.newaxis]):
        of_rows = client.infer(model, [tensor("pixels", sent, "UINT8")])
        assert (of_rows.as_numpy("labels") == of_file.as_numpy("labels")).all()
        assert (of_rows.as_numpy("scores") == of_file.as_numpy("scores")).all()
    of_rows = client.infer(model, [tensor("pixels", rows, "UINT8", binary_data=False)])
    assert (of_rows.as_numpy("scores") == of_file.as_numpy("scores")).all()

    refused(client, model, tensor("image", rows.astype(np.float32), "FP32"), "FP32")
    refused(client, model, tensor("pixels", rows[:, :, :2], "UINT8"), "[height, width, 3]")
    refused(client, model, tensor("input", file, "BYTES"), "there is no input")
    refused(client, model, tensor("image", np.array([b"no image"], dtype=np.object_), "BYTES"), "image type")
    refused(client, "other", one, "choose one of")
    refused(client, model, one, "sequence_id", sequence_id=1)
    refused(client, model, one, "no version", model_version="0")
    refused(client, model, one, "no output", outputs=[triton.InferRequestedOutput("other")])


def tensor(name, array, datatype, **options):
    sent = triton.InferInput(name, array.shape, datatype)
    sent.set_data_from_numpy(array, **options)
    return sent


def check(result, expected):
    labels, scores, indices = (result.as_numpy(name) for name in ("labels", "scores", "indices"))
    text = [[label.decode() if isinstance(label, bytes) else label for label in row] for row in labels]
    assert text == [[one["label"] for one in image] for image in expected], text
    assert indices.tolist() == [[one["class_index"] for one in image] for image in expected], indices
    assert np.allclose(scores, [[one["score"] for one in image] for image in expected], atol=1e-6), scores


def refused(client, model, sent, reason, **options):
    try:
        client.infer(model, [sent], **options)
    except InferenceServerException as error:
        assert reason in error.message(), error
    else:
        raise AssertionError(f"not refused: {reason}")


main()
