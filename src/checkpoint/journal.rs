//! What of an output is finished, noted while it is made, so that a merge that was stopped goes on where it was.
//!
//! `OUT.partial/.journal` begins with a line that says what is being made: all that the bytes of its tensors depend on. A line follows
//! for each tensor that is finished, with the digest of its bytes. Before each line stands a digest of it, so that one that was cut off
//! or torn is noticed: what follows it counts no more. Lines about small tensors wait for a moment, or until they are about much: where
//! there are a hundred thousand of them, a fifth of the merge's time would go into writing each line by itself.
//!
//! A line is only believed if the tensor has that digest when the merge goes on. So no order of writes has to be kept: where the
//! system put a line on the disk and not the tensor, the tensor is merged again.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::layout::Layout;
use crate::files::File;
use crate::limits::MERGE_JOURNAL_BYTES_MAX;

/// The journal's name in `OUT.partial`.
pub(super) const JOURNAL: &str = ".journal";

/// Where less is finished, all of it is removed when a merge stops: it is made again sooner than explained. Small in unit tests, whose merges
/// stop and go on by the thousand.
const KEPT_BYTES_MIN: u64 = if cfg!(test) { 4 << 10 } else { 64 << 20 };

/// As many bytes of tensors may be finished before that is written down, if none is finished so much time after the last write: what is
/// lost if the merge is killed, and made again. Unit tests do not depend on time.
const UNWRITTEN_BYTES: u64 = KEPT_BYTES_MIN / 64;
const UNWRITTEN_TIME: Duration = if cfg!(test) { Duration::MAX } else { Duration::from_millis(10) };

/// Where lines are written at once, whatever they are about, so many bytes of them are in memory.
const LINES_BYTES: usize = 64 << 10;

/// Digits of the digest before each line.
const DIGITS: usize = 16;

/// A tensor that is finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Its place in the layout.
    pub tensor: usize,
    /// BLAKE3 of its bytes.
    pub digest: blake3::Hash,
    /// What else was found out about it, for whoever merges.
    pub found: Value,
}

/// What a merge that was stopped has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    /// What was being made.
    pub making: Value,
    /// The tensors that were finished.
    pub finished: Vec<Finished>,
    /// How much of the file holds it.
    bytes: u64,
}

impl Left {
    /// How many bytes of tensors of a layout are finished.
    pub fn finished_bytes(&self, layout: &Layout) -> u64 {
        let tensors: BTreeSet<usize> = self.finished.iter().map(|one| one.tensor).collect();
        tensors.iter().filter_map(|tensor| layout.places.get(*tensor)).map(|place| place.bytes).sum()
    }
}

/// The journal of an output in the making.
#[derive(Debug)]
pub struct Journal {
    lines: Mutex<Lines>,
    /// The same file.
    syncing: File,
    /// Whether lines were written since it was put on the disk last.
    unsynced: AtomicBool,
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Lines {
    file: File,
    /// Those that wait.
    unwritten: String,
    /// The bytes of the tensors that they are about.
    unwritten_bytes: u64,
    /// When the last ones were written.
    written: Instant,
}

impl Lines {
    /// Writes what waits, and returns the bytes of the tensors that it is about. What cannot be written is forgotten.
    fn write(&mut self) -> io::Result<u64> {
        let lines = std::mem::take(&mut self.unwritten);
        let bytes = std::mem::take(&mut self.unwritten_bytes);
        self.written = Instant::now();
        let whole = self.file.stream_position()?;
        self.file.write_all(lines.as_bytes()).inspect_err(|_| {
            // Half a line would hide those that follow.
            let _ = self.cut(whole);
        })?;
        Ok(bytes)
    }

    /// Cuts the file to so many bytes: what follows is written behind them.
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes)).map(drop)
    }
}

/// Of an output in the making, what stays of it if its merge stops.
#[derive(Debug, Default)]
pub struct Kept {
    finished_bytes: AtomicU64,
    /// Whether nothing is to stay.
    dropped: AtomicBool,
}

impl Kept {
    /// The bytes that are finished, if they are so many that they stay.
    pub fn bytes(&self) -> Option<u64> {
        let bytes = self.finished_bytes.load(Ordering::Relaxed);
        (!self.dropped.load(Ordering::Relaxed) && bytes >= KEPT_BYTES_MIN).then_some(bytes)
    }

    /// From now on nothing is to stay: it is of no use, or all is done.
    pub(super) fn nothing(&self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

impl Journal {
    /// Begins a journal in a new file.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn begin(file: File, making: &Value) -> io::Result<Self> {
        (&file).write_all(line(&making.to_string()).as_bytes())?;
        Self::of(file)
    }

    /// Goes on with a journal, behind what was read of it. What that says of a layout counts as finished until it is found not to be.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn go_on(file: File, left: &Left, layout: &Layout) -> io::Result<Self> {
        let journal = Self::of(file)?;
        journal.lines().cut(left.bytes)?;
        journal.count(left.finished_bytes(layout));
        Ok(journal)
    }

