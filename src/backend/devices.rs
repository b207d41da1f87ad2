//! The devices that a machine has, and which of them to use.

use super::device::{Device, Family};
use super::{cpu, cuda, wgpu};
use crate::error::{Error, Result};

/// The families, best first.
pub const FAMILIES: &[&Family] = &[&cuda::FAMILY, &wgpu::FAMILY, &cpu::FAMILY];

/// What stands for all devices of a family.
const ALL: &str = "all";

/// The processor, which is always there.
pub fn processor() -> Device {
    cpu::device()
}

/// A device, or why there is none in its place.
pub type Candidate = std::result::Result<Device, String>;

/// The device that `--device` names: `auto`, a family, or a family with a number, a part of a name, or `all`. With `auto`, the best
/// that seems to work, and why better ones do not.
///
/// # Errors
/// Kind `Config` for a word that is none of these, `Device` for one that is not there.
pub fn choose(word: &str) -> Result<(Device, Option<String>)> {
    let (better, last) = candidates(word)?;
    let mut passed_over = None;
    for candidate in better {
        match candidate {
            Ok(device) => return Ok((device, passed_over)),
            Err(reason) => _ = passed_over.get_or_insert(reason),
        }
    }
    Ok((last, passed_over))
}

/// The devices that `--device` may mean: those to be tried first, best first, and the one that is left. With `auto` that is the
/// processor, and software that looks like a GPU is never tried; with a family, it is the last of those that seem to work; else
/// there is the one that is named. Whether a device can be opened is not known before somebody does.
///
/// # Errors
/// Those of [`choose`].
pub fn candidates(word: &str) -> Result<(Vec<Candidate>, Device)> {
    if word != "auto" {
        let first = named(word)?;
        let alike = if first.family.name == word { (first.family.devices)()? } else { Vec::new() };
        let mut usable: Vec<Device> = alike.into_iter().filter(|device| device.unusable.is_none()).collect();
        let last = usable.pop().unwrap_or(first);
        return Ok((usable.into_iter().map(Ok).collect(), last));
    }
    let of_family = |family: &&Family| -> Vec<Candidate> {
        let found = match (family.devices)() {
            Ok(found) => found,
            Err(reason) => return vec![Err(reason.message)],
        };
        let candidate = |device: Device| match &device.unusable {
            None => Ok(device),
            Some(reason) => Err(format!("{}: {reason}", device.id())),
        };
        let hardware = found.into_iter().filter(|device| !device.software);
        let candidates: Vec<_> = hardware.map(candidate).collect();
        if candidates.is_empty() { vec![Err(format!("no {} device", family.name))] } else { candidates }
    };
    let better = FAMILIES.iter().filter(|family| **family != &cpu::FAMILY);
    Ok((better.flat_map(of_family).collect(), processor()))
}

/// The device of this name.
fn named(word: &str) -> Result<Device> {
    let (name, which) = word.split_once(':').map_or((word, None), |(name, which)| (name, Some(which)));
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let names: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        return Err(Error::config(format!("--device {word}: there is no such device")).hint(format!(
            "it can be auto, {}; with a number, or a part of its name, for one of several: cuda:1, wgpu:radeon; or with `all`: cuda:all",
            names.join(", ")
        )));
    };
    let found = (family.devices)()?;
    let count = found.len();
    let none = |reason: String| {
        Error::device(format!("--device {word}: {reason}")).hint("`mergeforge devices` lists them all")
    };
    // Of several that are meant alike, the first that can be used.
    let first = |devices: &[&Device]| {
        let usable = devices.iter().find(|device| device.unusable.is_none());
        usable.or(devices.first()).map(|device| (*device).clone())
    };
    let no_number = || none(format!("this machine has {count} such device(s), counted from 0"));
    let Some(which) = which else { return first(&found.iter().collect::<Vec<_>>()).ok_or_else(no_number) };
    if which == ALL {
        let mut usable = found.into_iter().filter(|device| device.unusable.is_none());
        let first = usable.next().ok_or_else(|| none("none of them can be used".into()))?;
        return Ok(Device { others: usable.collect(), ..first });
    }
    if let Ok(index) = which.parse::<usize>() {
        return found.get(index).cloned().ok_or_else(no_number);
    }
    let part = which.to_lowercase();
    let named: Vec<&Device> =
        found.iter().filter(|device| device.name.to_lowercase().contains(&part)).collect();
    // One device may be there several times, through several interfaces.
    if named.iter().any(|device| device.name != named[0].name) {
        return Err(none("several devices have this in their names".into()));
    }
    first(&named).ok_or_else(|| none(format!("none of the {count} {name} device(s) has this in its name")))
}
