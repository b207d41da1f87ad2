//! Files of `torch.save`: read as safetensors are, merged to the same bytes, and malicious ones refused without running anything.

use std::fs;
use std::path::Path;

use mergeforge::checkpoint::{Reads, Source};
use mergeforge::error::{Kind, Result};
use safetensors::Dtype;

use crate::models::{self, PLAIN, RUN, Random, Stored, Tensors, stored, weights};
use crate::torch_files::{Entry, archive, archived, dict_of, int, tensor_of, text, torch_file, view_of, zip};

fn tensors(seed: u64) -> Tensors {
    let shapes: [(&str, Dtype, &[usize]); 5] = [
        ("model.embed_tokens.weight", Dtype::BF16, &[8, 4]),
        ("model.layers.0.w", Dtype::F32, &[4, 4]),
        ("model.layers.1.w", Dtype::F16, &[1, 4]),
        ("model.norm.weight", Dtype::BF16, &[4]),
        ("model.scale", Dtype::F32, &[]),
    ];
    let tensor = |(i, (name, dtype, shape)): (usize, (&str, Dtype, &[usize]))| {
        (name.to_owned(), stored(dtype, shape, &weights(shape.iter().product(), 10 * seed + i as u64)))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// Opens these bytes as a file.
fn open(bytes: &[u8]) -> Result<Source> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    fs::write(&path, bytes).unwrap();
    Source::open_tensors("x", &path)
}

/// All that a source holds.
fn contents(source: &Source) -> Tensors {
    let read = |tensor: &mergeforge::checkpoint::TensorInfo| {
        let mut bytes = vec![0; tensor.bytes as usize];
        if tensor.bytes > 0 {
            source.read_at(tensor, 0, &mut bytes, Reads::Copied).unwrap();
        }
        (tensor.name.clone(), Stored { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    };
    source.tensors().map(read).collect()
}

/// Opens these bytes as a file that stays.
fn read(bytes: &[u8]) -> (Tensors, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    fs::write(&path, bytes).unwrap();
    let source = Source::open_tensors("x", &path).unwrap_or_else(|e| panic!("{e} {:?}", e.hint));
    (contents(&source), source.warnings().to_vec())
}

#[track_caller]
fn refused(bytes: &[u8], says: &str) {
    let error = open(bytes).expect_err(says);
    assert_eq!(error.kind, Kind::Input);
    assert!(
        error.message.contains("x.pt: ") && error.message.contains(says),
        "no `{says}` in {}",
        error.message
    );
    assert!(error.hint.is_some(), "{error}");
}

#[test]
fn every_tensor_is_a_range_of_the_file() {
    let tensors = tensors(1);
    assert_eq!(read(&torch_file(&tensors)), (tensors.clone(), Vec::new()));
    let entries = |pickle: &[u8]| archived(pickle, &[]);
    let wide = zip(entries(b"\x80\x02}X\x01\x00\x00\x00a]s."), true);
    assert!(open(&wide).unwrap_err().message.contains("no tensors"), "the end is found in ZIP64 too");
}

#[test]
fn views_in_order_are_ranges_and_others_are_refused() {
    let data: Vec<u8> = (0..48).collect();
    let view = |offset, shape: &[usize], strides: &[usize]| {
        archive(&dict_of(&view_of(0, Dtype::F32, 12, offset, shape, strides)), &[&data])
    };
    let bytes = |file: &[u8]| read(file).0.remove("w").unwrap().bytes;
    assert_eq!(bytes(&view(0, &[3, 4], &[4, 1])), data);
    assert_eq!(bytes(&view(4, &[2, 4], &[4, 1])), data[16..]);
    assert_eq!(bytes(&view(11, &[], &[])), data[44..]);
    // The stride of a dimension of length 1 says nothing, and that of no elements neither.
    assert_eq!(bytes(&view(4, &[1, 4], &[99, 1])), data[16..32]);
    assert_eq!(bytes(&view(99, &[3, 0], &[7, 7])), [0; 0]);
    for (shape, strides) in [([4, 3], [1, 4]), ([3, 4], [0, 1]), ([3, 2], [4, 1])] {
        refused(&view(0, &shape, &strides), "is a view whose elements are not in order");
    }
    for (offset, shape, strides) in
        [(5, &[2, 4][..], &[4, 1][..]), (12, &[1], &[1]), (usize::MAX >> 1, &[1], &[1])]
    {
        refused(&view(offset, shape, strides), "ends behind its storage of 48 bytes");
    }
    refused(&view(0, &[1 << 40, 1 << 40], &[1 << 40, 1]), "beyond any file");
    refused(&view(0, &[4], &[1, 1]), "no strides for its shape");
    refused(&view(0, &[1; 65], &[1; 65]), "has no shape");
    let lie = archive(&dict_of(&view_of(0, Dtype::F32, 13, 0, &[12], &[1])), &[&data]);
    refused(&lie, "has 48 bytes of data where its storage says more");
    refused(
        &archive(&dict_of(&view_of(1, Dtype::F32, 12, 0, &[12], &[1])), &[&data]),
        "no entry \"m/data/1\"",
    );
}

#[test]
fn tied_tensors_share_their_range() {
    let one = stored(Dtype::F32, &[2], &[1.0, 2.0]);
    let mut pickle = b"\x80\x02}(".to_vec();
    for name in ["a", "b"] {
        text(&mut pickle, name);
        pickle.extend(tensor_of(0, &one));
    }
    pickle.extend(b"u.");
    let (tensors, _) = read(&archive(&pickle, &[&one.bytes]));
    assert_eq!((&tensors["a"], &tensors["b"]), (&one, &one));
}

#[test]
fn types_without_a_storage_of_their_own_come_by_name() {
    let mut pickle = b"ctorch._utils\n_rebuild_tensor_v3\n((".to_vec();
    text(&mut pickle, "storage");
    pickle.extend(b"ctorch.storage\nUntypedStorage\n");
    text(&mut pickle, "0");
    text(&mut pickle, "cpu");
    int(&mut pickle, 4);
    pickle.extend(b"tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)Rctorch\nfloat8_e4m3fn\ntR");
    let file = archive(&dict_of(&pickle), &[&[1, 2, 3, 4]]);
    assert_eq!(read(&file).0["w"], Stored { dtype: Dtype::F8_E4M3, shape: vec![4], bytes: vec![1, 2, 3, 4] });
    // A parameter is its tensor.
    let one = stored(Dtype::F32, &[2], &[1.0, 2.0]);
    let parameter = [
        b"ctorch._utils\n_rebuild_parameter\n(".to_vec(),
        tensor_of(0, &one),
        b"\x88ccollections\nOrderedDict\n)RtR".to_vec(),
    ];
    assert_eq!(read(&archive(&dict_of(&parameter.concat()), &[&one.bytes])).0["w"], one);
}

/// A dict of these entries; values are opcodes.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"}(".to_vec();
    for (key, value) in entries {
        text(&mut pickle, key);
        pickle.extend(value);
    }
    pickle.push(b'u');
    pickle
}

#[test]
fn weights_are_found_in_checkpoints_of_trainers() {
    let one = stored(Dtype::F32, &[2], &[1.0, 2.0]);
    let weights = || dict(&[("w", tensor_of(0, &one)), ("_extra_state", b"N".to_vec())]);
    let other = || dict(&[("w", tensor_of(1, &one))]);
    let file = |pickle: Vec<u8>| archive(&[b"\x80\x02", &pickle[..], b"."].concat(), &[&one.bytes, &[0; 8]]);
    let found = |pickle: Vec<u8>| {
        let (tensors, notes) = read(&file(pickle));
        assert_eq!(tensors["w"], one);
        notes.join("; ")
    };
    assert_eq!(found(weights()), "x: in x.pt, not read, since they are no tensors: \"_extra_state\"");
    let lightning =
        dict(&[("epoch", b"K\x03".to_vec()), ("state_dict", weights()), ("optimizer_states", b"]".to_vec())]);
    assert!(found(lightning).contains(
        "the weights are its \"state_dict\"; not read beside them: \"epoch\", \"optimizer_states\""
    ));
    let deep = dict(&[("step", tensor_of(1, &one)), ("model", dict(&[("module", weights())]))]);
    assert!(found(deep).contains("the weights are its \"model/module\"; not read beside them: \"step\""));
    let both = dict(&[("model", other()), ("state_dict", weights())]);
    assert!(found(both).contains("the weights are its \"state_dict\"; not read beside them: \"model\""));
    let settings = dict(&[("model", dict(&[("layers", b"K\x02".to_vec())])), ("params", weights())]);
    assert!(found(settings).contains("the weights are its \"params\""));
    let unknown = dict(&[("encoder", weights()), ("decoder", other())]);
    refused(&file(unknown), "no tensors that are known as weights: it has \"encoder\", \"decoder\"");
    refused(&file(tensor_of(0, &one)), "no dict of tensors");
    refused(&file(b"}".to_vec()), "it is empty");
    refused(&file([&b"}(K\x01"[..], &tensor_of(0, &one), b"u"].concat()), "has no name");
    let twice = [
        b"}(".to_vec(),
        b"X\x01\0\0\0w".to_vec(),
        tensor_of(0, &one),
        b"X\x01\0\0\0w".to_vec(),
        tensor_of(1, &one),
        b"u".to_vec(),
    ];
    refused(&file(twice.concat()), "tensor \"w\" is in it twice");
}

#[test]
fn a_model_that_torch_has_saved_merges_like_one_in_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let saved = |name: &str, files: &[(&str, Vec<u8>)]| {
        models::write(&at(name), &Tensors::new(), PLAIN);
        fs::remove_file(at(name).join("model.safetensors")).unwrap();
        files.iter().for_each(|(file, bytes)| fs::write(at(name).join(file), bytes).unwrap());
    };
    models::write(&at("a"), &tensors(1), PLAIN);
    models::write(&at("b"), &tensors(2), PLAIN);
    saved("a-bin", &[("pytorch_model.bin", torch_file(&tensors(1)))]);
    let mut halves = (tensors(2), Tensors::new());
    halves.1 = halves.0.split_off("model.layers.1.w");
    let files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let map = |file: &str, half: &Tensors| {
        half.keys().map(|name| format!("{name:?}: {file:?}")).collect::<Vec<_>>().join(", ")
    };
    let index = format!("{{\"weight_map\": {{{}, {}}}}}", map(files[0], &halves.0), map(files[1], &halves.1));
    saved(
        "b-bin",
        &[
            ("pytorch_model.bin.index.json", index.into_bytes()),
            (files[0], torch_file(&halves.0)),
            (files[1], torch_file(&halves.1)),
        ],
    );
    let merged = |a: &str, b: &str, out: &str| {
        let models = format!("models: [{{model: {}}}, {{model: {}}}]", at(a).display(), at(b).display());
        let config = format!("merge_method: linear\nparameters: {{weight: 0.3}}\n{models}\n");
        models::run(dir.path(), &config, out, RUN).unwrap();
        models::read(&at(out))
    };
    assert!(merged("a", "b", "out") == merged("a-bin", "b-bin", "out-bin"));
    // Safetensors come first.
    fs::write(at("a").join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    merged("a", "b-bin", "out-first");
}

#[test]
fn a_shard_that_its_index_does_not_know_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    models::write(dir.path(), &Tensors::new(), PLAIN);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let index = |file: &str| {
        let text = format!("{{\"weight_map\": {{\"a\": {file:?}}}}}");
        fs::write(dir.path().join("pytorch_model.bin.index.json"), text).unwrap();
        Source::open("m", dir.path()).unwrap_err().message
    };
    assert!(index("../x.bin").contains("no plain name"));
    assert!(index("x.safetensors").contains("no plain name"));
    assert!(index("x.bin").contains("has no x.bin, which pytorch_model.bin.index.json names"));
}

/// What malicious pickles name: ways to run programs and code, to load more of it, to reach into modules, to use files and the net.
const HARMFUL: &[(&str, &str)] = &[
    ("os", "system"),
    ("os", "execvp"),
    ("os", "popen"),
    ("os", "remove"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("pty", "spawn"),
    ("commands", "getoutput"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "compile"),
    ("builtins", "open"),
    ("builtins", "getattr"),
    ("builtins", "setattr"),
    ("builtins", "__import__"),
    ("builtins", "globals"),
    ("builtins", "breakpoint"),
    ("__builtin__", "eval"),
    ("__builtin__", "apply"),
    ("__builtin__", "getattr"),
    ("__builtin__", "execfile"),
    ("__builtin__", "file"),
    ("__main__", "payload"),
    ("sys", "modules"),
    ("sys", "exit"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("itertools", "starmap"),
    ("importlib", "import_module"),
    ("runpy", "run_path"),
    ("runpy", "_run_code"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("marshal", "loads"),
    ("pickle", "loads"),
    ("_pickle", "Unpickler"),
    ("dill._dill", "_create_function"),
    ("cloudpickle.cloudpickle", "_make_function"),
    ("joblib", "load"),
    ("code", "InteractiveInterpreter"),
    ("codeop", "compile_command"),
    ("timeit", "timeit"),
    ("cProfile", "runctx"),
    ("profile", "run"),
    ("pdb", "run"),
    ("bdb", "Bdb"),
    ("trace", "Trace"),
    ("doctest", "debug_script"),
    ("ctypes", "CDLL"),
    ("socket", "create_connection"),
    ("ssl", "get_server_certificate"),
    ("http.client", "HTTPSConnection"),
    ("urllib.request", "urlopen"),
    ("requests.api", "get"),
    ("aiohttp.client", "ClientSession"),
    ("webbrowser", "open"),
    ("smtplib", "SMTP"),
    ("shutil", "rmtree"),
    ("tempfile", "NamedTemporaryFile"),
    ("pathlib", "Path.write_text"),
    ("io", "open_code"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("multiprocessing.util", "spawnv_passfds"),
    ("pip", "main"),
    ("pip._internal", "main"),
    ("ensurepip", "_run_pip"),
    ("venv", "create"),
    ("idlelib.pyshell", "ModifiedInterpreter.runcommand"),
    ("lib2to3.pgen2.grammar", "Grammar.loads"),
    ("logging.config", "valid_ident"),
    ("numpy", "load"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("numpy.testing._private.utils", "runstring"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"),
    ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("torch._inductor.codecache", "compile_file"),
    ("torch.utils._config_module", "ConfigModule.load_config"),
    ("torch.utils.bottleneck.__main__", "run_cprofile"),
    ("torch.distributed.rpc.internal", "_run_function"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.__reduce__"),
    ("collections.OrderedDict", ""),
    ("", "system"),
];

/// The opcodes that name a function, in all ways that there are, each followed by what would call it.
fn calls(module: &str, name: &str) -> Vec<Vec<u8>> {
    let lines = format!("{module}\n{name}\n").into_bytes();
    let global = [b"c", &lines[..]].concat();
    let (mut short, mut remembered) = (Vec::new(), b"\x80\x04".to_vec());
    for part in [module, name] {
        short.extend([0x8c, part.len() as u8]);
        short.extend(part.as_bytes());
        remembered.extend([0x8c, part.len() as u8]);
        remembered.extend(part.as_bytes());
        remembered.extend(b"\x940");
    }
    short.push(0x93);
    remembered.extend(b"h\x00h\x01\x93");
    let argument = b"X\x0b\x00\x00\x00touch pwned";
    vec![
        // Reduced, made as an object, in both older ways, and set.
        [&global[..], b"(", argument, b"tR"].concat(),
        [&short[..], argument, b"\x85R"].concat(),
        [&remembered[..], argument, b"\x85R"].concat(),
        [&global[..], argument, b"\x85\x81"].concat(),
        [&global[..], argument, b"\x85}\x92"].concat(),
        [b"(", &argument[..], b"i", &lines].concat(),
        [b"(", &global[..], argument, b"o"].concat(),
        // As the argument of what is allowed, among a tensor's parts, as a key, and below a mark that goes away.
        [b"ccollections\nOrderedDict\n(](", &global[..], argument, b"\x85Re\x85R"].concat(),
        [b"ctorch._utils\n_rebuild_parameter\n(", &global[..], argument, b"\x85R\x88}tR"].concat(),
        [b"}", &global[..], argument, b"\x85RNs"].concat(),
        [b"(", &global[..], argument, b"\x85R1N"].concat(),
        // As state, whose setting would call it.
        [b"ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__", &global[..], b"sb"].concat(),
    ]
}

#[test]
fn malicious_pickles_are_refused_by_the_name_of_what_they_want() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    let one = stored(Dtype::F32, &[2], &[1.0, 2.0]);
    let mut tried = 0;
    for (module, name) in HARMFUL {
        for call in calls(module, name) {
            // Alone, and behind a good tensor.
            let behind = [
                &b"\x80\x02}(X\x01\x00\x00\x00w"[..],
                &tensor_of(0, &one),
                b"X\x01\x00\x00\x00x",
                &call,
                b"u.",
            ]
            .concat();
            for pickle in [[&call[..], b"."].concat(), behind] {
                fs::write(&path, archive(&pickle, &[&one.bytes])).unwrap();
                let error = Source::open_tensors("x", &path).unwrap_err();
                assert_eq!(error.kind, Kind::Input);
                let named =
                    format!("names \"{module}.{name}\", which no tensor needs; nothing of it was run");
                assert!(error.message.contains(&named), "{module}.{name}: {}", error.message);
                assert!(error.hint.unwrap().contains("can run anything"));
                tried += 1;
            }
        }
    }
    assert!(tried > 2000);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["x.pt"], "nothing was run");
    assert!(!Path::new("pwned").exists());
}

#[test]
fn tricks_without_a_harmful_name_are_refused_too() {
    for (what, value, says) in [
        ("a function of the extension registry", &b"\x82\x01)R"[..], "extension registry"),
        ("the same in two bytes", b"\x83\x01\x00)R", "extension registry"),
        ("the same in four", b"\x84\x01\x00\x00\x00)R", "extension registry"),
        ("a persistent id in text", b"Pos.system\n", "no storage of a tensor"),
        ("a persistent id that is no tuple", b"X\x01\x00\x00\x000Q", "no storage of a tensor"),
        ("one that is a file", b"(X\x04\x00\x00\x00fileX\x0b\x00\x00\x00/etc/passwdtQ", "no storage of a tensor"),
        (
            "a storage of a type that is no storage",
            b"(X\x07\x00\x00\x00storageccollections\nOrderedDict\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ",
            "no storage of a tensor",
        ),
        ("a function by what is no text", b"N)\x93", "by what is no text"),
        ("a call of a number", b"K\x01)R", "calls what is no function"),
        ("a call of what a call made", b"ccollections\nOrderedDict\n)R)R", "calls what is no function"),
        ("a call of a type of elements", b"ctorch\nfloat32\n)R", "wrong parts"),
        ("a call without arguments", b"ccollections\nOrderedDict\nNR", "no list of arguments"),
        ("a tensor of nothing", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR", "wrong parts"),
        ("a tensor of too few parts", b"ctorch._utils\n_rebuild_tensor_v2\n)R", "wrong parts"),
        ("attributes of a tuple", b")}b", "sets attributes"),
        ("buffers outside", b"\x97", "buffers outside"),
        ("a tensor that makes itself", b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00Nh\x00tR", "of nothing"),
        ("keys of a number", b"K\x01NNs", "no container"),
        ("a name that steers a terminal", b"c\x1b[2Jos\nsys\rtem\n", "names \"\\u{1b}[2Jos.sys\\rtem\""),
    ] {
        let error = open(&archive(&[value, b"."].concat(), &[])).expect_err(what);
        assert!(error.message.contains(says), "{what}: {}", error.message);
    }
    // Two tensors behind one end: torch reads the first, a scanner perhaps the second.
    refused(&archive(b"}.}.", &[]), "something behind its end");
}

/// A list of ten times the list before, and so on: small as a program, endless for whoever walks through it.
#[test]
fn a_billion_laughs_are_no_more_than_they_look() {
    let mut pickle = b"\x80\x02]q\x00".to_vec();
    for level in 0..60_u8 {
        pickle.extend(b"](");
        pickle.extend([b'h', level].repeat(10));
        pickle.extend([b'e', b'q', level + 1]);
    }
    let as_key = [&pickle[..], b"0}(h\x3ch\x3cu."].concat();
    refused(&archive(&as_key, &[]), "no tensors that are known as weights");
    // The same of dicts, under a name that is looked into.
    let mut pickle = b"\x80\x02}q\x00".to_vec();
    for level in 0..200_u8 {
        pickle.extend(b"}(");
        for key in ["state_dict", "model", "module"] {
            text(&mut pickle, key);
            pickle.extend([b'h', level]);
        }
        pickle.extend([b'u', b'q', level + 1]);
    }
    pickle.push(b'.');
    refused(&archive(&pickle, &[]), "no tensors that are known as weights");
    // One that holds itself.
    refused(&archive(b"}q\x00X\x05\x00\x00\x00modelh\x00s.", &[]), "no tensors that are known as weights");
}

#[test]
fn archives_that_lie_are_refused() {
    let one = stored(Dtype::F32, &[2], &[1.0, 2.0]);
    let good = archived(&dict_of(&tensor_of(0, &one)), &[&one.bytes]);
    assert_eq!(read(&zip(&good, false)).0["w"], one);
    assert_eq!(read(&zip(&good, true)).0["w"], one);
    let lie = |says: &str, lie: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = good.clone();
        lie(&mut entries);
        refused(&zip(&entries, false), says);
    };
    lie("is compressed (method 8)", &|entries| entries[0].method = 8);
    lie("is compressed (method 8)", &|entries| entries[2].method = 8);
    lie("is encrypted", &|entries| entries[2].flags |= 1);
    lie("another name in its own header", &|entries| entries[2].own_name = Some("m/data/1".into()));
    lie("not where the directory says", &|entries| entries[2].own_name = Some("m/data/00".into()));
    lie("not where the directory says", &|entries| entries[2].listed.1 = Some(7));
    lie("lies about entry", &|entries| entries[2].listed.1 = Some(u32::MAX - 1));
    lie("lies about entry", &|entries| entries[2].listed.0 = Some(u32::MAX));
    lie("goes on behind the last one", &|entries| entries[2].listed.0 = Some(100_000));
    lie("lists entry \"m/data/0\" twice", &|entries| entries.push(entries[2].clone()));
    lie("no data.pkl", &|entries| entries[0].name = "m/other.pkl".into());
    lie("another order of bytes", &|entries| entries[1].data = b"big".to_vec());
    lie("TorchScript", &|entries| entries.push(Entry::new("m/constants.pkl", "")));
    lie("are the most that is read", &|entries| entries[1].data = vec![b'x'; 100]);
    // Two storages in one place.
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        text(&mut pickle, name);
        pickle.extend(tensor_of(i, &one));
    }
    pickle.extend(b"u.");
    let mut entries = archived(&pickle, &[&one.bytes, &one.bytes]);
    assert_eq!(read(&zip(&entries, false)).0.len(), 2);
    entries[2].listed.0 = Some(80);
    refused(&zip(&entries, false), "overlap");
    let file = zip(&good, false);
    for cut in [4, 30, file.len() - 22, file.len() - 1] {
        refused(&file[..cut], "has no end");
    }
    // Something before it moves everything; a comment behind it, and one that looks like an end, do not.
    refused(&[b"PK\x03\x04", &file[..]].concat(), "directory is cut short");
    let comment = b"PK\x05\x06 not an end but a comment";
    let mut commented = file.clone();
    let at = commented.len() - 2;
    commented[at] = comment.len() as u8;
    commented.extend(comment);
    assert_eq!(read(&commented).0["w"], one);
}

/// Whatever is damaged, what is still read lies inside of the file.
#[test]
fn damaged_files_never_lead_out_of_themselves() {
    let good = torch_file(&tensors(1));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    let mut random = Random(17);
    let mut below = |most: usize| random.next() as usize % most;
    let (mut opened, mut whole) = (0, 0);
    for _ in 0..3000 {
        let mut file = good.clone();
        for _ in 0..=below(3) {
            let at = below(file.len());
            match below(4) {
                0 => file[at] ^= 1 << below(8),
                1 => file[at] = below(256) as u8,
                2 => drop(file.remove(at)),
                _ => file.insert(at, below(256) as u8),
            }
        }
        fs::write(&path, &file).unwrap();
        if let Ok(source) = Source::open_tensors("x", &path) {
            opened += 1;
            let inside = |tensor: &mergeforge::checkpoint::TensorInfo| {
                tensor.offset + tensor.bytes <= file.len() as u64
            };
            assert!(source.tensors().all(inside));
            whole += usize::from(contents(&source).len() == 5);
        }
    }
    assert!(
        opened > 100 && whole > 100,
        "{opened} of the damaged files could be opened, {whole} with all tensors"
    );
}
