"""A WSGI layer in front of moto that answers as late as AWS does. moto makes every change at once, and AWS does not.

- A deleted queue is still listed and answers for a while, but not in every listing. Its name cannot be used meanwhile
  (`QueueDeletedRecently`).
- A new queue cannot be named as a dead-letter queue in its first second.
- A deleted bucket is still listed for a while. Its name cannot be used meanwhile (`OperationAborted`), and everything
  else about it fails with `NoSuchBucket`.
- Lifecycle rules with a filter and rules with the older prefix cannot be mixed in a bucket.
- An instance profile is unknown to Auto Scaling for a while after it was made.

The times are shorter than those of AWS (60 s, 1 s, minutes, 10 s), so that tests do not take as long. Calls of SQS in
the Query protocol take effect at once: tests use it to change a stack behind the program's back.
"""

import io
import json
import re
import threading
import time
import urllib.parse

# Seconds.
QUEUE_IN_DELETION = 2.0
QUEUE_IS_NEW = 0.5
BUCKET_IN_DELETION = 2.0
PROFILE_IS_UNKNOWN = 1.0
# A queue in deletion is missing from its first listings: from fewer than the program waits for, also if others list
# queues.
LISTINGS_WITHOUT = 2

CREDENTIAL = re.compile(r"Credential=[^/,]+/\d+/([^/]+)/([^/]+)/")
PROFILE_REFUSED = (
    "You must use a valid fully-formed launch template. Value (%s) for parameter iamInstanceProfile.arn is invalid. "
    "Invalid IAM Instance Profile ARN"
)


class Call:
    """A request, with its body read."""

    def __init__(self, environ):
        self.body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.environ = environ | {"wsgi.input": io.BytesIO(self.body)}
        credential = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
        self.region, self.service = credential.groups() if credential else ("", "")
        self.method, self.path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        # The SDK names the operation of S3 in the query.
        self.query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        self.has_query = any(name != "x-id" for name in self.query)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        self.is_json = bool(target)
        self.operation, self.parameters = target.rsplit(".", 1)[-1], {}
        if self.is_json and self.service == "sqs":
            self.parameters = json.loads(self.body or b"{}")
        elif not self.is_json and self.service in ("autoscaling", "ec2", "iam"):
            self.parameters = dict(urllib.parse.parse_qsl(self.body.decode(), keep_blank_values=True))
            self.operation = self.parameters.get("Action", "")

    def answer_of(self, application):
        """Returns status, headers and body."""
        answer = {}

        def start(status, headers, exc_info=None):
            answer.update(status=status, headers=headers)

        self.environ["wsgi.input"].seek(0)
        body = b"".join(application(self.environ, start))
        return answer["status"], answer["headers"], body


