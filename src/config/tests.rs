//! What the config's parser reads, warns of and refuses.

use super::*;
use crate::error::Kind;
use crate::method::ValueKind;
use proptest::prelude::*;

const MODELS: &str = "merge_method: linear\nmodels:\n  - model: a\n";

pub(super) fn parse(source: &str) -> Config {
    Config::parse("c.yaml", source).unwrap_or_else(|error| panic!("{error}\nin\n{source}"))
}

pub(super) fn refused(source: &str) -> Error {
    let error = Config::parse("c.yaml", source).expect_err(source);
    assert_eq!(error.kind, Kind::Config);
    error
}

/// The config of one model with these lines added at the top.
pub(super) fn with(lines: &str) -> String {
    format!("{lines}\n{MODELS}")
}

/// The value of a parameter `t`, written so.
pub(super) fn parameter(written: &str) -> Option<Vec<Conditional>> {
    let config = parse(&with(&format!("parameters:\n  t: {written}")));
    config.parameters.get("t").map(|parameter| parameter.value.0.clone())
}

pub(super) fn scalar(written: &str) -> Scalar {
    match &parameter(written).expect(written)[..] {
        [Conditional { filter: None, value: WrittenValue::One(scalar) }] => scalar.clone(),
        other => panic!("{written}: {other:?}"),
    }
}

pub(super) fn everywhere(value: WrittenValue) -> Vec<Conditional> {
    vec![Conditional { filter: None, value }]
}

pub(super) fn number(value: f64) -> Scalar {
    Scalar::Number(value)
}

pub(super) fn model(written: &str) -> ModelRef {
    let config = parse(&with(&format!("base_model: {written}")));
    config.base_model.expect(written).value
}

pub(super) fn model_ref(path: &str, revision: Option<&str>) -> ModelRef {
    ModelRef { path: path.into(), revision: revision.map(str::to_string), lora: None }
}

fn lines(numbers: Range<usize>, line: impl Fn(usize) -> String) -> String {
    numbers.map(line).collect::<Vec<_>>().concat()
}

#[track_caller]
pub(super) fn assert_refused(source: &str, begins: &str, hint: &str) {
    let error = refused(source);
    assert!(error.message.starts_with(begins), "{error:?}\nin\n{source}");
    assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{error:?}");
}

#[track_caller]
pub(super) fn assert_warned(source: &str, message: &str) {
    let warnings = parse(source).warnings;
    assert_eq!(warnings.iter().map(|warning| &*warning.message).collect::<Vec<_>>(), [message]);
}

#[test]
fn reads_a_whole_config() {
    let source = "\
# weights follow the paper
merge_method: ties
base_model: org/base@v1.0
models:
  - model: org/math
    parameters: {weight: [0.2, 0.8], density: 0.5}
  - model: {model: {path: ./c++@home, revision: main}}
parameters:
  normalize: true
  t:
    - {filter: self_attn, value: [0, 0.5]}
    - value: 0.3
dtype: torch.float32
out_dtype: bfloat16
tokenizer: {source: base}
chat_template: auto
name: mine
";
    let config = parse(source);
    assert_eq!((config.file.as_str(), config.source.as_str()), ("c.yaml", source));
    assert_eq!(config.merge_method.value, "ties");
    assert_eq!(config.merge_method.at, Position { line: 2, column: 15 });
    let base = config.base_model.unwrap();
    assert_eq!(base.value.to_string(), "org/base@v1.0");
    assert_eq!(base.at, Position { line: 3, column: 13 });
    let Inputs::Models(models) = config.inputs else { panic!("not models") };
    assert_eq!(models[0].model.value, model_ref("org/math", None));
    let weight = &models[0].parameters["weight"];
    assert_eq!(weight.at, Position { line: 6, column: 26 });
    assert_eq!(weight.value.0[0].value, WrittenValue::Gradient(vec![number(0.2), number(0.8)]));
    assert_eq!(models[1].model.value, model_ref("./c++@home", Some("main")));
    assert_eq!(models[1].model.at.line, 7);
    assert_eq!(config.parameters["normalize"].value.0[0].value, WrittenValue::One(Scalar::Bool(true)));
    let filters = config.parameters["t"].value.0.iter().map(|entry| entry.filter.as_deref());
    assert_eq!(filters.collect::<Vec<_>>(), [Some("self_attn"), None]);
    assert_eq!(config.dtype.unwrap().value, Dtype::F32);
    assert_eq!(config.out_dtype.unwrap().value, Dtype::BF16);
    assert_eq!(config.tokenizer.unwrap().source, TokenizerSource::Base);
    assert_eq!(config.chat_template.unwrap().value, "auto");
    assert_eq!(config.warnings, []);
}

