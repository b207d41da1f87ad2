//! Made-up tokenizers of every kind, read and merged, against the library that runs them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::str::FromStr;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer as Library;

use super::*;
use crate::checkpoint::ModelFolder;
use crate::error::Result;

/// A folder with these files, read.
fn read_files(files: &[(&str, &str)]) -> Result<Option<Tokenizer>> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    read(&ModelFolder::open(folder.path()).unwrap())
}

fn tokenizer(text: &str) -> Tokenizer {
    read_files(&[("tokenizer.json", text)]).unwrap().unwrap()
}

/// A vocabulary as the library has it.
fn vocabulary(text: &str) -> BTreeMap<String, u32> {
    Library::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")).get_vocab(true).into_iter().collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special})
}

/// A file of a tokenizer of any kind.
fn file(model: &Value, added: &[Value]) -> String {
    serde_json::to_string_pretty(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "model": model,
    }))
    .unwrap()
}

/// A model with these tokens and ids.
fn model(kind: Kind, tokens: &[(String, usize)]) -> Value {
    let ids: serde_json::Map<String, Value> =
        tokens.iter().map(|(token, id)| (token.clone(), json!(id))).collect();
    let has = |token: &str| tokens.iter().any(|(known, _)| known == token);
    match kind {
        Kind::Bpe => {
            // Every way to put a token together of two others.
            let merges: Vec<[&str; 2]> = tokens
                .iter()
                .flat_map(|(token, _)| (1..token.len()).filter_map(move |at| token.split_at_checked(at)))
                .filter(|(left, right)| has(left) && has(right))
                .map(|(left, right)| [left, right])
                .collect();
            json!({"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges})
        }
        Kind::Unigram => {
            let list: Vec<(&str, f64)> =
                tokens.iter().map(|(token, id)| (&**token, -1.5 - *id as f64)).collect();
            json!({"type": "Unigram", "unk_id": 0, "vocab": list, "byte_fallback": false})
        }
        Kind::WordPiece => json!({"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids}),
        Kind::WordLevel => json!({"type": "WordLevel", "vocab": ids, "unk_token": "?"}),
    }
}

#[derive(Debug, Clone)]
struct MadeUp {
    text: String,
    /// How many of the rows that its ids need there are too few, or too many.
    rows: u64,
}

const KINDS: [Kind; 4] = [Kind::Bpe, Kind::Unigram, Kind::WordPiece, Kind::WordLevel];

/// A tokenizer over a few letters, with overlapping words, added tokens in and out of its vocabulary, and ids left out.
fn made_up() -> impl Strategy<Value = MadeUp> {
    let words = proptest::sample::subsequence(
        vec!["ab", "bc", "abc", "cab", "ca", "##b", "##bc", "é", "\"", "<u>", "ba", "aa", "bab", "cc"],
        0..12,
    )
    .prop_shuffle();
    let specials =
        proptest::sample::subsequence(vec!["<s>", "</s>", "<u>", "ab", "[x y]", "\\n", "a b"], 0..6);
    let flags = proptest::collection::vec(any::<bool>(), 6);
    (0..4_usize, words, specials.prop_shuffle(), flags, 0..4_usize, 0..3_usize, -3..4_i64).prop_map(
        |(kind, words, specials, flags, hole, gap, rows)| {
            let kind = KINDS[kind];
            let letters = ["?", "a", "b", "c"];
            let tokens = letters.into_iter().chain(words).map(str::to_owned).enumerate();
            let shift = |place: usize| if kind != Kind::Unigram && place > hole + 4 { gap } else { 0 };
            let tokens: Vec<_> = tokens.map(|(place, token)| (token, place + shift(place))).collect();
            let mut next = tokens.len();
            let id_of = |token: &str| tokens.iter().find(|(known, _)| known == token).map(|(_, id)| *id);
            let listed: Vec<Value> = specials
                .iter()
                .zip(&flags)
                .map(|(token, special)| {
                    let id = id_of(token).unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    });
                    added(id, token, *special)
                })
                .collect();
            let text = file(&model(kind, &tokens), &listed);
            let ids = vocabulary(&text).values().max().unwrap() + 1;
            MadeUp { text, rows: i64::from(ids).saturating_add(rows).max(5) as u64 }
        },
    )
}

const TEXTS: [&str; 8] =
    ["abc cab ba", "<s>aab</s> b", "[x y]ca a b", "abab\\nbc", "é \" ?", "<u>", "ccc##b #", "a b ab"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// What is read is what the library reads.
    #[test]
    fn tokens_have_the_ids_that_loading_gives_them(made in made_up()) {
        let read = tokenizer(&made.text);
        let ids: BTreeMap<String, u32> = read.ids.iter().map(|(token, id)| (token.clone(), *id)).collect();
        prop_assert_eq!(ids, vocabulary(&made.text));
    }

    /// What is written is a tokenizer of the merged vocabulary; each id that a text is encoded to has the row of its token.
    #[test]
    fn every_id_of_a_text_has_the_row_of_its_token(
        made in proptest::collection::vec(made_up(), 1..4),
        leader in 0..3_usize,
        union in any::<bool>(),
        wanted in proptest::sample::subsequence(vec!["<new>", "abc", "b a"], 0..3),
        base in 0..4_usize,
    ) {
        let leader = leader % made.len();
        let read: Vec<Tokenizer> = made.iter().map(|made| tokenizer(&made.text)).collect();
        let parties: Vec<Party> =
            read.iter().zip(&made).map(|(tokenizer, made)| Party { tokenizer, rows: made.rows }).collect();
        let merged = merge(&parties, leader, union, &wanted).unwrap();
        let text = merged.tokenizer.as_deref().unwrap_or(&made[leader].text);
        let library = Library::from_str(text).unwrap();
        let ids: BTreeMap<String, u32> = merged.ids.iter().map(|(token, id)| (token.clone(), *id)).collect();
        prop_assert_eq!(&vocabulary(text), &ids, "{}", text);
        let own: Vec<Library> = made.iter().map(|made| Library::from_str(&made.text).unwrap()).collect();
        let has = |model: usize, token: &str| {
            own[model].token_to_id(token).filter(|id| u64::from(*id) < made[model].rows)
        };
        for (model, vocabulary) in made.iter().enumerate() {
            for (token, id) in self::vocabulary(&vocabulary.text) {
                let expected = model == leader || union;
                prop_assert!(!expected || u64::from(id) >= vocabulary.rows || ids.contains_key(&token), "{}", token);
                let keeps = model != leader || has(leader, &token).is_none() || ids[&token] == id;
                prop_assert!(keeps, "the leading tokenizer's ids stay");
            }
        }
        prop_assert!(wanted.iter().all(|token| ids.contains_key(*token)));

        let base = Some(base).filter(|base| *base < made.len());
        let aligned = Aligned::new(&merged, &parties, base, HashMap::new(), 8);
        prop_assert!(aligned.height().is_multiple_of(8) && aligned.height() >= merged.ids());
        let all: Vec<usize> = (0..made.len()).collect();
        for model in 0..made.len() {
            let rows: Vec<RowFrom> = aligned.rows(model, &all).collect();
            for text in TEXTS {
                // WordPiece and BPE without their unknown token refuse what they do not know.
                let Ok(encoding) = library.encode(text, false) else { continue };
                // Ids left out can make the library give an id twice, and then the id does not say which token it is.
                let is_ones = |id: &&u32| ids.values().filter(|other| other == id).count() == 1;
                for id in encoding.get_ids().iter().filter(is_ones) {
                    let token = library.id_to_token(*id).unwrap();
                    let holders: Vec<(usize, u32)> =
                        all.iter().filter_map(|model| Some((*model, has(*model, &token)?))).collect();
                    let of = |(model, row): (usize, u32)| RowFrom::Model { model, row };
                    let base = holders.iter().find(|(model, _)| Some(*model) == base);
                    let expected = match (holders.iter().find(|(holder, _)| *holder == model), &holders[..], base) {
                        (Some(own), ..) => of(*own),
                        (None, [], _) => RowFrom::Zero,
                        (None, [only], _) => of(*only),
                        (None, _, Some(base)) => of(*base),
                        (None, _, None) => RowFrom::Mean(holders),
                    };
                    prop_assert_eq!(&rows[*id as usize], &expected, "{:?}", token);
                }
            }
        }
    }
}

fn words(tokens: &[&str]) -> Vec<(String, usize)> {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id)).collect()
}

