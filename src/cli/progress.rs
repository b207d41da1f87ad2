//! Progress on a terminal, and the user's wish to stop.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::signals;
use crate::error::{Error, Result};
use crate::stream::Watch;

/// Counts the bytes that move, draws a bar on a terminal, and hears Ctrl-C and SIGTERM.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    read: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// Progress of one merge; quiet also where standard error is no terminal.
    pub(super) fn new(quiet: bool) -> Result<Self> {
        let stop = Arc::default();
        signals::listen(&stop)
            .map_err(|cause| Error::output(format!("cannot listen for Ctrl-C: {cause}")))?;
        let quiet = quiet || !std::io::stderr().is_terminal();
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        Ok(Self { bar, read: Arc::default(), written: Arc::default(), stop })
    }

    /// How many bytes will be written.
    pub(super) fn expect(&self, bytes: u64) {
        let (read, written) = (Arc::clone(&self.read), Arc::clone(&self.written));
        let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let moved = (read.load(Ordering::Relaxed) + written.load(Ordering::Relaxed)) as f64;
            // A failing display has no one to tell.
            let _ = write!(out, "{:.2} GB/s", moved / 1e9 / state.elapsed().as_secs_f64().max(1e-3));
        };
        let style =
            ProgressStyle::with_template("{bar:32} {percent:>3}%  {bytes}/{total_bytes}  {rate}  {eta} left")
                .expect("the template is well formed")
                .with_key("rate", rate);
        self.bar.set_style(style);
        self.bar.set_length(bytes);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Bytes read and written so far.
    pub(super) fn moved_bytes(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }
}

impl Watch for Progress {
    fn moved(&self, read: u64, written: u64) {
        self.read.fetch_add(read, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
        // A pass that is taken back writes twice. Without progress the bar is drawn anew all the same, as often as it may be.
        let left = self.bar.length().unwrap_or(u64::MAX).saturating_sub(self.bar.position());
        self.bar.inc(written.min(left));
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
