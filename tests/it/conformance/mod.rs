//! Runs the checks of a suite, and knows what a backend is known not to do. [`transport`] is the contract of transports.

mod service;
pub mod transport;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use futures::FutureExt as _;
use futures::future::join_all;

/// The name of a check and its future, which panics if the backend does not conform.
pub type Check<'a> = (&'static str, Pin<Box<dyn Future<Output = ()> + 'a>>);

/// A check that a backend does not pass. The test of that backend lists it with the reason.
#[derive(Debug, Clone, Copy)]
pub enum Exception {
    /// The backend does not conform. The check must fail: once it passes, the exception has to be removed.
    Fails { check: &'static str, why: &'static str },
    /// The check cannot run with this backend.
    NotRun { check: &'static str, why: &'static str },
}

/// `checks![subject: one, another]`: the functions of those names, each called with the subject.
macro_rules! checks {
    ($subject:ident: $($name:ident),* $(,)?) => {
        vec![$((stringify!($name), Box::pin($name($subject)) as std::pin::Pin<Box<dyn Future<Output = ()> + '_>>)),*]
    };
}
pub(crate) use checks;

/// Runs all checks at the same time and panics unless each did what is expected of it.
pub async fn run(checks: Vec<Check<'_>>, exceptions: &[Exception]) {
    for exception in exceptions {
        let (Exception::Fails { check, .. } | Exception::NotRun { check, .. }) = exception;
        assert!(checks.iter().any(|(name, _)| name == check), "{exception:?} names no check");
    }
    let run = checks.into_iter().filter(|(name, _)| !is_left_out(name, exceptions));
    let outcomes = join_all(run.map(|(name, check)| async move {
        let outcome = AssertUnwindSafe(check).catch_unwind().await;
        fault(name, outcome, exceptions)
    }));
    let faults: Vec<String> = outcomes.await.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn is_left_out(name: &str, exceptions: &[Exception]) -> bool {
    exceptions.iter().any(|exception| match exception {
        Exception::NotRun { check, why } if *check == name => {
            eprintln!("not run: {check} ({why})");
            true
        }
        _ => false,
    })
}

/// Returns a description of the fault if the outcome of a check is not the expected one.
fn fault(name: &str, outcome: Result<(), Box<dyn Any + Send>>, exceptions: &[Exception]) -> Option<String> {
    let known = exceptions.iter().find_map(|exception| match exception {
        Exception::Fails { check, why } if *check == name => Some(why),
        _ => None,
    });
    match (outcome, known) {
        (Ok(()), None) => None,
        (Err(_), Some(why)) => {
            eprintln!("fails as known: {name} ({why})");
            None
        }
        (Ok(()), Some(why)) => Some(format!("{name} passes: take the exception away ({why})")),
        (Err(panic), None) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
            Some(format!("{name}: {said}"))
        }
    }
}