#[test]
fn a_vocabulary_that_stays_keeps_its_bytes() {
    let text = file(&model(Kind::WordLevel, &words(&["?", "a", "b"])), &[added(3, "<s>", true)]);
    let read = tokenizer(&text);
    let party = Party { tokenizer: &read, rows: 4 };
    let merged = merge(&[party, party], 0, true, &["a", "<s>", ""]).unwrap();
    assert_eq!((merged.tokenizer, merged.added, merged.removed), (None, 0, 0));
}

#[test]
fn only_what_changes_is_written_anew() {
    let text = r#"{"version":"1.0" ,
 "normalizer" : {"type":"Replace","pattern":{"String":"\u00e9"},"content":"\/"},
 "added_tokens": [
  {"id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
 ], "model":{"type":"Unigram", "vocab":[["?",0.0] ,["\u0061",-1.50e+00]], "unk_id":0}  }
"#;
    let read = tokenizer(text);
    let merged = merge(&[Party { tokenizer: &read, rows: 9 }], 0, true, &["b"]).unwrap();
    let edited = merged.tokenizer.unwrap();
    let (before, after) = text.split_once("\n ], \"model\"").unwrap();
    let inserted =
        edited.strip_prefix(before).unwrap().strip_suffix(&format!("\n ], \"model\"{after}")).unwrap();
    let inserted = inserted.strip_prefix(",").unwrap();
    assert_eq!(serde_json::from_str::<Value>(inserted).unwrap(), added(3, "b", false));
    assert_eq!(vocabulary(&edited)["b"], 3);
}

