//! The public address of this machine, as AWS sees it.

use std::net::Ipv4Addr;

use anyhow::anyhow;

use super::client::Cloud;

/// Answers with the address of its caller. AWS has one for all regions.
const CHECKIP: &str = "https://checkip.amazonaws.com";
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_CHECKIP";

impl Cloud {
    /// # Errors
    /// There is no answer, or it is not an IPv4 address.
    pub(in crate::provision) async fn own_address(&self) -> anyhow::Result<Ipv4Addr> {
        let url = std::env::var(ENDPOINT_VARIABLE).ok().filter(|url| !url.is_empty());
        let url = url.unwrap_or_else(|| CHECKIP.to_owned());
        let answer = self.done("the address of --allow me", &url, self.signed.get("checkip", &url).await)?;
        answer.trim().parse().map_err(|_| {
            anyhow!("{url} does not say which IPv4 address this machine has: give it with --allow, such as --allow 203.0.113.7/32")
        })
    }
}