#[test]
fn reads_slices() {
    let config = parse(
        "merge_method: slerp
slices:
  - sources:
      - {model: a, layer_range: [0, 8]}
      - {model: b, layer_range: [8, 16.0], parameters: {weight: 1}}
    base_model: a
    parameters: {t: 0.5}
  - sources: [{model: a}]
",
    );
    let Inputs::Slices(slices) = config.inputs else { panic!("not slices") };
    assert_eq!(slices[0].at, Position { line: 3, column: 5 });
    assert_eq!(slices[0].sources[0].layer_range.as_ref().unwrap().value, 0..8);
    let range = slices[0].sources[1].layer_range.as_ref().unwrap();
    assert_eq!((range.value.clone(), range.at), (8..16, Position { line: 5, column: 33 }));
    assert!(slices[0].sources[1].parameters.contains_key("weight"));
    assert_eq!(slices[0].base_model.as_ref().unwrap().value.path, "a");
    assert!(slices[0].parameters.contains_key("t"));
    assert!(slices[1].sources[0].layer_range.is_none());
}

#[test]
fn reads_modules() {
    let config = parse(
        "merge_method: linear
modules:
  text_decoder:
    models: [{model: a, parameters: {weight: 1}}, {model: b}]
    parameters: {density: 1}
  vision: {slices: [{sources: [{model: c}], base_model: d}]}
",
    );
    let Inputs::Modules(modules) = &config.inputs else { panic!("not modules") };
    let [text, vision] = &modules[..] else { panic!("two modules") };
    assert_eq!((text.name.value.as_str(), text.name.at), ("text_decoder", Position { line: 3, column: 3 }));
    assert_eq!(text.at, Position { line: 4, column: 5 });
    assert!(text.parameters.contains_key("density") && vision.parameters.is_empty());
    assert!(matches!(&text.inputs, Inputs::Models(models) if models.len() == 2));
    let models = config.entries().iter().map(|entry| entry.model.value.path.clone()).collect::<Vec<_>>();
    assert_eq!(models, ["a", "b", "c"]);
    assert_eq!(config.inputs.slices()[0].base_model.as_ref().unwrap().value.path, "d");
    assert_eq!(
        config.scopes().iter().map(|(own, _)| *own).collect::<Vec<_>>(),
        [false, false, true, true, false, false, true]
    );
    let source = |modules: &str| format!("merge_method: a\nmodules: {modules}");
    assert_refused(&source("[a]"), "c.yaml:2:10: `modules` must be a mapping", "text_decoder");
    assert_refused(&source("{x: 1}"), "c.yaml:2:14: expected a module", "");
    assert_refused(&source("{x: {parameters: {a: 1}}}"), "c.yaml:2:14: nothing to merge", "models:");
    assert_refused(&source("{x: {models: {glob: a*}}}"), "c.yaml:2:30: a module's models cannot", "- model");
    let both = source("{x: {models: [{model: a}], slices: [{sources: [{model: a}]}]}}");
    assert_refused(&both, "c.yaml:2:37: `models` and `slices` exclude", "keep one");
}

