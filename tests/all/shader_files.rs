//! Shaders are compiled by drivers that nobody here has seen, and that may fuse, reorder and flush what WGSL lets them.
//! What must hold on all of them is read from the shaders' files with naga, which wgpu uses too: no device is needed.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;

use mergeforge::backend::wgpu::shaders::source;
use mergeforge::kernel::packed::{GROUP_MODELS, LAUNCH_STRUCTS, Struct, THREADS};
use mergeforge::kernel::{KERNELS, Kernel, magnitudes};
use naga::back::pipeline_constants::process_overrides;
use naga::back::{hlsl, msl, spv};
use naga::common::ForDebugWithTypes;
use naga::front::wgsl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, BinaryOperator, Block, Expression, Function, GlobalVariable, Handle, Module, ScalarKind,
    ShaderStage, Statement, StorageAccess, StructMember, Type, TypeInner,
};

/// Files in `src/kernel/` that are no kernels.
const NO_KERNELS: [&str; 7] = ["choice", "header", "packed", "philox", "sums", "thinning", "widest"];

/// Files in `shaders/` that stand before every kernel.
const PARTS: [&str; 4] = ["no_subgroups", "params", "prelude", "subgroups"];

/// The buffers, as the host binds them. Storage buffers have four places: so many are sure to be allowed. That one
/// shader uses no two in one place is a part of being valid.
const BINDINGS: [&str; 8] = [
    "@group(0) @binding(0) var<storage, read> table: array<u32>",
    "@group(0) @binding(1) var<storage, read> memory: array<vec4<u32>>",
    "@group(0) @binding(2) var<storage, read_write> tally: array<atomic<u32>>",
    "@group(0) @binding(3) var<uniform> zero: vec4<u32>",
    "@group(0) @binding(4) var<storage, read_write> values: array<vec4<u32>>",
    "@group(0) @binding(4) var<storage, read_write> sums: array<f32>",
    "@group(0) @binding(4) var<storage, read_write> counts: array<atomic<u32>>",
    "@group(0) @binding(4) var<storage, read_write> words: array<u32>",
];

/// What hides a number from a compiler. The examination of arithmetic rests on these two lines.
const PINS: [&str; 2] = [
    "\nfn pin(x: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ zero); }\n",
    "\nfn pin_one(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ zero.x); }\n",
];

/// What WebGPU promises of every device.
const WORKGROUP_BYTES: usize = 16 << 10;

/// The element types of inputs, and the number that stands for several.
const FLOATS: RangeInclusive<u32> = 0..=3;

/// The numbers of models that a shader is compiled for.
fn models_of(name: &str) -> RangeInclusive<usize> {
    let kernel = kernel(name);
    if kernel.group_words > 0 { 1..=GROUP_MODELS } else { 0..=kernel.wgsl.models }
}

fn kernel(name: &str) -> &'static Kernel {
    KERNELS.iter().find(|kernel| kernel.name == name).expect("a kernel of this name")
}

/// A shader as wgpu sees it.
struct Shader<'a> {
    name: &'a str,
    text: &'a str,
    module: Module,
    info: ModuleInfo,
}

