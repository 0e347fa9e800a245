"""A WSGI layer in front of moto that answers as late as AWS does. moto makes every change at once, and AWS does not.

- A deleted queue is still listed and answers for a while, but not in every listing. Its name cannot be used meanwhile
  (`QueueDeletedRecently`).
- A new queue cannot be named as a dead-letter queue in its first second.
- A deleted bucket is still listed for a while. Its name cannot be used meanwhile (`OperationAborted`), and everything
  else about it fails with `NoSuchBucket`.
- Lifecycle rules with a filter and rules with the older prefix cannot be mixed in a bucket.
- An instance profile is unknown to Auto Scaling for a while after it was made.
- The account has quotas of vCPUs and a plan, which moto does not have.
- A group remembers when it started its machines, and when they were in service.
- A group replaces its machines by an instance refresh, which moto does not have. A second one is refused while it runs.
- A load balancer that is deleted keeps its security groups and its target groups in use for a while. One in a single
  zone is refused.

The times are shorter than those of AWS (60 s, 1 s, minutes, 10 s), so that tests do not take as long. Calls of SQS in
the Query protocol take effect at once: tests use it to change a stack behind the program's back.
"""

import datetime
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
REFRESH_RUNS = 1.0
BALANCER_IN_DELETION = 1.5
# From the start of a machine until it is in service.
READY_AFTER = 95
# vCPUs of standard instances: on demand, Spot.
QUOTAS = {"L-1216C47A": 32.0, "L-34B43A08": 5.0}
# A queue in deletion is missing from its first listings: from fewer than the program waits for, also if others list
# queues.
LISTINGS_WITHOUT = 2

