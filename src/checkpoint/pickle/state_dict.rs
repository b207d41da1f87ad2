//! The weights among all that a file of `torch.save` holds, and where in the file they are.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::machine::{Tensor, Text, Value};
use super::zip::{Archive, Found};
use super::{Pickled, Refusal, TensorInfo};
use crate::checkpoint::header::{data_bytes, shown_shape};
use crate::limits::{NAME_BYTES_MAX, NESTING_MAX, RANK_MAX, TENSORS_MAX};
use crate::text::quoted;

type Result<T> = std::result::Result<T, Refusal>;
type Entries<'p> = &'p [(Value, Value)];

/// Under what trainers put the weights of a checkpoint, the likeliest first.
const WRAPPERS: &[&str] =
    &["state_dict", "model_state_dict", "model", "module", "net", "params_ema", "params"];

/// The tensors of the weights by offset, and what the user should know about the rest.
pub fn tensors(
    pickled: &Pickled<'_>,
    archive: &Archive<'_>,
    folder: &str,
    file: usize,
) -> Result<(Vec<TensorInfo>, Vec<String>)> {
    let (entries, mut notes) = weights(pickled)?;
    let mut others = Vec::new();
    let mut found = IndexMap::new();
    for (key, value) in entries {
        let Some(tensor) = pickled.tensor(*value) else {
            others.push(*key);
            continue;
        };
        let Some(name) = pickled.text(*key) else {
            return Err(Refusal::save_again("a tensor of it has no name, but a number or the like".into()));
        };
        if name.len() > NAME_BYTES_MAX {
            let what =
                format!("a name of a tensor has {} bytes (at most {NAME_BYTES_MAX} are read)", name.len());
            return Err(Refusal::damaged(what));
        }
        if found.insert(name, tensor).is_some() {
            return Err(Refusal::damaged(format!("tensor {} is in it twice", quoted(name))));
        }
        if found.len() > TENSORS_MAX {
            return Err(Refusal::damaged(format!("it has more than {TENSORS_MAX} tensors")));
        }
    }
    if !others.is_empty() {
        notes.push(format!("not read, since they are no tensors: {}", keys(pickled, &others)));
    }
    let mut storages = Storages { pickled, archive, folder, found: HashMap::new() };
    let mut tensors = found
        .iter()
        .map(|(name, tensor)| storages.place(name, tensor, file))
        .collect::<Result<Vec<TensorInfo>>>()?;
    storages.check_apart()?;
    tensors.sort_by_key(|tensor| tensor.offset);
    Ok((tensors, notes))
}

/// The dict of the weights, and where it is if it is not all that there is.
fn weights<'p>(pickled: &'p Pickled<'_>) -> Result<(Entries<'p>, Vec<String>)> {
    let no_dict = || Refusal::save_again("it holds no dict of tensors by name".into());
    let mut entries = pickled.dict(pickled.root).ok_or_else(no_dict)?;
    let (mut path, mut beside) = (Vec::new(), Vec::new());
    while path.len() < NESTING_MAX
        && let Some((key, inner)) = wrapped(pickled, entries)
    {
        path.push(key);
        beside.extend(
            entries.iter().map(|(other, _)| *other).filter(|other| pickled.text(*other) != Some(key)),
        );
        entries = inner;
    }
    if !has_tensors(pickled, entries) {
        let all: Vec<Value> = entries.iter().map(|(key, _)| *key).collect();
        let what =
            if all.is_empty() { "it is empty".into() } else { format!("it has {}", keys(pickled, &all)) };
        let way_out =
            "save the dict of the weights by itself in Python: `torch.save(torch.load(FILE)[KEY], NEW)`";
        return Err(Refusal {
            what: format!("it holds no tensors that are known as weights: {what}"),
            way_out,
        });
    }
    if path.is_empty() {
        return Ok((entries, Vec::new()));
    }
    let mut note = format!("the weights are its {}", quoted(&path.join("/")));
    if !beside.is_empty() {
        note += &format!("; not read beside them: {}", keys(pickled, &beside));
    }
    Ok((entries, vec![note]))
}

/// The dict in which a trainer has put the weights, and its key.
fn wrapped<'p>(pickled: &'p Pickled<'_>, entries: Entries<'p>) -> Option<(&'static str, Entries<'p>)> {
    WRAPPERS.iter().find_map(|key| {
        let inner = at(pickled, entries, key)?;
        let holds =
            has_tensors(pickled, inner) || WRAPPERS.iter().any(|key| at(pickled, inner, key).is_some());
        holds.then_some((*key, inner))
    })
}

/// The dict under a key.
fn at<'p>(pickled: &'p Pickled<'_>, entries: Entries<'p>, key: &str) -> Option<Entries<'p>> {
    let entry = entries.iter().rev().find(|(own, _)| pickled.text(*own) == Some(key));
    entry.and_then(|(_, value)| pickled.dict(*value))
}