#[test]
fn tokens_without_a_row_go_with_their_merges_and_special_ones_get_one() {
    let model = model(Kind::Bpe, &words(&["?", "a", "b", "c", "ab", "abc"]));
    let text = file(&model, &[added(6, "<x>", true), added(7, "<pad>", true)]);
    let config = r#"{"pad_token": "<pad>", "added_tokens_decoder": {
        "6": {"content": "<x>", "special": true}, "7": {"content": "<pad>", "special": true, "lstrip": true}
    }}"#;
    let read = read_files(&[("tokenizer.json", &text), ("tokenizer_config.json", config)]).unwrap().unwrap();
    let party = Party { tokenizer: &read, rows: 5 };
    let merged = merge(&[party], 0, false, &[]).unwrap();
    let edited = merged.tokenizer.as_deref().unwrap();
    let expected = [("?", 0), ("a", 1), ("b", 2), ("c", 3), ("ab", 4), ("<pad>", 5)];
    assert_eq!(vocabulary(edited), expected.map(|(token, id)| (token.to_owned(), id)).into());
    let edited: Value = serde_json::from_str(edited).unwrap();
    assert_eq!(edited["model"]["merges"], json!([["a", "b"]]));
    assert_eq!(edited["added_tokens"][0]["lstrip"], json!(true));
    let config: Value = serde_json::from_str(merged.settings.as_deref().unwrap()).unwrap();
    assert_eq!(config["added_tokens_decoder"], json!({}));
    assert_eq!((merged.added, merged.removed), (1, 3));
    let aligned = Aligned::new(&merged, &[party], None, HashMap::new(), 1);
    assert_eq!(aligned.counts(0, &[0]), Counts { own: 5, zeros: 1, ..Counts::default() });
    assert!(!aligned.is_identity(0, 5) && !aligned.is_identity(0, 6));
}

#[test]
fn what_the_config_says_of_a_token_comes_first() {
    let one = tokenizer(&file(&model(Kind::WordLevel, &words(&["?", "a", "b"])), &[]));
    let two = tokenizer(&file(&model(Kind::WordLevel, &words(&["?", "b", "c"])), &[]));
    let parties = [Party { tokenizer: &one, rows: 3 }, Party { tokenizer: &two, rows: 3 }];
    let merged = merge(&parties, 0, true, &["<new>"]).unwrap();
    assert_eq!(["?", "a", "b", "c", "<new>"].map(|token| merged.id(token)), [0, 1, 2, 3, 4].map(Some));
    let from = |model, row| Some(RowFrom::Model { model, row });
    let chosen = HashMap::from([
        (merged.id("a").unwrap(), Chosen { from: Some(RowFrom::Zero), force: false }),
        (merged.id("b").unwrap(), Chosen { from: from(1, 1), force: true }),
        (merged.id("<new>").unwrap(), Chosen { from: from(1, 2), force: false }),
    ]);
    let aligned = Aligned::new(&merged, &parties, Some(0), chosen, 4);
    let of = |model, row| RowFrom::Model { model, row };
    let filler = || vec![RowFrom::Filler; 3];
    let rows = |model| aligned.rows(model, &[0, 1]).collect::<Vec<_>>();
    assert_eq!(rows(0), [vec![of(0, 0), of(0, 1), of(1, 1), of(1, 2), of(1, 2)], filler()].concat());
    assert_eq!(rows(1), [vec![of(1, 0), RowFrom::Zero, of(1, 1), of(1, 2), of(1, 2)], filler()].concat());
}