#[test]
fn several_documents_are_configs_by_name() {
    let first = "name: one\n# a --- b\nmerge_method: linear\nmodels: [{model: a}]\n";
    let text =
        format!("{first}--- # next\n\nmerge_method: ties\nmodels: [{{model: &m 1.50}}]\nbogus: 1\n---\n");
    let configs = parse_all("c.yaml", &text).unwrap();
    let [one, two] = &configs[..] else { panic!("two configs") };
    assert_eq!(one.name.as_ref().unwrap().value, "one");
    assert_eq!(one.name.as_ref().unwrap().at, Position { line: 1, column: 7 });
    assert_eq!(one.source, first);
    assert_eq!((&two.name, two.at), (&None, Position { line: 7, column: 1 }));
    assert_eq!(two.source, "\nmerge_method: ties\nmodels: [{model: &m 1.50}]\nbogus: 1\n---\n");
    assert_eq!(two.entries()[0].model.value.path, "1.50", "spelled by its place in the whole text");
    assert_eq!(two.warnings[0].message, "c.yaml:9:1: unknown key `bogus` is ignored");
    let both_wrong = text.replace("merge_method: linear", "dtype: x").replace("ties", "[]");
    let error = parse_all("c.yaml", &both_wrong).unwrap_err().to_string();
    assert!(
        error.contains("c.yaml:3:8: `x` is not a type") && error.contains("c.yaml:7:15: expected"),
        "{error}"
    );
    assert_eq!(parse_all("c.yaml", MODELS).unwrap().len(), 1);
}

#[test]
fn null_is_the_same_as_leaving_a_key_out() {
    let config = parse(&with(
        "base_model: null\ndtype: ~\nout_dtype:\nparameters: null\ntokenizer_source: null
tokenizer: null\nchat_template: null\nslices: null\nmodules: null",
    ));
    assert!(config.base_model.is_none() && config.dtype.is_none() && config.out_dtype.is_none());
    assert!(config.parameters.is_empty() && config.tokenizer.is_none() && config.chat_template.is_none());
}

#[test]
fn inputs_are_models_or_slices_and_never_empty() {
    assert_refused("merge_method: a", "c.yaml:1:1: nothing to merge", "models:");
    for other in ["slices: [{sources: [{model: a}]}]", "modules: {x: {models: [{model: a}]}}"] {
        let says =
            format!("c.yaml:3:1: `models` and `{}` exclude each other", &other[..other.find(':').unwrap()]);
        assert_refused(&with(other), &says, "keep one");
        parse(&with("slices: []\nmodules: {}"));
    }
    assert_refused("merge_method: a\nmodels: []", "c.yaml:2:9: `models` is empty", "");
    assert_refused("merge_method: a\nslices: []", "c.yaml:2:9: `slices` is empty", "");
    assert_refused("merge_method: a\nmodules: {}", "c.yaml:2:10: `modules` is empty", "");
    assert_refused("merge_method: a\nslices: [{sources: []}]", "c.yaml:2:20: `sources` is empty", "");
    assert_refused("merge_method: a\nslices: [{base_model: b}]", "c.yaml:2:10: this slice has no", "");
    assert_refused("merge_method: a\nmodels: {model: b}", "c.yaml:2:9: `models` must be a list", "- ");
    assert_refused("merge_method: a\nmodels: [b]", "c.yaml:2:10: expected an entry", "`- model: b`");
    assert_refused("merge_method: [a]\nmodels: [b]", "c.yaml:1:15: expected a text", "");
}

#[test]
fn layer_ranges_select_layers() {
    let source = |range: &str| {
        format!("merge_method: a\nslices:\n  - sources:\n      - model: b\n        layer_range: {range}")
    };
    assert_refused(&source("[8, 8]"), "c.yaml:5:22: layer_range [8, 8] selects no layers", "[8, 9]");
    assert_refused(&source("[9, 8]"), "c.yaml:5:22: layer_range [9, 8] ends before", "[8, 9]");
    for wrong in [
        "[-1, 8]",
        "[0, 1.5]",
        "[0]",
        "[0, 1, 2]",
        "8",
        "0-8",
        "[a, b]",
        "[no, yes]",
        "[0, .inf]",
        "[0o1, 0o2]",
        "[0, 1e1]",
    ] {
        let hint = if wrong.starts_with("[-") { "from 0 up" } else { "not included" };
        assert_refused(&source(wrong), "c.yaml:5:22: layer_range must be two layer numbers", hint);
    }
}

