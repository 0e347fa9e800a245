//! `imgcls keys`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::shared::{OutputArgs, SharedArgs};
use crate::config::{self, Backend, Names};
use crate::keys::{NewKey, Scope};
use crate::keys_command;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    imgcls keys create --name phone --scope classify --expires 90d\n  \
    imgcls keys list\n  \
    imgcls keys revoke phone\n  \
    imgcls keys webhook-secret phone\n\
    Clients send a key as `Authorization: Bearer KEY`. Web processes know a new key, and refuse a revoked one, within 10 s.")]
pub struct KeysArgs {
    #[command(subcommand)]
    pub command: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key and print it; only its hash is stored, so that it cannot be printed again
    Create {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Name of the key in lists
        #[arg(long, env = "IMGCLS_NAME")]
        name: String,
        /// Scopes of the key: `classify` submits images and reads their jobs, `read` reads any job, `admin` does
        /// everything
        #[arg(long = "scope", env = "IMGCLS_SCOPE", default_value = "classify", value_delimiter = ',', value_parser = |text: &str| text.parse::<Scope>())]
        scopes: Vec<Scope>,
        /// How long the key is valid: 90d, 12h [default: for ever]
        #[arg(long, env = "IMGCLS_EXPIRES", value_parser = config::duration_or_days)]
        expires: Option<Duration>,
    },
    /// List the keys: id, scopes, expiry and name
    List {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the secret that signs the callbacks of a key, or without one those of clients without a key
    ///
    /// Receivers check calls with it as Standard Webhooks says. It is made when it is first needed, and stays the same.
    WebhookSecret {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the key, or its name if no other key has it [default: the secret for clients without a key]
        key: Option<String>,
    },
    /// Revoke a key
    Revoke {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the key, or its name if no other key has it
        key: String,
    },
}

impl KeysArgs {
    pub fn config(&self, backend: Backend, names: Names) -> keys_command::Config {
        keys_command::Config { backend, names, json: self.command.output().json, action: self.command.action() }
    }
}

impl KeysCommand {
    pub fn shared(&self) -> &SharedArgs {
        match self {
            KeysCommand::Create { shared, .. }
            | KeysCommand::List { shared, .. }
            | KeysCommand::WebhookSecret { shared, .. }
            | KeysCommand::Revoke { shared, .. } => shared,
        }
    }

    fn output(&self) -> &OutputArgs {
        match self {
            KeysCommand::Create { output, .. }
            | KeysCommand::List { output, .. }
            | KeysCommand::WebhookSecret { output, .. }
            | KeysCommand::Revoke { output, .. } => output,
        }
    }

    fn action(&self) -> keys_command::Action {
        match self {
            KeysCommand::Create { name, scopes, expires, .. } => {
                keys_command::Action::Create(NewKey { name: name.clone(), scopes: scopes.clone(), valid_for: *expires })
            }
            KeysCommand::List { .. } => keys_command::Action::List,
            KeysCommand::WebhookSecret { key, .. } => keys_command::Action::WebhookSecret(key.clone()),
            KeysCommand::Revoke { key, .. } => keys_command::Action::Revoke(key.clone()),
        }
    }
}
