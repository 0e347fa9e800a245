//! How a process ends: the first SIGTERM or SIGINT drains, the second ends it at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// Exit code of a process that a second signal ended: 128 + SIGINT, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

/// A token that is cancelled by the first SIGTERM or SIGINT. The second signal calls `before_exit` and exits the process
/// without draining: what was not finished comes again after its visibility timeout.
///
/// # Errors
/// Where the system refuses signal handlers.
pub fn on_signals(before_exit: fn()) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let drain = token.clone();
    // Lives as long as the process, which it ends; nothing waits for it.
    tokio::spawn(async move {
        let name = first_of(&mut terminate, &mut interrupt).await;
        // Before anything else: whatever happens to the log, the process drains.
        drain.cancel();
        tracing::info!(signal = name, "draining; a second signal ends at once");
        let name = first_of(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "ended without draining");
        before_exit();
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(token)
}

async fn first_of(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