impl<'a> Shader<'a> {
    /// Reads what is valid and has one entry point, with the name of the file.
    fn read(name: &'a str, text: &'a str, subgroups: bool) -> Result<Self, String> {
        let capabilities = if subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
        let mut options = wgsl::Options::new();
        options.capabilities = capabilities;
        let module = wgsl::Frontend::new_with_options(options)
            .parse(text)
            .map_err(|error| format!("does not parse: {}", error.emit_to_string(text)))?;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|error| format!("is not valid: {}", error.emit_to_string(text)))?;
        let entries = module.entry_points.iter();
        let entries =
            entries.map(|entry| format!("{:?} {:?} {}", entry.stage, entry.workgroup_size, entry.name));
        let found: Vec<String> = entries.collect();
        if found != [format!("Compute [{THREADS}, 1, 1] {name}")] {
            return Err(format!("has the entry points {found:?}"));
        }
        Ok(Self { name, text, module, info })
    }

    fn type_name(&self, ty: Handle<Type>) -> String {
        format!("{:?}", ty.for_debug(&self.module.types))
    }

    /// Buffers are where the host binds them.
    fn bindings(&self) -> Vec<String> {
        let declaration = |global: &GlobalVariable| {
            let binding = global.binding?;
            let space = match global.space {
                AddressSpace::Uniform => "uniform",
                AddressSpace::Storage { access } if access == StorageAccess::LOAD => "storage, read",
                AddressSpace::Storage { .. } => "storage, read_write",
                _ => "another space",
            };
            let (name, ty) = (global.name.as_deref().unwrap_or(""), self.type_name(global.ty));
            Some(format!("@group({}) @binding({}) var<{space}> {name}: {ty}", binding.group, binding.binding))
        };
        let globals = self.module.global_variables.iter();
        let unknown = globals
            .filter_map(|(_, global)| declaration(global))
            .filter(|global| !BINDINGS.contains(&global.as_str()));
        unknown.map(|global| format!("has a buffer that the host does not know: {global}")).collect()
    }

    /// The host's structs are made of the same words here.
    fn structs(&self) -> Vec<String> {
        let word = |(index, (field, kind)): (u32, &(&str, &str))| format!("{field}: {kind} @{}", 4 * index);
        let same = |name: &str, fields: &[(&str, &str)]| {
            let mut types = self.module.types.iter();
            let found = types.find(|(_, ty)| ty.name.as_deref() == Some(name)).map(|(_, ty)| &ty.inner);
            let Some(TypeInner::Struct { members, .. }) = found else { return false };
            let member = |StructMember { name, ty, offset, .. }: &StructMember| {
                format!("{}: {} @{offset}", name.as_deref().unwrap_or(""), self.type_name(*ty))
            };
            members.iter().map(member).eq((0..).zip(fields).map(word))
        };
        let own = KERNELS.iter().flat_map(|kernel| kernel.structs);
        let others = LAUNCH_STRUCTS.iter().chain(own).filter(|Struct { name, fields }| !same(name, fields));
        others.map(|Struct { name, .. }| format!("has another struct {name} than the host")).collect()
    }

    /// Floats are added, subtracted and multiplied, nothing else, and only a pin sees the result.
    fn arithmetic(&self) -> Vec<String> {
        let missing = PINS.iter().filter(|pin| !self.text.contains(*pin));
        let missing = missing.map(|pin| format!("lacks {}", pin.trim()));
        let functions = self.module.functions.iter();
        let functions = functions.map(|(handle, function)| (function, &self.info[handle]));
        let entries = (0..).zip(&self.module.entry_points);
        let entries = entries.map(|(index, entry)| (&entry.function, self.info.get_entry_point(index)));
        missing.chain(functions.chain(entries).flat_map(|(body, info)| self.floats(body, info))).collect()
    }

    /// What a function does with floats and must not.
    fn floats(&self, function: &Function, info: &FunctionInfo) -> Vec<String> {
        use BinaryOperator::{Add, Divide, Modulo, Multiply, Subtract};
        let is_float = |expression: Handle<Expression>| {
            info[expression].ty.inner_with(&self.module.types).scalar_kind() == Some(ScalarKind::Float)
        };
        let is_pin = |function: Handle<Function>| {
            matches!(self.module.functions[function].name.as_deref(), Some("pin" | "pin_one"))
        };
        let text = |expression| {
            let place = function.expressions.get_span(expression).to_range();
            place.and_then(|place| self.text.get(place)).unwrap_or("?")
        };
        let mut found = Vec::new();
        let mut pinned: HashMap<Handle<Expression>, usize> = HashMap::new();
        for statement in statements(&function.body) {
            match statement {
                Statement::Call { function, arguments, .. } if is_pin(*function) => {
                    arguments.iter().for_each(|argument| *pinned.entry(*argument).or_default() += 1);
                }
                Statement::SubgroupCollectiveOperation { argument, .. } if is_float(*argument) => {
                    found.push(format!("leaves the order to the driver: {}", text(*argument)));
                }
                _ => {}
            }
        }
        for (handle, expression) in function.expressions.iter() {
            let reported = match expression {
                Expression::Binary { op: Add | Subtract | Multiply, .. } if is_float(handle) => {
                    // Whether anything but a pin uses the result.
                    let others = info[handle].ref_count > pinned.get(&handle).copied().unwrap_or(0);
                    others.then_some("does not pin")
                }
                Expression::Binary { op: Divide | Modulo, .. } if is_float(handle) => Some("divides floats"),
                Expression::Math { arg, .. } if is_float(handle) || is_float(*arg) => {
                    Some("leaves the rounding to the driver")
                }
                _ => None,
            };
            found.extend(reported.map(|reported| format!("{reported}: {}", text(handle))));
        }
        found
    }

    /// What is wrong with the shader as it is compiled for these inputs.
    fn variant(&self, float: u32, models: usize) -> Result<(), String> {
        let constants =
            [("FLOAT".into(), float.into()), ("MODELS".into(), models as f64)].into_iter().collect();
        let entry = Some((ShaderStage::Compute, self.name));
        let (module, info) = process_overrides(&self.module, &self.info, entry, &constants)
            .map_err(|error| format!("cannot be made: {error}"))?;
        // The host asks whether there is room for more models of `magnitudes`, and for nothing else.
        let most = match self.name {
            "magnitudes" if models > 1 => (models * 4 * magnitudes::WORDS).next_multiple_of(16),
            _ => WORKGROUP_BYTES,
        };
        let bytes = workgroup_bytes(&module, &info);
        if bytes > most {
            return Err(format!("needs {bytes} bytes of workgroup memory, more than {most}"));
        }
        translate(&module, &info).map_err(|error| format!("does not translate to {error}"))
    }

    /// The same for all that it is compiled for.
    fn variants(&self) -> Vec<String> {
        let variants = models_of(self.name).flat_map(|models| FLOATS.map(move |float| (float, models)));
        let reported = |(float, models)| {
            let reported = self.variant(float, models).err()?;
            Some(format!("{reported} (FLOAT {float}, MODELS {models})"))
        };
        variants.filter_map(reported).collect()
    }
}

