//! The JSON Schema of configs (draft 2020-12), for editors and for programs that write configs.
//!
//! Keys are those that [`keys`] has for whoever reads configs, methods and parameters those of [`METHODS`]; here stands what each key
//! holds. The schema is narrower than the program, which ignores keys that it does not know, as mergekit does, and takes a key
//! without a value as one that is left out: in an editor both are slips.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use crate::config::keys;
use crate::config::moe::GateMode;
use crate::method::{Base, METHODS, Method, Parameter, ValueKind};

/// The schema.
pub fn schema() -> Json {
    let mut definitions = Map::new();
    let mut define = |name: &str, schema: Json| drop(definitions.insert(name.into(), schema));
    for (name, schema) in scalars() {
        define(&format!("{name}_parameter"), parameter_of(&reference(name)));
        define(name, schema);
    }
    define("text", text());
    define("open", open());
    define("parameters", parameters());
    define("model", model());
    define("mask_or_importance", described(text(), "a safetensors file, or a folder with one"));
    define("slice", mapping(keys::SLICE, &["sources"], of_key));
    define("slice_source", mapping(keys::SLICE_SOURCE, &["model"], of_key));
    define("listed_model", listed_model());
    define("module", one_of(mapping(keys::MODULE, &[], of_key), keys::WAYS_OF_MODULE));
    define("tokenizer_source", tokenizer_source());
    define("token", mapping_or_null(mapping(keys::TOKEN, &[], of_token)));
    define("expert", mapping(keys::EXPERT, &["source_model"], of_key));
    define("merge", merge());
    define("mixture", mapping(keys::MIXTURE, &["base_model", "experts"], of_key));
    for method in METHODS {
        define(&of_method(method), names_of(method));
    }
    let has_one = keys::OF_MIXTURE.iter().map(|key| json!({ "required": [key] })).collect::<Json>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of mergeforge",
        "description": "A merge as mergekit's YAML has it, or a mixture of experts as mergekit-moe's has it; of a file with several documents, each.",
        "type": "object",
        "if": { "anyOf": has_one, "not": { "required": ["merge_method"] } },
        "then": reference("mixture"),
        "else": reference("merge"),
        "$defs": definitions,
    })
}

