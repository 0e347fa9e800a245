//! How a process ends: the first SIGTERM or SIGINT drains it, the second ends it at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// The exit code of a process that a second signal ended: 128 + SIGINT, as in shells.
const EXIT_INTERRUPTED: i32 = 130;

/// Returns a token that the first SIGTERM or SIGINT cancels. The second signal calls `before_exit` and exits the process
/// without draining: unfinished messages are delivered again after their visibility timeout.
///
/// # Errors
/// The system refuses signal handlers.
pub fn on_signals(before_exit: fn()) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let drain = token.clone();
    // It lives as long as the process, which it ends; nothing waits for it.
    tokio::spawn(async move {
        let name = first_of(&mut terminate, &mut interrupt).await;
        // Before logging, so that the process drains even if the log is stuck.
        drain.cancel();
        tracing::info!(signal = name, "draining; a second signal ends at once");
        let name = first_of(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "ended without draining");
        before_exit();
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(token)
}

/// Exits the process with code 0 if its drain takes longer than `limit`: a disk that hangs, or a lock that another process
/// holds, must not keep a service from stopping. Use it only in processes whose work is durable at any moment.
pub fn end_within(shutdown: &CancellationToken, limit: Duration) {
    let shutdown = shutdown.clone();
    // It lives as long as the process, which it may end; nothing waits for it.
    tokio::spawn(async move {
        shutdown.cancelled().await;
        // On its own thread, because the threads of the runtime may be stuck.
        let watch = move || {
            std::thread::sleep(limit);
            tracing::warn!(
                limit_seconds = limit.as_secs_f64(),
                "the drain takes too long; exiting without its last steps"
            );
            std::process::exit(0);
        };
        if let Err(error) = std::thread::Builder::new().name("drain-limit".to_owned()).spawn(watch) {
            tracing::warn!(%error, "cannot limit the duration of the drain");
        }
    });
}

async fn first_of(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