    fn of(file: File) -> io::Result<Self> {
        let (unsynced, kept, syncing) = (AtomicBool::default(), Arc::default(), file.try_clone()?);
        let lines = Lines { file, unwritten: String::new(), unwritten_bytes: 0, written: Instant::now() };
        Ok(Self { lines: Mutex::new(lines), syncing, unsynced, kept })
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a tensor of so many bytes that is finished. Where that fails, or nothing is to stay, it does not count as finished, and is
    /// merged again if this merge stops.
    pub(super) fn note(&self, finished: &Finished, bytes: u64) {
        let line = finished.line();
        let mut lines = self.lines();
        // Without the first line, others would say something else.
        if self.kept.dropped.load(Ordering::Relaxed) {
            return;
        }
        lines.unwritten.push_str(&line);
        lines.unwritten_bytes += bytes;
        if lines.unwritten_bytes >= UNWRITTEN_BYTES || lines.written.elapsed() >= UNWRITTEN_TIME {
            self.write(&mut lines);
        }
    }

    /// Notes tensors and puts that on the disk: for whoever must not go on before it is there.
    ///
    /// # Errors
    /// The disk is full or fails. What could be noted stays.
    pub(super) fn note_for_good<'a>(
        &self,
        finished: impl IntoIterator<Item = &'a Finished>,
    ) -> io::Result<()> {
        let mut lines = self.lines();
        for one in finished {
            lines.unwritten.push_str(&one.line());
            if lines.unwritten.len() >= LINES_BYTES {
                lines.write()?;
            }
        }
        lines.write()?;
        drop(lines);
        self.syncing.sync_data()
    }

    /// Writes down what was noted.
    pub(super) fn write_out(&self) {
        self.write(&mut self.lines());
    }

    /// Writes down what waits. Where that fails, it does not count as finished.
    fn write(&self, lines: &mut Lines) {
        if !lines.unwritten.is_empty()
            && let Ok(bytes) = lines.write()
        {
            self.count(bytes);
            self.unsynced.store(true, Ordering::Relaxed);
        }
    }

    /// So many bytes of tensors are finished, noted by this merge or by earlier ones.
    fn count(&self, bytes: u64) {
        self.kept.finished_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Puts what was noted on the disk.
    pub(super) fn sync(&self) {
        self.write_out();
        if self.unsynced.swap(false, Ordering::Relaxed) {
            // Not under the lock, for which workers would wait.
            let _ = self.syncing.sync_data();
        }
    }

    /// From now on nothing of the output is to be kept, and nothing of it is finished.
    pub(super) fn drop_all(&self) {
        self.kept.nothing();
        let mut lines = self.lines();
        lines.unwritten.clear();
        let _ = lines.cut(0);
    }

    /// What stays.
    pub(super) fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }
}

/// What a journal says, if it is one.
///
/// # Errors
/// Those of the system.
pub(super) fn left_in(file: &mut File) -> io::Result<Option<Left>> {
    let mut text = Vec::new();
    file.take(MERGE_JOURNAL_BYTES_MAX).read_to_end(&mut text)?;
    Ok(left(&text))
}

fn left(text: &[u8]) -> Option<Left> {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next()?;
    let making = content(first).filter(|making| finished(making).is_none())?;
    let mut left = Left { making, finished: Vec::new(), bytes: first.len() as u64 };
    for line in lines {
        let Some(finished) = content(line).and_then(|line| finished(&line)) else { break };
        left.bytes += line.len() as u64;
        left.finished.push(finished);
    }
    Some(left)
}

