//! A checkpoint whose tensors lie in memory: those of a program that calls this one as a library.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::folder::ModelFolder;
use super::header::header_of;
use super::layout::{OutTensor, SINGLE, layout};
use super::source::Source;
use super::source_file::Elsewhere;
use crate::error::{Error, Result};

/// The data of tensors, by their places in a list.
pub trait HeldTensors: fmt::Debug + Send + Sync {
    /// Fills `into` from byte `offset` of a tensor on. Any thread may call it; nobody asks for more than the tensor has.
    fn read_at(&self, tensor: usize, offset: u64, into: &mut [u8]);
}

impl Source {
    /// The checkpoint of these tensors, which the user calls `name`. It has no `config.json`: its tensors are merged by name.
    ///
    /// # Errors
    /// Kind `Config`: they could not be those of a checkpoint.
    pub fn in_memory(name: &str, tensors: &[OutTensor], held: Arc<dyn HeldTensors>) -> Result<Self> {
        let folder = ModelFolder::planned(Path::new(name), []);
        let mut source = Self::empty(name, folder, (Map::new(), String::new()))?;
        // One file, as it would be written: whatever a header may not say is refused here too.
        let laid = layout(tensors, u64::MAX);
        let (shard, file) = (&laid.shards[0], source.folder.file(SINGLE));
        let header = header_of(shard.header.clone(), &file.path(), shard.bytes, 0);
        let refused = |why: Error| Error {
            hint: None,
            ..Error::config(format!("tensors of {name:?}: {}", why.message))
        };
        let mut header = header.map_err(refused)?;
        // In the order of the list, which the output then has.
        let places: HashMap<&str, usize> = tensors.iter().map(|tensor| &*tensor.name).zip(0..).collect();
        header.tensors.sort_by_key(|tensor| places.get(&*tensor.name));
        let with_data = laid.places.iter().zip(0..).filter(|(place, _)| place.bytes > 0);
        let mut by_offset: Vec<(u64, usize)> =
            with_data.map(|(place, tensor)| (place.offset, tensor)).collect();
        by_offset.sort_unstable();
        let elsewhere = Arc::new(Laid { held, by_offset });
        source.add_elsewhere(SINGLE.into(), file, shard.bytes, header, elsewhere)?;
        // Without a config it is no folder of a whole model.
        source.only = Some(SINGLE.into());
        Ok(source)
    }
}

/// Tensors in memory as if they lay in a file.
#[derive(Debug)]
struct Laid {
    held: Arc<dyn HeldTensors>,
    /// Where in the file each begins that has data, and its place in the list; ascending.
    by_offset: Vec<(u64, usize)>,
}

impl Elsewhere for Laid {
    fn read_at(&self, into: &mut [u8], offset: u64) -> Result<()> {
        if into.is_empty() {
            return Ok(());
        }
        let behind = self.by_offset.partition_point(|(start, _)| *start <= offset);
        let (start, tensor) = self.by_offset[behind - 1];
        self.held.read_at(tensor, offset - start, into);
        Ok(())
    }

    fn identity(&self) -> Map<String, Value> {
        Map::from_iter([("in_memory".to_owned(), true.into())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Reads;
    use crate::dtype::Dtype;
    use crate::error::Kind;

    #[derive(Debug)]
    struct Bytes(Vec<Vec<u8>>);

    impl HeldTensors for Bytes {
        fn read_at(&self, tensor: usize, offset: u64, into: &mut [u8]) {
            into.copy_from_slice(&self.0[tensor][offset as usize..][..into.len()]);
        }
    }

    fn source(tensors: &[(&str, Dtype, &[usize])]) -> Result<(Source, Vec<Vec<u8>>)> {
        let tensor = |(name, dtype, shape): &(&str, Dtype, &[usize])| OutTensor {
            name: (*name).into(),
            dtype: *dtype,
            shape: shape.to_vec(),
        };
        let tensors: Vec<OutTensor> = tensors.iter().map(tensor).collect();
        let data = |(number, tensor): (usize, &OutTensor)| -> Vec<u8> {
            (0..tensor.bytes()).map(|byte| (number as u64 * 50 + byte) as u8).collect()
        };
        let data: Vec<Vec<u8>> = tensors.iter().enumerate().map(data).collect();
        Ok((Source::in_memory("mine", &tensors, Arc::new(Bytes(data.clone())))?, data))
    }

    #[test]
    fn every_part_of_every_tensor_is_read_where_it_lies() {
        let tensors: [(&str, Dtype, &[usize]); 6] = [
            ("z", Dtype::BF16, &[3]),
            ("empty", Dtype::F32, &[0, 7]),
            ("wide", Dtype::F64, &[2]),
            ("scalar", Dtype::U8, &[]),
            ("nothing", Dtype::U8, &[0]),
            ("a", Dtype::F32, &[2, 2]),
        ];
        let (source, data) = source(&tensors).unwrap();
        assert!(source.tensors().map(|tensor| &*tensor.name).eq(tensors.iter().map(|(name, ..)| *name)));
        for (data, tensor) in data.iter().zip(source.tensors()) {
            for from in 0..=data.len() {
                for to in from..=data.len() {
                    let mut into = vec![0; to - from];
                    source.read_at(tensor, from as u64, &mut into, Reads::Mapped).unwrap();
                    assert_eq!(into, data[from..to], "{} {from}..{to}", tensor.name);
                }
            }
            assert_eq!(source.bring(tensor, &(0..tensor.bytes), true).unwrap(), None);
        }
        source.verify_unchanged().unwrap();
        assert!(!source.is_folder() && !source.has_config() && source.is_planned());
    }

    #[test]
    fn names_that_no_checkpoint_has_are_refused() {
        let twice = source(&[("a", Dtype::U8, &[1]), ("a", Dtype::U8, &[1])]).unwrap_err();
        assert_eq!((twice.kind, twice.hint), (Kind::Config, None));
        assert!(
            twice.message.starts_with("tensors of \"mine\": mine/model.safetensors: "),
            "{}",
            twice.message
        );
    }
}
