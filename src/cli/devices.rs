//! `mergeforge devices`, `check` and `bench kernels`: what there is to compute on, whether it computes right, and how fast.

use clap::Args;
use serde_json::{Value as Json, json};

use super::{choose, show};
use crate::backend::device::{Device, Family};
use crate::backend::devices::FAMILIES;
use crate::bench;
use crate::check::{self, CheckRow, Depth, Types};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::text::bytes;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The device; without it, all that there are
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Check each kernel for few models and many, and no more
    #[arg(long)]
    quick: bool,
    /// Check what is checked before a device is used for the first time; for tests
    #[arg(long, hide = true, conflicts_with = "quick")]
    first: bool,
    /// Check this kernel alone
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    kernel: Option<&'static Kernel>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl CheckArgs {
    fn depth(&self) -> Depth {
        match (self.quick, self.first) {
            (true, _) => Depth::Quick,
            (_, true) => Depth::First,
            _ => Depth::All,
        }
    }
}

/// Lists the devices, what is missing and why, and which one `--device auto` takes.
pub(super) fn list(json: bool) -> Result<()> {
    let found: Vec<(&Family, Result<Vec<Device>>)> =
        FAMILIES.iter().map(|family| (*family, (family.devices)())).collect();
    let (auto, _) = choose("auto")?;
    if json {
        let devices: Vec<Json> =
            found.iter().flat_map(|(_, found)| found.iter().flatten()).map(device_json).collect();
        let absent: serde_json::Map<String, Json> = found
            .iter()
            .filter_map(|(family, found)| Some((family.name.to_string(), json!(reason(found)?))))
            .collect();
        show::json(&json!({ "devices": devices, "absent": absent, "auto": auto.id() }));
        return Ok(());
    }
    for (family, found) in &found {
        for device in found.iter().flatten() {
            show::line(&described(device));
        }
        if let Some(reason) = reason(found) {
            show::line(&format!("{:<8} none: {reason}", family.name));
        }
    }
    show::line(&format!("--device auto takes {}", auto.id()));
    Ok(())
}

/// Why a family has no device.
fn reason(found: &Result<Vec<Device>>) -> Option<String> {
    match found {
        Err(error) => Some(error.message.clone()),
        Ok(devices) if devices.is_empty() => Some("the driver has no device".into()),
        Ok(_) => None,
    }
}

fn described(device: &Device) -> String {
    let mut parts = vec![device.name.clone()];
    parts.extend(device.memory_bytes.map(bytes));
    parts.extend(device.facts.iter().map(|(name, value)| format!("{name} {value}")));
    let mut line = format!("{:<8} {}", device.id(), parts.join(", "));
    if let Some(reason) = &device.unusable {
        line += &format!("; cannot be used: {reason}");
        line += &reason.hint.as_ref().map_or(String::new(), |hint| format!(" (hint: {hint})"));
    }
    line
}

fn facts_json(device: &Device) -> serde_json::Map<String, Json> {
    device.facts.iter().map(|(name, value)| (name.replace(' ', "_"), json!(value))).collect()
}

fn device_json(device: &Device) -> Json {
    json!({
        "id": device.id(),
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "facts": facts_json(device),
        "unusable": device.unusable.as_ref().map(|reason| &reason.message),
        "hint": device.unusable.as_ref().and_then(|reason| reason.hint.as_ref()),
    })
}

/// The kernel of a name.
fn kernel(name: &str) -> std::result::Result<&'static Kernel, String> {
    let known = check::kernels();
    known.iter().copied().find(|kernel| kernel.name == name).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|kernel| kernel.name).collect();
        format!("the kernels are {}", names.join(", "))
    })
}

/// Checks every kernel, or only one, on one device, or on all that there are.
pub(super) fn check(args: &CheckArgs) -> Result<()> {
    let CheckArgs { device, kernel, json, .. } = args;
    let (depth, only, json) = (args.depth(), *kernel, *json);
    let mut devices = Vec::new();
    match device.as_deref() {
        Some(word) => {
            let (device, passed_over) = choose(word)?;
            passed_over.iter().filter(|_| !json).for_each(|reason| show::note(reason));
            devices.push(device);
        }
        None => {
            for family in FAMILIES {
                match (family.devices)() {
                    Ok(found) => devices.extend(found),
                    Err(error) if !json => {
                        show::line(&format!("{}: not run: {}", family.name, error.message));
                    }
                    Err(_) => {}
                }
            }
        }
    }
    let mut refusals = Vec::new();
    let mut checked = Vec::new();
    for device in &devices {
        let backend = device.open(&check::limits());
        // One that fails hides no other.
        let (rows, failure) = match backend.and_then(|backend| check::run(&*backend, depth, only, |_| {})) {
            Ok(rows) => (rows, None),
            Err(failure) => (Vec::new(), Some(failure)),
        };
        match &failure {
            _ if json => {}
            None => table(device, &rows),
            Some(_) => show::line(&format!("{}: {}: not checked", device.id(), device.name)),
        }
        checked.push(json!({
            "device": device.id(),
            "name": device.name,
            "facts": facts_json(device),
            "mergeforge": env!("CARGO_PKG_VERSION"),
            "failure": failure.as_ref().map(|failure| &failure.message),
            "kernels": rows.iter().map(row_json).collect::<Vec<_>>(),
        }));
        refusals.extend(failure.or_else(|| check::refusal(&device.id(), &rows)));
    }
    if json {
        show::json(&json!(checked));
    }
    refusals.into_iter().next().map_or(Ok(()), Err::<(), Error>)
}

