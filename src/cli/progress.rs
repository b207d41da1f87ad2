//! Progress on a terminal as a bar, elsewhere as a line every half minute, and the user's wish to stop.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::{show, signals};
use crate::error::{Error, Result};
use crate::hub;
use crate::stream::Watch;
use crate::text::bytes;

/// Time from one line to the next, off a terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Counts the bytes that move, draws a bar on a terminal or prints lines elsewhere, and hears Ctrl-C and SIGTERM.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    lines: Option<Lines>,
    read: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    quiet: bool,
}

impl Progress {
    /// Progress of one merge.
    pub(super) fn new(quiet: bool) -> Result<Self> {
        let stop = Arc::default();
        signals::listen(&stop)
            .map_err(|cause| Error::output(format!("cannot listen for Ctrl-C: {cause}")))?;
        hub::stop_with(&stop);
        let terminal = std::io::stderr().is_terminal();
        let drawn = terminal && !quiet;
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let lines = (!terminal && !quiet).then(Lines::default);
        Ok(Self { bar, lines, read: Arc::default(), written: Arc::default(), stop, quiet })
    }

    /// Progress of something else beside it, of so many bytes, that ends when this one is to stop.
    pub(super) fn another(&self, expected: u64, done: &'static str) -> Self {
        let target =
            if self.bar.is_hidden() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let another = Self {
            bar: ProgressBar::with_draw_target(None, target),
            lines: self.lines.as_ref().map(|_| Lines::default()),
            read: Arc::default(),
            written: Arc::default(),
            stop: Arc::clone(&self.stop),
            quiet: self.quiet,
        };
        another.expect(expected, done);
        another
    }

    /// Whether it says nothing.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// How many steps there are, of which only shares are shown.
    pub(super) fn expect_steps(&self, expected: u64) {
        let style =
            ProgressStyle::with_template("{bar:32} {percent:>3}%  {eta} left").expect("it is well formed");
        self.bar.set_style(style);
        self.bar.set_length(expected);
        self.lines.iter().for_each(|lines| {
            let _ = lines.expected.set((expected, "", Instant::now()));
        });
    }

    /// How many bytes will be written, or what else is done with them.
    pub(super) fn expect(&self, expected: u64, done: &'static str) {
        let (read, written) = (Arc::clone(&self.read), Arc::clone(&self.written));
        let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let moved = read.load(Ordering::Relaxed) + written.load(Ordering::Relaxed);
            // There is nowhere to report a display that fails.
            let _ = write!(out, "{}", gb_per_s(moved, state.elapsed()));
        };
        let of_all = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{} of {}", bytes(state.pos()), bytes(state.len().unwrap_or(0)));
        };
        let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {of_all}  {rate}  {eta} left")
            .expect("the template is well formed")
            .with_key("rate", rate)
            .with_key("of_all", of_all);
        self.bar.set_style(style);
        self.bar.set_length(expected);
        self.lines.iter().for_each(|lines| {
            let _ = lines.expected.set((expected, done, Instant::now()));
        });
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
        if let Some(lines) = &self.lines
            && let Some((expected, done, begun)) = lines.expected.get()
            && let Some(line) = lines.due(begun.elapsed(), self.moved_bytes(), *expected, done)
        {
            show::progress(&line);
        }
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn less_memory(&self, why: &Error, asked: u64, used: u64) {
        if !self.quiet {
            let (asked, used) = (bytes(asked), bytes(used));
            let note = format!("{why}: merging with {used} of its memory at most, in place of {asked}");
            self.bar.suspend(|| show::note(&note));
        }
    }

    fn compiling(&self) {
        if !self.quiet {
            let note =
                "the GPU's driver compiles the kernels of this merge, and remembers them for the next one";
            self.bar.suspend(|| show::note(note));
        }
    }
}

/// Lines of progress.
#[derive(Debug, Default)]
struct Lines {
    /// How many bytes will be written, or what else is done with them, and when that began. Steps have no word.
    expected: OnceLock<(u64, &'static str, Instant)>,
    /// How many lines there were.
    last_line: AtomicU64,
}

impl Lines {
    /// The next line, if it is time for one. Of several threads one gets it.
    fn due(
        &self,
        elapsed: Duration,
        (read, written): (u64, u64),
        expected: u64,
        word: &str,
    ) -> Option<String> {
        let last_line = self.last_line.load(Ordering::Relaxed);
        let due = elapsed.as_secs() / LINE_EVERY.as_secs();
        let is_mine =
            || self.last_line.compare_exchange(last_line, due, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (due > last_line && is_mine()).then(|| {
            let written = written.min(expected);
            let share = written as f64 / expected.max(1) as f64;
            let left = match share {
                // Of so little nobody can say how long the rest takes.
                ..0.01 => String::new(),
                share => format!(", about {:.0} s left", elapsed.as_secs_f64() * (1.0 - share) / share),
            };
            if word.is_empty() {
                return format!("{:.0} %{left}", (share * 100.0).floor());
            }
            let (done, all, rate) = (bytes(written), bytes(expected), gb_per_s(read + written, elapsed));
            format!("{:.0} %: {done} of {all} {word}, {rate}{left}", (share * 100.0).floor())
        })
    }
}

/// The pace, in 10⁹ bytes a second.
fn gb_per_s(moved: u64, elapsed: Duration) -> String {
    format!("{:.2} GB/s", moved as f64 / 1e9 / elapsed.as_secs_f64().max(1e-3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_line_every_half_minute() {
        let lines = Lines::default();
        let at = |seconds, moved| lines.due(Duration::from_secs(seconds), moved, 20_000_000_000, "written");
        assert_eq!(at(29, (1, 1)), None);
        let last_line = at(30, (9_000_000_000, 3_000_000_000));
        assert_eq!(last_line.unwrap(), "15 %: 3.00 GB of 20.00 GB written, 0.40 GB/s, about 170 s left");
        assert_eq!(at(31, (9_000_000_000, 3_000_000_000)), None);
        assert_eq!(at(75, (9_000_000_000, 0)).unwrap(), "0 %: 0 bytes of 20.00 GB written, 0.12 GB/s");
        assert_eq!(at(89, (0, 0)), None);
        assert!(at(90, (0, 25_000_000_000)).unwrap().starts_with("100 %: 20.00 GB of 20.00 GB"));
    }
}
