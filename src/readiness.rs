//! Whether what a process stands on answers.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};

/// What takes longer to answer does not.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that is asked: its name, as in a sentence, and the call.
pub struct Probe<'a> {
    pub of: String,
    pub call: BoxFuture<'a, Result<(), String>>,
}

/// Asks all at the same time.
///
/// # Errors
/// Why the first of them, in their order, is of no use, in one line.
pub async fn all_answer(probes: Vec<Probe<'_>>) -> Result<(), String> {
    let answers = join_all(probes.into_iter().map(|Probe { of, call }| async move {
        let answer = tokio::time::timeout(PATIENCE, call).await;
        answer.unwrap_or_else(|_| Err(format!("{of} did not answer within {} s", PATIENCE.as_secs())))
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
    async fn what_hangs_is_named_and_what_is_wrong_is_said() {
        let well = || probe("a", async { Ok(()) });
        let hung = || probe("the queue", std::future::pending());
        let wrong = || probe("b", async { Err("denied".to_owned()) });
        assert_eq!(all_answer(vec![well(), well()]).await, Ok(()));
        assert_eq!(all_answer(vec![well(), wrong(), hung()]).await, Err("denied".to_owned()));
        assert_eq!(all_answer(vec![hung(), wrong()]).await, Err("the queue did not answer within 2 s".to_owned()));
    }
}
