//! Files as `torch.save` writes them, put together byte by byte: zip archives, pickles, and both with lies in them.

use safetensors::Dtype;
use std::borrow::Borrow;

use crate::models::{Stored, Tensors};

/// An entry of a zip archive, as it will be listed.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    /// 0: stored as it is.
    pub method: u16,
    pub flags: u16,
    /// What its own header calls it, where that is something else.
    pub own_name: Option<String>,
    /// What the directory says of its size, and of the place of its header, where that is something else.
    pub listed: (Option<u32>, Option<u32>),
}

impl Entry {
    pub fn new(name: &str, data: impl Into<Vec<u8>>) -> Self {
        // As torch has it: sizes behind the data, names in UTF-8.
        let flags = 0x0808;
        Self { name: name.into(), data: data.into(), method: 0, flags, own_name: None, listed: (None, None) }
    }
}

/// A zip archive; with `wide`, its end as ZIP64.
pub fn zip(entries: impl IntoIterator<Item: Borrow<Entry>>, wide: bool) -> Vec<u8> {
    const ALIGNED: usize = 64;
    let (mut file, mut directory, mut count) = (Vec::new(), Vec::new(), 0_u64);
    for entry in entries {
        let entry: &Entry = entry.borrow();
        count += 1;
        let header = file.len() as u32;
        let own_name = entry.own_name.as_ref().unwrap_or(&entry.name).as_bytes();
        let data_start = (file.len() + 30 + own_name.len() + 4).next_multiple_of(ALIGNED);
        let padding = data_start - file.len() - 30 - own_name.len() - 4;
        file.extend(b"PK\x03\x04");
        numbers(&mut file, &[0, entry.flags, entry.method, 0, 0]);
        file.extend([0; 12]);
        numbers(&mut file, &[own_name.len() as u16, 4 + padding as u16]);
        file.extend(own_name);
        file.extend(b"FB");
        numbers(&mut file, &[padding as u16]);
        file.extend(vec![b'Z'; padding]);
        file.extend(&entry.data);
        let (bytes, place) =
            (entry.listed.0.unwrap_or(entry.data.len() as u32), entry.listed.1.unwrap_or(header));
        directory.extend(b"PK\x01\x02");
        numbers(&mut directory, &[0, 0, entry.flags, entry.method, 0, 0]);
        directory.extend([0; 4]);
        directory.extend(bytes.to_le_bytes());
        directory.extend(bytes.to_le_bytes());
        numbers(&mut directory, &[entry.name.len() as u16, 0, 0, 0, 0]);
        directory.extend([0; 4]);
        directory.extend(place.to_le_bytes());
        directory.extend(entry.name.as_bytes());
    }
    let (start, bytes) = (file.len() as u64, directory.len() as u64);
    file.extend(directory);
    if wide {
        let end = file.len() as u64;
        file.extend(b"PK\x06\x06");
        file.extend(44_u64.to_le_bytes());
        numbers(&mut file, &[45, 45]);
        file.extend([0; 8]);
        [count, count, bytes, start].iter().for_each(|number| file.extend(number.to_le_bytes()));
        file.extend(b"PK\x06\x07");
        file.extend([0; 4]);
        file.extend(end.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
    }
    file.extend(b"PK\x05\x06");
    let [count, bytes, start] = if wide { [u64::MAX; 3] } else { [count, bytes, start] };
    numbers(&mut file, &[0, 0, count as u16, count as u16]);
    file.extend((bytes as u32).to_le_bytes());
    file.extend((start as u32).to_le_bytes());
    numbers(&mut file, &[0]);
    file
}

fn numbers(file: &mut Vec<u8>, numbers: &[u16]) {
    numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
}

/// An archive of a pickle and the storages that it names, as `torch.save` puts it together.
pub fn archive(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    zip(archived(pickle, storages), false)
}

/// The entries of such an archive.
pub fn archived(pickle: &[u8], storages: &[&[u8]]) -> Vec<Entry> {
    let mut entries = vec![Entry::new("m/data.pkl", pickle), Entry::new("m/byteorder", "little")];
    entries.extend(storages.iter().enumerate().map(|(i, data)| Entry::new(&format!("m/data/{i}"), *data)));
    entries.push(Entry::new("m/version", "3\n"));
    entries
}

/// A model in one file, each tensor in a storage of its own.
pub fn torch_file(tensors: &Tensors) -> Vec<u8> {
    torch_file_with(tensors, None)
}

/// The same, perhaps with a further name for one of the tensors: both are one storage, as those of tied weights are.
pub fn torch_file_with(tensors: &Tensors, twin: Option<(&str, &str)>) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let names = [Some(name.as_str()), twin.filter(|(_, of)| of == name).map(|(twin, _)| twin)];
        for name in names.into_iter().flatten() {
            text(&mut pickle, name);
            pickle.extend(tensor_of(i, tensor));
        }
    }
    pickle.extend(b"u.");
    let storages: Vec<&[u8]> = tensors.values().map(|tensor| tensor.bytes.as_slice()).collect();
    archive(&pickle, &storages)
}

/// The opcodes for a text.
pub fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// The opcodes for a tensor that is all of a storage.
pub fn tensor_of(storage: usize, tensor: &Stored) -> Vec<u8> {
    let strides: Vec<usize> =
        (0..tensor.shape.len()).map(|i| tensor.shape[i + 1..].iter().product()).collect();
    view_of(storage, tensor.dtype, tensor.shape.iter().product(), 0, &tensor.shape, &strides)
}

/// The opcodes for a view of a storage of so many elements.
pub fn view_of(
    storage: usize,
    dtype: Dtype,
    elements: usize,
    offset: usize,
    shape: &[usize],
    strides: &[usize],
) -> Vec<u8> {
    let kind = match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::U8 => "ByteStorage",
        other => panic!("{other:?} has no storage in these tests"),
    };
    let mut pickle = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    text(&mut pickle, "storage");
    pickle.extend(format!("ctorch\n{kind}\n").as_bytes());
    text(&mut pickle, &storage.to_string());
    text(&mut pickle, "cpu");
    int(&mut pickle, elements);
    pickle.extend(b"tQ");
    int(&mut pickle, offset);
    for lengths in [shape, strides] {
        pickle.push(b'(');
        lengths.iter().for_each(|length| int(&mut pickle, *length));
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    pickle
}

/// The opcodes for an integer.
pub fn int(pickle: &mut Vec<u8>, number: usize) {
    pickle.extend(b"\x8a\x08");
    pickle.extend((number as u64).to_le_bytes());
}

/// A pickle of a dict with one entry, whose value these opcodes make.
pub fn dict_of(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}X\x01\x00\x00\x00w", value, b"s."].concat()
}