class StrictLayer:
    def __init__(self, application):
        self.application = application
        self.lock = threading.Lock()
        self.forget()

    def forget(self):
        self.queues = {}  # (region, name) → time of creation
        self.queues_in_deletion = {}  # (region, name) → (time of deletion, the call that deletes it)
        self.buckets_in_deletion = {}  # name → time of deletion
        self.profiles = {}  # name → time of creation
        self.profile_of_template = {}  # (region, launch template) → ARN of its instance profile
        self.listings_without = {}  # (region, name) → how many listings lacked the queue since its deletion

    def __call__(self, environ, start_response):
        call = Call(environ)
        if call.path == "/moto-api/reset":
            with self.lock:
                self.forget()
        self.finish_deletions()
        handlers = {"sqs": self.sqs, "s3": self.s3, "iam": self.iam, "ec2": self.ec2, "autoscaling": self.autoscaling}
        handler = handlers.get(call.service)
        status, headers, body = (handler and handler(call)) or call.answer_of(self.application)
        if call.method != "HEAD":
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers)
        return [body]

    def finish_deletions(self):
        now = time.monotonic()
        with self.lock:
            ended = [key for key, (at, _) in self.queues_in_deletion.items() if now - at >= QUEUE_IN_DELETION]
            calls = [self.queues_in_deletion.pop(key)[1] for key in ended]
            for key in ended:
                self.queues.pop(key, None)
            for call in calls:
                call.answer_of(self.application)
            for name in [name for name, at in self.buckets_in_deletion.items() if now - at >= BUCKET_IN_DELETION]:
                del self.buckets_in_deletion[name]

    def sqs(self, call):
        if not call.is_json:
            return None
        name = call.parameters.get("QueueName") or call.parameters.get("QueueUrl", "").rsplit("/", 1)[-1]
        key, now = (call.region, name), time.monotonic()
        match call.operation:
            case "DeleteQueue":
                with self.lock:
                    if key not in self.queues_in_deletion:
                        self.queues_in_deletion[key] = (now, call)
                        self.listings_without.pop(key, None)
                return "200 OK", [("Content-Type", "application/x-amz-json-1.0")], b"{}"
            case "CreateQueue":
                return self.create_queue(call, key)
            case "ListQueues":
                return self.list_queues(call)
        return None

    def create_queue(self, call, key):
        if key in self.queues_in_deletion:
            wait = "You must wait 60 seconds after deleting a queue before you can create another with the same name."
            return refused_by_sqs("QueueDeletedRecently", wait)
        redrive = json.loads((call.parameters.get("Attributes") or {}).get("RedrivePolicy") or "{}")
        target = (call.region, redrive.get("deadLetterTargetArn", "").rsplit(":", 1)[-1])
        if time.monotonic() - self.queues.get(target, 0) < QUEUE_IS_NEW:
            value = json.dumps(redrive)
            reason = f"Value {value} for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist."
            return refused_by_sqs("InvalidParameterValue", reason)
        answer = call.answer_of(self.application)
        if answer[0].startswith("200"):
            with self.lock:
                self.queues.setdefault(key, time.monotonic())
        return answer

    def list_queues(self, call):
        status, headers, body = call.answer_of(self.application)
        listing = json.loads(body)

        def is_listed(url):
            key = (call.region, url.rsplit("/", 1)[-1])
            omissions = self.listings_without.get(key, 0)
            if key not in self.queues_in_deletion or omissions == LISTINGS_WITHOUT:
                return True
            self.listings_without[key] = omissions + 1
            return False

        with self.lock:
            listing["QueueUrls"] = [url for url in listing.get("QueueUrls", []) if is_listed(url)]
        return status, headers, json.dumps(listing).encode()

    def s3(self, call):
        name = call.path.strip("/")
        if call.method == "PUT" and "lifecycle" in call.query and mixes_rules(call.body.decode()):
            return refused_by_s3("400 Bad Request", "InvalidRequest", "Filter and Prefix rules cannot be mixed.")
        if "/" in name or call.has_query:
            return None
        if call.method == "PUT" and name in self.buckets_in_deletion:
            conflict = (
                "A conflicting conditional operation is currently in progress against this resource. Please try again."
            )
            return refused_by_s3("409 Conflict", "OperationAborted", conflict)
        if call.method == "DELETE" and name:
            answer = call.answer_of(self.application)
            if answer[0].startswith("2"):
                with self.lock:
                    self.buckets_in_deletion[name] = time.monotonic()
            return answer
        if call.method == "GET" and not name:
            status, headers, body = call.answer_of(self.application)
            gone = "".join(
                f"<Bucket><Name>{name}</Name><CreationDate>2026-01-01T00:00:00.000Z</CreationDate></Bucket>"
                for name in list(self.buckets_in_deletion)
            ).encode()
            body = re.sub(rb"<Buckets\s*/>", b"<Buckets></Buckets>", body)
            return status, headers, body.replace(b"</Buckets>", gone + b"</Buckets>")
        return None

    def iam(self, call):
        if call.operation != "CreateInstanceProfile":
            return None
        answer = call.answer_of(self.application)
        if answer[0].startswith("200"):
            with self.lock:
                self.profiles[call.parameters["InstanceProfileName"]] = time.monotonic()
        return answer

    def ec2(self, call):
        if call.operation in ("CreateLaunchTemplate", "CreateLaunchTemplateVersion"):
            arn = call.parameters.get("LaunchTemplateData.IamInstanceProfile.Arn", "")
            with self.lock:
                self.profile_of_template[call.region, call.parameters.get("LaunchTemplateName", "")] = arn

    def autoscaling(self, call):
        if call.operation != "CreateAutoScalingGroup":
            return None
        of_group = "LaunchTemplate.LaunchTemplateName"
        of_mix = "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateName"
        template = call.parameters.get(of_group) or call.parameters.get(of_mix, "")
        arn = self.profile_of_template.get((call.region, template), "")
        if time.monotonic() - self.profiles.get(arn.rsplit("/", 1)[-1], 0) >= PROFILE_IS_UNKNOWN:
            return None
        error = f"<Type>Sender</Type><Code>ValidationError</Code><Message>{PROFILE_REFUSED % arn}</Message>"
        body = f"<ErrorResponse><Error>{error}</Error><RequestId>strict</RequestId></ErrorResponse>"
        return "400 Bad Request", [("Content-Type", "text/xml")], body.encode()


def mixes_rules(body):
    """Returns whether some lifecycle rules have a filter, and others the older prefix."""
    rules = re.findall(r"<Rule>(.*?)</Rule>", body, re.DOTALL)
    return len({"<Filter" in rule for rule in rules}) > 1


def refused_by_s3(status, code, message):
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, [("Content-Type", "application/xml")], error.encode()


def refused_by_sqs(code, message):
    headers = [
        ("Content-Type", "application/x-amz-json-1.0"),
        ("x-amzn-query-error", f"AWS.SimpleQueueService.{code};Sender"),
    ]
    return "400 Bad Request", headers, json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode()
