#!/bin/bash
# Downloads imgcls from the bucket of its stack and starts it. Written by `imgcls provision`; runs once, at the first start.
#
# Nothing is installed: the curl of the system signs its request with the role of this machine.
# shellcheck disable=SC2034,SC1091 # role.sh, which is written below, uses the variables
set -euo pipefail

digest=@DIGEST@
bundle_url=@BUNDLE_URL@
region=@REGION@
metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
home=/opt/imgcls/$digest

say() { echo "imgcls: $*"; }

mkdir -p /opt/imgcls /etc/imgcls

# This script and the service that sends logs source the file.
cat >/opt/imgcls/role.sh <<'ROLE'
# Instance metadata, version 2 of its protocol.
read_metadata() {
  local token
  token=$(curl -sSf --retry 3 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token")
  curl -sSf --retry 3 -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/$1"
}

# curl, with a request that is signed for a service with the role of this machine. Keys go through standard input, since
# every user can read arguments.
as_role() {
  local service=$1 role answer
  shift
  role=$(read_metadata iam/security-credentials/)
  answer=$(read_metadata "iam/security-credentials/$role")
  field() { sed -n "s/.*\"$1\"[ \t]*:[ \t]*\"\([^\"]*\)\".*/\1/p" <<<"$answer"; }
  curl -sSf --aws-sigv4 "aws:amz:$region:$service" --config - "$@" <<CONFIG
user = "$(field AccessKeyId):$(field SecretAccessKey)"
header = "X-Amz-Security-Token: $(field Token)"
CONFIG
}
ROLE
. /opt/imgcls/role.sh

download() {
  local work
  work=$(mktemp -d /opt/imgcls/.download.XXXXXX)
  as_role s3 -H 'X-Amz-Content-Sha256: UNSIGNED-PAYLOAD' -o "$work/bundle.tar.gz" "$bundle_url" &&
    gzip -dc "$work/bundle.tar.gz" >"$work/bundle.tar" &&
    echo "$digest  $work/bundle.tar" | sha256sum --check --status &&
    mkdir "$work/new" && tar -xf "$work/bundle.tar" -C "$work/new" --no-same-owner &&
    chmod 755 "$work/new" && mv -T "$work/new" "$home"
  local code=$?
  rm -rf "$work"
  return $code
}

# A new role takes a moment until every service knows it.
for try in $(seq 60); do
  [ -d "$home" ] && break
  if (set +e; download); then break; fi
  say "cannot download the bundle $bundle_url, or it is not the one with digest $digest (try $try of 60)"
  sleep 5
done
# An Auto Scaling group replaces a machine that is off, but not one that does nothing.
if ! [ -d "$home" ]; then
  say "giving up: check that the role of this machine may read the bundle. Switching off, so that the group tries another machine"
  systemctl poweroff
  exit 1
fi

# Readable by everybody: the services run as users without rights, and the file holds no secret.
cat >/etc/imgcls/config.toml <<'SETTINGS'
@SETTINGS@
SETTINGS
chmod 644 /etc/imgcls/config.toml

# write_unit NAME DESCRIPTION COMMAND [CAPABILITY [GROUP]]
write_unit() {
  cat >"/etc/systemd/system/$1.service" <<UNIT
[Unit]
Description=$2
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=$3
Restart=always
RestartSec=2
TimeoutStopSec=180
LimitNOFILE=65536
MemoryMax=90%
DynamicUser=yes
CacheDirectory=%N
SupplementaryGroups=${5:-}
AmbientCapabilities=${4:-}
CapabilityBoundingSet=${4:-}
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
UNIT
}

write_unit imgcls 'imgcls @COMMAND@' "$home/bin/imgcls @COMMAND@" '@CAPABILITY@'
# The loop beside the web tier starts the first worker within seconds; an alarm would take minutes.
autoscale='@AUTOSCALE@'
[ -z "$autoscale" ] || write_unit imgcls-autoscale "imgcls $autoscale" "$home/bin/imgcls $autoscale"

# The service's log goes to CloudWatch Logs within five seconds.
cat >/opt/imgcls/send-logs <<'SEND'
#!/bin/bash
set -uo pipefail
region=@REGION@ metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
. /opt/imgcls/role.sh
stream=$(read_metadata instance-id) || exit 1

call() {
  as_role logs -o /dev/null -H 'Content-Type: application/x-amz-json-1.1' -H "X-Amz-Target: Logs_20140328.$1" \
    --data-binary "@$2" @LOGS_URL@/
}

body=$(mktemp)
where='"logGroupName":"@LOG_GROUP@","logStreamName":"'$stream'"'
echo "{$where}" >"$body"
call CreateLogStream "$body" 2>/dev/null # the stream may exist already

journalctl --unit imgcls.service --unit imgcls-autoscale.service --follow --lines all --output cat | while true; do
  events= ended=
  while [ ${#events} -lt 200000 ]; do
    IFS= read -r -t 5 line || { [ $? -gt 128 ] || ended=yes; break; }
    line=$(printf '%.100000s' "$line" | tr '\000-\037' ' ' | sed 's/[\\"]/\\&/g')
    [ -z "$line" ] || events+="${events:+,}{\"timestamp\":$(date +%s%3N),\"message\":\"$line\"}"
  done
  if [ -n "$events" ]; then
    echo "{$where,\"logEvents\":[$events]}" >"$body"
    for pause in 1 5 30; do call PutLogEvents "$body" && break || sleep "$pause"; done
  fi
  [ -z "$ended" ] || exit 1
done
SEND
chmod 755 /opt/imgcls/send-logs
write_unit imgcls-logs 'Sends the log of imgcls to CloudWatch Logs' /opt/imgcls/send-logs '' systemd-journal

systemctl daemon-reload
services=(imgcls-logs.service imgcls.service ${autoscale:+imgcls-autoscale.service})
systemctl enable "${services[@]}"
say "bundle $digest is here; starting @COMMAND@"
systemctl start --no-block "${services[@]}"

# The group takes a machine into service once its service has started. One whose service does not start is replaced.
cat >/opt/imgcls/check-start <<'CHECK'
#!/bin/bash
region=@REGION@ metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
. /opt/imgcls/role.sh

# Fails where no hook holds the machine back, as in a group that is older than its hook.
complete_hook() {
  as_role autoscaling -o /dev/null @SCALING_URL@/ --data 'Action=CompleteLifecycleAction&Version=2011-01-01' \
    --data 'AutoScalingGroupName=@GROUP@&LifecycleHookName=@START_HOOK@&LifecycleActionResult=CONTINUE' \
    --data "InstanceId=$(read_metadata instance-id)"
}

for try in $(seq @LOOKS@); do
  if @STARTED@; then
    for pause in 1 5 30 60; do complete_hook && break || sleep "$pause"; done
    exit 0
  fi
  sleep 2
done
echo 'imgcls: the service has not started within @START_LIMIT@. Switching off, so that the group tries another machine' |
  tee /dev/console
systemctl poweroff
CHECK
chmod 755 /opt/imgcls/check-start
systemd-run --unit=imgcls-check-start /opt/imgcls/check-start
@SESSION_MANAGER@
