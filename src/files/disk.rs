//! What a power cut can leave on a disk.
//!
//! What was synced stays. Of everything else each write, each change of a size, and each name that was given or taken may have come to
//! the disk or not, whatever came after it; and of a write the first half, or nothing but its length. That is more than most file
//! systems do, which keep some order among names. One thing they all do that have a journal: what is moved to another folder is in one
//! of the two, or for a moment in both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::hook::{Event, Made, What};

/// What is on a disk below a folder: files and folders by their numbers. That of the folder itself is 0.
#[derive(Debug, Clone)]
pub(crate) struct Disk(BTreeMap<usize, Node>);

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Folder(BTreeMap<OsString, usize>),
    Link(PathBuf),
}

/// How much of what was not synced comes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Nothing,
    Some,
    All,
}

/// Numbers that look random, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn share(&mut self) -> Share {
        [Share::Nothing, Share::Some, Share::All, Share::Some][self.below(4)]
    }

    fn takes(&mut self, share: Share) -> bool {
        match share {
            Share::Nothing => false,
            Share::Some => self.below(2) == 0,
            Share::All => true,
        }
    }
}

impl Disk {
    /// What is below a folder, and the numbers that the system has for it.
    pub(crate) fn read(folder: &Path) -> (Self, HashMap<u64, usize>) {
        let (mut disk, mut numbers) = (Self(BTreeMap::new()), HashMap::new());
        disk.add(folder, &mut numbers);
        (disk, numbers)
    }

    fn add(&mut self, path: &Path, numbers: &mut HashMap<u64, usize>) -> usize {
        let (number, found) = (numbers.len(), fs::symlink_metadata(path).unwrap());
        numbers.insert(found.ino(), number);
        let node = if found.is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            Node::Folder(entries.map(|entry| (entry.file_name(), self.add(&entry.path(), numbers))).collect())
        } else if found.file_type().is_symlink() {
            Node::Link(fs::read_link(path).unwrap())
        } else {
            use std::io::Read;
            let mut bytes = Vec::new();
            fs::OpenOptions::new().read(true).open(path).unwrap().read_to_end(&mut bytes).unwrap();
            Node::File(bytes)
        };
        self.0.insert(number, node);
        number
    }

    /// Makes a folder hold what the disk does, and nothing else.
    pub(crate) fn write(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let is_folder = fs::symlink_metadata(&entry).unwrap().is_dir();
            if is_folder { fs::remove_dir_all(entry).unwrap() } else { fs::remove_file(entry).unwrap() }
        }
        self.write_node(0, folder);
    }

    fn write_node(&self, number: usize, path: &Path) {
        match &self.0[&number] {
            Node::File(bytes) => {
                use std::io::Write;
                let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
                made.unwrap().write_all(bytes).unwrap();
            }
            Node::Folder(entries) => {
                if number != 0 {
                    fs::DirBuilder::new().mode(0o700).create(path).unwrap();
                }
                entries.iter().for_each(|(name, node)| self.write_node(*node, &path.join(name)));
            }
            Node::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        }
    }

    /// What a power cut may leave after these events.
    pub(crate) fn cut(&self, events: &[Event], random: &mut Random) -> Self {
        let shares = (random.share(), random.share());
        self.after(events, shares, random)
    }

    /// What a power cut leaves if all comes to the disk but the new name that one of these events gives; none where it gives none, or
    /// that was synced.
    pub(crate) fn without(&self, events: &[Event], lost: usize) -> Option<Self> {
        let Event { at, what } = &events[lost];
        let (What::Made { folder, kind: Made::Link(_), .. } | What::Renamed { to: (folder, _), .. }) = what
        else {
            return None;
        };
        let syncs = |event: &Event| matches!(&event.what, What::Synced { node, before } if node == folder && at < before);
        let others: Vec<Event> = [&events[..lost], &events[lost + 1..]].concat();
        let all = (Share::All, Share::All);
        (!events.iter().any(syncs)).then(|| self.after(&others, all, &mut Random::new(lost as u64)))
    }

    /// The events without the syncs of folders, or without those of files: what happens where a disk only says that it has put
    /// something there.
    pub(crate) fn lie(&self, events: &[Event], about_folders: bool) -> Vec<Event> {
        let made = events.iter().filter_map(|event| match &event.what {
            What::Made { node, kind: Made::Folder, .. } => Some(*node),
            _ => None,
        });
        let is_folder = |(node, found): (&usize, &Node)| matches!(found, Node::Folder(_)).then_some(*node);
        let folders: BTreeSet<usize> = self.0.iter().filter_map(is_folder).chain(made).collect();
        let is_lie = |event: &Event| matches!(&event.what, What::Synced { node, .. } if folders.contains(node) == about_folders);
        events.iter().filter(|event| !is_lie(event)).cloned().collect()
    }

    fn after(&self, events: &[Event], (names, contents): (Share, Share), random: &mut Random) -> Self {
        let mut disk = self.clone();
        let mut synced: HashMap<usize, usize> = HashMap::new();
        for event in events {
            if let What::Synced { node, before } = event.what {
                let last = synced.entry(node).or_default();
                *last = before.max(*last);
            }
        }
        for Event { at, what } in events {
            let mut lasts = |node: &usize, share: Share| {
                synced.get(node).is_some_and(|before| at < before) || random.takes(share)
            };
            match what {
                What::Made { folder, name, node, kind } => {
                    let made = match kind {
                        Made::File => Node::File(Vec::new()),
                        Made::Folder => Node::Folder(BTreeMap::new()),
                        Made::Link(target) => Node::Link(target.clone()),
                    };
                    disk.0.insert(*node, made);
                    if lasts(folder, names) {
                        disk.entries(*folder).insert(name.clone(), *node);
                    }
                }
                What::Renamed { from: (from_folder, from), to: (to_folder, to), node } => {
                    // Between two folders each has its part; in one they are one.
                    let leaves = lasts(from_folder, names);
                    let comes = leaves || from_folder != to_folder && lasts(to_folder, names);
                    if leaves {
                        disk.entries(*from_folder).remove(from);
                    }
                    if comes {
                        disk.entries(*to_folder).insert(to.clone(), *node);
                    }
                }
                What::Removed { folder, name } => {
                    if lasts(folder, names) {
                        disk.entries(*folder).remove(name);
                    }
                }
                What::Wrote { file, offset, bytes } => {
                    if lasts(file, Share::Nothing) {
                        disk.put(*file, *offset, bytes);
                    } else if random.takes(contents) {
                        match random.below(4) {
                            0 => disk.put(*file, *offset, &bytes[..bytes.len() / 2]),
                            1 => disk.put(*file, *offset, &vec![0; bytes.len()]),
                            _ => disk.put(*file, *offset, bytes),
                        }
                    }
                }
                What::SetSize { file, bytes } => {
                    if lasts(file, contents) {
                        disk.content(*file).resize(*bytes as usize, 0);
                    }
                }
                What::Synced { .. } => {}
            }
        }
        disk
    }

    fn entries(&mut self, folder: usize) -> &mut BTreeMap<OsString, usize> {
        match self.0.get_mut(&folder) {
            Some(Node::Folder(entries)) => entries,
            _ => unreachable!("it is a folder"),
        }
    }

    fn content(&mut self, file: usize) -> &mut Vec<u8> {
        match self.0.get_mut(&file) {
            Some(Node::File(content)) => content,
            _ => unreachable!("it is a file"),
        }
    }

    fn put(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let (content, offset) = (self.content(file), offset as usize);
        let end = offset + bytes.len();
        content.resize(content.len().max(end), 0);
        content[offset..end].copy_from_slice(bytes);
    }
}
