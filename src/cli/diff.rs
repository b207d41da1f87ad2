//! `mergeforge diff`: flags, a table, JSON, and the exit code.

use clap::Args;
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::values::{WorkArgs, count};
use super::{end, kinds, show};
use crate::checkpoint::Reads;
use crate::diff::{Differences, Lone, Sums, TensorPair, Values, compared_bytes, diff};
use crate::error::Result;
use crate::machine::physical_bytes;
use crate::prepare_comparison;
use crate::text::{cut_to, escaped};

#[derive(Debug, Args)]
#[command(after_help = EQUAL)]
pub(super) struct DiffArgs {
    /// The first model, as in a config: a folder, a file of tensors, or a name on the Hugging Face Hub, perhaps with
    /// @revision and +ADAPTER
    a: String,
    /// The second model, in the same way
    b: String,
    /// Show so many of the tensors that differ, the most different first
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count)]
    top: usize,
    #[command(flatten)]
    work: WorkArgs,
}

const EQUAL: &str = "Exit codes: 0 where all tensors are equal, 1 where some are not, others as for all commands. Equal are tensors of \
                     one name, type and shape with the same numbers: -0 is 0, and NaN at the same place is equal. Models are read as a \
                     merge reads them: with their adapters, quantised ones as floats, and the second under the names of the first. \
                     Memory: less than 2 MiB for each thread.";

/// Compares, reports, and says how that ends.
pub(super) fn ended(args: &DiffArgs) -> u8 {
    match run(args).and_then(|equal| show::delivered().map(|()| equal)) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => end(Err(error)),
    }
}

/// Whether the models are equal.
fn run(args: &DiffArgs) -> Result<bool> {
    let progress = Progress::new(args.work.quiet)?;
    let models = prepare_comparison(&args.b, &args.a, args.work.hub.remote())?;
    models.warnings.iter().for_each(show::warning);
    models.notes.iter().for_each(|note| show::note(note));
    args.work.hub.bring_all(&models.sources, &progress)?;
    let bytes = compared_bytes(&models);
    progress.expect(bytes, "compared");
    let reads = if bytes > physical_bytes() { Reads::Direct } else { Reads::Copied };
    let differences = diff(&models, args.work.threads(), reads, &progress);
    progress.finish();
    let differences = differences?;
    if args.work.json {
        show::json(&as_json(args, &differences));
    } else {
        table(args, &differences);
    }
    Ok(differences.are_equal())
}

/// The tensors whose elements differ, the most different first.
fn most_different(differences: &Differences) -> Vec<&TensorPair> {
    let differ = |pair: &&TensorPair| pair.values.is_some() && !pair.values_are_equal();
    let mut found: Vec<&TensorPair> = differences.tensors.iter().filter(differ).collect();
    // What has no such number is beyond all others.
    let key = |pair: &TensorPair| pair.sums().and_then(Sums::relative).unwrap_or(f64::INFINITY);
    found.sort_by(|one, other| key(other).total_cmp(&key(one)));
    found
}

const NAME_CHARS: usize = 48;

fn table(args: &DiffArgs, differences: &Differences) {
    let differ = most_different(differences);
    if !differ.is_empty() {
        let (name, width) = ("tensor", NAME_CHARS);
        show::line(&format!(
            "{name:<width$} {:>9} {:>10} {:>10} {:>9} {:>9} {:>10}",
            "different", "largest", "mean", "relative", "cosine", "norm ratio"
        ));
        differ.iter().take(args.top).for_each(|pair| show::line(&row(pair)));
        let more = differ.len().saturating_sub(args.top);
        if more > 0 {
            show::line(&format!("… and {more} more (--top, --json)"));
        }
        show::line(
            "largest, mean: of the magnitudes of differences; relative: the norm of the difference over that of A",
        );
        show::line("");
    }
    for (model, lone) in ["A", "B"].iter().zip(&differences.lone) {
        if !lone.is_empty() {
            let described = lone.iter().map(|Lone { name, dtype, shape }| {
                (name.as_str(), format!("{dtype:?} {shape:?}"), format!("only in {model}"))
            });
            kinds::lines(described).iter().for_each(|line| show::line(line));
        }
    }
    let other = |what: &str, differs: &dyn Fn(&TensorPair) -> Option<[String; 2]>| {
        let described = differences.tensors.iter().filter_map(|pair| {
            let [one, other] = differs(pair)?;
            Some((pair.name.as_str(), format!("{one} in A, {other} in B"), format!("of another {what}")))
        });
        kinds::lines(described).iter().for_each(|line| show::line(line));
    };
    other("shape", &|pair| {
        (pair.shapes[0] != pair.shapes[1]).then(|| pair.shapes.each_ref().map(|shape| format!("{shape:?}")))
    });
    other("type", &|pair| {
        (pair.dtypes[0] != pair.dtypes[1]).then(|| pair.dtypes.map(|dtype| format!("{dtype:?}")))
    });
    let not_finite: u64 =
        differences.tensors.iter().filter_map(TensorPair::sums).map(|sums| sums.not_finite).sum();
    if not_finite > 0 {
        show::line(&format!(
            "{not_finite} elements are NaN or infinite in A or in B: they are in no measure, and equal where both have the same"
        ));
    }
    show::line(&summary(args, differences));
}

