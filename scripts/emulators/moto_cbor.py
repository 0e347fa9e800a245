"""Runs moto's server with support for the protocol of newer CloudWatch clients (Smithy RPC v2 in CBOR).

moto only supports CloudWatch's JSON protocol. CBOR requests are decoded and passed to moto as JSON. Answers are encoded
with the types of botocore's service model, since clients reject an integer in the place of a float.

Four features that moto lacks are added: Auto Scaling groups store their default instance warm-up, buckets store the
tags that they are created with, machines can start from any version of a launch template with user data, and AWS
Budgets answers who is told of a limit.

    python moto_cbor.py PORT [strict]

With `strict`, moto also answers as late as AWS does (`strict.py`).
"""

import datetime
import gzip
import io
import json
import sys

import botocore.session
import cbor2
import xmltodict
from moto.autoscaling.responses import AutoScalingResponse
from moto.budgets.responses import BudgetsResponse
from moto.core.types import Base64EncodedString
from moto.ec2.models.launch_templates import LaunchTemplateVersion
from moto.s3.responses import S3Response
from moto.server import DomainDispatcherApplication, create_backend_app
from strict import StrictLayer
from werkzeug.serving import run_simple

PREFIX = "/service/"
TARGETS = {"GraniteServiceVersion20100801": "cloudwatch"}


class CborLayer:
    def __init__(self, application):
        self.application = application
        session = botocore.session.get_session()
        self.models = {target: session.get_service_model(name) for target, name in TARGETS.items()}

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
            body = gzip.decompress(body)
            del environ["HTTP_CONTENT_ENCODING"]
        path = environ["PATH_INFO"]
        if environ.get("HTTP_SMITHY_PROTOCOL") != "rpc-v2-cbor" or not path.startswith(PREFIX):
            environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
            return self.application(environ, start_response)

        _, _, target, _, operation = path.split("/")
        request = json.dumps(cbor2.loads(body) if body else {}, default=to_json).encode()
        answer = {}

        def start(status, headers, exc_info=None):
            answer.update(status=status, headers=headers)

        environ |= {
            "PATH_INFO": "/",
            "CONTENT_TYPE": "application/x-amz-json-1.0",
            "HTTP_X_AMZ_TARGET": f"{target}.{operation}",
            "wsgi.input": io.BytesIO(request),
            "CONTENT_LENGTH": str(len(request)),
        }
        text = b"".join(self.application(environ, start))
        value = json.loads(text) if text.strip() else {}
        if answer["status"].startswith("2"):
            value = typed(value, self.models[target].operation_model(operation).output_shape)
        encoded = cbor2.dumps(value)
        headers = [(name, text) for name, text in answer["headers"] if name.lower().startswith("x-")]
        headers += [
            ("Content-Type", "application/cbor"),
            ("Content-Length", str(len(encoded))),
            ("smithy-protocol", "rpc-v2-cbor"),
        ]
        start_response(answer["status"], headers)
        return [encoded]


def to_json(value):
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    raise TypeError(f"no JSON for {value!r}")


def typed(value, shape):
    """Converts a value to the types of its shape. Members that are empty or unknown to the model are left out."""
    if value is None or shape is None:
        return {} if shape is None else None
    match shape.type_name:
        case "structure":
            members = shape.members.items()
            return {name: typed(value[name], of) for name, of in members if value.get(name) is not None}
        case "list":
            return [typed(entry, shape.member) for entry in value]
        case "map":
            return {key: typed(entry, shape.value) for key, entry in value.items()}
        case "timestamp":
            return cbor2.CBORTag(1, seconds(value))
        case "double" | "float":
            return float(value)
        case "integer" | "long":
            return int(value)
        case "boolean":
            return value if isinstance(value, bool) else str(value).lower() == "true"
    return value if isinstance(value, str) else str(value)


def seconds(value) -> float:
    if isinstance(value, str):
        return datetime.datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    return float(value)


def keep_instance_warmup() -> None:
    def keeping(call):
        def kept(self):
            answer = call(self)
            warmup = self._get_int_param("DefaultInstanceWarmup")
            if warmup is not None:
                groups = self.autoscaling_backend.autoscaling_groups
                groups[self._get_param("AutoScalingGroupName")].default_instance_warmup = warmup
            return answer

        return kept

    for name in ("create_auto_scaling_group", "update_auto_scaling_group"):
        setattr(AutoScalingResponse, name, keeping(getattr(AutoScalingResponse, name)))


def keep_tags_of_new_buckets() -> None:
    put = S3Response._bucket_response_put

    def kept(self, request, bucket_name, querystring):
        answer = put(self, request, bucket_name, querystring)
        if not querystring and self.body:
            configuration = xmltodict.parse(self.body, force_list=["Tag"]).get("CreateBucketConfiguration")
            tags = ((configuration or {}).get("Tags") or {}).get("Tag", [])
            if tags:
                self.backend.put_bucket_tagging(bucket_name, {tag["Key"]: tag["Value"] for tag in tags})
        return answer

    S3Response._bucket_response_put = kept


def answer_who_is_told_of_budgets() -> None:
    def describe(self):
        budget = self.backend.budgets[self._get_param("AccountId")][self._get_param("BudgetName")]
        wanted = self._get_param("Notification")
        told = [entry.subscribers for entry in budget.notifications if entry.details == wanted]
        return json.dumps({"Subscribers": told[0] if told else []})

    BudgetsResponse.describe_subscribers_for_notification = describe


def read_user_data_of_every_version() -> None:
    def user_data(self):
        data = self.data.get("UserData")
        return Base64EncodedString(data) if isinstance(data, str) else data

    LaunchTemplateVersion.user_data = property(user_data)


if __name__ == "__main__":
    answer_who_is_told_of_budgets()
    keep_instance_warmup()
    read_user_data_of_every_version()
    keep_tags_of_new_buckets()
    application = CborLayer(DomainDispatcherApplication(create_backend_app))
    if sys.argv[2:] == ["strict"]:
        application = StrictLayer(application)
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