#[test]
fn the_sources_of_a_slice_are_equally_long() {
    let source = |second: &str| {
        format!(
            "merge_method: a\nslices:\n- sources: [{{model: b, layer_range: [0, 8]}}, {{model: c{second}}}]"
        )
    };
    let message = "c.yaml:3:3: the sources of this slice have different numbers of layers: 8, 4";
    assert_refused(&source(", layer_range: [0, 4]"), message, "equally long");
    parse(&source(", layer_range: [4, 12]"));
    parse(&source(""));
}

#[test]
fn unknown_keys_warn_wherever_they_are() {
    let meant = "c.yaml:1:1: unknown key `merge_metod` (did you mean `merge_method`?) is ignored";
    assert_warned(&with("merge_metod: x"), meant);
    assert_warned(&with("bogus: 5"), "c.yaml:1:1: unknown key `bogus` is ignored");
    for legacy in ["embed_slerp", "input_model_parameters"] {
        let message = format!("c.yaml:1:1: unknown key `{legacy}` (mergekit ignores it too) is ignored");
        assert_warned(&with(&format!("{legacy}: true")), &message);
    }
    let entry = format!("{MODELS}    parameter: {{}}");
    assert_warned(&entry, "c.yaml:4:5: unknown key `parameter` (did you mean `parameters`?) is ignored");
    let condition = with("parameters: {t: [{filter: a, value: 1, filtr: b}]}");
    assert_warned(&condition, "c.yaml:1:40: unknown key `filtr` (did you mean `filter`?) is ignored");
    let warnings = parse(
        "merge_method: a
slices:
  - residual_weight: 0.5
    source: 1
    sources: [{model: b, layer_rnge: 1}]
zzz: 1",
    );
    let messages: Vec<_> = warnings.warnings.iter().map(|warning| warning.message.as_str()).collect();
    let unknown = "c.yaml:4:5: 3 unknown keys are ignored: `source` (did you mean `sources`?), at 5:26 `layer_rnge` \
                   (did you mean `layer_range`?), at 6:1 `zzz`";
    assert_eq!(messages, ["c.yaml:3:5: `residual_weight` has no effect (mergekit ignores it too)", unknown]);
    let escaped = &parse(&with("\"\\e[31m\\n\": 1")).warnings[0].message;
    assert_eq!(escaped, "c.yaml:1:1: unknown key `\\u{1b}[31m\\n` is ignored");
}

#[test]
fn a_slip_of_a_required_key_is_what_is_missing() {
    let slips = [
        ("merge_methods: linear\nmodels: [{model: a}]", "merge_method", "merge_methods", "1:1"),
        ("merge_method: linear\nmodel: [{model: a}]", "models", "model", "2:1"),
        ("merge_method: linear\nslises: [{sources: [{model: a}]}]", "slices", "slises", "2:1"),
        ("merge_method: linear\nslices: [{source: [{model: a}]}]", "sources", "source", "2:11"),
        ("merge_method: linear\nmodels: [{modle: a}]", "model", "modle", "2:11"),
    ];
    for (source, meant, typed, at) in slips {
        assert_refused(source, "c.yaml:", &format!("did you mean `{meant}` by `{typed}`, at {at}?"));
    }
    assert_refused("models: [{model: a}]", "c.yaml:1:1: `merge_method` is missing", "merge_method: linear");
}

#[test]
fn a_parameter_beside_its_place_is_reported_where_it_belongs() {
    let belongs = "(it belongs under `parameters:`; mergekit ignores it here too) is ignored";
    for method in crate::method::METHODS {
        let values = method.parameters.iter().filter(|parameter| parameter.kind != ValueKind::File);
        for name in values.map(|parameter| parameter.name) {
            let beside_model = format!("{MODELS}    {name}: 1");
            assert_warned(&beside_model, &format!("c.yaml:4:5: unknown key `{name}` {belongs}"));
            assert_warned(
                &with(&format!("{name}: 1")),
                &format!("c.yaml:1:1: unknown key `{name}` {belongs}"),
            );
        }
    }
    let name = "c.yaml:1:7: `name` is no text and is ignored (others would use the merge by it as a model)";
    assert_warned(&with("name: [a]"), name);
    let revision = "(write `model: path@revision`; mergekit ignores it here too, and takes the newest)";
    let beside = format!("{MODELS}    revision: v1");
    assert_warned(&beside, &format!("c.yaml:4:5: unknown key `revision` {revision} is ignored"));
    let within_a_reference = with("base_model: {model: {path: a, weight: 1}}");
    assert_warned(&within_a_reference, "c.yaml:1:31: unknown key `weight` is ignored");
}

