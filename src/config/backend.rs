//! The backends of the transport: where each is, and the facts about it that other rooms need.
//!
//! Every fact is an exhaustive match here, so that the compiler asks a new backend for all of them in this file, and no
//! other room has to know which backends there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::nats::NatsLocation;

/// The backend of the transport, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// SQLite and files under one directory, for any number of processes on this machine.
    Local {
        /// The directory.
        data_dir: PathBuf,
    },
    /// SQS and S3, or services that speak like them. `None` leaves a setting to the environment and the profile.
    Aws {
        /// The region.
        region: Option<String>,
        /// The URL of the services. `None` for those of AWS itself.
        endpoint_url: Option<String>,
    },
    /// Streams of NATS JetStream, for any number of machines.
    Nats(NatsLocation),
    /// A backend that is not part of the program: the process registered it by name. No value of `--backend` selects it.
    Named {
        /// The name under which it was registered.
        name: String,
        /// The address of the service, in a form that the backend defines.
        address: Option<String>,
    },
}

/// The location of AWS. `None` leaves a setting to the environment and the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwsLocation<'a> {
    /// The region.
    pub region: Option<&'a str>,
    /// The URL of the services.
    pub endpoint_url: Option<&'a str>,
}

/// The name, and where it is: for log lines.
impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        let (region, address) = match self {
            Backend::Local { data_dir } => return write!(f, " in {}", data_dir.display()),
            Backend::Aws { region, endpoint_url } => (region.as_deref(), endpoint_url.as_deref()),
            Backend::Nats(location) => return write!(f, " at {}", location.servers()),
            Backend::Named { address, .. } => (None, address.as_deref()),
        };
        region.map_or(Ok(()), |region| write!(f, " in {region}"))?;
        address.map_or(Ok(()), |address| write!(f, " at {address}"))
    }
}

impl Backend {
    /// The name, as in `--backend`.
    pub fn name(&self) -> &str {
        match self {
            Backend::Local { .. } => BackendKind::Local.name(),
            Backend::Aws { .. } => BackendKind::Aws.name(),
            Backend::Nats(_) => BackendKind::Nats.name(),
            Backend::Named { name, .. } => name,
        }
    }

    /// The directory that holds all data of the service, if that is on this machine.
    pub fn data_dir(&self) -> Option<&Path> {
        match self {
            Backend::Local { data_dir } => Some(data_dir),
            Backend::Aws { .. } | Backend::Nats(_) | Backend::Named { .. } => None,
        }
    }

    /// The location of AWS, if the backend is part of it: then the other services of AWS are used too.
    pub fn aws(&self) -> Option<AwsLocation<'_>> {
        match self {
            Backend::Aws { region, endpoint_url } => {
                Some(AwsLocation { region: region.as_deref(), endpoint_url: endpoint_url.as_deref() })
            }
            Backend::Local { .. } | Backend::Nats(_) | Backend::Named { .. } => None,
        }
    }

    /// Returns true if each call costs money, so that one call for several messages is worth a wait.
    pub fn calls_are_billed(&self) -> bool {
        match self {
            Backend::Aws { .. } => true,
            Backend::Local { .. } | Backend::Nats(_) | Backend::Named { .. } => false,
        }
    }

    /// Returns true if a call holds a connection to another machine while it runs.
    pub fn calls_hold_connections(&self) -> bool {
        match self {
            Backend::Local { .. } => false,
            Backend::Aws { .. } | Backend::Nats(_) | Backend::Named { .. } => true,
        }
    }
}

/// A backend that is part of the program: a value of `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// SQLite and files on this machine.
    Local,
    /// SQS and S3.
    Aws,
    /// NATS JetStream.
    Nats,
}

impl BackendKind {
    /// Every backend that is part of the program.
    pub const ALL: [BackendKind; 3] = [BackendKind::Local, BackendKind::Aws, BackendKind::Nats];

    /// The value of `--backend`.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Local => "local",
            BackendKind::Aws => "aws",
            BackendKind::Nats => "nats",
        }
    }
}

/// Variables that select AWS when `--backend` is absent. The region of a profile does not: someone who has the AWS
/// command line set up for other work still gets the local backend.
pub const AWS_VARIABLES: [&str; 3] = ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"];

/// The backend, and the flag or variable that selected it, for the first log line.
pub fn choose_backend(
    explicit: Option<BackendKind>,
    aws_flag_given: Option<&'static str>,
    environment: &BTreeMap<String, String>,
) -> (BackendKind, String) {
    if let Some(kind) = explicit {
        return (kind, "--backend".to_owned());
    }
    if let Some(flag) = aws_flag_given {
        return (BackendKind::Aws, flag.to_owned());
    }
    match AWS_VARIABLES.iter().find(|name| environment.get(**name).is_some_and(|value| !value.is_empty())) {
        Some(name) => (BackendKind::Aws, (*name).to_owned()),
        None => (BackendKind::Local, "default".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_aws_select_it_unless_the_backend_is_given() {
        let aws: BTreeMap<String, String> = [("AWS_REGION".to_owned(), "us-east-1".to_owned())].into();
        let empty: BTreeMap<String, String> = [("AWS_REGION".to_owned(), String::new())].into();
        assert_eq!(choose_backend(None, None, &aws), (BackendKind::Aws, "AWS_REGION".to_owned()));
        assert_eq!(choose_backend(None, None, &empty).0, BackendKind::Local);
        assert_eq!(choose_backend(Some(BackendKind::Local), None, &aws).0, BackendKind::Local);
        assert_eq!(choose_backend(None, Some("--region"), &empty).0, BackendKind::Aws);
    }
}