/// An empty pattern would be looked for without end.
#[test]
fn tokens_that_a_normaliser_removes_are_taken_as_they_are() {
    let other = tokenizer(&file(&model(Kind::WordLevel, &words(&["?", "\u{1}", "B"])), &[]));
    let mut base: Value =
        serde_json::from_str(&file(&model(Kind::WordLevel, &words(&["?", "a"])), &[])).unwrap();
    base["normalizer"] = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true});
    let base = tokenizer(&base.to_string());
    let parties = [Party { tokenizer: &base, rows: 2 }, Party { tokenizer: &other, rows: 3 }];
    let text = merge(&parties, 0, true, &["\u{2}"]).unwrap().tokenizer.unwrap();
    let listed: Value = serde_json::from_str(&text).unwrap();
    let listed = listed["added_tokens"].as_array().unwrap().iter();
    let flags: Vec<(&str, bool)> = listed
        .map(|token| (token["content"].as_str().unwrap(), token["normalized"].as_bool().unwrap()))
        .collect();
    assert_eq!(flags, [("\u{1}", false), ("B", true), ("\u{2}", false)]);
    let library = Library::from_str(&text).unwrap();
    assert_eq!(library.encode("a B b\u{1}", false).unwrap().get_ids(), [1, 3, 3, 2]);
}