#[test]
fn masks_and_importance_stand_in_a_models_entry() {
    let entry = "{model: b, mask: ~/m.safetensors, importance: 7}";
    let file = |value: &str, column| Some(Located { value: value.into(), at: Position { line: 2, column } });
    let config = parse(&format!("merge_method: ties\nmodels: [{entry}, {{model: c, mask: null}}]"));
    let files: Vec<&ElementFiles> = config.entries().iter().map(|entry| entry.files).collect();
    let both = ElementFiles { mask: file("~/m.safetensors", 27), importance: file("7", 56) };
    assert_eq!(files, [&both, &ElementFiles::default()]);
    let config = parse(&format!("merge_method: ties\nslices: [{{sources: [{entry}]}}]"));
    let [entry] = config.entries()[..] else { panic!("one entry") };
    assert_eq!(entry.files.mask.as_ref().unwrap().value, "~/m.safetensors");
    assert!(entry.slice.is_some());
    for wrong in ["[a]", "{path: a}", "''"] {
        let config = format!("merge_method: ties\nmodels: [{{model: b, mask: {wrong}}}]");
        assert_refused(&config, "c.yaml:2:27: expected the path of a safetensors file or of a folder", "");
    }
    let belongs = "(it belongs in a model's entry, beside `model:`) is ignored";
    assert_warned(&with("mask: a"), &format!("c.yaml:1:1: unknown key `mask` {belongs}"));
    let slice = "merge_method: ties\nslices: [{importance: a, sources: [{model: b}]}]";
    assert_warned(slice, &format!("c.yaml:2:11: unknown key `importance` {belongs}"));
}

/// A file full of names must not fill a screen.
#[test]
fn warnings_of_a_kind_are_one() {
    let many = with(&lines(0..30_000, |i| format!("k{i}: 1\n")));
    let message = "c.yaml:1:1: 30000 unknown keys are ignored: `k0`, at 2:1 `k1`, at 3:1 `k2`, at 4:1 `k3` and 29996 more";
    assert_warned(&many, message);
    let slices = lines(0..5, |_| "  - {residual_weight: 1, sources: [{model: b}]}\n".into());
    let message = "c.yaml:3:6: `residual_weight` has no effect (mergekit ignores it too; and 4 more like it)";
    assert_warned(&format!("merge_method: a\nslices:\n{slices}"), message);
    let kinds =
        parse(&format!("{}x: 1\n", many.replace("model: a", "model: {model: a, override_architecture: b}")));
    let begins: Vec<_> = kinds.warnings.iter().map(|warning| &warning.message[..21]).collect();
    assert_eq!(begins, ["c.yaml:1:1: 30001 unk", "c.yaml:30004:23: `ove"]);
}

/// Names that would change the order in which a line is read, or begin a new one, are shown escaped.
#[test]
fn names_are_quoted_on_one_line() {
    let warnings = parse(&with("\"a\\u202eb\\u2028c\": 1")).warnings;
    assert_eq!(warnings[0].message, "c.yaml:1:1: unknown key `a\\u{202e}b\\u{2028}c` is ignored");
}

