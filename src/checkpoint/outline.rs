//! A checkpoint that is planned and not written yet, as far as other plans have to know it: everything but the data.

use std::path::Path;

use serde_json::Map;

use super::folder::{ModelFolder, Planned};
use super::header::header_of;
use super::layout::{INDEX, Layout};
use super::sidecars::{Content, MODEL_CONFIG, Sidecar};
use super::source::Source;
use super::source_file::{SourceFile, Stamp};
use crate::error::{Error, Result};

impl Source {
    /// The checkpoint that will lie in `place`: its tensors are those of the layout, and these files stand beside the weights.
    /// Nothing of it can be read but the files.
    ///
    /// # Errors
    /// Kind `Input`: its `config.json` is none.
    pub fn planned(name: &str, place: &Path, layout: &Layout, files: Vec<Sidecar>) -> Result<Self> {
        let config = files.iter().find_map(|file| match &file.content {
            Content::Bytes(text) if file.file == MODEL_CONFIG => {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        });
        let weights = layout.shards.iter().map(|shard| (shard.file.clone(), Planned::Bytes([].into())));
        let index =
            layout.index.iter().map(|index| (INDEX.to_owned(), Planned::Bytes(index.as_slice().into())));
        let sidecar = |Sidecar { file, content }: Sidecar| match content {
            Content::Bytes(bytes) => (file, Planned::Bytes(bytes.into())),
            Content::CopyOf(original) => (file, Planned::CopyOf(original)),
        };
        let folder = ModelFolder::planned(place, files.into_iter().map(sidecar).chain(weights).chain(index));
        let mut source = Self::empty(name, folder, (Map::new(), String::new()))?;
        for (number, shard) in layout.shards.iter().enumerate() {
            let file = source.folder.file(shard.file.as_str());
            let header = header_of(shard.header.clone(), &file.path(), shard.bytes, number)?;
            source.add_tensors(shard.file.clone(), file, Stamp::planned(shard.bytes), header)?;
        }
        match config {
            Some(text) => source.with_config(text),
            None => Ok(source),
        }
    }

    /// Whether it is one that is not written yet.
    pub fn is_planned(&self) -> bool {
        self.folder.is_planned()
    }

    /// The same under another name. What there is to know of it was said of this one.
    #[must_use]
    pub fn called(&self, name: &str) -> Self {
        Self {
            name: name.into(),
            folder: self.folder.clone(),
            config: self.config.clone(),
            config_text: self.config_text.clone(),
            access: self.access,
            tensors: self.tensors.clone(),
            files: self.files.iter().map(SourceFile::again).collect(),
            warnings: Vec::new(),
            only: self.only.clone(),
        }
    }

    /// The same with another `config.json`.
    ///
    /// # Errors
    /// Kind `Input`: it is no JSON object.
    pub fn with_config(mut self, text: String) -> Result<Self> {
        let config = serde_json::from_str(&text);
        self.config = config.map_err(|cause| Error::input(format!("{}: config.json: {cause}", self.name)))?;
        self.config_text = text;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Access;
    use crate::checkpoint::companions;
    use crate::checkpoint::layout::{OutTensor, layout};
    use crate::checkpoint::sink::Sink;
    use crate::dtype::Dtype;

    fn tensors() -> Vec<OutTensor> {
        let tensor = |(name, dtype, shape): (&str, Dtype, &[usize])| OutTensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        [("b", Dtype::BF16, &[3, 5][..]), ("a", Dtype::F32, &[2]), ("c", Dtype::U8, &[7])].map(tensor).into()
    }

    fn files(donor: &Path) -> Vec<Sidecar> {
        let folder = ModelFolder::open(donor).unwrap();
        let written =
            |file: &str, text: &str| Sidecar { file: file.into(), content: Content::Bytes(text.into()) };
        let copied = |file: &str| Sidecar { file: file.into(), content: Content::CopyOf(folder.file(file)) };
        vec![
            written(MODEL_CONFIG, r#"{"x":1.50}"#),
            written("tokenizer_config.json", "{}"),
            copied("tokenizer.json"),
            copied("additional_chat_templates/tool.jinja"),
        ]
    }

    /// Whatever a plan asks of a checkpoint is answered as of the one that is written then.
    #[test]
    fn what_is_planned_looks_like_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (donor, out) = (dir.path().join("donor"), dir.path().join("out"));
        std::fs::create_dir_all(donor.join("additional_chat_templates")).unwrap();
        std::fs::write(donor.join("tokenizer.json"), "[7]").unwrap();
        std::fs::write(donor.join("additional_chat_templates/tool.jinja"), "{{ x }}").unwrap();
        for shard_bytes in [1000, 20] {
            let layout = layout(&tensors(), shard_bytes);
            let planned = Source::planned("m", &out, &layout, files(&donor)).unwrap();
            assert!(planned.is_planned() && !out.exists());
            let sink = Sink::create(&out, &layout, Access::ANY, None).unwrap().0;
            sink.finish(&files(&donor), &|| false).unwrap();
            let written = Source::open("m", &out).unwrap();
            assert!(!written.is_planned());
            assert!(planned.tensors().eq(written.tensors()), "{:?}", planned.tensors().collect::<Vec<_>>());
            assert_eq!((&planned.config_text, &planned.config), (&written.config_text, &written.config));
            for below in ["", "additional_chat_templates"] {
                assert_eq!(planned.folder.names(below).unwrap(), written.folder.names(below).unwrap());
            }
            for name in
                ["tokenizer.json", "additional_chat_templates", "nothing", "tokenizer", "model.safetensors"]
            {
                assert_eq!(planned.folder.has(name), written.folder.has(name), "{name}");
                assert_eq!(planned.folder.is_folder(name), written.folder.is_folder(name), "{name}");
            }
            for name in [
                "config.json",
                "tokenizer_config.json",
                "tokenizer.json",
                "additional_chat_templates/tool.jinja",
            ] {
                let (mine, real) = (planned.folder.file(name), written.folder.file(name));
                assert_eq!(
                    (mine.read(100).unwrap(), mine.bytes().unwrap()),
                    (real.read(100).unwrap(), real.bytes().unwrap())
                );
                assert!(
                    mine.same_content(&real, 100).unwrap() && real.same_content(&mine, 100).unwrap(),
                    "{name}"
                );
            }
            let names = |source: &Source| -> Vec<(String, u64)> {
                let copied = companions(source).unwrap().copied;
                copied.into_iter().map(|file| (file.file, file.bytes)).collect()
            };
            assert_eq!(names(&planned), names(&written));
            // One that is made of it knows the same of it, and keeps no chain of what it was made of.
            let copies = companions(&planned).unwrap().sidecars().collect();
            let next = Source::planned("n", &dir.path().join("next"), &layout, copies).unwrap();
            drop(planned);
            assert_eq!(next.folder.file("tokenizer.json").read(100).unwrap(), b"[7]");
            assert_eq!(next.folder.file("tokenizer_config.json").read(100).unwrap(), b"{}");
            let called = written.called("w");
            assert!(called.tensors().eq(written.tensors()) && called.name == "w");
            called.verify_unchanged().unwrap();
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}
