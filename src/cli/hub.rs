//! Models of the Hub: the flags, what is fetched before it is read, and the bar of that.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::show;
use crate::Prepared;
use crate::checkpoint::Source;
use crate::error::Result;
use crate::hub::{self, Remote, Wanted, missing_bytes};
use crate::text::bytes;
use crate::{bring_companions, check_absent, fetch, free_for};

/// What is done about models that are not on this machine.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct HubArgs {
    /// Make no connection: take models from folders and the Hugging Face cache alone (as `HF_HUB_OFFLINE=1` does)
    #[arg(long)]
    offline: bool,
    /// Read models that are not in the cache straight from the Hub, without keeping them: for disks that are too small
    #[arg(long, conflicts_with = "offline")]
    stream: bool,
}

impl HubArgs {
    /// The same as a plan takes it.
    pub(super) fn remote(self) -> Remote {
        match (self.offline, self.stream) {
            (true, _) => Remote::Offline,
            (_, true) => Remote::Streamed,
            _ => Remote::Fetched,
        }
    }

    /// Fetches what a plan reads and is not here.
    pub(super) fn bring(self, prepared: &Prepared, progress: &Progress) -> Result<()> {
        check_absent(prepared)?;
        bring_companions(prepared)?;
        self.bring_wanted(&prepared.sources.iter().collect::<Vec<_>>(), &prepared.absent(), progress)
    }

    /// Fetches all of what models have and is not here.
    pub(super) fn bring_all<'s>(
        self,
        sources: impl IntoIterator<Item = &'s Source>,
        progress: &Progress,
    ) -> Result<()> {
        let sources: Vec<&Source> = sources.into_iter().collect();
        let wanted: Vec<Wanted> = sources.iter().flat_map(|source| source.absent(|_| true)).collect();
        self.bring_wanted(&sources, &wanted, progress)
    }

    fn bring_wanted(self, sources: &[&Source], wanted: &[Wanted], progress: &Progress) -> Result<()> {
        if wanted.is_empty() || self.remote() == Remote::Streamed {
            return Ok(());
        }
        let missing = missing_bytes(wanted);
        let begun = Instant::now();
        let fetching = progress.another(missing, "downloaded");
        let fetched = fetch(sources, wanted, &Fetching(&fetching));
        fetching.finish();
        fetched?;
        if !progress.is_quiet() && missing > 0 {
            let (seconds, files) = (begun.elapsed().as_secs_f64(), files(wanted.len()));
            let rate = missing as f64 / 1e6 / seconds.max(1e-3);
            show::note(&format!(
                "downloaded {files}, {}, in {seconds:.1} s ({rate:.0} MB/s)",
                bytes(missing)
            ));
        }
        Ok(())
    }
}

/// The progress of what is fetched.
struct Fetching<'a>(&'a Progress);

impl hub::Watch for Fetching<'_> {
    fn arrived(&self, bytes: u64) {
        use crate::stream::Watch;
        self.0.moved(0, bytes);
    }

    fn stop(&self) -> bool {
        use crate::stream::Watch;
        self.0.stop()
    }
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

/// What has to be fetched for a plan, by repositories: files, bytes of them, and those that are missing.
fn by_repository(wanted: &[Wanted]) -> BTreeMap<&str, (usize, u64)> {
    let mut found: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for one in wanted {
        let (files, missing) = found.entry(one.snapshot.name()).or_default();
        *files += 1;
        *missing += one.missing_bytes();
    }
    found
}

/// The same as a line of a plan; none where nothing has to be.
pub(super) fn lines(prepared: &Prepared, args: HubArgs) -> Result<Vec<String>> {
    let wanted = prepared.absent();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let verb = if args.remote() == Remote::Streamed { "reads from the Hub" } else { "downloads" };
    let of = |(name, (count, missing)): (&str, (usize, u64))| {
        format!("{verb} {} of {name}, {}", files(count), bytes(missing))
    };
    let mut lines: Vec<String> = by_repository(&wanted).into_iter().map(of).collect();
    if args.remote() != Remote::Streamed
        && let Some((folder, free)) = free_for(&wanted, &[])?
    {
        lines.push(format!("downloads go to {}, where {} are free", folder.display(), bytes(free)));
    }
    Ok(lines)
}

/// The same in JSON.
pub(super) fn as_json(prepared: &Prepared, args: HubArgs) -> Result<Json> {
    let wanted = prepared.absent();
    if args.remote() != Remote::Streamed {
        free_for(&wanted, &[])?;
    }
    let of = |wanted: &Wanted| {
        json!({
            "model": wanted.snapshot.name(), "revision": wanted.snapshot.commit, "file": wanted.file,
            "bytes": wanted.missing_bytes(),
        })
    };
    Ok(wanted.iter().map(of).collect())
}