#[test]
fn ids_of_special_tokens_follow_their_tokens() {
    let own = tokenizer(&file(&model(Kind::WordLevel, &words(&["?", "a", "</s>", "<s>"])), &[]));
    let lead = tokenizer(&file(&model(Kind::WordLevel, &words(&["<s>", "a", "<end>"])), &[]));
    let parties = [Party { tokenizer: &own, rows: 4 }, Party { tokenizer: &lead, rows: 3 }];
    let merged = merge(&parties, 1, false, &[]).unwrap();
    let text = r#"{"bos_token_id" : 3, "eos_token_id": [ 2 ], "pad_token_id":2, "sep_token_id": null, "text_config": {"bos_token_id": 3}}"#;
    let (edited, lost) = follow_ids(text, Some(&own), &merged, Some(r#"{"eos_token_id": [2, 1]}"#));
    let expected =
        text.replace("id\" : 3", "id\" : 0").replace("id\": 3", "id\": 0").replace("[ 2 ]", "[2, 1]");
    assert_eq!((edited, lost), (expected, vec!["pad_token_id".into()]));

    // Lists of tokens that generation keeps out are the donor's, by its tokens; positions are no ids.
    let listed = r#"{"suppress_tokens": [3, 3], "bad_words_ids": [[3], [3, 3]], "forced_decoder_ids": [[3, 3]], "image_token_index": 3,
        "begin_suppress_tokens": [[[[3]]]]}"#;
    let (edited, lost) = follow_ids(listed, Some(&own), &merged, Some(r#"{"suppress_tokens": [1]}"#));
    let expected = listed
        .replace("[3, 3], \"bad_words_ids\": [[3], [3, 3]]", "[0, 0], \"bad_words_ids\": [[0], [0, 0]]")
        .replace("[[3, 3]], \"image_token_index\": 3", "[[3, 0]], \"image_token_index\": 0");
    assert_eq!((edited, lost), (expected, vec!["begin_suppress_tokens".into()]));

    // What the donor's file has not, or has as null, is set too.
    let leading =
        r#"{"pad_token_id": 2, "sep_token_id": null, "eos_token_id": 1, "text_config": {"bos_token_id": 0}}"#;
    let followed = |text: &str| follow_ids(text, Some(&own), &merged, Some(leading)).0;
    assert_eq!(
        followed(r#"{"pad_token_id": null, "text_config": {"a": 1}}"#),
        r#"{"pad_token_id": 2, "text_config": {"a": 1,"bos_token_id": 0}, "eos_token_id": 1}"#
    );
    assert_eq!(
        followed(r#"{"sep_token_id": null}"#),
        r#"{"sep_token_id": null,"pad_token_id": 2,"eos_token_id": 1,"bos_token_id": 0}"#
    );
}

#[test]
fn damaged_files_are_refused_by_name() {
    let good = file(&model(Kind::WordLevel, &words(&["?"])), &[]);
    let refused = |files: &[(&str, &str)], says: &str| {
        let error = read_files(files).unwrap_err();
        assert!(error.message.contains(says) && error.hint.is_some(), "{error}: {says}");
    };
    for (text, says) in [
        ("", "is no tokenizer"),
        ("[1]", "has no `model`"),
        ("{}", "has no `model`"),
        (r#"{"model": 3}"#, "is no tokenizer"),
        (r#"{"model": {"type": "BPE"}}"#, "has no `vocab`"),
        (r#"{"model": {"vocab": {"a": 4294967295}}}"#, "has the id 4294967295"),
        (r#"{"model": {"vocab": {"a": -1}}}"#, "is no tokenizer"),
        (r#"{"model": {"vocab": {"a": 1.5}}}"#, "is no tokenizer"),
        (r#"{"model": {"type": "Unigram", "vocab": {"a": 1}}}"#, "does not fit"),
        (r#"{"model": {"type": "BPE", "vocab": [["a", 1]]}}"#, "does not fit"),
        (r#"{"model": {"type": "Magic", "vocab": {}}}"#, "type \"Magic\""),
        (r#"{"model": {"vocab": {}}, "model": {"vocab": {}}}"#, "the key \"model\" twice"),
        (r#"{"model": {"vocab": {}, "vocab": {}}}"#, "the key \"vocab\" twice"),
        (r#"{"model": {"vocab": {}}, "added_tokens": [{"id": 0}]}"#, "missing field"),
        (r#"{"model": {"vocab": {}}, "added_tokens": 7}"#, "is no tokenizer"),
    ] {
        refused(&[("tokenizer.json", text)], says);
    }
    for (name, text, says) in [
        ("tokenizer_config.json", "[]", "is no JSON object"),
        ("tokenizer_config.json", "{", "is no JSON"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": "a"}}"#, "no token at \"x\""),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"3": 7}}"#, "no token at \"3\""),
        ("added_tokens.json", r#"{"a": "b"}"#, "no id for \"a\""),
    ] {
        refused(&[("tokenizer.json", &good), (name, text)], says);
    }
    for name in crate::checkpoint::OTHER_VOCABULARIES {
        refused(&[(name, "")], &format!("has {name} but no tokenizer.json"));
    }
    assert!(read_files(&[("config.json", "{}")]).unwrap().is_none());
}

#[test]
fn tokens_are_added_where_none_are_listed() {
    for list in ["", "\"added_tokens\": null,", "\"added_tokens\":[],"] {
        let text = format!(
            "{{{list}\"model\":{{\"type\":\"WordLevel\",\"vocab\":{{\"?\":0}},\"unk_token\":\"?\"}}}}"
        );
        let read = tokenizer(&text);
        let merged = merge(&[Party { tokenizer: &read, rows: 1 }], 0, false, &["a", "b"]).unwrap();
        let expected = [("?", 0), ("a", 1), ("b", 2)].map(|(token, id)| (token.to_owned(), id));
        assert_eq!(vocabulary(&merged.tokenizer.unwrap()), expected.into(), "{list}");
    }
}

#[test]
fn the_number_of_rows_is_written_where_it_stands_or_where_it_belongs() {
    for (text, expected) in [
        (r#"{"vocab_size" : 5,"x":1.0}"#, r#"{"vocab_size" : 7,"x":1.0}"#),
        (
            r#"{"vocab_size":5,"text_config":{"vocab_size": 5},"padded_vocab_size":8}"#,
            r#"{"vocab_size":7,"text_config":{"vocab_size": 7},"padded_vocab_size":7}"#,
        ),
        (r#"{"x":1,"text_config":{"y":2}}"#, r#"{"x":1,"text_config":{"y":2,"vocab_size":7}}"#),
        (r#"{"x": 1}"#, r#"{"x": 1,"vocab_size": 7}"#),
    ] {
        assert_eq!(resized(text, 7), expected);
    }
}