/// All statements, those in blocks too.
fn statements(block: &Block) -> Vec<&Statement> {
    let mut all = Vec::new();
    for statement in block {
        all.push(statement);
        let inner = match statement {
            Statement::Block(block) => vec![block],
            Statement::If { accept, reject, .. } => vec![accept, reject],
            Statement::Switch { cases, .. } => cases.iter().map(|case| &case.body).collect(),
            Statement::Loop { body, continuing, .. } => vec![body, continuing],
            _ => vec![],
        };
        all.extend(inner.into_iter().flat_map(statements));
    }
    all
}

/// The workgroup memory of the entry point, counted as WebGPU does.
fn workgroup_bytes(module: &Module, info: &ModuleInfo) -> usize {
    let entry = info.get_entry_point(0);
    let used = module.global_variables.iter().filter(|(handle, _)| !entry[*handle].is_empty());
    let shared = used.filter(|(_, global)| global.space == AddressSpace::WorkGroup);
    let bytes = |ty: Handle<Type>| module.types[ty].inner.size(module.to_ctx()) as usize;
    shared.map(|(_, global)| bytes(global.ty).next_multiple_of(16)).sum()
}

/// Translates as wgpu does for the oldest drivers that have what shaders need.
fn translate(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let restrict = BoundsCheckPolicy::Restrict;
    let checks = BoundsCheckPolicies { index: restrict, buffer: restrict, ..Default::default() };
    let options = spv::Options { lang_version: (1, 3), bounds_check_policies: checks, ..Default::default() };
    let words = spv::write_vec(module, info, &options, None).map_err(|error| format!("SPIR-V: {error}"))?;
    let options = msl::Options { lang_version: (2, 1), bounds_check_policies: checks, ..Default::default() };
    msl::write_string(module, info, &options, &msl::PipelineOptions::default())
        .map_err(|error| format!("MSL: {error}"))?;
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    hlsl::Writer::new(&mut String::new(), &options, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .map_err(|error| format!("HLSL: {error}"))?;
    if words.is_empty() { Err("SPIR-V: no words".into()) } else { Ok(()) }
}

/// What is wrong with a shader.
fn problems(name: &str, text: &str, subgroups: bool) -> Vec<String> {
    match Shader::read(name, text, subgroups) {
        Ok(shader) => [shader.bindings(), shader.structs(), shader.arithmetic(), shader.variants()].concat(),
        Err(problem) => vec![problem],
    }
}

#[test]
fn shaders_run_everywhere_and_round_as_the_cpu() {
    let mut found = Vec::new();
    for kernel in KERNELS {
        let name = kernel.name;
        for (subgroups, with) in [(true, "with"), (false, "without")] {
            let reported = problems(name, &source(kernel, subgroups), subgroups);
            found.extend(
                reported.iter().map(|reported| format!("shaders/{name}.wgsl {with} subgroups {reported}")),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Plants faults in a shader: what is replaced, by what, and what all that is reported begins with.
fn plant(name: &str, subgroups: bool, faults: &[(&str, &str, &str)]) {
    let text = source(kernel(name), subgroups);
    assert_eq!(problems(name, &text, subgroups), [""; 0]);
    for (from, to, expected) in faults {
        assert!(text.contains(from), "{name} has no {from}");
        let reported = problems(name, &text.replace(from, to), subgroups);
        let all = reported.iter().all(|reported| reported.starts_with(expected));
        assert!(all && !reported.is_empty(), "{from} made {to}: {reported:#?}");
    }
}

#[test]
fn planted_faults_of_the_interface_are_found() {
    let (head, end) = ("@workgroup_size(THREADS)", "    report_odd(work);\n}");
    let entries = "has the entry points";
    let unknown = "has a buffer that the host does not know: @group(0)";
    let memory = "needs 18432 bytes of workgroup memory, more than 16384 (FLOAT";
    let faults = [
        ("let work = work_of(group.x);", "let work = ;", "does not parse: "),
        ("{ return count; }", "{ return subgroupAdd(count); }", "is not valid: "),
        (head, "@workgroup_size(64)", &format!("{entries} [\"Compute [64, 1, 1] gram\"]")),
        (head, "@workgroup_size(THREADS, 2)", &format!("{entries} [\"Compute [128, 2, 1] gram\"]")),
        ("fn gram(", "fn grams(", &format!("{entries} [\"Compute [128, 1, 1] grams\"]")),
        (end, &[end, "\n@compute ", head, "fn b() {}"].concat(), &format!("{entries} [\"Compute [128, 1,")),
        ("(2) var", "(5) var", &format!("{unknown} @binding(5) var<storage, read_write> tally")),
        ("read> mem", "read_write> mem", &format!("{unknown} @binding(1) var<storage, read_write> memory")),
        ("array<vec4<u32>>", "array<vec4<u32>, 9>", &format!("{unknown} @binding(")),
        ("<uniform>", "<storage, read>", &format!("{unknown} @binding(3) var<storage, read> zero")),
        (end, &["    words[0] = 0u;\n", end].concat(), "is not valid: "),
        ("lowest: u32,\n    shift: u32,", "shift: u32,\n    lowest: u32,", "has another struct Bracket"),
        ("    shift: u32,", "    @align(16) shift: u32,", "has another struct Bracket"),
        ("SUMS_MAX = 2u *", "SUMS_MAX = 3u *", memory),
        ("SUMS_MAX * THREADS>", "MODELS * THREADS>", "cannot be made: "),
    ];
    plant("gram", false, &faults);
    plant("magnitudes", true, &[("MODELS * MAGNITUDES_WORDS>", "2 * MODELS * MAGNITUDES_WORDS>", "needs ")]);
}

#[test]
fn planted_faults_of_the_arithmetic_are_found() {
    let rounding = "leaves the rounding to the driver: ";
    let twice = "let all = low + high;\n    return select(pin_one(all), all, odd);";
    let faults = [
        ("pin(a.low + b.low)", "a.low + b.low", "does not pin: a.low + b.low"),
        ("pin(a.low - b.low)", "pin(-(a.low - b.low))", "does not pin: a.low - b.low"),
        ("pin(a.low * b.low)", "pin(a.low * b.low + a.high)", "does not pin: a.low * b.low"),
        ("return pin_one(low + high);", twice, "does not pin: low + high"),
        ("group_sum(absolute(v))", "group_sum(absolute(v)) + 1", "does not pin: group_sum(absolute(v)) + 1"),
        ("pin(a * b.low)", "pin(pin(a * b.low) / a)", "divides floats: pin(a * b.low) / a"),
        ("pin(a * b.low)", "pin(fma(b.low, b.high, b.low))", &format!("{rounding}fma")),
        ("pin(a * b.low)", "mix(b.low, b.high, a)", &format!("{rounding}mix")),
        ("pin(a * b.low)", "vec4<f32>(dot(b.low, b.high))", &format!("{rounding}dot")),
        ("pin(a * b.low)", "vec4<f32>(length(b.low))", &format!("{rounding}length")),
        ("pin(a * b.low)", "vec4<f32>(subgroupAdd(a))", "leaves the order to the driver: a"),
        ("(x) ^ zero)", "(x) ^ vec4<u32>(0u))", "lacks fn pin(x: vec4<f32>)"),
        ("(x) ^ zero.x)", "(x))", "lacks fn pin_one(x: f32)"),
    ];
    plant("masked_sums", true, &faults);
}

/// The stems of a folder's files with this extension.
fn stems(folder: &str, extension: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let fitting = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    fitting.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect()
}

/// Kernels that are not everywhere: among the CPU's, CUDA's, the shaders' files, and the shaders in the program.
fn strays(cpu: &[&str], cuda: &[&str], wgsl: &[&str], shipped: &[&str]) -> Vec<String> {
    let cpu: Vec<&str> = cpu.iter().copied().filter(|name| !NO_KERNELS.contains(name)).collect();
    let wgsl: Vec<&str> = wgsl.iter().copied().filter(|name| !PARTS.contains(name)).collect();
    let all: BTreeSet<&str> = [&cpu, cuda, &wgsl, shipped].concat().into_iter().collect();
    let places = [("kernels/", cuda), ("shaders/", &wgsl), ("the program", shipped)];
    let missing = places.iter().flat_map(|(place, names)| {
        let missing = all.iter().filter(|name| !names.contains(name));
        missing.map(move |name| format!("{name} is not in {place}"))
    });
    missing.collect()
}

#[test]
fn every_kernel_has_its_shader() {
    let files = [stems("src/kernel", "rs"), stems("kernels", "cu"), stems("shaders", "wgsl")];
    let [cpu, cuda, wgsl] =
        files.each_ref().map(|stems| stems.iter().map(String::as_str).collect::<Vec<_>>());
    let shipped: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    assert!(cpu.contains(&"gram") && wgsl.contains(&"prelude"), "the folders hold no kernels");
    assert_eq!(strays(&cpu, &cuda, &wgsl, &shipped), [""; 0]);
}

#[test]
fn kernels_that_are_not_everywhere_are_found() {
    let (cpu, all, more) = (["gram", "packed"], ["gram", "stream"], ["gram", "keys", "stream"]);
    assert_eq!(strays(&cpu, &all, &[&all[..], &PARTS].concat(), &all), [""; 0]);
    let [files, program] = ["keys is not in shaders/", "keys is not in the program"];
    assert_eq!(strays(&["keys"], &more, &all, &all), [files, program]);
    assert_eq!(strays(&cpu, &all, &more, &more), ["keys is not in kernels/"]);
    assert_eq!(strays(&cpu, &all, &all, &all[1..]), ["gram is not in the program"]);
    assert_eq!(strays(&cpu, &more, &more, &all), [program]);
}
