//! Profiles whose owner signs in with a browser: by IAM Identity Center (`aws sso login`), or by `aws login`.
//!
//! The AWS command line, with which people sign in, has their credentials and renews them. It hands out those of any profile,
//! so that the crates of three more services are not needed for it.

use std::time::Duration;

use aws_config::ConfigLoader;
use aws_config::credential_process::CredentialProcessProvider;
use aws_config::identity::IdentityCache;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_runtime::env_config::file::EnvConfigFiles;
use aws_runtime::env_config::section::EnvConfigSections;
use aws_runtime::env_config::source;
use aws_types::os_shim_internal::{Env, Fs};

/// Keys take precedence over a profile.
const KEY_VARIABLE: &str = "AWS_ACCESS_KEY_ID";
/// Settings of profiles that sign in with a browser, each with the command that does it.
const SIGN_IN: [(&str, &str); 3] =
    [("sso_session", "aws sso login"), ("sso_start_url", "aws sso login"), ("login_session", "aws login")];
/// A profile may take a role with the credentials of another one, which may do the same.
const LONGEST_CHAIN: usize = 10;
/// The command line starts in a second or two, and may have to renew what it has. The SDK's default is 5 s.
const LONGEST_LOAD: Duration = Duration::from_secs(20);

/// Takes credentials from the AWS command line if the chosen profile, or one that it builds on, signs in with a browser.
pub(super) async fn with_signed_in_profile(loader: ConfigLoader) -> ConfigLoader {
    match profile().await {
        Some(profile) => {
            let cache = IdentityCache::lazy().load_timeout(LONGEST_LOAD).build();
            loader.credentials_provider(profile).identity_cache(cache)
        }
        None => loader,
    }
}

async fn profile() -> Option<SignedIn> {
    if std::env::var(KEY_VARIABLE).is_ok_and(|key| !key.is_empty()) {
        return None;
    }
    let source = source::load(&Env::real(), &Fs::real(), &EnvConfigFiles::default()).await.ok()?;
    let profiles = EnvConfigSections::parse(source).ok()?;
    let name = profiles.selected_profile();
    let sign_in = sign_in_of(&profiles, name)?;
    let command = format!("aws configure export-credentials --format process --profile {}", quoted(name));
    Some(SignedIn { name: name.to_owned(), sign_in, process: CredentialProcessProvider::new(command) })
}

/// The command that signs in to a profile. Returns `None` if it has another source of credentials.
fn sign_in_of(profiles: &EnvConfigSections, name: &str) -> Option<&'static str> {
    let mut profile = profiles.get_profile(name)?;
    for _ in 0..LONGEST_CHAIN {
        let source = profile.get("role_arn").and(profile.get("source_profile"));
        match source.filter(|source| *source != profile.name()) {
            Some(source) => profile = profiles.get_profile(source)?,
            None => {
                return SIGN_IN.iter().find(|(setting, _)| profile.get(setting).is_some()).map(|(_, command)| *command);
            }
        }
    }
    None
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[derive(Debug)]
struct SignedIn {
    name: String,
    sign_in: &'static str,
    process: CredentialProcessProvider,
}

impl SignedIn {
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        self.process.provide_credentials().await.map_err(|error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            CredentialsError::provider_error(format!(
                "profile {:?} signs in with a browser: run `{} --profile {}`; its credentials come from version 2 of the AWS command line, which says: {reason}",
                self.name,
                self.sign_in,
                quoted(&self.name)
            ))
        })
    }
}

impl ProvideCredentials for SignedIn {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}