fn row_json(row: &CheckRow) -> Json {
    json!({ "kernel": row.kernel, "inputs": row.types.name(), "launches": row.launches, "chunks": row.spans, "by_cpu": row.redone, "wrong": row.wrong })
}

fn table(device: &Device, rows: &[CheckRow]) {
    show::line(&format!("{}: {}", device.id(), device.name));
    let columns = |cell: &dyn Fn(Types) -> &'static str| {
        Types::ALL.map(|types| format!("{:>12}", cell(types))).concat()
    };
    show::line(&format!("  {:<14}{}", "kernel", columns(&Types::name)));
    let mut kernels: Vec<&str> = rows.iter().map(|row| row.kernel).collect();
    kernels.dedup();
    let mut shown = Vec::new();
    for kernel in kernels {
        if shown.contains(&kernel) {
            continue;
        }
        shown.push(kernel);
        let cells = columns(&|types| {
            let row = rows.iter().find(|row| (row.kernel, row.types) == (kernel, types));
            row.map_or("not run", |row| if row.wrong.is_none() { "ok" } else { "DIFFERS" })
        });
        show::line(&format!("  {kernel:<14}{cells}"));
    }
    let launches: usize = rows.iter().map(|row| row.launches).sum();
    show::line(&format!("  {launches} launches compared with the kernels' plain twins, bit for bit"));
    let (spans, redone) = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.spans, sum.1 + row.redone));
    if redone > 0 {
        show::line(&format!(
            "  {redone} of their {spans} chunks have values that the device makes no promises about: the CPU computed them"
        ));
    }
    rows.iter().filter_map(|row| row.wrong.as_ref()).for_each(|wrong| show::line(&format!("  {wrong}")));
}

/// Times the kernels of a device.
pub(super) fn bench(word: &str, elements: u64, repeat: usize, json: bool) -> Result<()> {
    let (device, passed_over) = choose(word)?;
    passed_over.iter().for_each(|reason| show::note(reason));
    let measured = bench::kernels(&device, elements, repeat)?;
    if json {
        let rows: Vec<Json> = measured.rows.iter().map(|row| timed_json(row, measured.copy_rate)).collect();
        show::json(&json!({
            "device": device.id(),
            "name": device.name,
            "copy_gb_per_s": measured.copy_rate / 1e9,
            "kernels": rows,
        }));
        return Ok(());
    }
    show::line(&format!("{}: {}; bfloat16, medians of {repeat}", device.id(), device.name));
    show::line(&format!(
        "  copy {:.1} GB/s, each byte counted as read and as written",
        measured.copy_rate / 1e9
    ));
    show::line(&format!(
        "  {:<13} {:<33} {:>9} {:>9} {:>8} {:>9} {:>8}",
        "kernel", "what", "time", "GB/s", "of copy", "of stream", "B/param"
    ));
    for row in &measured.rows {
        show::line(&format!(
            "  {:<13} {:<33} {:>6.1} µs {:>9.1} {:>6.0} % {:>7.0} % {:>8.2}",
            row.kernel,
            row.what,
            row.time.as_secs_f64() * 1e6,
            row.rate() / 1e9,
            100.0 * row.rate() / measured.copy_rate,
            100.0 * row.rate() / row.stream_rate,
            row.bytes_per_parameter(),
        ));
    }
    Ok(())
}

fn timed_json(row: &bench::KernelTime, copy_rate: f64) -> Json {
    json!({
        "kernel": row.kernel,
        "what": row.what,
        "inputs": row.inputs,
        "elements": row.elements,
        "seconds": row.time.as_secs_f64(),
        "bytes": row.bytes,
        "gb_per_s": row.rate() / 1e9,
        "share_of_copy": row.rate() / copy_rate,
        "share_of_stream": row.rate() / row.stream_rate,
        "bytes_per_parameter": row.bytes_per_parameter(),
    })
}
