# shellcheck shell=bash
# The agent of Session Manager, with which people open a shell. A machine without it works, and lets nobody in.
agent=@AGENT_URL@
if ! systemctl cat amazon-ssm-agent.service >/dev/null 2>&1; then
  if curl -sSf --retry 3 -o /tmp/agent.deb "$agent" && dpkg --install /tmp/agent.deb; then
    systemctl enable --now amazon-ssm-agent.service
  else
    say "cannot install the agent of Session Manager from $agent"
  fi
  rm -f /tmp/agent.deb
fi