fn reference(name: &str) -> Json {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn described(mut schema: Json, description: &str) -> Json {
    schema["description"] = description.into();
    schema
}

/// A mapping with these keys and no others.
fn mapping(keys: &[&str], required: &[&str], of: impl Fn(&str) -> Json) -> Json {
    let properties: Map<String, Json> = keys.iter().map(|key| ((*key).to_owned(), of(key))).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// A schema with which one of these keys has to be there, and no more.
fn one_of(mut schema: Json, keys: &[&str]) -> Json {
    schema["oneOf"] = keys.iter().map(|key| json!({ "required": [key] })).collect();
    schema
}

fn mapping_or_null(mut schema: Json) -> Json {
    schema["type"] = json!(["object", "null"]);
    schema
}

fn list(of: &Json) -> Json {
    json!({ "type": "array", "items": of, "minItems": 1 })
}

fn words(words: &[&str]) -> Json {
    json!({ "type": "string", "enum": words })
}

/// What a text may look like to YAML: a model may be called 123.
fn text() -> Json {
    json!({ "type": ["string", "number", "boolean"] })
}

/// What values of parameters are by themselves.
fn scalars() -> [(&'static str, Json); 4] {
    // YAML's two versions do not agree on what is a number or a truth value: 1e-5 and yes are texts in one of them.
    let spelled = json!({ "type": "string", "pattern": "^\\s*[+-]?([0-9][0-9_]*\\.?[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?\\s*$" });
    let number = || json!({ "anyOf": [{ "type": "number" }, spelled] });
    let mut or_null = number();
    or_null["anyOf"].as_array_mut().expect("it is a list").push(json!({ "type": "null" }));
    let truth = json!({ "type": "string", "pattern": "^(?:[tT]rue|[fF]alse|[yY]es|[nN]o|[oO]n|[oO]ff|TRUE|FALSE|YES|NO|ON|OFF)$" });
    [
        ("number", number()),
        ("count", json!({ "type": "integer", "minimum": 0 })),
        ("number_or_null", or_null),
        ("flag", json!({ "anyOf": [{ "type": "boolean" }, truth, { "enum": [0, 1] }] })),
    ]
}

/// The definition of a kind of values; of words there is none.
fn scalar(kind: ValueKind) -> Option<&'static str> {
    match kind {
        ValueKind::Number => Some("number"),
        ValueKind::Count => Some("count"),
        ValueKind::NumberOrNull => Some("number_or_null"),
        ValueKind::Flag => Some("flag"),
        ValueKind::File | ValueKind::Word(_) => None,
    }
}

/// All forms of a parameter: a value, a gradient over the layers, values with filters, and what is left open.
fn parameter_of(scalar: &Json) -> Json {
    let value = json!({ "anyOf": [scalar, list(scalar)] });
    let condition = mapping(keys::CONDITION, &["value"], |key| of_condition(key, &value));
    json!({ "anyOf": [scalar, list(scalar), list(&condition), condition, reference("open")] })
}

fn of_condition(key: &str, value: &Json) -> Json {
    match key {
        "filter" => described(text(), "a part of the tensors' names; `*` for all"),
        "value" => value.clone(),
        other => unknown(other),
    }
}

/// A value that `mergeforge sweep` finds.
fn open() -> Json {
    let of = |key: &str| match key {
        "range" => {
            json!({ "type": "array", "items": { "type": "number" }, "minItems": 2, "maxItems": 2, "description": "any number between two" })
        }
        "choice" => {
            json!({ "type": "array", "items": text(), "minItems": 2, "description": "one of several values" })
        }
        other => unknown(other),
    };
    let mut schema = described(mapping(keys::OPEN, &[], of), "left open for `mergeforge sweep`");
    (schema["minProperties"], schema["maxProperties"]) = (1.into(), 1.into());
    schema
}

/// What a parameter means, and to which methods.
type Meanings = IndexMap<&'static str, Vec<(&'static Method, &'static Parameter)>>;

/// The parameters of all methods.
fn parameters() -> Json {
    let mut by_name: IndexMap<&str, Meanings> = IndexMap::new();
    for method in METHODS {
        for parameter in method.parameters.iter().filter(|parameter| parameter.kind != ValueKind::File) {
            let meanings = by_name.entry(parameter.name).or_default();
            meanings.entry(parameter.meaning).or_default().push((*method, parameter));
        }
    }
    let property = |(name, meanings): (&str, Meanings)| {
        let is_one = meanings.len() == 1;
        let meaning = |(meaning, of): (&&str, &Vec<(&Method, &Parameter)>)| {
            let names: Vec<&str> = of.iter().map(|(method, _)| method.name).collect();
            if is_one { (*meaning).to_owned() } else { format!("{}: {meaning}", names.join(", ")) }
        };
        let description = meanings.iter().map(meaning).collect::<Vec<_>>().join("\n");
        let mut kinds: Vec<Json> = Vec::new();
        for (_, parameter) in meanings.values().flatten() {
            let kind = match (parameter.kind, scalar(parameter.kind)) {
                (_, Some(scalar)) => reference(&format!("{scalar}_parameter")),
                (ValueKind::Word(of), None) => parameter_of(&words(of)),
                (_, None) => unreachable!("files are no parameters"),
            };
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let schema = if kinds.len() == 1 { kinds.swap_remove(0) } else { json!({ "anyOf": kinds }) };
        (name.to_owned(), described(schema, &description))
    };
    let properties: Map<String, Json> = by_name.into_iter().map(property).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// The definition of what names parameters have in a config of a method.
fn of_method(method: &Method) -> String {
    format!("of_{}", method.name)
}

/// A method's parameters, wherever they stand: at the top, in an entry, or below one.
fn names_of(method: &Method) -> Json {
    let names: Vec<&str> = method.parameters.iter().map(|parameter| parameter.name).collect();
    let own = if names.is_empty() {
        json!({ "maxProperties": 0 })
    } else {
        json!({ "propertyNames": { "enum": names } })
    };
    let below = reference(&of_method(method));
    json!({ "properties": {
        "parameters": own, "models": { "items": below }, "slices": { "items": below }, "sources": { "items": below },
        "modules": { "additionalProperties": below },
    } })
}

/// The config of a merge.
fn merge() -> Json {
    let mut schema = one_of(mapping(keys::TOP, &["merge_method"], of_key), keys::WAYS);
    schema["not"] = json!({ "required": ["tokenizer", "tokenizer_source"] });
    let rule = |method: &&Method| {
        let mut then = vec![reference(&of_method(method))];
        if method.base == Base::Required {
            // A slice may have its own.
            then.push(json!({ "if": { "required": ["models"] }, "then": { "required": ["base_model"] } }));
        }
        let is_it = json!({ "properties": { "merge_method": { "const": method.name } }, "required": ["merge_method"] });
        json!({ "if": is_it, "then": { "allOf": then } })
    };
    schema["allOf"] = METHODS.iter().map(rule).collect();
    schema
}

fn merge_method() -> Json {
    let one = |method: &&Method| json!({ "const": method.name, "description": method.summary });
    let names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    json!({
        "description": "how the models are merged: `mergeforge methods` explains each",
        "anyOf": [
            { "oneOf": METHODS.iter().map(one).collect::<Vec<_>>() },
            { "type": "array", "items": { "enum": names }, "minItems": 2, "description": "left open for `mergeforge sweep`" },
        ],
    })
}

fn model() -> Json {
    let revisioned = |what: &str| {
        let of = |key: &str| match key {
            "path" => described(text(), "a folder, or organisation/name"),
            "revision" => described(
                json!({ "type": ["string", "number", "boolean", "null"] }),
                "a branch, tag or commit",
            ),
            other => unknown(other),
        };
        json!({ "anyOf": [text(), mapping(keys::REVISIONED, &["path"], of)], "description": what })
    };
    let of = |key: &str| match key {
        "model" => revisioned("the model itself"),
        "lora" => json!({ "anyOf": [revisioned("an adapter as PEFT saves it"), { "type": "null" }] }),
        "override_architecture" => described(json!({}), "not needed, and ignored"),
        other => unknown(other),
    };
    json!({
        "description": "a folder, or organisation/name on the Hugging Face Hub: path[@revision][+adapter[@revision]]",
        "anyOf": [text(), mapping(keys::MODEL, &["model"], of)],
    })
}

fn listed_model() -> Json {
    one_of(mapping(keys::LISTED_MODEL, &[], of_key), &["model", "glob"])
}

fn tokenizer_source() -> Json {
    json!({ "anyOf": [words(&["union", "base"]), reference("model")], "description": "whose tokens the output has: union, base, or a model" })
}

fn of_tokenizer(key: &str) -> Json {
    match key {
        "source" => reference("tokenizer_source"),
        "tokens" => {
            json!({ "type": "object", "additionalProperties": reference("token"), "description": "settings of single tokens" })
        }
        "pad_to_multiple_of" => {
            json!({ "type": "integer", "minimum": 1, "description": "embeddings get a multiple of so many rows" })
        }
        other => unknown(other),
    }
}

fn of_token(key: &str) -> Json {
    let row = |key: &str| match key {
        "kind" => json!({ "const": "model_token" }),
        "model" => reference("model"),
        "token" => text(),
        "token_id" => json!({ "type": "integer", "minimum": 0 }),
        other => unknown(other),
    };
    let zeros = |_: &str| json!({ "const": "zero" });
    match key {
        "source" => json!({
            "description": "the row of models that have no such token",
            "anyOf": [
                mapping(keys::ROW_OF_ZEROS, &["kind"], zeros),
                one_of(mapping(keys::ROW_OF_TOKEN, &["kind", "model"], row), &["token", "token_id"]),
                reference("model"),
            ],
        }),
        "force" => described(reference("flag"), "whether it is the row of all models"),
        other => unknown(other),
    }
}

/// What a key holds that means the same wherever it stands.
fn of_key(key: &str) -> Json {
    match key {
        "merge_method" => merge_method(),
        "models" => json!({
            "description": "whole models, each in an entry",
            // In place of an `anyOf`, so that editors mark the entry that is wrong.
            "if": { "type": "object" }, "then": reference("listed_model"), "else": list(&reference("listed_model")),
        }),
        "slices" => described(list(&reference("slice")), "stacks of layers, from bottom to top"),
        "modules" => json!({
            "description": "parts of models, such as a language model and a vision tower, each merged by itself",
            "type": "object", "additionalProperties": reference("module"), "minProperties": 1,
        }),
        "sources" => described(list(&reference("slice_source")), "what is merged into these layers"),
        "base_model" => {
            described(reference("model"), "what task vectors are taken against, or whose files lead")
        }
        "model" | "source_model" => reference("model"),
        "glob" => described(text(), "a pattern: every folder that it finds is a model"),
        "layer_range" => json!({
            "description": "the first layer, and the one behind the last",
            "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 2, "maxItems": 2,
        }),
        "mask" => described(reference("mask_or_importance"), "which elements of the model count"),
        "importance" => {
            described(reference("mask_or_importance"), "how much each element of the model matters")
        }
        "parameters" => reference("parameters"),
        "residual_weight" => described(json!({}), "it has no effect"),
        "dtype" | "out_dtype" => {
            let names: Vec<String> =
                keys::DTYPES.iter().flat_map(|name| [(*name).to_owned(), format!("torch.{name}")]).collect();
            json!({ "type": "string", "enum": names, "description": "the type of floats in the output; without it, the one that holds all inputs" })
        }
        "tokenizer_source" => reference("tokenizer_source"),
        "tokenizer" => described(mapping(keys::TOKENIZER, &[], of_tokenizer), "the tokens of the output"),
        "chat_template" => {
            json!({ "type": "string", "description": "auto, the name of a packaged template, or a Jinja template" })
        }
        "name" => described(text(), "what other documents of the file call the result"),
        "experts" => described(list(&reference("expert")), "the experts that a gate chooses from"),
        "shared_experts" => {
            json!({ "type": "array", "items": reference("expert"), "description": "experts that every token goes through" })
        }
        "gate_mode" => {
            let names: Vec<&str> = GateMode::ALL.iter().map(|(name, _)| *name).collect();
            described(words(&names), "how the gates are made")
        }
        "experts_per_token" => {
            json!({ "type": "integer", "minimum": 1, "description": "how many experts a token goes through" })
        }
        "architecture" => described(text(), "the architecture of the mixture"),
        "positive_prompts" => {
            json!({ "type": "array", "items": text(), "description": "texts that are to be routed to the expert" })
        }
        "negative_prompts" => {
            json!({ "type": "array", "items": text(), "description": "texts that are not" })
        }
        "noise_scale" => described(reference("number"), "the share of noise that is added to its weights"),
        "residual_scale" => described(reference("number"), "a factor of what it adds"),
        other => unknown(other),
    }
}

/// A key that is read needs a description here.
fn unknown(key: &str) -> Json {
    unreachable!("the key {key} is read, and has no schema")
}
