//! The client and the secrets with which a process calls receivers.

use std::sync::Arc;

use super::hosts::BusyHosts;
use crate::keys::WebhookSecrets;
use crate::outbound::Caller;

/// The client and the secrets with which a process calls receivers.
pub(in crate::web) struct Callbacks {
    pub(super) caller: Arc<Caller>,
    pub(super) secrets: WebhookSecrets,
    pub(super) hosts: BusyHosts,
}

impl Callbacks {
    pub(in crate::web) fn new(caller: Arc<Caller>, secrets: WebhookSecrets) -> Callbacks {
        Callbacks { caller, secrets, hosts: BusyHosts::default() }
    }
}