#[test]
fn plain_scalars_find_their_type() {
    let numbers = [
        ("1", 1.0),
        (".15", 0.15),
        ("1_0.0", 10.0),
        ("+3", 3.0),
        ("1_000", 1e3),
        ("010", 8.0),
        ("0x10", 16.0),
        ("1:30", 90.0),
    ];
    for (written, value) in numbers {
        assert_eq!(scalar(written), number(value), "{written}");
        assert_eq!(scalar(&format!("&a {written} # a comment")), number(value), "{written}");
        for text in [format!("'{written}'"), format!("\"{written}\""), format!("!!str {written}")] {
            assert_eq!(scalar(&text), Scalar::Text(written.into()), "{text}");
        }
    }
    assert_eq!(scalar("-.inf"), number(f64::NEG_INFINITY));
    assert!(matches!(scalar(".nan"), Scalar::Number(value) if value.is_nan()));
    assert_eq!(scalar("!!int '3'"), number(3.0));
    for (written, value) in [("true", true), ("Yes", true), ("ON", true), ("no", false), ("off", false)] {
        assert_eq!(scalar(written), Scalar::Bool(value), "{written}");
        assert_eq!(scalar(&format!("'{written}'")), Scalar::Text(written.into()));
    }
    for text in
        ["y", "N", "oN", "nULL", "inf", "sum", "1.0.0", "2024-01-01", "0X10", "0o10", "0B1", "0O7", "-.nan"]
    {
        assert_eq!(scalar(text), Scalar::Text(text.into()));
    }
}

/// A hexadecimal weight that `PyYAML` reads as text is refused where a number is needed, not taken for 16.
#[test]
fn text_of_pyyaml_is_a_number_only_where_pydantic_makes_one_of_it() {
    for (written, value) in
        [("-.5", -0.5), ("1e-9", 1e-9), ("1e5", 1e5), ("08", 8.0), ("1_2e5", 12e5), ("'1_0'", 10.0)]
    {
        assert!(matches!(scalar(written), Scalar::Text(_)), "{written}");
        assert_eq!(scalar(written).as_number(), Some(value), "{written}");
    }
    for written in ["0X10", "0o10", "0B1", "0O7", "1:60", "_1", "'1__0'", "'1_'", ".iNF", "2024-01-01"] {
        assert_eq!(scalar(written).as_number(), None, "{written}");
    }
}

#[test]
fn scalars_turn_into_numbers_and_truth_values() {
    let text = |text: &str| Scalar::Text(text.into());
    assert_eq!(text("1e-5").as_number(), Some(1e-5));
    assert_eq!(text("inf").as_number(), Some(f64::INFINITY));
    assert_eq!(text("sum").as_number(), None);
    assert_eq!(Scalar::Bool(true).as_number(), Some(1.0));
    assert_eq!(Scalar::Null.as_number(), None);
    assert_eq!(text("Yes").as_bool(), Some(true));
    assert_eq!(text("OFF").as_bool(), Some(false));
    assert_eq!(text("maybe").as_bool(), None);
    assert_eq!(number(1.0).as_bool(), Some(true));
    assert_eq!(number(0.0).as_bool(), Some(false));
    assert_eq!(number(0.5).as_bool(), None);
    assert_eq!(Scalar::Null.as_bool(), None);
}

#[test]
fn anchors_and_merge_keys_work() {
    let config = parse(
        "merge_method: a
models:
  - model: b
    parameters: &p {weight: 0.5, density: [0, 1], zeta: [{value: 1, oops: 2}]}
  - model: c
    parameters: *p
  - model: d
    parameters:
      <<: *p
      weight: 0.7
",
    );
    let Inputs::Models(models) = &config.inputs else { panic!("not models") };
    assert_eq!(models[1].parameters["weight"].value, models[0].parameters["weight"].value);
    assert_eq!(models[1].parameters["weight"].at, Position { line: 4, column: 29 });
    assert_eq!(models[2].parameters["weight"].value.0[0].value, WrittenValue::One(number(0.7)));
    assert!(models[2].parameters.contains_key("density"));
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let shared = lines(0..200, |i| format!("  - {{model: m{i}, parameters: *p}}\n"));
    parse(&format!("parameters: &p {{weight: 1}}\nmerge_method: a\nmodels:\n{shared}"));
}