NAMESPACE = "http://autoscaling.amazonaws.com/doc/2011-01-01/"
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
        elif not self.is_json and self.service in ("autoscaling", "ec2", "elasticloadbalancing", "iam"):
            self.parameters = dict(urllib.parse.parse_qsl(self.body.decode(), keep_blank_values=True))
            self.operation = self.parameters.get("Action", "")

    def instead(self, form):
        """Another call of the same service by the same caller."""
        body = form.encode()
        environ = self.environ | {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("werkzeug.request", None)
        return Call(environ)

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
        self.refreshes = {}  # (region, group) → the newest instance refresh
        self.listings_without = {}  # (region, name) → how many listings lacked the queue since its deletion
        self.used_by_balancers = {}  # id of a security group or ARN of a target group → time until which it is in use

    def __call__(self, environ, start_response):
        call = Call(environ)
        if call.path == "/moto-api/reset":
            with self.lock:
                self.forget()
        self.finish_deletions()
        handlers = {
            "sqs": self.sqs,
            "s3": self.s3,
            "iam": self.iam,
            "ec2": self.ec2,
            "autoscaling": self.autoscaling,
            "elasticloadbalancing": self.balancers,
            "servicequotas": self.quotas,
            "freetier": self.plan_of_account,
        }
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
            for (_, group), refresh in self.refreshes.items():
                if refresh["status"] == "InProgress" and now - refresh["at"] >= REFRESH_RUNS:
                    self.replace_machines(group, refresh["call"])
                    refresh["status"] = "Successful"

    def replace_machines(self, group, call):
        describe = f"Action=DescribeAutoScalingGroups&Version=2011-01-01&AutoScalingGroupNames.member.1={group}"
        _, _, body = call.instead(describe).answer_of(self.application)
        for machine in re.findall(r"<InstanceId>(.*?)</InstanceId>", body.decode()):
            end = "Action=TerminateInstanceInAutoScalingGroup&Version=2011-01-01&ShouldDecrementDesiredCapacity=false"
            call.instead(f"{end}&InstanceId={machine}").answer_of(self.application)

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
            return None
        group = call.parameters.get("GroupId", "")
        if call.operation == "DeleteSecurityGroup" and self.is_used_by_balancer(group):
            return refused_by_ec2("DependencyViolation", f"resource {group} has a dependent object")
        return None

    def is_used_by_balancer(self, name):
        return time.monotonic() < self.used_by_balancers.get(name, 0)

    def balancers(self, call):
        match call.operation:
            case "CreateLoadBalancer" if "Subnets.member.2" not in call.parameters:
                zones = "At least two subnets in two different Availability Zones must be specified"
                return refused_by_query("ValidationError", zones)
            case "DeleteLoadBalancer":
                arn = urllib.parse.quote(call.parameters.get("LoadBalancerArn", ""))
                version = "Version=2015-12-01"
                describe = f"Action=DescribeLoadBalancers&{version}&LoadBalancerArns.member.1={arn}"
                _, _, body = call.instead(describe).answer_of(self.application)
                used = re.findall(r"<member>(sg-[0-9a-f]+)</member>", body.decode())
                describe = f"Action=DescribeTargetGroups&{version}&LoadBalancerArn={arn}"
                _, _, body = call.instead(describe).answer_of(self.application)
                used += re.findall(r"<TargetGroupArn>(.*?)</TargetGroupArn>", body.decode())
                until = time.monotonic() + BALANCER_IN_DELETION
                with self.lock:
                    self.used_by_balancers.update(dict.fromkeys(used, until))
            case "DeleteTargetGroup" if self.is_used_by_balancer(call.parameters.get("TargetGroupArn", "")):
                return refused_by_query("ResourceInUse", "The target group is currently in use by a listener or a rule")
        return None

    def quotas(self, call):
        code = json.loads(call.body or b"{}").get("QuotaCode")
        if code not in QUOTAS:
            return None
        quota = {"Quota": {"QuotaCode": code, "Value": QUOTAS[code]}}
        return "200 OK", [("Content-Type", "application/x-amz-json-1.1")], json.dumps(quota).encode()

    def plan_of_account(self, call):
        plan = {"accountId": "123456789012", "accountPlanType": "PAID", "accountPlanStatus": "ACTIVE"}
        return "200 OK", [("Content-Type", "application/x-amz-json-1.0")], json.dumps(plan).encode()

    def activities(self, call):
        """Every machine of the group was started, and was in service READY_AFTER seconds later."""
        group = urllib.parse.quote(call.parameters.get("AutoScalingGroupName", ""))
        describe = f"Action=DescribeAutoScalingGroups&Version=2011-01-01&AutoScalingGroupNames.member.1={group}"
        _, _, body = call.instead(describe).answer_of(self.application)
        members = ""
        for machine in re.findall(r"<InstanceId>(.*?)</InstanceId>", body.decode()):
            headers = call.environ | {
                "HTTP_AUTHORIZATION": call.environ["HTTP_AUTHORIZATION"].replace("/autoscaling/", "/ec2/")
            }
            describe = Call(headers).instead(f"Action=DescribeInstances&Version=2016-11-15&InstanceId.1={machine}")
            _, _, found = describe.answer_of(self.application)
            started = re.search(r"<launchTime>(.*?)</launchTime>", found.decode()).group(1)
            ended = datetime.datetime.fromisoformat(started) + datetime.timedelta(seconds=READY_AFTER)
            members += (
                f"<member><ActivityId>a-{machine}</ActivityId><AutoScalingGroupName>{group}</AutoScalingGroupName>"
                f"<Description>Launching a new EC2 instance: {machine}</Description><Cause>the wanted size</Cause>"
                f"<StartTime>{started}</StartTime><EndTime>{ended.isoformat()}</EndTime><StatusCode>Successful</StatusCode></member>"
            )
        name = "DescribeScalingActivities"
        result = f"<{name}Result><Activities>{members}</Activities></{name}Result>"
        body = f'<{name}Response xmlns="{NAMESPACE}">{result}</{name}Response>'
        return "200 OK", [("Content-Type", "text/xml")], body.encode()

    def refresh(self, call):
        key = (call.region, call.parameters.get("AutoScalingGroupName", ""))
        refresh, result = self.refreshes.get(key), ""
        match call.operation:
            case "StartInstanceRefresh" if refresh and refresh["status"] == "InProgress":
                return refused_by_query("InstanceRefreshInProgress", "An Instance Refresh is already in progress.")
            case "StartInstanceRefresh":
                parameters = call.parameters.items()
                preferences = {
                    name.split(".")[1]: value for name, value in parameters if name.startswith("Preferences.")
                }
                refresh = {"status": "InProgress", "at": time.monotonic(), "call": call, "preferences": preferences}
                with self.lock:
                    self.refreshes[key] = refresh
                result = "<InstanceRefreshId>08b91cf7</InstanceRefreshId>"
            case "CancelInstanceRefresh":
                refresh["status"] = "Cancelled"
            case "DescribeInstanceRefreshes" if refresh:
                preferences = "".join(f"<{name}>{value}</{name}>" for name, value in refresh["preferences"].items())
                member = f"<Status>{refresh['status']}</Status><Preferences>{preferences}</Preferences>"
                result = f"<InstanceRefreshes><member>{member}</member></InstanceRefreshes>"
        name = call.operation
        body = f'<{name}Response xmlns="{NAMESPACE}"><{name}Result>{result}</{name}Result></{name}Response>'
        return "200 OK", [("Content-Type", "text/xml")], body.encode()

    def autoscaling(self, call):
        if "InstanceRefresh" in call.operation:
            return self.refresh(call)
        if call.operation == "DescribeScalingActivities":
            return self.activities(call)
        if call.operation != "CreateAutoScalingGroup":
            return None
        of_group = "LaunchTemplate.LaunchTemplateName"
        of_mix = "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateName"
        template = call.parameters.get(of_group) or call.parameters.get(of_mix, "")
        arn = self.profile_of_template.get((call.region, template), "")
        if time.monotonic() - self.profiles.get(arn.rsplit("/", 1)[-1], 0) >= PROFILE_IS_UNKNOWN:
            return None
        return refused_by_query("ValidationError", PROFILE_REFUSED % arn)


def mixes_rules(body):
    """Returns whether some lifecycle rules have a filter, and others the older prefix."""
    rules = re.findall(r"<Rule>(.*?)</Rule>", body, re.DOTALL)
    return len({"<Filter" in rule for rule in rules}) > 1


def refused_by_query(code, message):
    error = f"<Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>"
    body = f"<ErrorResponse><Error>{error}</Error><RequestId>strict</RequestId></ErrorResponse>"
    return "400 Bad Request", [("Content-Type", "text/xml")], body.encode()


def refused_by_ec2(code, message):
    error = f"<Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
    body = f"<Response>{error}<RequestID>strict</RequestID></Response>"
    return "400 Bad Request", [("Content-Type", "text/xml")], body.encode()


def refused_by_s3(status, code, message):
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, [("Content-Type", "application/xml")], error.encode()


def refused_by_sqs(code, message):
    headers = [
        ("Content-Type", "application/x-amz-json-1.0"),
        ("x-amzn-query-error", f"AWS.SimpleQueueService.{code};Sender"),
    ]
    return "400 Bad Request", headers, json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode()