fn has_tensors(pickled: &Pickled<'_>, entries: Entries<'_>) -> bool {
    entries.iter().any(|(_, value)| pickled.tensor(*value).is_some())
}

/// Some keys by name, and how many more there are.
fn keys(pickled: &Pickled<'_>, keys: &[Value]) -> String {
    const NAMED_MAX: usize = 4;
    let named = keys.iter().take(NAMED_MAX).map(|key| pickled.text(*key).map_or("…".into(), quoted));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = keys.len().saturating_sub(NAMED_MAX);
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// The storages of the tensors that are read.
struct Storages<'p, 'a> {
    pickled: &'p Pickled<'p>,
    archive: &'p Archive<'a>,
    folder: &'p str,
    /// Many tensors may be views of one.
    found: HashMap<&'p str, Found>,
}

impl Storages<'_, '_> {
    /// Where a tensor is in the file.
    fn place(&mut self, name: &str, tensor: &Tensor, file: usize) -> Result<TensorInfo> {
        let lie = |what: String| Refusal::damaged(format!("tensor {} {what}", quoted(name)));
        let shape = self.lengths(tensor.size).ok_or_else(|| lie("has no shape".into()))?;
        let stride = self.lengths(tensor.stride).filter(|stride| stride.len() == shape.len());
        let stride = stride.ok_or_else(|| lie("has no strides for its shape".into()))?;
        let bytes = data_bytes(tensor.dtype, &shape).map_err(&lie)?;
        if bytes > 0 && !is_contiguous(&shape, &stride) {
            let (name, shape) = (quoted(name), shown_shape(&shape));
            return Err(Refusal {
                what: format!(
                    "tensor {name} (shape {shape}, strides {stride:?}) is a view whose elements are not in order"
                ),
                way_out: "save it in order in Python: `torch.save({k: v.contiguous() for k, v in torch.load(FILE).items()}, NEW)`",
            });
        }
        let storage = self.pickled.storage(tensor);
        let element_bytes = tensor.dtype.bitsize() as u64 / 8;
        let storage_bytes =
            storage.elements.checked_mul(storage.dtype.map_or(1, |dtype| dtype.bitsize() as u64 / 8));
        let data = self.find(storage.key)?.data.clone();
        let storage_bytes = storage_bytes.filter(|bytes| *bytes <= data.end - data.start);
        let Some(storage_bytes) = storage_bytes else {
            return Err(lie(format!(
                "has {} bytes of data where its storage says more",
                data.end - data.start
            )));
        };
        let start = tensor.offset.checked_mul(element_bytes);
        let inside = start.filter(|start| start.checked_add(bytes).is_some_and(|end| end <= storage_bytes));
        let Some(start) = inside.or((bytes == 0).then_some(0)) else {
            return Err(lie(format!("ends behind its storage of {storage_bytes} bytes")));
        };
        Ok(TensorInfo {
            name: name.to_owned(),
            dtype: tensor.dtype,
            shape,
            file,
            offset: data.start + start,
            bytes,
        })
    }

    /// The integers of a shape, or of strides.
    fn lengths(&self, value: Value) -> Option<Vec<usize>> {
        let elements = self.pickled.elements(value).filter(|elements| elements.len() <= RANK_MAX)?;
        let length =
            |value: &Value| if let Value::Int(length) = value { usize::try_from(*length).ok() } else { None };
        elements.iter().map(length).collect()
    }

    fn find(&mut self, key: Text) -> Result<&Found> {
        let key = self.pickled.text_at(key);
        if !self.found.contains_key(key) {
            let entry = format!("{}data/{key}", self.folder);
            let found = self.archive.find(&entry)?;
            let found =
                found.ok_or_else(|| Refusal::damaged(format!("it has no entry {}", quoted(&entry))))?;
            self.found.insert(key, found);
        }
        Ok(&self.found[key])
    }

    /// Two entries that overlap would make a small file many tensors.
    fn check_apart(&self) -> Result<()> {
        let mut found: Vec<&Found> = self.found.values().collect();
        found.sort_by_key(|found| found.header);
        if found.windows(2).all(|pair| pair[0].data.end <= pair[1].header) {
            return Ok(());
        }
        Err(Refusal::damaged("entries of the zip archive overlap".into()))
    }
}

/// Whether the elements of a view lie one behind the other, the last dimension fastest.
fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = Some(1_usize);
    shape.iter().zip(stride).rev().all(|(length, stride)| {
        let fits = *length == 1 || expected == Some(*stride);
        expected = expected.and_then(|expected| expected.checked_mul(*length));
        fits
    })
}
