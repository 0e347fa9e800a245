//! The receiver that is called for each image of a drop folder.

use std::path::{Path, PathBuf};

use clap::Args;

use super::usage::usage;
use crate::outbound::{Allowed, AllowedPlace};
use crate::pile::output::WebhookConfig;

#[derive(Debug, Args)]
pub struct WebhookArgs {
    /// Send the row of each image to this address too, as signed JSON; a call that fails is repeated for a day, and calls
    /// that are open when the command ends are made after its next start
    #[arg(long, env = "IMGCLS_WEBHOOK", value_name = "URL")]
    pub webhook: Option<String>,
    /// The file with the secret that signs the calls; it is created if it does not exist [default: the file of --out with
    /// .webhook-secret after its name]
    #[arg(long, env = "IMGCLS_WEBHOOK_SECRET", value_name = "FILE", requires = "webhook")]
    pub webhook_secret: Option<PathBuf>,
    /// A host (hooks.example) or a network (10.1.0.0/16) that may be called although it is not public; may be repeated
    /// [default: public addresses only, at the ports 443, 80, 8080 and 8443]
    #[arg(long = "allow-calls-to", env = "IMGCLS_ALLOW_CALLS_TO", value_name = "PLACE", value_delimiter = ',',
        requires = "webhook", value_parser = |text: &str| text.parse::<AllowedPlace>())]
    pub allow_calls_to: Vec<AllowedPlace>,
}

impl WebhookArgs {
    /// # Errors
    /// A [`super::UsageError`] if the address may not be called.
    pub fn config(&self, table: &Path) -> anyhow::Result<Option<WebhookConfig>> {
        let Some(url) = self.webhook.clone() else { return Ok(None) };
        let allowed = Allowed(self.allow_calls_to.clone());
        if let Err(refusal) = allowed.check_url(&url) {
            return Err(usage("watch", format!("--webhook cannot be called: {refusal}")));
        }
        let default = || {
            let mut name = table.as_os_str().to_owned();
            name.push(".webhook-secret");
            PathBuf::from(name)
        };
        let secret = self.webhook_secret.clone().unwrap_or_else(default);
        Ok(Some(WebhookConfig { url, secret, allowed }))
    }
}