#[test]
fn duplicate_keys_are_refused() {
    let error = "c.yaml:2:1: the key `dtype` is given twice, at 1:1 and at 2:1";
    assert_refused(&with("dtype: float16\ndtype: float32"), error, "keep one");
    let nested = format!("{MODELS}    parameters: {{t: 1, density: 1, t: 0}}");
    assert_refused(&nested, "c.yaml:4:36: the key `t` is given twice, at 4:18 and at 4:36", "keep one");
    let method = "c.yaml:2:1: the key `merge_method` is given twice, at 1:1 and at 2:1";
    assert_refused(&with("merge_method: linear"), method, "keep one");
    let often = "c.yaml:2:1: the key `dtype` is given 3 times, at 1:1 and at 2:1";
    assert_refused(&with("dtype: float16\ndtype: float16\ndtype: float16"), often, "keep one");
    let pasted = format!("{MODELS}{MODELS}{MODELS}");
    let says = "c.yaml:7:1: 3 recipes in one document: `merge_method` is given at 1:1 and at 7:1";
    assert_refused(&pasted, says, "separate them by lines `---`");
    assert!(refused(&pasted).others.is_empty());
}

#[test]
fn what_is_not_a_config_is_refused() {
    for (source, message) in [
        ("", "c.yaml:1:1: the config is empty"),
        ("# nothing\n", "c.yaml:1:1: the config is empty"),
        ("linear", "c.yaml:1:1: a config is a mapping"),
        ("- a\n- b\n", "c.yaml:1:1: a config is a mapping"),
    ] {
        assert_refused(source, message, "merge_method: linear");
    }
    let several = format!("{MODELS}---\n{MODELS}");
    assert_refused(&several, "c.yaml:5:1: several documents, and one is expected here", "own file");
    parse(&format!("\u{feff}%YAML 1.1\n---\n{MODELS}"));
    assert_eq!(parse(&format!("\u{feff}base_model: 1.50\n{MODELS}")).base_model.unwrap().value.path, "1.50");
    parse(&format!("{MODELS}...\n"));
    parse(&MODELS.replace('\n', "\r\n"));
    let texts = |source: &str| -> Vec<String> {
        yaml::parse("c.yaml", source).unwrap().iter().map(|document| document.text.to_owned()).collect()
    };
    assert_eq!(texts("a: 1\n--- # b\nb: 2\n"), ["a: 1\n", "b: 2\n"]);
    assert_eq!(texts("a: 1\n---\nb: 2\r---\rc: 3\n"), ["a: 1\n", "b: 2\r", "c: 3\n"]);
    assert_eq!(texts("a: 1\r\n---\r\nb: 2\r\n"), ["a: 1\r\n", "b: 2\r\n"]);
}

/// A limit that did not hold would show as a test without an end.
#[test]
fn bombs_are_refused() {
    let laughs = lines(1..9, |i| format!("l{i}: &l{i} [{}]\n", format!("*l{}, ", i - 1).repeat(10)));
    let bomb = format!("l0: &l0 [{}]\n{laughs}{MODELS}", "ha, ".repeat(10));
    let merges =
        lines(1..20, |i| format!("m{i}: &m{i}\n  <<: [{}]\n  k{i}: 1\n", format!("*m{}, ", i - 1).repeat(4)));
    let blocks = lines(0..1000, |i| format!("{}a:\n", " ".repeat(i)));
    for (name, source) in [
        ("billion laughs", bomb),
        ("merge keys", format!("m0: &m0 {{a: 1}}\n{merges}")),
        ("flow nesting", "[".repeat(100_000)),
        ("map nesting", "{a: ".repeat(100_000)),
        ("list nesting", "- ".repeat(100_000)),
        ("block nesting", blocks),
        ("many values", format!("a: [{}]", "1, ".repeat(300_000))),
    ] {
        let error = refused(&source);
        assert!(error.message.contains("too large or too deeply nested"), "{name}: {error:?}");
    }
    assert_refused(&"#".repeat(5 << 20), "c.yaml:1:1: 5.2 MB is too large", "not a checkpoint");
}

