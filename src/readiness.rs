//! Checks whether the services that a process depends on answer.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};

/// A probe that takes longer than this has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// One check of a dependency.
pub struct Probe<'a> {
    /// The name of the dependency, as it appears in a sentence.
    pub of: String,
    /// The call that has to succeed.
    pub call: BoxFuture<'a, Result<(), String>>,
}

/// Runs all probes at the same time.
///
/// # Errors
/// The reason of the first one, in their order, that failed, in one line.
pub async fn all_answer(probes: Vec<Probe<'_>>) -> Result<(), String> {
    let answers = join_all(probes.into_iter().map(|Probe { of, call }| async move {
        let answer = tokio::time::timeout(PROBE_TIMEOUT, call).await;
        answer.unwrap_or_else(|_| Err(format!("{of} did not answer within {} s", PROBE_TIMEOUT.as_secs())))
    }));
    answers.await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(of: &str, call: impl Future<Output = Result<(), String>> + Send + 'static) -> Probe<'static> {
        Probe { of: of.to_owned(), call: Box::pin(call) }
    }

    #[tokio::test]
    async fn first_failed_or_hung_probe_is_reported() {
        let healthy = || probe("a", async { Ok(()) });
        let hung = || probe("the queue", std::future::pending());
        let failed = || probe("b", async { Err("denied".to_owned()) });
        assert_eq!(all_answer(vec![healthy(), healthy()]).await, Ok(()));
        assert_eq!(all_answer(vec![healthy(), failed(), hung()]).await, Err("denied".to_owned()));
        assert_eq!(all_answer(vec![hung(), failed()]).await, Err("the queue did not answer within 2 s".to_owned()));
    }
}
