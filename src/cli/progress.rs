//! Progress on a terminal as a bar, elsewhere as a line every half minute, and the user's wish to stop.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::host::{self, Host};
use super::show::Moved;
use super::{show, signals};
use crate::error::{Error, Result};
use crate::stream::Watch;
use crate::text::bytes;
use crate::threads;

/// Time from one line to the next, off a terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Counts the bytes that move, draws a bar on a terminal or prints lines elsewhere, and hears Ctrl-C and SIGTERM. Where a host called
/// the command, it hears of the bytes, and is asked whether to stop.
pub(super) struct Progress {
    /// Shared with whatever is beside this one.
    hosted: Option<Arc<Hosted>>,
    bar: ProgressBar,
    lines: Option<Lines>,
    read: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    found: AtomicU64,
    stop: Arc<AtomicBool>,
    quiet: bool,
}

/// What a host hears of: all that is done for it, one after the other.
struct Hosted {
    host: Arc<dyn Host>,
    done: AtomicU64,
    /// As far as it is known.
    total: AtomicU64,
}

impl Hosted {
    /// So much more is to be done, when all before it is done.
    fn expect(&self, expected: u64) {
        // What was written twice counts once.
        self.done.store(self.total.fetch_add(expected, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn advance(&self, by: u64) {
        let (done, total) =
            (self.done.fetch_add(by, Ordering::Relaxed) + by, self.total.load(Ordering::Relaxed));
        self.host.advanced(done.min(total), total);
    }
}

impl Progress {
    /// Progress of one merge.
    pub(super) fn new(quiet: bool) -> Result<Self> {
        let hosted = host::current()
            .map(|host| Arc::new(Hosted { host, done: AtomicU64::new(0), total: AtomicU64::new(0) }));
        let stop = hosted.as_ref().map_or_else(Arc::default, |hosted| hosted.host.stop_sign());
        if hosted.is_none() {
            signals::listen(&stop)
                .map_err(|cause| Error::output(format!("cannot listen for Ctrl-C: {cause}")))?;
        }
        threads::stop_with(&stop);
        let terminal = std::io::stderr().is_terminal();
        let shown = hosted.is_none() && !quiet;
        let drawn = terminal && shown;
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let lines = (!terminal && shown).then(Lines::default);
        Ok(Self {
            hosted,
            bar,
            lines,
            read: Arc::default(),
            written: Arc::default(),
            found: AtomicU64::default(),
            stop,
            quiet,
        })
    }

    /// Progress of something else beside it, of so many bytes, that ends when this one is to stop.
    pub(super) fn another(&self, expected: u64, done: &'static str) -> Self {
        let target =
            if self.bar.is_hidden() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let another = Self {
            hosted: self.hosted.clone(),
            bar: ProgressBar::with_draw_target(None, target),
            lines: self.lines.as_ref().map(|_| Lines::default()),
            read: Arc::default(),
            written: Arc::default(),
            found: AtomicU64::default(),
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
        self.hosted.iter().for_each(|hosted| hosted.expect(expected));
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

    /// Says something while the bar is there. It may come from any thread, of which only one has the host.
    fn note(&self, note: &str) {
        match &self.hosted {
            Some(hosted) => hosted.host.said("note", &Error::config(note)),
            None => self.bar.suspend(|| show::note(note)),
        }
    }

    /// Bytes read and written so far.
    pub(super) fn moved_bytes(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// All that moved since, for whoever says what a merge did.
    pub(super) fn moved_since(&self, before: Moved) -> Moved {
        let (read, written) = self.moved_bytes();
        let found = self.found.load(Ordering::Relaxed);
        Moved { read: read - before.read, written: written - before.written, found: found - before.found }
    }
}

impl Watch for Progress {
    fn moved(&self, read: u64, written: u64) {
        self.read.fetch_add(read, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
        if let Some(hosted) = &self.hosted {
            return hosted.advance(written);
        }
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
            self.note(&note);
        }
    }

    fn compares(&self, tensors: usize) {
        if !self.quiet {
            self.note(&format!("an earlier merge was stopped: comparing the {tensors} tensors that it finished with what it noted"));
        }
    }

    fn goes_on(&self, finished: u64, all: u64) {
        self.found.fetch_add(finished, Ordering::Relaxed);
        if !self.quiet {
            let (finished, all) = (bytes(finished), bytes(all));
            self.note(&format!("{finished} of {all} are finished, and this merge goes on from there"));
        }
        match &self.hosted {
            Some(hosted) => hosted.advance(finished),
            None => self.bar.inc(finished),
        }
    }

    fn leaves(&self, partial: &Path, finished: u64, all: u64) {
        // Somebody may have taken it away.
        if !partial.is_dir() {
            return;
        }
        let (finished, all, partial) = (bytes(finished), bytes(all), partial.display());
        self.note(&format!(
            "{finished} of {all} are finished and stay in {partial}: the same command goes on from there, and who removes that folder \
             begins anew"
        ));
    }

    fn compiling(&self) {
        if !self.quiet {
            self.note(
                "the GPU's driver compiles the kernels of this merge, and remembers them for the next one",
            );
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