fn row(pair: &TensorPair) -> String {
    let values = pair.values.expect("they were compared");
    let share = |share: f64| if share < 0.1 { format!("{share:.2} %") } else { format!("{share:.1} %") };
    let different = share(100.0 * values.different() as f64 / values.elements().max(1) as f64);
    let (name, width) = (cut_to(&escaped(&pair.name), NAME_CHARS), NAME_CHARS);
    let Values::Floats(sums) = values else { return format!("{name:<width$} {different:>9}") };
    let of = |value: Option<f64>, shown: &dyn Fn(f64) -> String| value.map_or("–".into(), shown);
    format!(
        "{name:<width$} {different:>9} {:>10.3e} {:>10} {:>9} {:>9} {:>10}",
        sums.largest,
        of(sums.mean(), &|mean| format!("{mean:.3e}")),
        of(sums.relative(), &|relative| share(100.0 * relative)),
        of(sums.cosine(), &|cosine| format!("{cosine:.6}")),
        of(sums.norm_ratio(), &|ratio| format!("{ratio:.6}")),
    )
}

/// How many tensors there are of which kind.
fn summary(args: &DiffArgs, differences: &Differences) -> String {
    let Differences { tensors, lone } = differences;
    if differences.are_equal() {
        return format!("{} and {} are equal: {} tensors", args.a, args.b, tensors.len());
    }
    let equal = tensors.iter().filter(|pair| pair.is_equal()).count();
    format!(
        "{} and {} differ: of {} tensors in both {equal} are equal; {} are only in A, {} only in B",
        args.a,
        args.b,
        tensors.len(),
        lone[0].len(),
        lone[1].len()
    )
}

fn as_json(args: &DiffArgs, differences: &Differences) -> Json {
    let Differences { tensors, lone } = differences;
    let tensor = |pair: &TensorPair| {
        let values = pair.values.as_ref();
        let sums = pair.sums();
        json!({
            "name": pair.name, "equal": pair.is_equal(), "dtypes": pair.dtypes.map(|dtype| format!("{dtype:?}")),
            "shapes": pair.shapes, "elements": values.map(Values::elements), "different": values.map(Values::different),
            "not_finite": sums.map(|sums| sums.not_finite), "largest": sums.map(|sums| sums.largest),
            "mean": sums.and_then(Sums::mean), "relative": sums.and_then(Sums::relative),
            "cosine": sums.and_then(Sums::cosine), "norm_ratio": sums.and_then(Sums::norm_ratio),
        })
    };
    let only = |of: &[Lone]| -> Vec<Json> {
        let described = |Lone { name, dtype, shape }: &Lone| json!({ "name": name, "dtype": format!("{dtype:?}"), "shape": shape });
        of.iter().map(described).collect()
    };
    json!({
        "a": args.a, "b": args.b, "equal": differences.are_equal(),
        "equal_tensors": tensors.iter().filter(|pair| pair.is_equal()).count(),
        "tensors": tensors.iter().map(tensor).collect::<Vec<_>>(),
        "only_in_a": only(&lone[0]), "only_in_b": only(&lone[1]),
    })
}