#[test]
fn everything_wrong_is_reported_at_once_with_its_hint() {
    let error = refused(
        "merge_method: [a]
dtype: bf16
models:
  - b
  - modle: c
  - {model: d, parameters: {weight: [1, [2]]}}
base_model: a@b@c
tokenizer: {source: base, pad_to_multiple_of: 0}
",
    );
    let reported: Vec<_> = error
        .one_by_one()
        .into_iter()
        .map(|error| (error.message[7..10].to_string(), error.hint.unwrap_or_default()))
        .collect();
    let expected = [
        ("1:1", ""),
        ("2:8", "did you mean `bfloat16`?"),
        ("4:5", "write `- model: b`"),
        ("5:5", "did you mean `model` by `modle`, at 5:5?"),
        ("6:4", ""),
        ("7:1", "a path that contains `@` or `+` is written {model: {path: …}}"),
        ("8:4", "for example 64"),
    ];
    assert_eq!(reported, expected.map(|(at, hint)| (at.to_string(), hint.to_string())));
}

#[test]
fn a_key_with_nothing_behind_it_is_no_missing_key() {
    let hint = "indent its entries further than the key";
    assert_refused("merge_method: a\nmodels:\n", "c.yaml:2:1: `models` has nothing below it", hint);
    assert_refused(
        "merge_method:\nmodels: [{model: a}]",
        "c.yaml:1:1: `merge_method` has no value",
        "linear",
    );
    assert_refused(
        "merge_method: a\nmodels: [{model: }]",
        "c.yaml:2:11: `model` has no value",
        "model: path",
    );
    assert_refused("merge_method: a\nmodels: [model:b]", "c.yaml:2:10: expected an entry", "`- model: b`");
}

#[test]
fn errors_of_others_are_placed_too() {
    let config = parse(MODELS);
    let error = config.error_at(config.merge_method.at, "no such method");
    assert_eq!(error.message, "c.yaml:1:15: no such method");
}

/// Whatever the text is, it is read or refused at a place within it.
fn read_or_refuse(source: &str) {
    let Err(error) = Config::parse("c.yaml", source) else { return };
    let mut parts = error.message.splitn(4, ':').skip(1);
    let mut position = || parts.next().and_then(|part| part.parse::<usize>().ok()).expect(&error.message);
    assert!((1..=source.len() + 1).contains(&position()), "{error}\nin\n{source}");
    assert!((1..=source.len() + 1).contains(&position()), "{error}\nin\n{source}");
}

proptest! {
    #[test]
    fn random_text_never_panics(source in "\\PC{0,60}") {
        read_or_refuse(&source);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_or_refuse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_yaml_never_panics(words in prop::collection::vec(prop::sample::select(WORDS), 0..40)) {
        read_or_refuse(&words.concat());
        read_or_refuse(&format!("{MODELS}{}", words.concat()));
    }

    #[test]
    fn mutated_configs_never_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(WORDS)), 1..6)
    ) {
        let mut source: Vec<char> = WHOLE.chars().collect();
        for (place, word) in places {
            let place = place.index(source.len());
            source.splice(place..=place, word.chars());
        }
        read_or_refuse(&source.iter().collect::<String>());
    }
}

const WORDS: &[&str] = &[
    "",
    " ",
    "\n",
    "\n  ",
    "\n    - ",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "<<: ",
    "'",
    "\"",
    "|\n",
    "#",
    "\t",
    "? ",
    "!!str ",
    "!!bool ",
    "---\n",
    "a",
    "0",
    "1e999",
    "-1",
    "null",
    "y",
    "@",
    "+",
    "é",
    "\u{feff}",
    "model",
    "models",
    "slices",
    "sources",
    "layer_range",
    "parameters",
    "value",
    "filter",
    "tokenizer",
    "source",
    "dtype",
    "float32",
    "base_model",
    "merge_method",
    "\r",
    "%",
    "\u{85}",
];
const WHOLE: &str = "merge_method: slerp
slices:
  - sources: &s
      - {model: a@b, layer_range: [0, 8], parameters: {weight: [0, 1]}}
      - model: {model: {path: b, revision: é}}
        layer_range: [8, 16]
    parameters: {t: [{filter: mlp, value: .5}, {value: 1}]}
  - sources: *s
tokenizer: {source: union}
dtype: bfloat16
";