impl Finished {
    fn line(&self) -> String {
        let Self { tensor, digest, found } = self;
        line(&format!(r#"{{"tensor":{tensor},"blake3":"{}","found":{found}}}"#, digest.to_hex()))
    }
}

fn line(text: &str) -> String {
    format!("{} {text}\n", &blake3::hash(text.as_bytes()).to_hex()[..DIGITS])
}

/// What a line says, if it is whole.
fn content(line: &[u8]) -> Option<Value> {
    let (digest, text) = line.strip_suffix(b"\n")?.split_at_checked(DIGITS)?;
    let text = text.strip_prefix(b" ")?;
    let whole = blake3::hash(text).to_hex().as_bytes()[..DIGITS] == *digest;
    whole.then(|| serde_json::from_slice(text).ok())?
}

fn finished(line: &Value) -> Option<Finished> {
    let tensor = usize::try_from(line["tensor"].as_u64()?).ok()?;
    let digest = blake3::Hash::from_hex(line["blake3"].as_str()?).ok()?;
    Some(Finished { tensor, digest, found: line["found"].clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::checkpoint::layout::{OutTensor, layout};

    fn some(tensor: usize) -> Finished {
        Finished { tensor, digest: blake3::hash(&[tensor as u8]), found: json!({ "remark": "x\ny" }) }
    }

    fn written(finished: &[Finished]) -> Vec<u8> {
        let mut file = File::from(tempfile::tempfile().unwrap());
        let journal = Journal::begin(file.try_clone().unwrap(), &json!({ "config": "a" })).unwrap();
        finished.iter().for_each(|finished| journal.note(finished, 1));
        journal.write_out();
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn what_is_noted_is_read_back() {
        let finished = [some(3), some(0)];
        let text = written(&finished);
        let left = left(&text).unwrap();
        assert_eq!((left.making, left.bytes), (json!({ "config": "a" }), text.len() as u64));
        assert_eq!(left.finished, finished);
    }

    #[test]
    fn what_is_cut_off_or_damaged_counts_no_more() {
        let finished = [some(1), some(2), some(3)];
        let text = written(&finished);
        let ends: Vec<usize> = (0..text.len()).filter(|at| text[*at] == b'\n').map(|at| at + 1).collect();
        for length in 0..text.len() {
            let whole = ends.iter().filter(|end| **end <= length).count();
            match left(&text[..length]) {
                None => assert_eq!(whole, 0, "{length}"),
                Some(left) => {
                    assert_eq!(left.finished, finished[..whole - 1], "{length}");
                    assert_eq!(left.bytes, ends[whole - 1] as u64);
                }
            }
        }
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            let before = ends.iter().filter(|end| **end <= at).count();
            let finished_before = left(&damaged).map_or(0, |left| left.finished.len());
            assert_eq!(finished_before, before.saturating_sub(1), "{at}");
        }
    }

    #[test]
    fn who_goes_on_writes_behind_what_counts() {
        let mut file = File::from(tempfile::tempfile().unwrap());
        let making = json!({ "config": "a" });
        Journal::begin(file.try_clone().unwrap(), &making).unwrap().note(&some(1), UNWRITTEN_BYTES);
        file.write_all(b"torn").unwrap();
        file.rewind().unwrap();
        let left = left_in(&mut file).unwrap().unwrap();
        let layout = layout::<OutTensor>(&[], None);
        Journal::go_on(file.try_clone().unwrap(), &left, &layout).unwrap().note(&some(2), UNWRITTEN_BYTES);
        file.rewind().unwrap();
        assert_eq!(left_in(&mut file).unwrap().unwrap().finished, [some(1), some(2)]);
    }

    #[test]
    fn lines_wait_until_they_are_about_much() {
        let file = File::from(tempfile::tempfile().unwrap());
        let bytes = || file.metadata().unwrap().len();
        let journal = Journal::begin(file.try_clone().unwrap(), &json!({ "config": "a" })).unwrap();
        let counted = || journal.kept().finished_bytes.load(Ordering::Relaxed);
        let begun = bytes();
        journal.note(&some(0), UNWRITTEN_BYTES - 1);
        assert_eq!((bytes(), counted()), (begun, 0));
        journal.note(&some(1), 1);
        assert_eq!(counted(), UNWRITTEN_BYTES);
        let line = (bytes() - begun) / 2;
        journal.note(&some(2), 0);
        assert_eq!(bytes(), begun + 2 * line);
        journal.sync();
        assert_eq!(bytes(), begun + 3 * line);
        journal.note(&some(3), 0);
        journal.drop_all();
        journal.write_out();
        assert_eq!(bytes(), 0);
        // Whoever must know it to be written does not wait.
        let many: Vec<Finished> = (0..1000).map(|_| some(4)).collect();
        journal.note_for_good(&many).unwrap();
        assert_eq!(bytes(), 1000 * line);
    }

    #[test]
    fn where_nothing_is_to_stay_nothing_is_noted() {
        let mut file = tempfile::tempfile().unwrap();
        let journal = Journal::begin(file.try_clone().unwrap().into(), &json!({ "config": "a" })).unwrap();
        journal.note(&some(1), KEPT_BYTES_MIN);
        assert_eq!(journal.kept().bytes(), Some(KEPT_BYTES_MIN));
        journal.drop_all();
        journal.note(&some(2), KEPT_BYTES_MIN);
        assert_eq!(journal.kept().bytes(), None);
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"");
        // A line of a tensor is no first line.
        let whole = written(&[some(1)]);
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert_eq!(left(&whole[second..]), None);
    }
}
